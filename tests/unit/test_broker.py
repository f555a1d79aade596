"""The broker's rules, one by one, with time cranked by hand."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from cwmp import defaults
from cwmp.broker import Broker
from cwmp.errors import UnknownMember, UsageError
from cwmp.messages import ERROR, LOST, RESULT, RUNNING, Lease

pytestmark = pytest.mark.core


class CheckedBroker(Broker):
    """A broker that checks itself after each step of a test."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith(("_", "check_")) or not callable(value):
            return value

        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                return value(*args, **kwargs)
            finally:
                self.check_if_small()

        return checked

    def check_if_small(self) -> None:
        """Look at every job, unless there are very many."""
        if self.queued < 1000:
            self.check_invariants()


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker that is also checked at the end."""
    broker = CheckedBroker()
    yield broker
    broker.check_if_small()


def jobs(*numbers: int) -> List[Tuple[int, bytes, bytes]]:
    """Jobs of these numbers; the call of each is its number."""
    return [(number, b"f", b"%d" % number) for number in numbers]


def client_with(broker: Broker, *numbers: int) -> int:
    """A client that has submitted these jobs."""
    client = broker.join_client({"node": "here"})
    broker.submit(client, jobs(*numbers))
    return client


def worker_of(broker: Broker, slots: int = 2, now: float = 0.0, node: str = "n1") -> int:
    return broker.join_worker({"slots": slots, "node": node}, now=now)


def calls(leases: List[Lease]) -> List[int]:
    """The numbers of the jobs that were leased."""
    return [int(call) for _, _, _, call in leases]


def events(broker: Broker, client: int, after: int = 0) -> List[Tuple[int, int, Any]]:
    return broker.collect(client, after)[1]


def counts(broker: Broker) -> Dict[str, int]:
    found: Dict[str, int] = broker.status(0.0)["jobs"]
    return found


ATTEMPT = {"attempt", "node", "pid", "cause", "signal", "exit_code", "peak_rss_bytes", "oom", "stderr"}
CAUSE = {"cause": "killed by SIGSEGV", "signal": 11, "pid": 99}


# --- the plain way --------------------------------------------------------------------------


def test_job_goes_from_client_to_worker_and_back(broker: Broker) -> None:
    client, worker = client_with(broker, 5), worker_of(broker)
    [(ticket, attempt, function, call)] = broker.take(worker, room=3)
    assert (attempt, function, call) == (1, b"f", b"5")
    assert counts(broker) == {"queued": 0, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
    assert broker.finish(worker, [(ticket, RESULT, b"r")]) == {client}
    assert broker.collect(client, 0) == (1, [(5, RESULT, b"r")])
    assert counts(broker) == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 0}


def test_jobs_of_a_client_are_handed_out_in_order(broker: Broker) -> None:
    client, worker = client_with(broker, 3, 1, 2), worker_of(broker)
    broker.submit(client, jobs(9, 8))
    assert calls(broker.take(worker, 2)) == [3, 1]
    assert calls(broker.take(worker, 99)) == [2, 9, 8]
    assert broker.take(worker, 99) == []


def test_an_error_is_an_outcome_and_counts_as_failed(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    broker.finish(worker, [(ticket, ERROR, b"oops")])
    assert events(broker, client) == [(1, ERROR, b"oops")]
    assert (broker.done, broker.failed) == (0, 1)


def test_started_job_is_announced_once(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    assert broker.running(worker, [ticket]) == {client}
    assert broker.running(worker, [ticket, ticket, 77]) == set()
    broker.finish(worker, [(ticket, RESULT, b"")])
    assert events(broker, client) == [(1, RUNNING, None), (1, RESULT, b"")]


def test_a_number_can_be_used_again_when_its_job_has_ended(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    for _ in range(3):
        [(ticket, attempt, *_)] = broker.take(worker, 1)
        assert attempt == 1
        broker.finish(worker, [(ticket, RESULT, b"")])
        broker.submit(client, jobs(1))


def test_an_open_number_is_left_as_it_is(broker: Broker) -> None:
    """A batch that is sent a second time, because its receipt was lost, runs once."""
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    [_, *_] = broker.take(worker, 1)
    broker.submit(client, [(1, b"other", b"1"), (2, b"other", b"2"), (3, b"f", b"3"), (3, b"f", b"3")])
    assert [(f, c) for _, _, f, c in broker.take(worker, 9)] == [(b"f", b"2"), (b"f", b"3")]


def test_equal_functions_are_one_object(broker: Broker) -> None:
    client, worker = client_with(broker), worker_of(broker)
    for number in range(3):
        broker.submit(client, [(number, bytes(bytearray(b"function")), b"")])
    assert len({id(function) for _, _, function, _ in broker.take(worker, 9)}) == 1


def test_function_changes_within_a_batch(broker: Broker) -> None:
    client, worker = client_with(broker), worker_of(broker)
    broker.submit(client, [(1, b"f", b""), (2, b"g", b""), (3, b"f", b"")])
    assert [f for _, _, f, _ in broker.take(worker, 9)] == [b"f", b"g", b"f"]


# --- taking turns ---------------------------------------------------------------------------


def test_clients_take_turns(broker: Broker) -> None:
    client_with(broker, *range(100, 200))
    client_with(broker, 1, 2, 3)
    worker = worker_of(broker)
    assert [calls(broker.take(worker, 1)) for _ in range(8)] == [
        [100], [1], [101], [2], [102], [3], [103], [104],
    ]  # fmt: skip


def test_a_small_job_is_in_the_next_batch_behind_a_hundred_thousand(broker: Broker) -> None:
    Broker.submit(broker, client_with(broker), jobs(*range(100_000)))
    worker = worker_of(broker)
    broker.take(worker, 10)
    client_with(broker, -7)
    assert -7 in calls(broker.take(worker, 10))


def test_room_is_shared_evenly(broker: Broker) -> None:
    for client in range(3):
        client_with(broker, *range(client * 1000, client * 1000 + 50))
    leased = calls(broker.take(worker_of(broker), 30))
    assert [sum(number // 1000 == client for number in leased) for client in range(3)] == [10, 10, 10]


def test_what_one_client_cannot_use_goes_to_the_others(broker: Broker) -> None:
    client_with(broker, 1, 2)
    client_with(broker, *range(100, 200))
    leased = calls(broker.take(worker_of(broker), 40))
    assert len(leased) == 40
    assert leased.count(1) == leased.count(2) == 1


@pytest.mark.parametrize("room", [0, -1, -1000])
def test_no_room_takes_nothing(broker: Broker, room: int) -> None:
    client_with(broker, 1)
    assert broker.take(worker_of(broker), room) == []


def test_a_client_with_an_endless_queue_does_not_move_ahead_by_submitting(broker: Broker) -> None:
    busy, quiet = client_with(broker, *range(100)), client_with(broker, 1000, 1001)
    worker = worker_of(broker)
    seen: List[int] = []
    for number in range(100, 104):
        seen += calls(broker.take(worker, 1))
        broker.submit(busy, jobs(number))
    assert [1000, 1001] == [n for n in seen if n >= 1000]
    assert broker.status(0.0)["clients"][1]["id"] == quiet


# --- limits of a batch ----------------------------------------------------------------------


def test_a_take_stops_at_the_byte_limit(broker: Broker) -> None:
    client, worker = client_with(broker), worker_of(broker)
    half = bytes(defaults.MAX_BATCH_BYTES // 2 + 1)
    broker.submit(client, [(n, b"", half) for n in range(5)])
    assert [len(broker.take(worker, 5)) for _ in range(4)] == [2, 2, 1, 0]


def test_one_huge_job_passes_alone(broker: Broker) -> None:
    client, worker = client_with(broker), worker_of(broker)
    huge = bytes(3 * defaults.MAX_BATCH_BYTES)
    broker.submit(client, [(1, b"", huge), (2, b"", b"x")])
    assert [call for *_, call in broker.take(worker, 5)] == [huge]
    assert [call for *_, call in broker.take(worker, 5)] == [b"x"]


def test_the_turn_passes_on_when_the_bytes_are_used_up(broker: Broker) -> None:
    first, second = broker.join_client({}), broker.join_client({})
    worker = worker_of(broker)
    huge = bytes(2 * defaults.MAX_BATCH_BYTES)
    for client in (first, second):
        broker.submit(client, [(n, b"%d" % client, huge) for n in range(3)])
    turns = [int(broker.take(worker, 9)[0][2]) for _ in range(6)]
    assert turns == [first, second] * 3


def finish_all(broker: Broker, worker: int, data: bytes = b"") -> None:
    Broker.finish(broker, worker, [(t, RESULT, data) for t, *_ in broker.take(worker, 10**6)])


def test_a_collect_stops_at_the_count_limit(broker: Broker) -> None:
    client, worker = client_with(broker, *range(defaults.MAX_BATCH_JOBS + 5)), worker_of(broker)
    finish_all(broker, worker)
    seq, first = broker.collect(client, 0)
    assert (seq, len(first)) == (defaults.MAX_BATCH_JOBS, defaults.MAX_BATCH_JOBS)
    assert broker.has_events(client, seq)
    seq, rest = broker.collect(client, seq)
    assert (seq, len(rest)) == (defaults.MAX_BATCH_JOBS + 5, 5)
    assert not broker.has_events(client, seq)


def test_a_collect_stops_at_the_byte_limit_and_always_moves_on(broker: Broker) -> None:
    client, worker = client_with(broker, *range(4)), worker_of(broker)
    finish_all(broker, worker, bytes(defaults.MAX_BATCH_BYTES * 2 // 3))
    assert broker.collect(client, 0)[0] == 2
    assert broker.collect(client, 2)[0] == 4
    broker.submit(client, jobs(1, 2))
    finish_all(broker, worker, bytes(defaults.MAX_BATCH_BYTES * 2))
    assert [broker.collect(client, after)[0] for after in (4, 5, 6)] == [5, 6, 6]


# --- collecting -----------------------------------------------------------------------------


def test_asking_again_gives_the_same_until_acknowledged(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2, 3), worker_of(broker)
    finish_all(broker, worker)
    first = broker.collect(client, 0)
    assert broker.collect(client, 0) == first
    broker.acknowledge(client, 2)
    assert broker.collect(client, 2) == (3, [(3, RESULT, b"")])
    broker.submit(client, jobs(4))
    finish_all(broker, worker)
    assert broker.collect(client, 2) == (4, [(3, RESULT, b""), (4, RESULT, b"")])


def test_what_is_acknowledged_is_gone(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    finish_all(broker, worker)
    broker.acknowledge(client, 2)
    broker.acknowledge(client, 1)  # late, and harmless
    assert broker.collect(client, 0) == (2, [])
    assert broker.collect(client, 2) == (2, [])
    assert not broker.has_events(client, 2)


def test_acknowledging_more_than_there_is_loses_nothing_later(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    finish_all(broker, worker)
    broker.acknowledge(client, 50)
    broker.submit(client, jobs(2))
    finish_all(broker, worker)
    assert broker.collect(client, 1) == (2, [(2, RESULT, b"")])


def test_clients_get_their_own_events_only(broker: Broker) -> None:
    one, two, worker = client_with(broker, 1), client_with(broker, 1), worker_of(broker)
    leases = broker.take(worker, 9)
    assert broker.finish(worker, [(leases[0][0], RESULT, b"a")]) == {one}
    assert not broker.has_events(two, 0)
    assert broker.finish(worker, [(leases[1][0], RESULT, b"b")]) == {two}
    assert events(broker, one) == [(1, RESULT, b"a")]
    assert events(broker, two) == [(1, RESULT, b"b")]


# --- cancelling -----------------------------------------------------------------------------


def test_cancel_removes_what_is_queued(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2, 3), worker_of(broker)
    assert broker.cancel(client, [2, 2, 99]) == [2]
    assert counts(broker)["queued"] == 2
    assert counts(broker)["cancelled"] == 1
    assert calls(broker.take(worker, 9)) == [1, 3]
    assert events(broker, client) == []


def test_cancel_leaves_what_is_handed_out_or_over(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    assert broker.cancel(client, [1]) == []
    broker.finish(worker, [(ticket, RESULT, b"")])
    assert broker.cancel(client, [1, 2]) == [2]
    assert counts(broker) == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 1}


def test_cancel_of_everything_leaves_nothing_to_take(broker: Broker) -> None:
    client, worker = client_with(broker, *range(10)), worker_of(broker)
    assert broker.cancel(client, range(10)) == list(range(10))
    assert broker.queued == 0
    assert broker.take(worker, 99) == []
    broker.submit(client, jobs(3))
    assert calls(broker.take(worker, 99)) == [3]


def test_one_client_cannot_cancel_the_jobs_of_another(broker: Broker) -> None:
    client_with(broker, 1)
    other = client_with(broker, 2)
    assert broker.cancel(other, [1]) == []


def test_cancelled_jobs_take_no_memory(broker: Broker) -> None:
    """Their bytes go at once, and the tombstones in the queue when there are many."""
    client = client_with(broker, 0)
    call = bytes(50_000)
    before = sys.getrefcount(call)
    Broker.submit(broker, client, [(n, b"f", call) for n in range(1, 1001)])
    assert sys.getrefcount(call) == before + 1000
    Broker.cancel(broker, client, range(1, 1001))
    gc.collect()
    assert sys.getrefcount(call) == before
    kept = next(iter(broker._clients.values())).queue
    assert len(kept) < 200, "the tombstones stay for ever"


def test_cancelling_one_by_one_frees_each_at_once(broker: Broker) -> None:
    client = client_with(broker, 0, 1)
    call = bytes(50_000)
    before = sys.getrefcount(call)
    broker.submit(client, [(5, b"f", call)])
    broker.cancel(client, [5])
    assert sys.getrefcount(call) == before


def test_a_cancelled_number_can_be_submitted_again(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    broker.cancel(client, [1])
    broker.submit(client, jobs(1))
    assert calls(broker.take(worker, 9)) == [2, 1]


def test_a_returned_job_can_be_cancelled(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    broker.give_back(worker, [broker.take(worker, 1)[0][0]])
    assert broker.cancel(client, [1]) == [1]
    assert broker.take(worker, 1) == []


# --- late results ---------------------------------------------------------------------------


def test_late_result_of_an_old_attempt_is_dropped(broker: Broker) -> None:
    client, first, second = client_with(broker, 1), worker_of(broker), worker_of(broker)
    [(old, attempt, *_)] = broker.take(first, 1)
    broker.give_back(first, [old])
    [(new, next_attempt, *_)] = broker.take(second, 1)
    assert (attempt, next_attempt) == (1, 2)
    assert new != old
    assert broker.finish(first, [(old, RESULT, b"late")]) == set()
    assert broker.stale == 1
    assert broker.finish(second, [(new, RESULT, b"right")]) == {client}
    assert broker.finish(second, [(new, RESULT, b"again")]) == set()
    assert events(broker, client) == [(1, RESULT, b"right")]
    assert (broker.done, broker.stale) == (1, 2)


def test_a_worker_cannot_finish_what_another_holds(broker: Broker) -> None:
    client, first, second = client_with(broker, 1), worker_of(broker), worker_of(broker)
    [(ticket, *_)] = broker.take(first, 1)
    assert broker.finish(second, [(ticket, RESULT, b"stolen")]) == set()
    assert broker.died(second, ticket, dict(CAUSE)) == set()
    broker.give_back(second, [ticket])
    assert broker.running(second, [ticket]) == set()
    assert broker.stale == 2
    assert broker.finish(first, [(ticket, RESULT, b"right")]) == {client}


def test_a_death_after_the_result_charges_nobody(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    broker.finish(worker, [(ticket, RESULT, b"")])
    assert broker.died(worker, ticket, dict(CAUSE)) == set()
    assert events(broker, client) == [(1, RESULT, b"")]
    assert broker.failed == 0


# --- blame ----------------------------------------------------------------------------------


def test_a_death_is_charged_and_tried_again_first_in_line(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    assert broker.died(worker, ticket, dict(CAUSE)) == set()
    leases = broker.take(worker, 9)
    assert calls(leases) == [1, 2]
    assert [attempt for _, attempt, *_ in leases] == [2, 1]
    assert events(broker, client) == []


def test_the_last_attempt_ends_as_lost_with_every_attempt(broker: Broker) -> None:
    client = client_with(broker, 1)
    for n in range(1, defaults.MAX_ATTEMPTS + 1):
        assert events(broker, client) == []
        worker = worker_of(broker, node=f"n{n}")
        [(ticket, *_)] = broker.take(worker, 1)
        touched = broker.died(
            worker, ticket, {**CAUSE, "pid": 90 + n, "peak_rss_bytes": n, "exit_code": None}
        )
    assert touched == {client}
    [(number, kind, history)] = events(broker, client)
    assert (number, kind) == (1, LOST)
    assert history == [
        {"attempt": n, "node": f"n{n}", "pid": 90 + n, "cause": "killed by SIGSEGV", "signal": 11,
         "exit_code": None, "peak_rss_bytes": n, "oom": None, "stderr": None}
        for n in range(1, defaults.MAX_ATTEMPTS + 1)
    ]  # fmt: skip
    assert broker.failed == 1
    assert broker.take(worker, 9) == []


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_limit_of_attempts_is_kept(limit: int) -> None:
    broker = CheckedBroker(max_attempts=limit)
    client, worker = client_with(broker, 1), worker_of(broker)
    deaths = 0
    while leases := broker.take(worker, 1):
        broker.died(worker, leases[0][0], dict(CAUSE))
        deaths += 1
    assert deaths == limit
    assert events(broker, client)[0][1] == LOST


def test_other_ways_to_come_back_charge_nobody(broker: Broker) -> None:
    client = client_with(broker, 1)
    for round_ in range(30):
        worker = worker_of(broker)
        [(ticket, attempt, *_)] = broker.take(worker, 1)
        assert attempt == round_ + 1
        if round_ % 2:
            broker.give_back(worker, [ticket])
        else:
            broker.leave_worker(worker)
    assert events(broker, client) == []
    assert counts(broker)["queued"] == 1


def test_uncharged_returns_are_not_in_the_history(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    for _ in range(defaults.MAX_ATTEMPTS):
        broker.give_back(worker, [broker.take(worker, 1)[0][0]])
        broker.died(worker, broker.take(worker, 1)[0][0], dict(CAUSE))
    [(_, kind, history)] = events(broker, client)
    assert kind == LOST
    assert [attempt["attempt"] for attempt in history] == [2, 4, 6]


def test_a_cause_need_not_be_complete(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    for _ in range(defaults.MAX_ATTEMPTS):
        broker.died(worker, broker.take(worker, 1)[0][0], {"cause": "?"})
    [(_, _, history)] = events(broker, client)
    assert set(history[0]) == ATTEMPT


def test_of_a_cause_only_what_belongs_there_is_kept(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    odd = {"cause": "x" * 1_000_000, "stderr": "y" * 1_000_000, "node": "elsewhere", "attempt": 7, "more": []}
    for _ in range(defaults.MAX_ATTEMPTS):
        broker.died(worker, broker.take(worker, 1)[0][0], odd)
    [(_, _, history)] = events(broker, client)
    assert [attempt["attempt"] for attempt in history] == [1, 2, 3]
    for attempt in history:
        assert set(attempt) == ATTEMPT
        assert len(attempt["cause"]) == len(attempt["stderr"]) == 4096
        assert attempt["node"] != "elsewhere"


@pytest.mark.parametrize(
    "odd",
    [{"pid": "17"}, {"oom": 1}, {"signal": True}, {"stderr": b"x"}, {"cause": ["x"]}, {"pid": 1 << 999}],
    ids=repr,
)
def test_a_cause_of_the_wrong_kind_is_refused_before_anything_has_moved(broker: Broker, odd: Any) -> None:
    client_with(broker, 1)
    worker = worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    with pytest.raises(UsageError, match="the cause of a death has "):
        broker.died(worker, ticket, {"cause": "killed", **odd})
    broker.give_back(worker, [ticket])
    assert calls(broker.take(worker_of(broker), 9)) == [1]


def test_returned_jobs_keep_their_order(broker: Broker) -> None:
    client_with(broker, 1, 2, 3, 4, 5)
    worker = worker_of(broker)
    leases = broker.take(worker, 4)
    broker.give_back(worker, [leases[1][0], leases[2][0], leases[3][0]])
    assert calls(broker.take(worker, 9)) == [2, 3, 4, 5]


def test_jobs_of_a_worker_that_left_keep_their_order(broker: Broker) -> None:
    client_with(broker, 1, 2, 3, 4)
    worker = worker_of(broker)
    broker.take(worker, 3)
    broker.leave_worker(worker)
    assert calls(broker.take(worker_of(broker), 9)) == [1, 2, 3, 4]


def test_giving_back_twice_is_giving_back_once(broker: Broker) -> None:
    client_with(broker, 1)
    worker = worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    broker.give_back(worker, [ticket, ticket, 12345])
    broker.give_back(worker, [ticket])
    assert counts(broker)["queued"] == 1
    assert calls(broker.take(worker, 9)) == [1]


# --- workers that vanish --------------------------------------------------------------------


def test_jobs_of_a_lost_worker_go_to_others_in_order(broker: Broker) -> None:
    client, first, second = client_with(broker, 1, 2, 3, 4), worker_of(broker), worker_of(broker)
    old = broker.take(first, 3)
    assert broker.lose_worker(first, "closed") == set()
    again = broker.take(second, 9)
    assert calls(again) == [1, 2, 3, 4]
    assert [attempt for _, attempt, *_ in again] == [2, 2, 2, 1]
    with pytest.raises(UnknownMember):
        broker.finish(first, [(old[0][0], RESULT, b"late")])
    assert events(broker, client) == []


def test_losing_workers_charges_a_job_only_when_it_ran_and_not_for_ever(broker: Broker) -> None:
    client = client_with(broker, 1)
    for n in range(defaults.MAX_WORKER_LOSSES):
        assert events(broker, client) == []
        worker = worker_of(broker, node=f"n{n}")
        [(ticket, *_)] = broker.take(worker, 1)
        touched = broker.lose_worker(worker, "closed by the other side")
    assert touched == {client}
    [(_, kind, history)] = events(broker, client)
    assert kind == LOST
    assert [a["node"] for a in history] == [f"n{n}" for n in range(defaults.MAX_WORKER_LOSSES)]
    assert all("worker was lost (closed by the other side)" in a["cause"] for a in history)


def test_what_waited_behind_others_is_not_blamed_for_the_loss(broker: Broker) -> None:
    """Ten jobs in a worker of two slots: only what was announced as running can have done it."""
    client = client_with(broker, *range(10))
    for _ in range(defaults.MAX_WORKER_LOSSES):
        worker = worker_of(broker, slots=2)
        leases = {int(call): ticket for ticket, _, _, call in broker.take(worker, 10)}
        broker.running(worker, [leases[4]])
        broker.lose_worker(worker, "closed")
    ended = [(number, kind) for number, kind, _ in events(broker, client) if kind != RUNNING]
    assert ended == [(4, LOST)]
    assert counts(broker)["queued"] == 9


def test_as_many_jobs_as_slots_were_all_running(broker: Broker) -> None:
    client = client_with(broker, 1, 2)
    for _ in range(defaults.MAX_WORKER_LOSSES):
        worker = worker_of(broker, slots=2)
        broker.take(worker, 2)
        broker.lose_worker(worker, "closed")
    assert sorted(number for number, kind, _ in events(broker, client) if kind == LOST) == [1, 2]


def test_losses_and_deaths_have_separate_limits_and_one_history(broker: Broker) -> None:
    client = client_with(broker, 1)
    for _ in range(defaults.MAX_ATTEMPTS - 1):
        worker = worker_of(broker)
        broker.died(worker, broker.take(worker, 1)[0][0], dict(CAUSE))
        broker.take(worker, 1)
        broker.lose_worker(worker, "closed")
    assert events(broker, client) == []
    worker = worker_of(broker)
    broker.died(worker, broker.take(worker, 1)[0][0], dict(CAUSE))
    [(_, _, history)] = events(broker, client)
    assert [a["attempt"] for a in history] == list(range(1, 2 * defaults.MAX_ATTEMPTS))
    assert sum("lost" in a["cause"] for a in history) == defaults.MAX_ATTEMPTS - 1


def test_losing_or_leaving_twice_is_harmless(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    broker.take(worker, 1)
    broker.lose_worker(worker, "x")
    assert broker.lose_worker(worker, "x") == set()
    broker.leave_worker(worker)
    broker.leave_client(client)
    broker.leave_client(client)
    assert counts(broker)["queued"] == 0


def test_a_worker_that_says_nothing_of_its_slots_can_be_lost(broker: Broker) -> None:
    client_with(broker, 1)
    for facts in ({}, {"slots": None}):
        worker = broker.join_worker(facts, now=0.0)
        broker.take(worker, 1)
        broker.lose_worker(worker, "closed")
    assert counts(broker)["queued"] == 1


def test_silence_expires_and_a_beat_renews(broker: Broker) -> None:
    quiet, noisy = worker_of(broker, now=0.0), worker_of(broker, now=0.0)
    assert broker.expire(now=defaults.SILENT_S) == []
    broker.heard(noisy, now=10.0)
    assert broker.expire(now=defaults.SILENT_S + 0.001) == [quiet]
    broker.lose_worker(quiet, "silent")
    assert broker.expire(now=defaults.SILENT_S + 0.001) == []
    assert broker.expire(now=10.0 + defaults.SILENT_S + 0.001) == [noisy]
    assert broker.workers() == [noisy]


def test_a_beat_updates_the_facts(broker: Broker) -> None:
    worker = worker_of(broker)
    broker.heard(worker, 3.0, {"busy": 2, "rss_bytes": 5})
    [seen] = broker.status(now=4.5)["workers"]
    assert (seen["busy"], seen["rss_bytes"], seen["silent_s"], seen["node"]) == (2, 5, 1.5, "n1")


def test_a_worker_is_idle_since_it_last_had_a_job(broker: Broker) -> None:
    client_with(broker, 1)
    worker = worker_of(broker, now=1.0)

    def idle_s(now: float) -> float:
        idle: float = broker.status(now)["workers"][0]["idle_s"]
        return idle

    assert idle_s(5.0) == 4.0
    [(ticket, *_)] = broker.take(worker, 1)
    assert idle_s(6.0) == 0.0
    broker.heard(worker, 8.0)
    broker.finish(worker, [(ticket, RESULT, b"")])
    broker.heard(worker, 10.0)
    assert idle_s(11.0) == 3.0


def test_the_time_that_a_worker_has_left_goes_by(broker: Broker) -> None:
    worker = worker_of(broker, now=1.0)
    assert broker.status(2.0)["workers"][0]["ends_in_s"] is None
    broker.heard(worker, 10.0, {"ends_in_s": 60.0})
    broker.heard(worker, 12.0)
    assert broker.status(15.0)["workers"][0]["ends_in_s"] == 55.0


def test_a_worker_that_drains_is_shown_to(broker: Broker) -> None:
    told, by_itself = worker_of(broker), worker_of(broker)
    assert [seen["draining"] for seen in broker.status(0.0)["workers"]] == [False, False]
    assert broker.drain(told)
    broker.heard(by_itself, 1.0, {"draining": True})
    for _ in range(2):
        assert [seen["draining"] for seen in broker.status(0.0)["workers"]] == [True, True]
        broker.heard(told, 2.0, {"busy": 1})
        broker.heard(by_itself, 2.0, {"busy": 1})
    broker.leave_worker(told)
    assert not broker.drain(told)


# --- workers whose time is limited ----------------------------------------------------------


def mixed_jobs(*functions: bytes) -> List[Tuple[int, bytes, bytes]]:
    """Jobs that call these functions, numbered from 1."""
    return [(number, function, b"%d" % number) for number, function in enumerate(functions, 1)]


def declined(broker: Broker, worker: int) -> None:
    """The worker is sent one job and has no time for it."""
    [(ticket, *_)] = broker.take(worker, 1)
    broker.decline(worker, [ticket, 999])


def test_a_function_that_was_declined_is_not_sent_again(broker: Broker) -> None:
    client, other = broker.join_client({}), client_with(broker)
    broker.submit(client, mixed_jobs(b"long", b"short", b"long", b"short", b"long"))
    broker.submit(other, [(9, b"long", b"9")])
    late, early = worker_of(broker), worker_of(broker)
    declined(broker, late)
    assert calls(broker.take(late, 1)) == [2]
    assert calls(broker.take(late, 9)) == [4]
    assert broker.take(late, 9) == []
    assert counts(broker)["queued"] == 4
    assert sorted(calls(broker.take(early, 9))) == [1, 3, 5, 9]


def test_declined_jobs_keep_their_order_and_are_charged_to_nobody(broker: Broker) -> None:
    client = broker.join_client({})
    broker.submit(client, mixed_jobs(b"long", b"long", b"short"))
    late, early = worker_of(broker), worker_of(broker)
    leases = broker.take(late, 2)
    broker.decline(late, [ticket for ticket, *_ in leases])
    assert calls(broker.take(late, 9)) == [3]
    assert calls(broker.take(early, 9)) == [1, 2]


def test_what_was_cancelled_is_not_found(broker: Broker) -> None:
    client = broker.join_client({})
    broker.submit(client, mixed_jobs(b"long", b"short", b"long", b"short"))
    worker = worker_of(broker)
    declined(broker, worker)
    assert broker.cancel(client, [2, 3]) == [2, 3]
    assert calls(broker.take(worker, 9)) == [4]


def test_only_so_many_jobs_are_looked_through(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "LOOK_AHEAD_JOBS", 3)
    client = broker.join_client({})
    broker.submit(client, mixed_jobs(b"long", b"long", b"long", b"long", b"short"))
    worker = worker_of(broker)
    declined(broker, worker)
    assert broker.take(worker, 9) == []
    assert calls(broker.take(worker_of(broker), 9)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("ends_in_s", "again"), [(3600.0, True), (None, True), (70.0, False), (40.0, False)])
def test_a_worker_that_gets_more_time_is_sent_everything_again(
    broker: Broker, ends_in_s: Any, again: bool
) -> None:
    client_with(broker, 1)
    worker = worker_of(broker)
    broker.heard(worker, 0.0, {"ends_in_s": 60.0})
    declined(broker, worker)
    broker.heard(worker, 10.0, {"ends_in_s": ends_in_s})
    assert bool(broker.take(worker, 1)) == again


def test_an_end_that_was_lifted_is_shown_no_more(broker: Broker) -> None:
    worker = worker_of(broker)
    broker.heard(worker, 0.0, {"ends_in_s": 60.0})
    broker.heard(worker, 0.0, {"ends_in_s": None})
    assert broker.status(0.0)["workers"][0]["ends_in_s"] is None


# --- clients that leave ---------------------------------------------------------------------


def test_a_client_that_leaves_takes_its_queue_along(broker: Broker) -> None:
    gone, stays, worker = client_with(broker, 1, 2, 3), client_with(broker, 7), worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    broker.leave_client(gone)
    assert counts(broker) == {"queued": 1, "running": 1, "done": 0, "failed": 0, "cancelled": 2}
    assert calls(broker.take(worker, 9)) == [7]
    assert broker.finish(worker, [(ticket, RESULT, b"nobody wants it")]) == set()
    assert counts(broker)["running"] == 1
    assert broker.stale == 0
    assert [c["id"] for c in broker.status(0.0)["clients"]] == [stays]


@pytest.mark.parametrize("end", ["died", "give_back", "leave", "lose"])
def test_running_jobs_of_a_client_that_left_do_not_come_back(broker: Broker, end: str) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    leases = broker.take(worker, 2)
    broker.leave_client(client)
    if end == "died":
        for _ in range(defaults.MAX_ATTEMPTS):
            assert broker.died(worker, leases[0][0], dict(CAUSE)) == set()
    elif end == "give_back":
        broker.give_back(worker, [leases[0][0]])
    elif end == "leave":
        broker.leave_worker(worker)
    else:
        broker.lose_worker(worker, "x")
    assert counts(broker)["queued"] == 0
    assert broker.take(worker_of(broker), 9) == []


def test_nothing_remembers_a_client_that_left(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    broker.take(worker, 1)
    memory = weakref.ref(broker._clients[client].queue)
    broker.leave_client(client)
    broker.leave_worker(worker)
    gc.collect()
    assert memory() is None


# --- strangers and confused peers -----------------------------------------------------------


@pytest.mark.parametrize("stranger", [0, 99, -1, None, "1", [1], {}, (1, 2)], ids=repr)
def test_unknown_members_are_told_so(broker: Broker, stranger: Any) -> None:
    client_with(broker, 1)
    worker_of(broker)
    for call in (
        lambda: broker.submit(stranger, jobs(1)),
        lambda: broker.cancel(stranger, [1]),
        lambda: broker.collect(stranger, 0),
        lambda: broker.acknowledge(stranger, 0),
        lambda: broker.has_events(stranger, 0),
        lambda: broker.take(stranger, 1),
        lambda: broker.finish(stranger, []),
        lambda: broker.running(stranger, []),
        lambda: broker.died(stranger, 1, {}),
        lambda: broker.give_back(stranger, []),
        lambda: broker.heard(stranger, 0.0),
    ):
        with pytest.raises(UnknownMember, match="no (client|worker)"):
            call()
    assert issubclass(UnknownMember, UsageError)


def test_a_client_is_no_worker(broker: Broker) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    with pytest.raises(UnknownMember):
        broker.take(client, 1)
    with pytest.raises(UnknownMember):
        broker.submit(worker, jobs(1))


BAD_JOBS: List[Any] = [
    5, None, [5], [(2, b"f")], [(2, b"f", b"c", b"d")], [([], b"f", b"c")], [(2, b"f", b"c"), None],
    [(2, b"f", None)], [(2, None, b"c")], [(2, b"f", 7)],
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JOBS, ids=repr)
def test_a_malformed_batch_of_jobs_leaves_the_counts_right(broker: Broker, bad: Any) -> None:
    client, worker = client_with(broker, 1), worker_of(broker)
    try:
        broker.submit(client, bad)
    except Exception:
        pass  # refused, in part or as a whole
    broker.submit(client, jobs(8))
    assert {c for *_, c in broker.take(worker, 99)} >= {b"1", b"8"}
    assert broker.queued == 0


@pytest.mark.parametrize("bad", [5, None, [[2]], [1, [2]], [1, None, {}]], ids=repr)
def test_a_malformed_cancel_leaves_the_counts_right(broker: Broker, bad: Any) -> None:
    client, worker = client_with(broker, 1, 3), worker_of(broker)
    try:
        broker.cancel(client, bad)
    except Exception:
        pass
    leased = calls(broker.take(worker, 99))
    assert leased in ([1, 3], [3])
    assert broker.cancelled == 2 - len(leased)


@pytest.mark.parametrize("bad", [5, None, [5], [(1, RESULT)], [([], RESULT, b"")]], ids=repr)
def test_malformed_outcomes_leave_the_counts_right(broker: Broker, bad: Any) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    leases = broker.take(worker, 2)
    try:
        broker.finish(worker, bad)
    except Exception:
        pass
    broker.finish(worker, [(ticket, RESULT, b"") for ticket, *_ in leases])
    assert [number for number, *_ in events(broker, client)] == [1, 2]


@pytest.mark.parametrize("bad", [5, None, [[]], ["ticket", []]], ids=repr)
@pytest.mark.parametrize("method", ["give_back", "running"])
def test_malformed_tickets_lose_no_job(broker: Broker, method: str, bad: Any) -> None:
    client_with(broker, 1)
    worker = worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    if isinstance(bad, list):
        bad = [ticket if entry == "ticket" else entry for entry in bad]
    try:
        getattr(broker, method)(worker, bad)
    except Exception:
        pass
    broker.check_invariants()
    broker.leave_worker(worker)
    assert calls(broker.take(worker_of(broker), 9)) == [1]


@pytest.mark.parametrize("bad", [5, None, "cause", [1]], ids=repr)
def test_a_malformed_cause_loses_no_job(broker: Broker, bad: Any) -> None:
    client_with(broker, 1)
    worker = worker_of(broker)
    [(ticket, *_)] = broker.take(worker, 1)
    try:
        broker.died(worker, ticket, bad)
    except Exception:
        pass
    broker.leave_worker(worker)
    assert calls(broker.take(worker_of(broker), 9)) == [1]


def test_malformed_outcome_behind_good_ones_still_tells_the_client(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2), worker_of(broker)
    [(ticket, *_), _] = broker.take(worker, 2)
    with pytest.raises(Exception):
        broker.finish(worker, [(ticket, RESULT, b"good"), None])  # type: ignore[list-item]
    assert events(broker, client) == [(1, RESULT, b"good")]


# --- looking on -----------------------------------------------------------------------------


def test_status_is_made_of_plain_values(broker: Broker) -> None:
    client, worker = client_with(broker, 1, 2, 3), worker_of(broker, now=1.0)
    broker.take(worker, 1)
    seen = broker.status(now=3.0)
    assert seen["jobs"] == {"queued": 2, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
    [w], [c] = seen["workers"], seen["clients"]
    assert (w["id"], w["slots"], w["silent_s"]) == (worker, 2, 2.0)
    assert (c["id"], c["node"], c["queued"], c["running"]) == (client, "here", 2, 1)


def test_check_invariants_finds_wrong_counts() -> None:
    broker = Broker()
    client_with(broker, 1)
    broker.queued += 1
    with pytest.raises(AssertionError):
        broker.check_invariants()


def test_check_invariants_finds_a_lost_job() -> None:
    broker = Broker()
    client_with(broker, 1)
    worker = worker_of(broker)
    broker.take(worker, 1)
    broker._workers[worker].held.clear()
    with pytest.raises(AssertionError):
        broker.check_invariants()
