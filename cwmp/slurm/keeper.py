"""What `cwmp-slurm keep` decides from what it sees. Pure rules: no clock, command or thread inside.

A pool is a row of *seats*. Each is held by one SLURM job (an array element, here a *member*) at a time;
a seat whose member ended is filled again, later and later if its members die young, and is given up
when three in a row did. A look is `Keeper.decide(sight, bounds, now)`; what the keeper remembers from one
look to the next it has from what it saw, so a submission that failed or another hand that scales the
pool cannot confuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Dict, List, Optional, Set, Tuple

from .seats import COMPLETING, LOST, YOUNG_S, Member, Seat, how_it_ended

TRIES = 3
"""Members of one seat that die young in a row, through their own fault, before the seat is given up."""

GROW_S = 5.0
"""How long the queue must call for more workers before any is submitted: a burst of tiny jobs needs none."""

IDLE_S = 60.0
"""How long a worker must have had nothing to do before it is let go. Smaller: workers come and go with
each pause of a program. Larger: idle cores are paid for."""

LOST_S = 10.0
"""How long a worker that had joined may be missing at the master before another takes its seat, and it is
cancelled: SLURM itself notices after minutes that a node is gone. Longer than a worker takes to come back."""

ALL_LOST_S = 60.0
"""The same where none is left: then it may well be the master that was begun again, and they will find it."""

JOIN_S = 600.0
"""How long a worker may run without joining before it is cancelled. Longer than it looks for its master, and
than what --setup may take."""

BAD_NODE = 2
"""Young deaths on one node, while workers elsewhere are well, after which submissions avoid the node."""


@dataclass(frozen=True)
class Sight:
    """One look at everything. `jobs` counts those queued and running at the master."""

    members: Tuple[Member, ...]
    jobs: Optional[int] = None  # None: the master was not reached
    slots: int = 1  # of one worker
    master_waits: bool = False  # SLURM says that the master is not running yet, or not again yet


@dataclass(frozen=True)
class Bounds:
    """How many workers there shall be; the same number twice is a pool of a fixed size."""

    least: int
    most: int

    def fit(self, count: int) -> int:
        """The number within the bounds that is nearest to `count`."""
        return max(self.least, min(self.most, count))


@dataclass(frozen=True)
class GivenUp:
    """A seat that will not be filled again, and the last of its members."""

    member: Member
    tries: int

    def __str__(self) -> str:
        times = "died young" if self.tries == 1 else f"{self.tries} in a row died young"
        return f"worker {self.member.job} is not replaced any more, {times}: {how_it_ended(self.member)}"


@dataclass(frozen=True)
class Decision:
    """What to do now."""

    submit: int = 0
    avoid: Tuple[str, ...] = ()  # nodes on which submitted workers should not start
    drain: Tuple[str, ...] = ()  # members that have had no work for a while
    cancel: Tuple[str, ...] = ()  # members that have not started
    kill: Tuple[str, ...] = ()  # members that are lost
    given_up: Tuple[GivenUp, ...] = ()
    hopeless: bool = False  # every seat has been given up
    notes: Tuple[str, ...] = ()  # what happened, for people


@dataclass
class Keeper:
    """The rules, and what they need to remember. One `decide` a look, on a clock that never goes back."""

    _seats: List[Seat] = field(default_factory=list)
    _held: Dict[str, Seat] = field(default_factory=dict)  # seats of the living, by job
    _buried: Optional[Set[str]] = None  # jobs that have ended and are judged; None before the first look
    _lost: Set[str] = field(default_factory=set)  # jobs that do not count though SLURM still has them
    _target: Optional[int] = None  # seats that there shall be; None before the first look
    _short_since: Optional[float] = None  # since when more are called for,
    _slack_since: Optional[float] = None  # or fewer
    _deaths_on: Dict[str, int] = field(default_factory=dict)  # young ones by their own fault, by node

    def decide(self, sight: Sight, bounds: Bounds, now: float) -> Decision:
        """What to do, given this look. Never more than `bounds.most`, never a worker that has jobs."""
        notes = self._take_in(sight, now)
        lost = self._lose_the_missing(sight, now, notes)
        living = [member for member in sight.members if self._counts(member)]
        for member in living:
            if member.worker is not None:
                self._deaths_on.pop(member.node, None)
        well = any(self._is_well(member, sight, now) for member in living)
        given_up = self._give_up(well, bool(living))
        self._aim(sight, living, bounds, now)
        drain, cancel = self._let_go(living, now)
        vacancies = 0 if sight.master_waits else self._vacancies(living, bounds, well, now)
        avoid = [node for node, deaths in self._deaths_on.items() if well and deaths >= BAD_NODE]
        return Decision(
            submit=vacancies,
            avoid=tuple(sorted(avoid)),
            drain=tuple(drain),
            cancel=tuple(cancel),
            kill=tuple(lost),
            given_up=tuple(given_up),
            hopeless=bool(self._seats) and all(seat.given_up for seat in self._seats),
            notes=tuple(notes),
        )

    @property
    def target(self) -> int:
        """How many workers there shall be for now, as the last look settled it."""
        return self._target or 0

    # --- seats ---------------------------------------------------------------------------------

    def _take_in(self, sight: Sight, now: float) -> List[str]:
        """Give seats to those who are new, then free the seats of those who ended; returns who that was."""
        by_job = {member.job: member for member in sight.members}
        self._lost &= by_job.keys()
        dead = {member.job for member in sight.members if not self._counts(member)}
        # Who ended before the first look is none of our business; later ones may have come and gone
        # without our seeing them alive.
        known = dead if self._buried is None else self._buried | self._lost
        self._buried = dead
        for member in sight.members:
            if self._counts(member) or not (member.job in known or member.job in self._held):
                self._seat_of(member, now).see(member, now, master_seen=sight.jobs is not None)
        notes = []
        for job in [job for job in self._held if job in dead or job not in by_job]:
            last = self._held[job].member
            assert last is not None
            member = by_job.get(job) or replace(last, state="", reason="", ran_s=None)
            notes.append(self._bury(job, replace(member, node=member.node or last.node), now))
        return notes

    def _counts(self, member: Member) -> bool:
        return member.alive and member.job not in self._lost

    def _bury(self, job: str, member: Member, now: float) -> str:
        """Free the seat of one that has ended; returns what there is to say."""
        seat = self._held.pop(job)
        member = replace(member, ran_s=seat.age_s(member, now))
        if seat.bury(member, now) and member.node:
            self._deaths_on[member.node] = self._deaths_on.get(member.node, 0) + 1
        return f"worker {job} {'was let go' if member.dismissed else 'ended: ' + how_it_ended(member)}"

    def _lose_the_missing(self, sight: Sight, now: float, notes: List[str]) -> List[str]:
        """Free the seats of those that the master has missed for too long; returns those to cancel."""
        some_here = any(seat.member is not None and seat.member.worker is not None for seat in self._seats)
        patience_s = LOST_S if some_here else ALL_LOST_S
        for job, seat in list(self._held.items()):
            assert seat.member is not None
            if seat.missing_since is not None and now - seat.missing_since >= patience_s:
                member = replace(seat.member, state=LOST, reason="the master no longer hears it")
            elif seat.watched and not seat.joined and seat.age_s(seat.member, now) >= JOIN_S:
                member = replace(seat.member, reason=f"it has not joined within {JOIN_S:g} s")
            else:
                continue
            notes.append(self._bury(job, member, now))
            self._lost.add(job)
        return [m.job for m in sight.members if m.job in self._lost and m.alive and m.state != COMPLETING]

    def _seat_of(self, member: Member, now: float) -> Seat:
        """The seat that it has; else the free one that has waited for it; else a further one."""
        if member.job in self._held:
            return self._held[member.job]
        free = [seat for seat in self._seats if seat.vacant]
        if free:  # of those that are due, the one whose tries are nearest to their end
            seat = min(free, key=lambda seat: (seat.not_before > now, -seat.faults, seat.not_before))
        else:
            seat = Seat()
            self._seats.append(seat)
        self._held[member.job] = seat
        return seat

    def _is_well(self, member: Member, sight: Sight, now: float) -> bool:
        """Whether it shows that workers can work here: it has joined, or (nobody can tell) runs on."""
        if member.worker is not None:
            return True
        blind = sight.jobs is None and not member.waits
        return blind and self._held[member.job].age_s(member, now) >= YOUNG_S

    def _give_up(self, well: bool, living: bool) -> List[GivenUp]:
        """The seats to fill no more; all that are free when nobody is well and one has used up its tries."""
        spent = [seat for seat in self._seats if seat.vacant and seat.faults >= TRIES]
        for seat in spent:
            seat.given_up = True
        if spent and not well and not living:
            for seat in self._seats:
                seat.given_up = True
        return [GivenUp(seat.failed, seat.faults) for seat in spent if seat.failed is not None]

    # --- how many ------------------------------------------------------------------------------

    def _aim(self, sight: Sight, living: List[Member], bounds: Bounds, now: float) -> None:
        """Settle how many seats there shall be: more once the queue has called for them for a while."""
        if self._target is None:
            self._target = len(living)
        self._target = bounds.fit(self._target)
        if sight.jobs is None:
            self._short_since = self._slack_since = None
            return
        wanted = bounds.fit(math.ceil(sight.jobs / max(1, sight.slots)))
        self._short_since = _since(self._short_since, wanted > self._target, now)
        self._slack_since = _since(self._slack_since, wanted < self._target, now)
        if self._short_since is not None and now - self._short_since >= GROW_S:
            self._target, self._short_since = wanted, None
        elif self._slack_since is not None and now - self._slack_since >= IDLE_S:
            # No lower than what can be let go now: the rest has work, or has not been idle for long.
            spare = sum(_may_go(member) for member in living) + self._vacant_seats()
            self._target = max(wanted, self._target - spare)
            if self._target == wanted:
                self._slack_since = None

    def _vacant_seats(self) -> int:
        assert self._target is not None
        return max(0, self._target - sum(seat.member is not None for seat in self._seats))

    def _let_go(self, living: List[Member], now: float) -> Tuple[List[str], List[str]]:
        """Whom to drain and what to cancel so that no more than the target stay; drops free seats first."""
        assert self._target is not None
        empty = [seat for seat in self._seats if seat.member is None]
        empty.sort(key=lambda seat: seat.given_up)
        for seat in empty[: max(0, len(self._seats) - self._target)]:
            self._seats.remove(seat)
        cancel = [member.job for member in living if member.stillborn]
        staying = [member for member in living if not self._held[member.job].leaving]
        surplus = len(staying) - self._target
        drain: List[str] = []
        # Those who have not started first, the newest of them before the older.
        staying.sort(key=lambda member: (not member.waits, -member.idle_s))
        for member in staying:
            if surplus <= 0:
                break
            if member.job in cancel or not _may_go(member):
                continue
            if member.waits:
                cancel.append(member.job)
            else:
                drain.append(member.job)
            surplus -= 1
        return drain, cancel

    def _vacancies(self, living: List[Member], bounds: Bounds, well: bool, now: float) -> int:
        """How many to submit now."""
        assert self._target is not None
        given_up = sum(seat.given_up for seat in self._seats)
        leaving = sum(seat.leaving for seat in self._seats)
        free = [seat for seat in self._seats if seat.vacant]
        further = self._target - (len(self._seats) - leaving)  # seats where nobody has sat yet
        due = sum(seat.not_before <= now for seat in free) + max(0, further)
        staying = len(living) - leaving
        count = min(due, bounds.most - len(living), self._target - staying - given_up)
        if not well and any(seat.faults for seat in self._seats):  # one at a time, until one is well
            next_try = max(free, key=lambda seat: seat.faults, default=None)
            ready = not living and next_try is not None and next_try.not_before <= now
            count = min(count, int(ready))
        return max(0, count)


def _may_go(member: Member) -> bool:
    """Whether nobody would miss it: it has not started, or has had nothing to do for a while."""
    if member.waits:
        return True
    idle = member.busy == 0 and member.idle_s >= IDLE_S
    return member.worker is not None and idle and not member.draining


def _since(before: Optional[float], holds: bool, now: float) -> Optional[float]:
    """Since when it holds: as before, or from now on; None while it does not."""
    if not holds:
        return None
    return now if before is None else before
