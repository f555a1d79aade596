"""When a worker takes no more jobs, and how long it lets those finish that run: the rules alone.

It leaves when a signal or whoever holds its leash tells it to, when its master lets it go, or when its
time runs out. The first has a grace period, the second all the time in the world, the third the rest of
its time but for a few seconds, in which it says what became of its jobs.
"""

from __future__ import annotations

from typing import Optional

from . import defaults


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
        self.ends_at: Optional[float] = None
        """When its time is up, if that is known; may change."""
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

    def look(self, now: float) -> None:
        """Find out whether it is time to leave."""
        if self.ends_at is not None and now >= self.ends_at - defaults.DRAIN_AHEAD_S:
            self.under_way = True

    def ends_in_s(self, now: float) -> Optional[float]:
        """How long until its time is up; None: not known, or never."""
        return None if self.ends_at is None else self.ends_at - now

    def left_s(self, now: float) -> Optional[float]:
        """How long a job may still run; None: as long as it wants."""
        return None if self.ends_at is None else self.ends_at - defaults.CUT_AHEAD_S - now

    def is_over(self, now: float) -> bool:
        """Whether to end what still runs."""
        end = self._cut_at(now)
        return end is not None and now >= end

    def next_step(self, now: float) -> Optional[float]:
        """When to leave, or after that to end what still runs; None: not before something happens."""
        if not self.under_way and self.ends_at is not None:
            return self.ends_at - defaults.DRAIN_AHEAD_S
        return self._cut_at(now)

    def _cut_at(self, now: float) -> Optional[float]:
        if self._told > 1:
            return now
        limits = [] if self.ends_at is None else [self.ends_at - defaults.CUT_AHEAD_S]
        if self._told:
            if self._told_at is None:
                self._told_at = now
            # SLURM announces the limit up to half a minute early: what fits may finish all the same.
            if self.ends_at is None or self._told_at < self.ends_at - defaults.ANNOUNCED_AHEAD_S:
                limits.append(self._told_at + self._grace_s)
        return min(limits, default=None)
