"""Who has joined a master, over which connections, and who is away and may come back.

A member has several connections. When one of them breaks the others are closed, too, and the member is
*away*: it may come back for a while, and go on as if nothing had happened. After that it is given up.
"""

from __future__ import annotations

import errno
import logging
import os
import weakref
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from . import defaults
from .broker import Broker
from .errors import ConnectError, MasterLost, UnknownMember, UsageError, VersionMismatch
from .hearsay import whole_number
from .messages import PROTOCOL, Held, python_minor, refusal, said_of_itself
from .server import Peer

log = logging.getLogger("cwmp.master")

CLIENT = "client"
WORKER = "worker"

Member = Tuple[str, int]
"""(role, id)"""

_UNREACHABLE = [os.strerror(number) for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)]
"""How a connection breaks with the network; in all other ways its other end may have ended it."""


_REMEMBERED = 1000  # members that were dismissed


class _Away(NamedTuple):
    """A member without connections."""

    until: float
    reason: str


class Members:
    """The members of one master: `name` and `nonce` are the master's own.

    `on_away(member)` is called when a member has lost its connections, `on_gone(member, reason)` when it is
    one no longer; the reason is None for who has said goodbye.
    """

    def __init__(self, broker: Broker, name: str, nonce: str, clock: Callable[[], float]) -> None:
        self.on_away: Callable[[Member], None] = lambda member: None
        self.on_gone: Callable[[Member, Optional[str]], None] = lambda member, reason: None
        self._broker = broker
        self._name = name
        self._nonce = nonce
        self._clock = clock
        self._started = clock()
        self._peers: Dict[Member, weakref.WeakSet[Peer]] = {}
        self._away: Dict[Member, _Away] = {}
        self._dismissed: Dict[Member, str] = {}  # why
        self._held_off: Set[int] = set()  # clients of our predecessor, until workers had time to come
        self._offers_stand = True

    # --- coming ------------------------------------------------------------------------------

    def join(self, peer: Peer, hello: Dict[str, Any]) -> Dict[str, Any]:
        """Take in a client or worker, a further connection of one, or one that comes back.

        Returns the welcome. Raises VersionMismatch, UsageError, UnknownMember, ConnectError, and MasterLost
        for who was dismissed.
        """
        why = refusal({"protocol": PROTOCOL, "python": python_minor()}, hello)
        if why:
            log.warning("%s refused: %s", peer.name, why)
            raise VersionMismatch(why)
        role, ident, back = hello.get("role"), hello.get("member"), hello.get("back")
        if role not in (CLIENT, WORKER) or type(ident) not in (int, type(None)):
            raise UsageError(f"nobody can join as {role!r} {ident!r}")
        facts: Dict[str, Any] = {"node": str(hello.get("node")), **said_of_itself(hello)}
        if role == WORKER and facts.get("slots", 0) < 1:
            raise UsageError("a worker needs at least one slot")
        if facts.get("max_attempts", 1) < 1:
            raise UsageError("a job needs at least one attempt")
        known, taken = True, 0
        if ident is None:
            ident = self._take_in(role, facts, None)
        elif back is not None:
            known, ident, taken = self._come_back(peer, (role, ident), facts, _Back(back))
        elif (role, ident) not in self._peers:
            raise UnknownMember(f"no {role} {ident} is here: it never joined, or was given up")
        if peer.member is not None:  # a plain BaseManager has one connection for all that it does
            peer.former.append(peer.member)
        peer.member = (role, ident)
        self._peers[peer.member].add(peer)
        return {"member": ident, "name": self._name, "nonce": self._nonce, "known": known, "taken": taken}

    def member_of(self, peer: Peer) -> Member:
        """Who is at the other end. Raises UnknownMember."""
        if peer.member is None:
            raise UnknownMember("this connection is no member's")
        return peer.member

    def _take_in(self, role: str, facts: Dict[str, Any], ident: Optional[int]) -> int:
        """A new member; returns its id, which is `ident` if nobody has that."""
        if role == WORKER:
            ident = self._broker.join_worker(facts, self._clock(), ident)
        else:
            ident = self._broker.join_client(facts, ident)
        self._peers[role, ident] = weakref.WeakSet()
        return ident

    def _come_back(
        self, peer: Peer, member: Member, facts: Dict[str, Any], back: _Back
    ) -> Tuple[bool, int, int]:
        """A member is here again, or one of our predecessor; (whether it was known, its id, `taken`)."""
        if back.cluster != self._name:
            raise ConnectError(f"cluster {self._name!r} answers where cluster {back.cluster!r} was")
        role, ident = member
        if back.nonce == self._nonce and member in self._dismissed:
            raise MasterLost(self._dismissed[member])
        if back.nonce == self._nonce and member in self._peers:
            self._close(other for other in self._peers[member] if other is not peer)
            self._away.pop(member, None)
            if role == CLIENT:
                return True, ident, self._broker.client_back(ident)
            self._broker.heard(ident, self._clock())
            return True, ident, self._broker.worker_back(ident, {ticket for ticket, _, _ in back.holding})
        ident = self._take_in(role, facts, ident)
        if role == WORKER:
            self._broker.offer(ident, back.holding, clients_may_come=self._offers_stand)
        elif self._clock() < self._started + defaults.HOLD_OFF_S:
            self._broker.client_away(ident)
            self._held_off.add(ident)
        return False, ident, 0

    # --- going -------------------------------------------------------------------------------

    def lose(self, peer: Peer, reason: str) -> None:
        """A connection has ended. A goodbye that came over another one of the same member counts."""
        members = [member for member in (*peer.former, peer.member) if member is not None]
        peer.former, peer.member = [], None
        try:
            for other in [other for member in members for other in self._peers.get(member, ())]:
                other.hear_out()
        finally:
            for member in members:
                self._miss(member, reason)

    def _miss(self, member: Member, reason: str) -> None:
        """A member that has lost a connection is away, unless it has left."""
        if member in self._peers and member not in self._away:
            until = self._clock() + _patience_s(member[0], reason)
            self._away[member] = _Away(until, f"connection {reason}")
            if member[0] == CLIENT:
                self._broker.client_away(member[1])
            self._close(self._peers[member])
            self.on_away(member)

    def part(self, member: Member, reason: Optional[str]) -> None:
        """A member says goodbye, or is given up for a reason."""
        if member in self._peers:
            peers = list(self._peers.pop(member))
            for peer in peers:
                peer.member = None if peer.member == member else peer.member
                peer.former = [former for former in peer.former if former != member]
            if reason is not None:
                self._close(peers)
            self._away.pop(member, None)
            self._held_off.discard(member[1])
            self.on_gone(member, reason)

    def tend(self, now: float) -> None:
        """Give up who was away for too long; let those go on who had to wait."""
        for member, away in [(m, a) for m, a in self._away.items() if a.until <= now]:
            self.part(member, away.reason)
        if self._held_off and now >= self._started + defaults.HOLD_OFF_S:
            for ident in self._held_off:
                if (CLIENT, ident) not in self._away:
                    self._broker.client_back(ident)
            self._held_off.clear()
        if self._offers_stand and now >= self._started + defaults.OFFER_S:
            self._offers_stand = False
            self._broker.forget_offers()

    def dismiss(self, member: Member, why: str) -> None:
        """Give up a member, and tell it why when it comes back."""
        self._dismissed[member] = why
        if len(self._dismissed) > _REMEMBERED:
            del self._dismissed[next(iter(self._dismissed))]
        self.part(member, why)

    def call_back(self) -> None:
        """Close all connections: who comes back says what it has, and sends again what was not taken."""
        for peers in list(self._peers.values()):
            self._close(peers)

    def say_goodbye(self, reason: str) -> None:
        """Tell all members that there is nothing to wait for."""
        for peer in [peer for peers in self._peers.values() for peer in peers]:
            peer.fail(MasterLost(reason))

    def _close(self, peers: Iterable[Peer]) -> None:
        """Close connections. A plain BaseManager may have others of its members on the same one."""
        closed = list(peers)
        for peer in closed:
            peer.close()  # all of them first: none is listened to any more
        for peer in closed:
            self.lose(peer, "closed with that of another member")


class _Back:
    """What a member says that comes back. Raises UsageError."""

    def __init__(self, said: Any) -> None:
        if type(said) is not dict:
            raise UsageError("who comes back says where it was")
        self.cluster = said.get("cluster")
        self.nonce = said.get("nonce")
        self.holding: List[Held] = [_held(entry) for entry in said.get("holding", ())]


def _held(entry: Any) -> Held:
    """One lease that a worker says it holds. Raises UsageError."""
    if type(entry) is not tuple or len(entry) != 3:
        raise UsageError("what a worker holds is a tuple of three")
    ticket, origin, attempt = entry
    if origin is not None:
        if type(origin) is not tuple or len(origin) != 2:
            raise UsageError("a job is named by its client and its number")
        origin = whole_number(origin[0]), whole_number(origin[1])
    return whole_number(ticket), origin, whole_number(attempt)


def _patience_s(role: str, reason: str) -> float:
    """How long a member may be away."""
    if role == WORKER:
        return defaults.WORKER_AWAY_S
    return defaults.CLIENT_UNREACHABLE_S if reason in _UNREACHABLE else defaults.CLIENT_AWAY_S
