"""The rules of a worker's stock, and a simulation of slots, claims and time around it."""

from __future__ import annotations

import random
from collections import deque
from typing import Deque, Dict, List, Optional, Set, Tuple

import pytest

from cwmp import defaults
from cwmp.experience import Experience
from cwmp.messages import Lease
from cwmp.stock import Stock

pytestmark = pytest.mark.core

TINY_S = 0.0001
LONG_S = 10.0


def leases(*tickets: int) -> List[Lease]:
    return [(ticket, 1, b"f", b"") for ticket in tickets]


def tickets(given: List[Lease]) -> List[int]:
    return [lease[0] for lease in given]


def stock_of(slots: int, job_s: Optional[float] = None) -> Stock:
    """A stock whose slots are up, and whose jobs have taken `job_s` so far."""
    stock = Stock(slots)
    for index in range(slots):
        stock.slot_up(index)
    if job_s is not None:
        for n in range(30):
            stock.add(leases(-n - 1))
            [(index, _)] = stock.hand_out(now=0.0)
            stock.finished(index, 1, busy_s=job_s, now=job_s)
    return stock


def handed(stock: Stock, now: float = 0.0) -> Dict[int, List[int]]:
    return {index: tickets(given) for index, given in stock.hand_out(now)}


# --- room -----------------------------------------------------------------------------------


def test_nothing_is_asked_for_before_a_slot_is_up() -> None:
    stock = Stock(3)
    assert stock.room() == 0
    stock.slot_up(1)
    assert stock.room() == 1


def test_unknown_durations_fill_idle_slots_only() -> None:
    stock = stock_of(3)
    assert stock.room() == 3
    stock.add(leases(1))
    assert stock.room() == 2
    stock.hand_out(0.0)
    assert stock.room() == 2
    stock.add(leases(2, 3, 4))
    assert stock.room() == 0
    stock.hand_out(0.0)
    assert stock.room() == 0


def test_tiny_jobs_are_kept_in_stock() -> None:
    stock = stock_of(2, TINY_S)
    room = stock.room()
    assert room == pytest.approx(2 * defaults.HORIZON_S / TINY_S, rel=0.05)
    stock.add(leases(*range(room)))
    assert stock.room() == 0


def test_stock_is_bounded_however_short_the_jobs() -> None:
    stock = stock_of(2, 0.0)
    assert stock.room() == 2 * defaults.MAX_STOCK
    stock.add(leases(*range(5000)))
    assert all(len(given) <= defaults.MAX_STOCK for _, given in stock.hand_out(0.0))


def test_long_jobs_fill_idle_slots_only() -> None:
    stock = stock_of(3, LONG_S)
    assert stock.room() == 3
    stock.add(leases(1, 2))
    stock.hand_out(0.0)
    assert stock.room() == 1


def test_room_does_not_ask_for_every_single_job() -> None:
    """Refilled when half is gone: so a request carries many jobs."""
    stock = stock_of(1, TINY_S)
    room = stock.room()
    stock.add(leases(*range(room * 3 // 4)))
    assert not stock.is_low(coming=0)
    assert stock.is_low(coming=0) == stock.is_low(coming=stock.room())
    stock.give_back()
    assert stock.is_low(coming=0)


def test_a_slot_that_is_free_gets_work_while_all_others_are_at_long_jobs() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1))
    [(busy, _)] = stock.hand_out(0.0)
    assert stock.long_jobs(defaults.NOTICE_S) == [busy]
    assert stock.is_low(coming=0)


def test_one_long_job_among_tiny_ones_is_noticed_at_once() -> None:
    stock = stock_of(2, TINY_S)
    before = stock.room()
    stock.add(leases(1))
    [(index, _)] = stock.hand_out(0.0)
    stock.finished(index, 1, busy_s=LONG_S, now=LONG_S)
    assert stock.room() < before / 20


def test_a_slot_at_a_long_job_asks_for_nothing() -> None:
    stock = stock_of(2, TINY_S)
    full = stock.room()
    stock.add(leases(1))
    stock.hand_out(0.0)
    stock.long_jobs(now=1.0)
    assert stock.room() == full / 2


def test_the_first_measure_counts_and_later_ones_are_followed() -> None:
    stock = stock_of(1)
    rooms = []
    for busy_s in (1.0, *[TINY_S] * 60, 1.0):
        stock.add(leases(1))
        stock.hand_out(0.0)
        stock.finished(0, 1, busy_s, 0.0)
        rooms.append(stock.room())
    assert rooms[0] == 1
    assert rooms[1:-1] == sorted(rooms[1:-1]), "steadily downwards in time"
    assert rooms[-2] > 100
    assert rooms[-1] == 1, "and quickly upwards"


# --- handing out ----------------------------------------------------------------------------


def test_a_few_jobs_are_shared_evenly() -> None:
    stock = stock_of(3, TINY_S)
    stock.add(leases(*range(10)))
    given = handed(stock)
    assert sorted(map(len, given.values())) == [3, 3, 4]
    assert sorted(t for ts in given.values() for t in ts) == list(range(10))
    assert all(ts == sorted(ts) for ts in given.values())


def test_two_jobs_go_to_two_slots_even_where_one_could_hold_both() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1, 2))
    assert sorted(handed(stock).values()) == [[1], [2]]


def test_an_idle_slot_comes_before_a_busy_one() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1))
    [(busy, _)] = stock.hand_out(0.0)
    stock.add(leases(2))
    [(index, _)] = stock.hand_out(0.0)
    assert index != busy


def test_one_job_a_slot_while_durations_are_unknown() -> None:
    stock = stock_of(2)
    stock.add(leases(1, 2, 3, 4))
    assert sorted(handed(stock).values()) == [[1], [2]]
    assert handed(stock) == {}
    stock.finished(0, 1, busy_s=0.1, now=0.1)
    assert handed(stock, 0.1) == {0: [3]}


@pytest.mark.parametrize("job_s", [defaults.SLOT_HORIZON_S, 0.005, 0.5, LONG_S])
def test_one_job_a_slot_when_they_are_not_tiny(job_s: float) -> None:
    stock = stock_of(2, job_s)
    stock.add(leases(*range(10)))
    assert all(len(given) == 1 for given in handed(stock).values())


def test_a_slot_that_is_down_gets_nothing() -> None:
    stock = Stock(2)
    stock.add(leases(1, 2))
    assert stock.hand_out(0.0) == []
    stock.slot_up(1)
    assert handed(stock) == {1: [1]}
    stock.slot_died(1, unclaimed=1)
    assert stock.hand_out(0.0) == []


def test_a_slot_at_a_long_job_gets_nothing() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1))
    [(long, _)] = stock.hand_out(0.0)
    assert stock.long_jobs(now=1.0) == [long]
    stock.add(leases(*range(10, 20)))
    assert handed(stock, 1.0) == {1 - long: list(range(10, 20))}
    stock.finished(long, 1, busy_s=2.0, now=2.0)
    stock.add(leases(30))
    assert handed(stock, 2.0) == {long: [30]}


# --- long jobs ------------------------------------------------------------------------------


def test_nothing_waits_behind_a_long_job() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1, 2, 3, 4))
    given = handed(stock)
    assert stock.next_notice() == pytest.approx(defaults.NOTICE_S)
    stock.finished(1, len(given[1]), busy_s=0.001, now=0.001)
    assert stock.long_jobs(now=defaults.NOTICE_S - 0.001) == []
    assert stock.long_jobs(now=defaults.NOTICE_S) == [0]
    stock.taken_back(0, 1)
    assert handed(stock, 0.02) == {1: [given[0][1]]}
    lease = stock.at_work_on(0)
    assert lease is not None and lease[0] == given[0][0]


def test_a_long_job_is_announced_once() -> None:
    stock = stock_of(1)
    stock.add(leases(1))
    stock.hand_out(0.0)
    assert stock.long_jobs(now=1.0) == [0]
    assert stock.long_jobs(now=2.0) == []
    assert stock.next_notice() is None


def test_a_job_is_timed_from_the_end_of_the_one_before() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1, 2))
    stock.hand_out(0.0)
    stock.finished(0, 1, busy_s=0.009, now=0.009)
    assert stock.long_jobs(now=0.012) == []
    assert stock.next_notice() == pytest.approx(0.009 + defaults.NOTICE_S)
    assert stock.long_jobs(now=0.020) == [0]


def test_a_job_is_timed_from_its_hand_out_when_the_slot_was_idle() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1))
    stock.hand_out(now=100.0)
    assert stock.long_jobs(now=100.001) == []
    assert stock.next_notice() == pytest.approx(100.0 + defaults.NOTICE_S)


def test_the_next_long_job_of_a_slot_is_announced_again() -> None:
    stock = stock_of(1)
    for ticket in (1, 2):
        stock.add(leases(ticket))
        stock.hand_out(float(ticket))
        assert stock.long_jobs(ticket + 0.5) == [0]
        stock.finished(0, 1, 0.6, ticket + 0.6)
    assert stock.next_notice() is None


# --- taking back ----------------------------------------------------------------------------


def test_taken_back_jobs_come_first_and_in_order() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1, 2, 3, 4, 5))
    stock.hand_out(0.0)
    stock.add(leases(6))
    stock.taken_back(0, 3)
    assert tickets(list(stock.ready)) == [3, 4, 5, 6]
    assert stock.handed_out() == [(0, [1, 2])]


def test_taking_everything_back_leaves_an_idle_slot() -> None:
    """It had not begun any job: it was only slow to come by."""
    stock = stock_of(1)
    stock.add(leases(1))
    stock.hand_out(0.0)
    assert stock.long_jobs(1.0) == [0]
    stock.taken_back(0, 1)
    assert stock.busy() == 0
    assert handed(stock, 1.0) == {0: [1]}
    assert stock.next_notice() == pytest.approx(1.0 + defaults.NOTICE_S)


def test_taking_back_nothing_changes_nothing() -> None:
    stock = stock_of(2)
    stock.add(leases(1))
    stock.hand_out(0.0)
    stock.taken_back(0, 0)
    stock.taken_back(1, 0)
    assert stock.handed_out() == [(0, [1])]
    assert not stock.ready


def test_give_back_returns_what_no_slot_has() -> None:
    stock = stock_of(1)
    stock.add(leases(1, 2, 3))
    stock.hand_out(0.0)
    assert stock.give_back() == [2, 3]
    assert stock.give_back() == []
    assert stock.handed_out() == [(0, [1])]


# --- surplus --------------------------------------------------------------------------------


def test_a_slot_that_begins_nothing_is_left_alone_longer_and_longer() -> None:
    stock = stock_of(1, TINY_S)
    now = 0.0
    for stalls in range(1, defaults.MAX_STALLS + 1):
        stock.add(leases(stalls))
        assert stock.hand_out(now) == [(0, leases(stalls))]
        now = stock.next_notice() or now
        assert stock.long_jobs(now) == [0]
        stock.taken_back(0, 1)
        assert stock.at_work_on(0) is None
        assert stock.stalled(0, now) == (stalls == defaults.MAX_STALLS)
        assert stock.room() == 0
        assert stock.surplus() == [stalls]
        now = stock.next_notice() or now
        assert stock.long_jobs(now) == []  # only ends the rest
    assert now > 10.0


def test_surplus_goes_back_when_every_slot_is_at_a_long_job() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1, 2, 3, 4))
    stock.hand_out(0.0)
    assert stock.surplus() == []
    for index in stock.long_jobs(1.0):
        stock.taken_back(index, 1)
    assert sorted(stock.surplus()) == [3, 4] or len(stock.surplus()) == 0
    assert stock.surplus() == []
    assert not stock.ready


def test_surplus_stays_while_a_slot_is_free() -> None:
    stock = stock_of(2, TINY_S)
    stock.add(leases(1))
    stock.hand_out(0.0)
    stock.long_jobs(1.0)
    stock.add(leases(2, 3))
    assert stock.surplus() == []
    assert tickets(list(stock.ready)) == [2, 3]


# --- deaths ---------------------------------------------------------------------------------


def test_an_idle_slot_dies_and_nobody_is_blamed() -> None:
    stock = stock_of(1)
    assert stock.slot_died(0, unclaimed=0) is None


def test_the_running_job_is_blamed_and_what_waited_is_not() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1, 2, 3, 4))
    stock.hand_out(0.0)
    stock.finished(0, 1, 0.0001, 0.0001)
    assert stock.slot_died(0, unclaimed=2) == 2
    assert tickets(list(stock.ready)) == [3, 4]
    assert stock.handed_out() == []


def test_nobody_is_blamed_when_nothing_had_begun() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1, 2))
    stock.hand_out(0.0)
    assert stock.slot_died(0, unclaimed=2) is None
    assert tickets(list(stock.ready)) == [1, 2]


def test_lost_answers_run_again_uncharged_and_in_order() -> None:
    stock = stock_of(1, TINY_S)
    stock.add(leases(1, 2, 3, 4))
    stock.hand_out(0.0)
    stock.add(leases(5))
    assert stock.slot_died(0, unclaimed=1) == 3
    assert tickets(list(stock.ready)) == [1, 2, 4, 5]


def test_a_refilled_slot_starts_afresh() -> None:
    stock = stock_of(1)
    stock.add(leases(1))
    stock.hand_out(0.0)
    stock.long_jobs(1.0)
    assert stock.slot_died(0, unclaimed=0) == 1
    stock.slot_up(0)
    assert stock.room() == 1
    stock.add(leases(2))
    assert handed(stock, 5.0) == {0: [2]}
    assert stock.next_notice() == pytest.approx(5.0 + defaults.NOTICE_S)


def test_a_slot_without_leases_cannot_finish_any() -> None:
    stock = stock_of(2)
    stock.finished(0, 0, 0.0, 0.0)
    with pytest.raises(IndexError):
        stock.finished(0, 1, 0.0, 0.0)


# --- a simulated worker ---------------------------------------------------------------------


class VirtualSlot:
    """A slot process: messages with jobs, claims that are read by one side only, answers."""

    def __init__(self) -> None:
        self.inbox: Deque[int] = deque()  # leases sent and neither begun nor taken back
        self.current: Optional[int] = None
        self.ends = 0.0
        self.answers: List[int] = []  # written, and not yet seen by the worker
        self.stopped_until = 0.0  # the processor is busy elsewhere


class VirtualWorker:
    """The agent's loop around a `Stock`, with the master, the slots and the clock made up."""

    def __init__(self, rng: random.Random, slots: int) -> None:
        self.rng = rng
        self.stock = Stock(slots)
        self.slots: List[Optional[VirtualSlot]] = [None] * slots
        self.now = 0.0
        self.next_ticket = 1
        self.durations: Dict[int, float] = {}
        self.held: Set[int] = set()  # what the master believes that we hold
        self.finished: Set[int] = set()
        self.returned: Set[int] = set()
        self.charged: List[Tuple[int, Optional[int]]] = []
        self.kind = 0
        self.stops = 0.0  # how likely a slot is to be stopped for a while

    # --- the world around --------------------------------------------------------------------

    def duration(self) -> float:
        """Mostly tiny, sometimes long, by phases."""
        tiny, middling, long = TINY_S * self.rng.random(), 0.008 * self.rng.random(), 0.2 * self.rng.random()
        return self.rng.choices((tiny, middling, long), ((50, 1, 1), (1, 5, 1), (1, 1, 9))[self.kind])[0]

    def run_slots(self, seconds: float) -> None:
        """Let time pass: slots claim, run and answer."""
        end = self.now + seconds
        for slot in filter(None, self.slots):
            if self.rng.random() < self.stops:
                slot.stopped_until = end + self.rng.random()
            at = self.now
            if slot.stopped_until > at:
                slot.ends += seconds
                continue
            while True:
                if slot.current is None:
                    if not slot.inbox or at > end:
                        break
                    slot.current = slot.inbox.popleft()
                    slot.ends = at + self.durations[slot.current]
                if slot.ends > end:
                    break
                at = slot.ends
                slot.answers.append(slot.current)
                slot.current = None
        self.now = end

    # --- the agent ---------------------------------------------------------------------------

    def ask_for_work(self) -> None:
        room = self.stock.room()
        assert room >= 0
        if room and self.rng.random() < 0.8:
            count = self.rng.randint(0, room)
            new = list(range(self.next_ticket, self.next_ticket + count))
            self.next_ticket += count
            for ticket in new:
                self.durations[ticket] = self.duration()
            self.held.update(new)
            self.stock.add(leases(*new))

    def feed(self) -> None:
        for index, given in self.stock.hand_out(self.now):
            slot = self.slots[index]
            assert slot is not None, "handed to a slot that is down"
            assert given, "handed nothing"
            slot.inbox.extend(tickets(given))

    def gather(self) -> None:
        for index, slot in enumerate(self.slots):
            if slot is not None and slot.answers:
                count = self.rng.randint(1, len(slot.answers))
                seen, slot.answers = slot.answers[:count], slot.answers[count:]
                self.finish(index, seen)

    def finish(self, index: int, seen: List[int]) -> None:
        self.stock.finished(index, len(seen), sum(self.durations[t] for t in seen), self.now)
        assert not self.finished & set(seen), "ran twice"
        self.finished.update(seen)
        self.held.difference_update(seen)

    def notice(self) -> None:
        due = self.stock.next_notice()
        if due is None or due > self.now:
            return
        for index in self.stock.long_jobs(self.now):
            slot = self.slots[index]
            assert slot is not None
            self.stock.taken_back(index, len(slot.inbox))
            slot.inbox.clear()
            if self.stock.at_work_on(index) is None and self.stock.stalled(index, self.now):
                self.kill(index)
        self.give(self.stock.surplus())

    def give(self, numbers: List[int]) -> None:
        assert set(numbers) <= self.held
        self.held.difference_update(numbers)
        self.returned.update(numbers)

    def kill(self, index: int) -> None:
        """A slot dies; the worker reads what it had answered, except if that was lost."""
        slot = self.slots[index]
        if slot is None:
            return
        lost = self.rng.randint(0, len(slot.answers)) if slot.current is not None else 0
        keep = len(slot.answers) - lost
        self.finish(index, slot.answers[:keep])
        blamed = self.stock.slot_died(index, unclaimed=len(slot.inbox))
        assert blamed == slot.current, "blamed another job than the one that ran"
        self.charged.append((index, blamed))
        if blamed is not None:
            self.held.remove(blamed)
        self.slots[index] = None

    def refill(self) -> None:
        for index, slot in enumerate(self.slots):
            if slot is None and self.rng.random() < 0.5:
                self.slots[index] = VirtualSlot()
                self.stock.slot_up(index)

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """Every lease that the master gave us is in exactly one place."""
        known = tickets(list(self.stock.ready))
        for index, numbers in self.stock.handed_out():
            slot = self.slots[index]
            assert slot is not None, "a slot that is down holds leases"
            running = [] if slot.current is None else [slot.current]
            assert numbers == slot.answers + running + list(slot.inbox), "order, or a lease, was lost"
            known += numbers
        assert len(known) == len(set(known)), "a lease is in two places"
        assert set(known) == self.held, "a lease was lost"
        assert self.stock.busy() == len(self.stock.handed_out())

    def step(self) -> None:
        if self.rng.random() < 0.02:
            self.kind = self.rng.randrange(3)
        for action in (self.refill, self.gather, self.notice, self.feed, self.ask_for_work, self.feed):
            action()
            self.check()
        self.check_nobody_waits_in_vain()
        if self.rng.random() < 0.03:
            self.kill(self.rng.randrange(len(self.slots)))
            self.check()
        self.run_slots(self.rng.choice((0.0, 0.0001, 0.001, 0.005, 0.02)))

    def check_nobody_waits_in_vain(self) -> None:
        """No slot is idle while there is work, and nothing waits behind what is known to be long."""
        has = dict(self.stock.handed_out())
        resting = [slot.rest_until is not None for slot in self.stock._slots]
        idle = [i for i, slot in enumerate(self.slots) if slot and i not in has and not resting[i]]
        assert not (idle and self.stock.ready), "a slot is idle while jobs wait"
        for index, numbers in self.stock.handed_out():
            slot = self.slots[index]
            assert slot is not None
            started = self.now - (slot.ends - self.durations.get(slot.current or 0, 0.0))
            if slot.current is not None and slot.current in self.announced() and started > 0:
                assert numbers[-1] == slot.current, "jobs wait behind a long one"

    def announced(self) -> Set[int]:
        return {numbers[0] for i, numbers in self.stock.handed_out() if self.stock._slots[i].announced}


@pytest.mark.parametrize("seed", range(12))
def test_simulated_worker(seed: int) -> None:
    rng = random.Random(seed)
    worker = VirtualWorker(rng, slots=1 + seed % 4)
    worker.stops = 0.01
    step = -1
    try:
        for step in range(300):  # noqa: B007
            worker.step()
        drain(worker)
    except BaseException:
        print(f"seed {seed}, step {step}")
        raise
    assert len(worker.finished) > 20
    assert worker.charged


def drain(worker: VirtualWorker) -> None:
    """Everything that is still held ends."""
    worker.kind, worker.stops = 0, 0.0
    for _ in range(5000):
        worker.refill()
        worker.gather()
        worker.notice()
        worker.feed()
        worker.check()
        worker.run_slots(0.05)
        if not worker.held:
            break
    assert not worker.held, "these never ended"
    blamed = {ticket for _, ticket in worker.charged if ticket is not None}
    assert not worker.finished & worker.returned
    assert not worker.finished & blamed
    assert len(worker.finished) + len(worker.returned) + len(blamed) == worker.next_ticket - 1


def make_worker(seed: int, slots: int, kind: int) -> VirtualWorker:
    worker = VirtualWorker(random.Random(seed), slots)
    worker.kind = kind
    for _ in range(20):
        worker.refill()
    return worker


def test_a_slot_is_not_starved_by_its_neighbours_long_job() -> None:
    """One job of 5 s among 10,000 tiny ones: the other slot does them all meanwhile."""
    worker = make_worker(seed=1, slots=2, kind=0)
    stock = worker.stock
    left: List[Tuple[int, float]] = [(n, 5.0 if n == 500 else 0.0002) for n in range(1, 10_001)]
    queue: Deque[Tuple[int, float]] = deque(left)
    done_at: Dict[int, float] = {}
    while len(done_at) < 9_999 and worker.now < 5.0:
        for index, slot in enumerate(worker.slots):
            if slot is not None and slot.answers:
                seen, slot.answers = slot.answers, []
                stock.finished(index, len(seen), sum(worker.durations[t] for t in seen), worker.now)
                done_at.update(dict.fromkeys(seen, worker.now))
        due = stock.next_notice()
        if due is not None and due <= worker.now:
            for index in stock.long_jobs(worker.now):
                slot = worker.slots[index]
                assert slot is not None
                stock.taken_back(index, len(slot.inbox))
                slot.inbox.clear()
            queue.extendleft((t, worker.durations[t]) for t in reversed(stock.surplus()))
        new = [queue.popleft() for _ in range(min(stock.room(), len(queue)))]
        worker.durations.update(new)
        stock.add(leases(*[ticket for ticket, _ in new]))
        worker.feed()
        worker.run_slots(0.001)
    assert set(done_at) == {n for n, _ in left} - {500}
    assert max(done_at.values()) < 4.0


# --- experience -----------------------------------------------------------------------------


def test_runs_are_noted_only_for_who_wants_to_know() -> None:
    stock = stock_of(1)
    stock.add([(1, 1, b"f", b""), (2, 1, b"g", b""), (3, 1, b"g", b"")])
    for name, took_s in (("nobody asks", 5.0), ("first", 6.0), ("second", 7.0)):
        if name == "first":
            stock.experience = Experience()
        stock.hand_out(now=0.0)
        stock.finished(0, 1, took_s, now=took_s)
    assert stock.experience is not None
    assert not stock.experience.is_unlikely(b"f", left_s=1.0)
    assert stock.experience.is_unlikely(b"g", left_s=5.9)
    assert not stock.experience.is_unlikely(b"g", left_s=6.5)


def test_large_results_gather_only_where_the_slots_have_work() -> None:
    small, large = (1, 0, b"x"), (1, 0, (b"x", (("w1.7.1", 100_000),)))
    stock = stock_of(2, TINY_S)
    assert stock.pause_s([]) == stock.pause_s([small] * 7) == 0
    assert stock.pause_s([small] * 10) == pytest.approx(10 * defaults.PACE_S)
    assert stock.pause_s([large]) == 0, "nobody is at work: somebody may be waiting for this one"
    stock.add(leases(*range(20)))
    stock.hand_out(now=0.0)
    assert defaults.PACE_MAX_S / 4 < stock.pause_s([large]) <= defaults.PACE_MAX_S
    assert stock.pause_s([large] * 50) == defaults.PACE_MAX_S
