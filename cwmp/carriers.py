"""How a client's large values get to the master's shelf, and results from there.

On the master's machine the shelf is used as it is. From elsewhere the bytes travel over connections of
their own, and only those that the master does not have.
"""

from __future__ import annotations

import contextlib
import os
import threading
from itertools import count
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple, TypeVar, Union

from . import defaults, packing, shelf
from .errors import BlobLost, ConnectError, MasterLost, PayloadError
from .messages import Ref
from .patience import pauses
from .transfers import Damaged, Transfer

_T = TypeVar("_T")

_MAPPED_BYTES = 4 << 20  # parts of results at least so large are mapped, others copied: a map costs a file

Arrival = Tuple[str, str, int]
"""(name it was written under, name, size)"""

Brought = Tuple[str, Optional[memoryview], Optional[str]]
"""The name of bytes, their map if one was made, and as which file they have yet to be offered, if so."""


class Carrier(Protocol):
    """The way of one client."""

    def bring(self, staged: str, pieces: Sequence[packing.Buffer], named: bool) -> Brought:
        """Bring these bytes to the shelf, as the file `staged` if they are not there.

        `named`: others may look for them by their digest.
        """

    def view(self, ref: Ref) -> Optional[memoryview]:
        """The bytes that were brought, where they can be seen."""

    def fetch(self, ref: Ref, lasting: bool) -> Union[memoryview, packing.Source]:
        """The bytes of a blob, as `packing.Fetch`; they may be written to. Raises BlobLost."""

    def leads_to(self, store: Dict[str, Any]) -> bool:
        """Whether this is the way to what a master tells of."""

    def go_to(self, transfer: Transfer) -> None:
        """The master is elsewhere now."""

    def close(self) -> None:
        """Hang up."""

    def abandon(self) -> None:
        """This process is a copy of the one that has the session."""


def carrier_to(store: Dict[str, Any], transfer: Transfer, offer: Callable[..., None]) -> Carrier:
    """The best way to the shelf that the master tells of."""
    directory = shelf.reachable(store)
    return LocalCarrier(directory) if directory is not None else RemoteCarrier(transfer, offer)


class LocalCarrier:
    """Uses the shelf as it is."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._stay = shelf.Stay(directory)

    def bring(self, staged: str, pieces: Sequence[packing.Buffer], named: bool) -> Brought:
        """Write them. The digest is that of the file: somebody may change the pieces meanwhile."""
        try:
            size = shelf.write(self._directory, staged, pieces)
        except OSError as error:
            if not os.path.isdir(self._directory):
                raise MasterLost(f"{self._directory} has been removed: the master is gone") from error
            where = f"{self._directory}: {error.strerror}"
            raise PayloadError(f"a large value cannot be written to {where}") from error
        if not named and size < defaults.NAMED_FROM:
            return staged, None, staged
        mapped = shelf.view(self._directory, (staged, size))
        return shelf.digest_of(mapped), mapped, staged

    def view(self, ref: Ref) -> Optional[memoryview]:
        """Map them."""
        with contextlib.suppress(BlobLost):
            return shelf.view(self._directory, ref)
        return None

    def fetch(self, ref: Ref, lasting: bool) -> Union[memoryview, packing.Source]:
        """Map or copy them; what is changed there is changed for nobody else."""
        if not lasting:
            return shelf.Source(self._directory, ref)
        if ref[1] < _MAPPED_BYTES:
            return shelf.read(self._directory, ref)
        return shelf.view(self._directory, ref, private=True)

    def leads_to(self, store: Dict[str, Any]) -> bool:
        """Whether they are the master's."""
        return shelf.reachable(store) == self._directory

    def go_to(self, transfer: Transfer) -> None:
        """The files are where they were."""

    def close(self) -> None:
        """We need the shelf no longer. If the master was killed, who else would remove it."""
        self._stay.end()

    def abandon(self) -> None:
        """It is the other process that stays."""
        self._stay.forget()


class RemoteCarrier:
    """Sends and receives."""

    def __init__(self, transfer: Transfer, offer: Callable[..., None]) -> None:
        self._outward = transfer
        self._inward = transfer.another()
        self._offer = offer
        self._sending = threading.Lock()  # one upload at a time
        self._receiving = threading.Lock()
        self._closed = threading.Event()

    def bring(self, staged: str, pieces: Sequence[packing.Buffer], named: bool) -> Brought:
        """Send them, unless the master has them; once more if they arrive damaged."""
        name = shelf.digest_of_all(pieces)
        if self._is_there(name, sum(memoryview(piece).nbytes for piece in pieces)):
            return name, None, None
        tries = count(1)

        def send() -> Brought:
            # Each time under another name: the master may not have noticed yet that the last one broke off.
            again = f"{staged}.{next(tries)}"
            return self._outward.put(again, pieces), None, again

        with self._sending:
            try:
                return self._persistently(send)
            except Damaged as error:
                raise PayloadError(f"a large value could not be sent, twice: {error}") from error
            except ConnectError as error:
                raise MasterLost(f"a large value could not be sent: {error}") from error

    def view(self, ref: Ref) -> Optional[memoryview]:
        """They are elsewhere."""
        return None

    def _is_there(self, name: str, size: int) -> bool:
        """Whether the master has these bytes; from now on it holds them for us."""
        answers: List[Any] = []
        answered = threading.Event()

        def on_reply(missing: Any) -> None:
            answers.append(missing)
            answered.set()

        self._offer([("", name, size)], [], [], on_reply=on_reply)
        answered.wait()
        return bool(answers[0] == [])

    def fetch(self, ref: Ref, lasting: bool) -> Union[memoryview, packing.Source]:
        """Receive them; once more if they arrive damaged."""
        with self._receiving:
            try:
                return self._persistently(lambda: self._receive(ref))
            except (Damaged, ConnectError) as error:
                raise BlobLost(f"a large part of the result could not be fetched, twice: {error}") from error

    def _persistently(self, attempt: Callable[[], _T]) -> _T:
        """Damage is an error the second time; a broken connection is, when there is no way back."""
        damaged = False
        for pause_s in pauses():
            try:
                return attempt()
            except Damaged:
                if damaged:
                    raise
                damaged = True
            except ConnectError:
                if self._closed.wait(pause_s):
                    raise
        raise AssertionError("pauses end")

    def _receive(self, ref: Ref) -> memoryview:
        data = memoryview(bytearray(ref[1]))
        at = 0

        def take(piece: memoryview) -> None:
            nonlocal at
            data[at : at + len(piece)] = piece
            at += len(piece)

        self._inward.get(ref, take)
        return data

    def leads_to(self, store: Dict[str, Any]) -> bool:
        """Whether there is no shorter one."""
        return shelf.reachable(store) is None

    def go_to(self, transfer: Transfer) -> None:
        """Connect there from now on."""
        self._outward.go_to(transfer)
        self._inward.go_to(transfer)

    def close(self) -> None:
        """Hang up."""
        self._closed.set()
        self._outward.close()
        self._inward.close()

    def abandon(self) -> None:
        """The connections are the other process's."""
