"""What a node away from the master's machine keeps of large values: each is fetched once for all slots.

A lease that refers to blobs waits here until they have arrived; small jobs pass it by. A result with
large parts waits here until they have been brought to the master. Pins and the limit follow the rules
of `blobs`.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from . import payload, shelf
from .blobs import Pins, Store
from .errors import BlobLost
from .messages import ERROR, Lease, Outcome, Ref
from .porter import BRING, FETCH, OnDone, Porter
from .transfers import Transfer

_US = 0  # who holds a blob between its arrival and the first lease that needs it

Carry = Callable[[OnDone], Porter]
"""Makes a porter, given whom to tell of its errands."""


class Place(NamedTuple):
    """Where a node keeps large values, and how many bytes; None: what `shelf` finds right.

    Without a directory the master's shelf serves if this is the master's machine.
    """

    directory: Optional[str] = None
    limit: Optional[int] = None


class _Waiting(NamedTuple):
    """A lease whose blobs are on their way."""

    lease: Lease
    missing: Set[str]


class _Leaving(NamedTuple):
    """A result whose large parts are on their way."""

    outcome: Outcome
    missing: Set[str]


class Larder:
    """The large values of one node.

    `on_leases` gets leases when they can run, `on_outcomes` outcomes when they can be reported.
    """

    def __init__(
        self,
        place: shelf.Shelf,
        limit: int,
        carry: Carry,
        on_leases: Callable[[List[Lease]], None],
        on_outcomes: Callable[[List[Outcome]], None],
    ) -> None:
        self._shelf = place
        self._store = Store(limit)
        self._porter = carry(self._on_done)
        self._on_leases = on_leases
        self._on_outcomes = on_outcomes
        self._waiting: Dict[int, _Waiting] = {}  # by ticket
        self._fetching: Dict[str, int] = {}  # and their sizes
        self._held: Set[str] = set()  # what has arrived, while leases wait that need it
        self._leaving: Dict[int, _Leaving] = {}  # by ticket
        self._pins: Dict[int, Pins] = {}  # by ticket

    def __str__(self) -> str:
        return f"keeping up to {self._store.limit / 2**30:.1f} GiB of large values in {self._shelf.path}"

    @property
    def directory(self) -> str:
        """Where they are."""
        return self._shelf.path

    def __len__(self) -> int:
        """How many leases wait."""
        return len(self._waiting)

    def tickets(self) -> List[int]:
        """Of all leases and results that wait here."""
        return [*self._waiting, *self._leaving]

    def carry_for(self, transfer: Transfer) -> None:
        """From now on large values come from, and go to, another master."""
        self._porter.go_to(transfer)

    @property
    def leaving(self) -> int:
        """How many results are on their way to the master."""
        return len(self._leaving)

    # --- leases ------------------------------------------------------------------------------

    def admit(self, leases: Sequence[Lease]) -> List[Lease]:
        """Those that can run now; the others come through `on_leases`."""
        ready = []
        for lease in leases:
            refs = _refs_of(lease)
            if not refs or self._pin(lease[0], refs):
                ready.append(lease)
                continue
            missing = {name for name, _ in refs if name not in self._store}
            self._waiting[lease[0]] = _Waiting(lease, missing)
            for name, size in refs:
                if name in missing and name not in self._fetching:
                    self._fetching[name] = size
                    self._porter.send(FETCH, (name, size))
        return ready

    def _pin(self, ticket: int, refs: Tuple[Ref, ...]) -> bool:
        pins = self._store.pin(refs)
        if pins is not None:
            self._pins[ticket] = pins
        return pins is not None

    def done(self, tickets: Sequence[int]) -> None:
        """These attempts are over, or were given back."""
        if self._pins:
            for ticket in tickets:
                self._pins.pop(ticket, None)
            self._purge()

    def give_back(self) -> List[int]:
        """The tickets of all leases that wait; they wait no more."""
        tickets = list(self._waiting)
        self._waiting.clear()
        self._let_go()
        return tickets

    def forget(self, names: Sequence[str]) -> None:
        """Keep these no longer than leases need them."""
        for name in names:
            self._store.forget(name)
        self._purge()

    # --- outcomes ----------------------------------------------------------------------------

    def send_off(self, outcomes: List[Outcome]) -> List[Outcome]:
        """Those that can be reported now; the others come through `on_outcomes`."""
        self.done([outcome[0] for outcome in outcomes])
        ready = []
        for outcome in outcomes:
            refs = _refs(outcome[2])
            if not refs:
                ready.append(outcome)
                continue
            self._leaving[outcome[0]] = _Leaving(outcome, {name for name, _ in refs})
            for ref in refs:
                self._porter.send(BRING, ref)
        return ready

    # --- the porter --------------------------------------------------------------------------

    def _on_done(self, kind: str, name: str, error: Optional[str]) -> None:
        if kind == FETCH:
            self._on_fetched(name, self._fetching.pop(name), error)
        else:
            self._on_brought(name, error)

    def _on_fetched(self, name: str, size: int, error: Optional[str]) -> None:
        if error is None:
            self._store.arrive(_US, name, size, named=shelf.is_digest(name))
            self._store.granted()  # nobody here waits for room
            self._held.add(name)
        ready: List[Lease] = []
        failed: List[Outcome] = []
        for ticket, (lease, missing) in list(self._waiting.items()):
            if name not in missing:
                continue
            missing.discard(name)
            if error is not None:
                del self._waiting[ticket]
                text = f"a large value of {size} bytes could not be fetched, twice: {error}"
                failed.append((ticket, ERROR, payload.dump_error(BlobLost(text))))
            elif not missing:
                del self._waiting[ticket]
                ready += self.admit([lease])  # again: another of its blobs may have been evicted since
        self._let_go()
        if failed:
            self._on_outcomes(failed)
        if ready:
            self._on_leases(ready)

    def _on_brought(self, name: str, error: Optional[str]) -> None:
        for ticket, (outcome, missing) in list(self._leaving.items()):
            if name not in missing:
                continue
            missing.discard(name)
            if error is not None:
                text = f"a large part of the result could not be sent, twice: {error}"
                outcome = (ticket, ERROR, payload.dump_error(BlobLost(text)))
                shelf.remove(self._shelf.path, missing)
                missing.clear()
            if not missing:
                del self._leaving[ticket]
                self._on_outcomes([outcome])

    def _let_go(self) -> None:
        """Hold what has arrived only while a lease waits that needs it, and perhaps more."""
        needed = {ref[0] for entry in self._waiting.values() for ref in _refs_of(entry.lease)}
        gone = self._held - needed
        self._held -= gone
        self._store.release(_US, gone)
        self._purge()

    def _purge(self) -> None:
        doomed, self._store.doomed = self._store.doomed, []
        self._store.forgotten.clear()
        if doomed:
            shelf.remove(self._shelf.path, doomed)

    def status(self) -> Dict[str, Any]:
        """The state as plain values."""
        return {"count": len(self._store), "bytes": self._store.used, "limit": self._store.limit}

    def close(self) -> None:
        """Remove everything."""
        self._porter.close()
        self._shelf.close()


def _refs_of(lease: Lease) -> Tuple[Ref, ...]:
    return _refs(lease[2]) + _refs(lease[3])


def _refs(packed: Any) -> Tuple[Ref, ...]:
    return packed[1] if type(packed) is tuple else ()
