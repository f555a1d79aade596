"""How a client becomes a member of its cluster, and gets back in when its connections have broken."""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

from . import defaults, rendezvous
from .addresses import format_address
from .dial import Located, locate, reach
from .errors import ConnectError, UsageError, VersionMismatch
from .messages import this_side
from .patience import master_timeout_s, pauses
from .rendezvous import Destination
from .transfers import Transfer
from .transport import Wire, connect, introduce

log = logging.getLogger("cwmp")

Place = Union[Destination, Located]

_SAY_AFTER_S = 1.0  # a shorter absence is not worth a word


class Joined(NamedTuple):
    """A place at a master, and the two connections that it knows as ours."""

    ident: int
    place: str  # host and port of the master
    cluster: str
    nonce: str  # of the master
    store: Dict[str, Any]  # what it keeps large values in
    transfer: Transfer  # the way for those
    submit: Wire
    collect: Wire
    known: bool  # whether the master knew us when we came back
    taken: int  # and how many of our requests it had taken


class Membership:
    """One client's way to its master, and to that master's successors.

    `find` looks up where it is. `facts` are said of this client. Raises UsageError.
    """

    def __init__(self, find: Callable[[], Destination], timeout_s: float, **facts: Any) -> None:
        self._find = find
        self._facts = facts
        self.timeout_s = timeout_s
        self._given_up = threading.Event()

    def join(self) -> Joined:
        """Become a member. Raises ConnectError, WrongKey or VersionMismatch."""
        where = locate(self._find)
        return self._enter(connect(*where), where, where.host, {})

    def come_back(self, former: Joined) -> Joined:
        """Get back to the master, or to its successor. After `timeout_s` raises what went wrong last.

        MemoryError at once: it is this side's trouble.
        """
        begun = time.monotonic()
        told = False
        back = {"member": former.ident, "back": {"cluster": former.cluster, "nonce": former.nonce}}
        for pause_s in pauses():
            try:
                where = self._find()
                host, wire = reach(where, defaults.RETURN_TRY_S)
                joined = self._enter(wire, where, host, back)
            except OSError as error:  # a ConnectError, or the home directory can't be read just now
                if error.errno == errno.ENOMEM:
                    raise MemoryError(str(error)) from error
                gone_s = time.monotonic() - begun
                if isinstance(error, VersionMismatch) or gone_s + pause_s > self.timeout_s:
                    raise
                if gone_s > _SAY_AFTER_S and not told:
                    told = True
                    left_s = self.timeout_s - gone_s
                    log.warning("waiting up to %.0f s for the master at %s: %s", left_s, former.place, error)
                if self._given_up.wait(pause_s):
                    raise
            else:
                if told:
                    log.warning("back at the master at %s", joined.place)
                return joined
        raise AssertionError("pauses end")

    def pause(self, seconds: float) -> None:
        """Wait, or until we give up."""
        self._given_up.wait(seconds)

    def give_up(self) -> None:
        """Have `come_back` and `pause` return soon."""
        self._given_up.set()

    def _enter(self, first: Wire, where: Place, host: str, back: Dict[str, Any]) -> Joined:
        """Introduce ourselves, on both connections."""
        wires: List[Wire] = [first]
        hello = this_side("client", **self._facts)
        try:
            welcome = introduce(first, {**hello, **back})
            hello["member"] = welcome["member"]
            wires.append(
                connect(host, where.port, where.authkey, where.encryption, timeout_s=_timeout_s(back))
            )
            introduce(wires[1], hello)
        except (OSError, EOFError) as error:
            _close(wires)
            if isinstance(error, ConnectError):
                raise
            place = format_address(host, where.port)
            raise ConnectError(f"{place} was reached and then did not answer: {error}") from error
        except BaseException:
            _close(wires)
            raise
        wires[1].deadline(defaults.POLL_S + defaults.REPLY_S)
        return Joined(
            welcome["member"],
            format_address(host, where.port),
            welcome["name"],
            welcome["nonce"],
            welcome["store"],
            Transfer((host, where.port), where.authkey, hello, where.encryption),
            wires[0],
            wires[1],
            welcome["known"],
            welcome["taken"],
        )


def membership_of(
    host: Optional[str],
    port: Optional[int],
    authkey: Union[bytes, str, None],
    max_attempts: Optional[int],
    master_timeout: Optional[float],
) -> Membership:
    """The way to a master for a program that says so much of it. Raises UsageError."""
    if max_attempts is not None and (type(max_attempts) is not int or max_attempts < 1):
        raise UsageError(f"max_attempts must be a whole number from 1 up, or None, not {max_attempts!r}")
    facts = {} if max_attempts is None else {"max_attempts": max_attempts}
    timeout_s = master_timeout_s(master_timeout)
    return Membership(lambda: rendezvous.find(host, port, authkey=authkey), timeout_s, **facts)


def _timeout_s(back: Optional[Dict[str, Any]]) -> float:
    return defaults.RETURN_TRY_S if back else defaults.CONNECT_S + defaults.HANDSHAKE_S


def _close(wires: List[Wire]) -> None:
    for wire in wires:
        wire.close()
