"""The master's large values: the rules of `blobs` applied to the files of a shelf.

The master's loop never reads or writes the bytes themselves. Clients and workers on its machine use
the shelf directly; for others a thread moves them, see `transfers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from . import defaults, remover, shelf, transfers
from .blobs import Pins, Store
from .errors import UsageError
from .messages import GRANTED, Ref
from .server import RECEIPT, STANDING, Peer

log = logging.getLogger("cwmp.master")

Notify = Callable[[int, Tuple[int, int, Any]], None]
"""Gives a client an event."""


class Depot:
    """What is registered as `BlobStore`, and what the broker and the master ask for blobs.

    `directory` is where to make the shelf, `limit` how many bytes it may hold; both have defaults from
    what the machine has. A shelf of the same `mark` whose master was killed is taken over with all that its
    members may still name.
    """

    exposed = ("offer", "transfer")

    def __init__(self, directory: Optional[str], limit: Optional[int], notify: Notify, mark: str) -> None:
        self.on_offer: Callable[[int], None] = lambda client: None
        inherited = shelf.inherit(directory, mark)
        for path in shelf.sweep():
            log.info("removed %s, which a master or worker that was killed had left", path)
        self.shelf = inherited or shelf.Shelf(directory, mark)
        # What our predecessor kept, and nobody has claimed yet: name and size.
        self._unclaimed = {} if inherited is None else shelf.sizes(self.shelf.path)
        self.store = Store(limit if limit is not None else shelf.default_limit(self.shelf.path))
        self._kept: List[Pins] = []  # of results that our predecessor had, too
        self._notify = notify
        self._arrived: Set[str] = set()  # those of them that are not named by their bytes
        self._ages = shelf.Ages()
        self._next_look = time.monotonic() + defaults.LEFTOVER_S
        self._transfers = transfers.Server(self.shelf.path)
        self._remover = remover.Remover(self.shelf.path)

    def __str__(self) -> str:
        return f"keeping up to {self.store.limit / 2**30:.1f} GiB of large values in {self.shelf.path}"

    # --- calls of peers ----------------------------------------------------------------------

    def offer(
        self,
        peer: Peer,
        client: int,
        arrivals: List[Tuple[str, str, int]],
        released: List[str],
        forgotten: List[str],
        prompt: bool = False,
    ) -> Any:
        """A client has brought blobs, and needs others no more; returns those that it has yet to bring.

        An arrival is (name it was written under, name, size); the first is "" where it only asks.
        """
        if peer.member != ("client", client):
            raise UsageError(f"this connection is not one of client {client!r}")
        self.on_offer(client)
        missing = []
        for staged, name, size in arrivals:
            shelf.check_name(name)
            with self._claimed(((name, size),)):
                if not staged:
                    here = self.store.hold(client, name, size)
                elif name != staged and name in self.store and not self._is_brought(staged, size):
                    here = not self.store.arrive(client, name, size)  # our predecessor had taken it in
                else:
                    here = self._take_in(client, staged, name, size)
            if not here:
                missing.append(name)
        self.store.release(client, released)
        self.store.release(client, forgotten, forget=True)
        return missing if prompt else RECEIPT

    def _take_in(self, client: int, staged: str, name: str, size: int) -> bool:
        """Give the file that a client has brought its name."""
        if not shelf.check_name(staged).startswith(f"c{client}."):
            raise UsageError(f"client {client} cannot bring {staged!r}")
        self.purge()  # or a file that comes again would be removed for its predecessor
        self._unclaimed.pop(staged, None)
        self._unclaimed.pop(name, None)
        if not self._is_brought(staged, size):
            log.warning("client %s announced a large value that is not there", client)
            return False
        if name == staged:
            self.store.arrive(client, name, size, named=False)
            self._arrived.add(name)
        elif self.store.arrive(client, name, size):
            os.rename(os.path.join(self.shelf.path, staged), os.path.join(self.shelf.path, name))
        else:
            shelf.remove(self.shelf.path, [staged])
        return True

    def _is_brought(self, staged: str, size: int) -> bool:
        """Whether a client has written this file."""
        return shelf.size_of(self.shelf.path, shelf.check_name(staged)) == size

    def transfer(self, peer: Peer) -> Any:
        """From now on this connection carries bytes: a thread of its own serves it."""
        if peer.member is None:
            raise UsageError("only members can transfer large values")
        role, ident = peer.member
        peer.member = None  # its end is not that of the member
        self._transfers.serve(peer.detach(), f"{role[0]}{ident}.")
        return STANDING

    # --- for the broker ----------------------------------------------------------------------

    def pin(self, refs: Any) -> Optional[Pins]:
        """Keep these for as long as what is returned exists; None if one is not here."""
        with self._claimed(_checked(refs)):
            return self.store.pin(refs)

    def bring_result(self, worker: int, refs: Any) -> Optional[List[Pins]]:
        """Take in the large parts of a result; None if one is not here."""
        pins = []
        for name, size in _checked(refs):
            if not name.startswith(f"w{worker}.") or shelf.size_of(self.shelf.path, name) != size:
                log.warning("worker %s reported a large value that is not there", worker)
                return None
            pins.append(self.store.bring_result((name, size)))
            self._arrived.add(name)
            if self._unclaimed.pop(name, None) is not None:
                self._kept.append(pins[-1])  # its client may have heard of it, and be fetching it right now
        return pins

    @contextlib.contextmanager
    def _claimed(self, refs: Tuple[Ref, ...]) -> Iterator[None]:
        """Somebody is about to need these: what our predecessor kept of them is ours meanwhile."""
        pins = []
        for name, size in refs if self._unclaimed else ():
            if self._unclaimed.get(name) == size:
                del self._unclaimed[name]
                pins.append(self.store.inherit((name, size), named=shelf.is_digest(name)))
                if not shelf.is_digest(name):
                    self._arrived.add(name)
        yield

    # --- now and then ------------------------------------------------------------------------

    def purge(self) -> None:
        """Remove what is not needed any more, and tell clients of the room."""
        doomed, self.store.doomed = self.store.doomed, []
        if doomed:
            self._remover.remove(doomed)
            self._arrived.difference_update(doomed)
        room: Dict[int, int] = {}
        for client, size in self.store.granted():
            room[client] = room.get(client, 0) + size
        for client, size in room.items():
            self._notify(client, (0, GRANTED, [size]))

    def forgotten(self) -> List[str]:
        """The blobs that nobody should keep a copy of any longer."""
        names, self.store.forgotten = self.store.forgotten, []
        return names

    def leave(self, role: str, ident: int) -> None:
        """A member is gone: so is what it had begun to bring."""
        if role == "client":
            self.store.leave(ident)
        begun = shelf.begun_by(self.shelf.path, f"{role[0]}{ident}.")
        kept = self._arrived | self._unclaimed.keys()
        shelf.remove(self.shelf.path, [name for name in begun if name not in kept])

    def look_for_leftovers(self, now: float) -> None:
        """Remove files that were begun long ago and never announced: who wrote them has failed."""
        if now < self._next_look:
            return
        self._next_look = now + defaults.LEFTOVER_S
        shelf.remove(self.shelf.path, self._unclaimed)
        self._unclaimed.clear()
        self._kept.clear()
        names = [
            name
            for name in shelf.begun_by(self.shelf.path, "")
            if name not in self.store and name[0] in "cw" and not shelf.is_digest(name)
        ]
        ages = self._ages.look(self.shelf.path, names, now)
        shelf.remove(self.shelf.path, [name for name, age_s in ages.items() if age_s >= defaults.LEFTOVER_S])

    def facts(self) -> Dict[str, Any]:
        """What members are told when they join."""
        return {**self.shelf.facts(), "limit": self.store.limit}

    def status(self) -> Dict[str, Any]:
        """The state as plain values."""
        store = self.store
        sizes = {"bytes": store.used, "idle": store.idle, "limit": store.limit}
        return {"count": len(store), **sizes, "directory": self.shelf.path}

    def close(self) -> None:
        """Remove everything."""
        self._transfers.close()
        self._remover.close()
        self.shelf.close()


def mark_of(name: str, authkey: bytes, place: str) -> str:
    """What a master of this cluster that was started anew knows its predecessor's shelf by.

    Of one name, one user and one key there may be several: no other of them may have the same `place`.
    """
    return hmac.new(authkey, os.fsencode(f"shelf of {name}\n{place}"), hashlib.sha256).hexdigest()


def _checked(refs: Any) -> Tuple[Ref, ...]:
    """The refs, if they are what the protocol says. Raises UsageError."""
    if type(refs) is not tuple:
        raise UsageError("large values are named by a tuple of (name, size)")
    for ref in refs:
        if type(ref) is not tuple or len(ref) != 2 or type(ref[0]) is not str or type(ref[1]) is not int:
            raise UsageError("a large value is named by (name, size)")
        shelf.check_name(ref[0])
    return refs
