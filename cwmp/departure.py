"""When a worker takes no more jobs, and how long it lets those finish that run: the rules alone.

It leaves when a signal or whoever holds its leash tells it to, when its master lets it go, or when its
time runs out. The first has a grace period, the second all the time in the world.
"""

from __future__ import annotations

from typing import Optional


class Departure:
    """How one worker leaves.

    >>> departure = Departure(grace_s=25.0)
    >>> departure.let_go()
    >>> departure.under_way, departure.is_over(now=1e9)
    (True, False)
    >>> departure.tell()
    >>> departure.is_over(now=100.0), departure.is_over(now=125.0)
    (False, True)
    """

    def __init__(self, grace_s: float) -> None:
        self.under_way = False
        """Whether to take no more jobs."""
        self._grace_s = grace_s
        self._told = 0  # how often, by a signal
        self._told_at: Optional[float] = None

    def tell(self, times: int = 1) -> None:
        """Told to leave within the grace period; the second time: now. For signal handlers, too."""
        self._told += times
        self.under_way = True

    def let_go(self) -> None:
        """The master has no more use for this worker: what runs may finish, however long it takes."""
        self.under_way = True

    def is_over(self, now: float) -> bool:
        """Whether to end what still runs."""
        end = self.next_step(now)
        return end is not None and now >= end

    def next_step(self, now: float) -> Optional[float]:
        """When what still runs is to be ended; None: not before something happens."""
        if not self._told:
            return None
        if self._told > 1:
            return now
        if self._told_at is None:
            self._told_at = now
        return self._told_at + self._grace_s
