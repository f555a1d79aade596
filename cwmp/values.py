"""How one worker gets at large values: on the master's machine where they are, elsewhere through a larder."""

from __future__ import annotations

from typing import Callable, List, Optional, Sequence

from . import shelf
from .joining import Joined
from .larder import Larder, Place
from .loop import Loop
from .messages import Lease, Outcome
from .pool import Pool
from .porter import OnDone, Porter


class Values:
    """The large values of one worker.

    `on_leases` gets leases that had to wait for theirs, `on_outcomes` outcomes that had to.
    """

    def __init__(
        self,
        place: Place,
        loop: Loop,
        pool: Pool,
        say: Callable[[str], None],
        on_leases: Callable[[Sequence[Lease]], None],
        on_outcomes: Callable[[List[Outcome]], None],
    ) -> None:
        self._place = place
        self._loop = loop
        self._pool = pool
        self._say = say
        self._on_leases = on_leases
        self._on_outcomes = on_outcomes
        self._larder: Optional[Larder] = None  # where the master's shelf can't be used
        self._stay: Optional[shelf.Stay] = None  # at the master's shelf, where it can

    def settle(self, joined: Joined, former: Optional[Joined]) -> None:
        """We are at a master now: find its large values, unless that is where the `former` one had them."""
        if former is not None and _same_place(joined, former):
            return
        if self._larder is not None:
            self._larder.carry_for(joined.transfer)
            directory = self._larder.directory
        else:
            directory = self._find(joined)
        self._pool.guardian.sweep(directory)
        self._pool.use_shelf(directory, f"w{joined.ident}.")

    def _find(self, joined: Joined) -> str:
        """The master's shelf if we can use it, else one of our own."""
        if self._stay is not None:
            self._stay.end()
            self._stay = None
        directory = shelf.reachable(joined.store) if self._place.directory is None else None
        if directory is None:
            return self._open_larder(joined).directory
        self._stay = shelf.Stay(directory)
        return directory

    def _open_larder(self, joined: Joined) -> Larder:
        own = shelf.Shelf(self._place.directory)

        def carry(on_done: OnDone) -> Porter:
            return Porter(self._loop, self._pool.guardian, own.path, joined.transfer, on_done)

        limit = self._place.limit or shelf.default_limit(own.path)
        self._larder = Larder(own, limit, carry, self._on_leases, self._on_outcomes)
        self._say(str(self._larder))
        return self._larder

    @property
    def waiting(self) -> int:
        """Leases that wait for their values."""
        return 0 if self._larder is None else len(self._larder)

    @property
    def leaving(self) -> int:
        """Results that are on their way to the master."""
        return 0 if self._larder is None else self._larder.leaving

    def tickets(self) -> List[int]:
        """Of all these."""
        return [] if self._larder is None else self._larder.tickets()

    def admit(self, leases: List[Lease]) -> List[Lease]:
        """Those that can run now."""
        return leases if self._larder is None else self._larder.admit(leases)

    def send_off(self, outcomes: List[Outcome]) -> List[Outcome]:
        """Those that can be reported now."""
        return outcomes if self._larder is None else self._larder.send_off(outcomes)

    def done(self, tickets: Sequence[int]) -> None:
        """These attempts are over, or were given back."""
        if self._larder is not None:
            self._larder.done(tickets)

    def give_back(self) -> List[int]:
        """The tickets of all leases that wait; they wait no more."""
        return [] if self._larder is None else self._larder.give_back()

    def forget(self, names: List[str]) -> None:
        """Shared values that are needed no more."""
        self._pool.tell({"forget": names})
        if self._larder is not None:
            self._larder.forget(names)

    def close(self) -> None:
        """Remove what was kept; the master's own only if it was killed and nobody else needs it."""
        if self._larder is not None:
            self._larder.close()
        if self._stay is not None:
            self._stay.end()


def _same_place(joined: Joined, former: Joined) -> bool:
    """Whether nothing has changed that matters for large values."""
    return (joined.ident, joined.store, joined.place) == (former.ident, former.store, former.place)
