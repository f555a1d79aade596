"""What a worker holds and which slot gets what: the rules, without processes or clock.

A worker keeps just enough jobs to be busy over one round trip to the master, and hands its slots
just enough to be busy over one wake-up of the agent. Both follow the measured time a job takes. A
job that runs longer than `NOTICE_S` is *long*: it is announced, and what waits behind it is taken
back for the other slots, or for other workers where there is no free slot here.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Iterable, List, Optional, Sequence, Tuple

from . import defaults
from .experience import Experience
from .messages import Lease, Outcome

_SLOWEST_S = 4 * defaults.HORIZON_S  # longer jobs say no more about the next one


class _SlotState:
    """One slot: the leases it was handed, the first of which is running."""

    __slots__ = ("announced", "leases", "rest_until", "since", "stalls", "up")

    def __init__(self) -> None:
        self.leases: Deque[Lease] = deque()
        self.since = 0.0  # when the first of `leases` can have begun
        self.announced = False  # the first of `leases` was reported as running
        self.up = False
        self.stalls = 0  # how often in a row it was handed leases and began none
        self.rest_until: Optional[float] = None  # it gets nothing before that

    @property
    def patience_s(self) -> float:
        """What it gets beyond `NOTICE_S` to begin: more each time that was not enough."""
        return defaults.NOTICE_S * (2.0 ** min(self.stalls, 7) - 1)

    @property
    def free(self) -> bool:
        """Whether it can be handed leases."""
        return self.up and not self.announced and self.rest_until is None


class Stock:
    """The leases of one worker.

    >>> stock = Stock(slots=2)
    >>> stock.slot_up(0); stock.slot_up(1)
    >>> stock.room()
    2
    >>> stock.add([(7, 1, b"f", b"x")])
    >>> stock.hand_out(now=0.0)
    [(0, [(7, 1, b'f', b'x')])]
    """

    def __init__(self, slots: int) -> None:
        self.ready: Deque[Lease] = deque()  # taken from the master, handed to no slot
        self.experience: Optional[Experience] = None
        """What to tell of the jobs that end, where anybody wants to know."""
        self._slots = [_SlotState() for _ in range(slots)]
        self._job_s: Optional[float] = None  # what a job takes, measured; None: not known yet

    # --- in and out --------------------------------------------------------------------------

    def add(self, leases: Iterable[Lease]) -> None:
        """The master has leased these to us."""
        self.ready.extend(leases)

    def hand_out(self, now: float) -> List[Tuple[int, List[Lease]]]:
        """Which slot gets which leases now; they count as handed over."""
        if not self.ready:
            return []
        given = []
        depth = self._depth(defaults.SLOT_HORIZON_S)
        takers = [
            (len(slot.leases), index)
            for index, slot in enumerate(self._slots)
            if slot.free and len(slot.leases) <= depth // 2
        ]
        takers.sort()
        for position, (has, index) in enumerate(takers):
            if not self.ready:
                break
            slot = self._slots[index]
            fair = -(-len(self.ready) // (len(takers) - position))
            leases = [self.ready.popleft() for _ in range(min(depth - has, fair, len(self.ready)))]
            carried_s = sum([len(lease[3]) for lease in leases]) / defaults.HAND_OVER_BYTES_S
            if not has:
                slot.since = now + carried_s + slot.patience_s
            elif carried_s > defaults.NOTICE_S:
                slot.since = max(slot.since, now + carried_s)
            slot.leases.extend(leases)
            given.append((index, leases))
        return given

    def finished(self, index: int, count: int, busy_s: float, now: float) -> None:
        """A slot has ended its next `count` leases, and was busy with them for `busy_s`."""
        if not count:
            return
        slot = self._slots[index]
        if self.experience is not None:  # of several jobs, all are short, and one will do
            self.experience.note(slot.leases[0][2], busy_s / count)
        next_done = slot.leases.popleft
        for _ in range(count):
            next_done()
        slot.since = now
        slot.announced = False
        slot.stalls = 0
        self._measure(busy_s / count)

    def taken_back(self, index: int, count: int) -> None:
        """The last `count` leases of a slot were recovered before it began them."""
        slot = self._slots[index]
        self.ready.extendleft(slot.leases.pop() for _ in range(min(count, len(slot.leases))))
        if not slot.leases:
            slot.announced = False  # it had not begun any: only the processor was slow to come by

    def give_back(self) -> List[int]:
        """Tickets of everything that no slot has; we hold them no longer."""
        tickets = [lease[0] for lease in self.ready]
        self.ready.clear()
        return tickets

    # --- slots -------------------------------------------------------------------------------

    def slot_up(self, index: int) -> None:
        """A slot can take work."""
        slot = self._slots[index]
        slot.up = True
        slot.stalls, slot.rest_until = 0, None

    def stalled(self, index: int, now: float) -> bool:
        """A slot has begun nothing that it had for `NOTICE_S`: the processor is busy, or it was stopped.

        It is left alone for a while, each time longer. True: it has been so for `MAX_STALLS` times.
        """
        slot = self._slots[index]
        slot.stalls += 1
        slot.rest_until = now + min(1.0, defaults.NOTICE_S * 2 ** (slot.stalls - 1))
        return slot.stalls >= defaults.MAX_STALLS

    def slot_died(self, index: int, unclaimed: int) -> Optional[int]:
        """A slot is gone; `unclaimed` of its leases had not begun and are ready again.

        Returns the ticket of the one that was running, if any.
        """
        slot = self._slots[index]
        slot.up = slot.announced = False
        self.taken_back(index, unclaimed)
        leases, slot.leases = slot.leases, deque()
        running = leases.pop()[0] if leases else None
        # Answers of the others were lost with the process: they run again, uncharged.
        self.ready.extendleft(reversed(leases))
        return running

    # --- what to do next ---------------------------------------------------------------------

    def room(self) -> int:
        """How many more leases there is use for now."""
        free = [slot for slot in self._slots if slot.free]
        depth = self._depth(defaults.HORIZON_S)
        if depth <= 1:
            wanted = sum(not slot.leases for slot in free)
        else:
            wanted = depth * len(free) - sum(len(slot.leases) for slot in free)
        return max(0, wanted - len(self.ready))

    def is_low(self, coming: int) -> bool:
        """Whether to ask for more although `coming` leases are on their way, or may be."""
        room = self.room()
        depth = self._depth(defaults.HORIZON_S)
        if depth <= 1:
            return room != coming
        free = sum(slot.free for slot in self._slots)
        return room - coming > depth * free // 2 or room < coming // 2

    def surplus(self) -> List[int]:
        """Tickets to give back because every slot is at a long job; we hold them no longer."""
        stuck = not any(slot.free for slot in self._slots)
        return self.give_back() if stuck and self.ready else []

    def long_jobs(self, now: float) -> List[int]:
        """The slots newly found to be at a long job, or to begin none of what they have."""
        found = []
        for index, slot in enumerate(self._slots):
            if slot.rest_until is not None and slot.rest_until <= now:
                slot.rest_until = None
            if slot.leases and not slot.announced and now >= slot.since + defaults.NOTICE_S:
                slot.announced = True
                found.append(index)
        return found

    def at_work_on(self, index: int) -> Optional[Lease]:
        """The lease of the job that a slot runs, if any."""
        leases = self._slots[index].leases
        return leases[0] if leases else None

    def next_notice(self) -> Optional[float]:
        """When `long_jobs` should be asked again; None: not before something happens."""
        times = [s.since + defaults.NOTICE_S for s in self._slots if s.leases and not s.announced]
        times += [slot.rest_until for slot in self._slots if slot.rest_until is not None]
        return min(times, default=None)

    def busy(self) -> int:
        """Slots that have work."""
        return sum(bool(slot.leases) for slot in self._slots)

    def leases(self) -> List[Lease]:
        """Everything that is here, begun or not."""
        return [*self.ready, *(lease for slot in self._slots for lease in slot.leases)]

    def pause_s(self, reported: Sequence[Outcome]) -> float:
        """For how long others may gather after a report of these outcomes.

        One with a large value costs everybody as much as many small ones. But it may be the only one that
        somebody waits for, unless every slot has its next job already.
        """
        weight = len(reported)
        large = sum([type(outcome[2]) is tuple for outcome in reported])
        if large and all(len(slot.leases) > 1 for slot in self._slots):
            weight += large * defaults.PACE_LARGE
        return min(defaults.PACE_MAX_S, weight * defaults.PACE_S) if weight >= defaults.PACE_FROM_JOBS else 0

    def handed_out(self) -> List[Tuple[int, List[int]]]:
        """(slot, tickets) of every slot that has work."""
        return [(i, [lease[0] for lease in s.leases]) for i, s in enumerate(self._slots) if s.leases]

    def _depth(self, horizon_s: float) -> int:
        """How many jobs make up `horizon_s` of work for one slot; 1 while nothing is known."""
        if self._job_s is None:
            return 1
        return int(min(defaults.MAX_STOCK, max(1.0, horizon_s / max(self._job_s, 1e-6))))

    def _measure(self, job_s: float) -> None:
        """Follow what jobs take: quickly upwards, steadily downwards."""
        job_s = min(max(job_s, 0.0), _SLOWEST_S)
        if self._job_s is None:
            self._job_s = job_s
        else:
            self._job_s += (job_s - self._job_s) * (0.5 if job_s > self._job_s else 0.2)
