"""A master without memory: who is given up, who goes on, and what comes again."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Iterator, List

import pytest

from cwmp.errors import MasterLost
from cwmp.members import CLIENT
from cwmp.messages import RESULT
from cwmp.shortage import Shortage
from tests.unit.test_members import Master, jobs, with_client_and_worker

pytestmark = pytest.mark.core


def test_who_takes_most_is_given_up_and_the_others_come_back(caplog: pytest.LogCaptureFixture) -> None:
    master, (modest_peer, modest), (worker_peer, worker) = with_client_and_worker()
    greedy = master.join(CLIENT)[1]["member"]
    master.broker.submit(modest, jobs(1, 2, 3))
    master.broker.submit(greedy, [(1, b"f", bytes(3 << 20))])
    Shortage(master.broker, master.members).relieve()
    assert "gave up client" in caplog.text and "1 open jobs took 3 MiB" in caplog.text
    assert modest_peer.closed and worker_peer.closed
    _, welcome = master.back(CLIENT, modest)
    assert (welcome["known"], welcome["taken"]) == (True, 1)
    master.back("worker", worker)
    assert [lease[0] for lease in master.broker.take(worker, 5)] == [1, 2, 3]
    master.broker.check_invariants()


def test_who_was_given_up_is_told_why_by_this_master_and_taken_in_by_the_next() -> None:
    master, (_, client), _ = with_client_and_worker()
    master.broker.submit(client, [(1, b"f", bytes(3 << 20))])
    Shortage(master.broker, master.members).relieve()
    for _ in range(2):
        with pytest.raises(MasterLost, match=r"our 1 open jobs took 3 MiB of it: have fewer open at once"):
            master.back(CLIENT, client)
    assert Master("second").back(CLIENT, client)[1]["known"] is False


def test_results_that_nobody_collects_count_as_well() -> None:
    master, (_, idle), (_, worker) = with_client_and_worker()
    slow = master.join(CLIENT)[1]["member"]
    master.broker.submit(slow, jobs(1))
    [lease] = master.broker.take(worker, 1)
    master.broker.finish(worker, [(lease[0], RESULT, bytes(1 << 20))])
    master.broker.submit(idle, jobs(*range(100)))
    ident, open_jobs, size = master.broker.largest_client() or (0, 0, 0)
    assert (ident, open_jobs) == (slow, 0)
    assert 1 << 20 < size < 1.01 * (1 << 20)


def test_without_anybody_to_give_up_all_the_same_all_come_back(caplog: pytest.LogCaptureFixture) -> None:
    master, (client_peer, client), (worker_peer, _) = with_client_and_worker()
    Shortage(master.broker, master.members).relieve()
    assert "no client has jobs here that could be given up" in caplog.text
    assert client_peer.closed and worker_peer.closed
    assert master.back(CLIENT, client)[1]["known"] is True


def test_the_reserve_is_taken_again_a_while_later() -> None:
    master, _, _ = with_client_and_worker()
    shortage = Shortage(master.broker, master.members)
    shortage.recover(0.0)
    shortage.relieve()
    seen = []
    for now in (100.0, 101.0, 159.0, 160.0):
        shortage.recover(now)
        seen.append(shortage._reserve is not None)
    assert seen == [False, False, False, True]


def test_making_room_may_fail_for_want_of_memory_and_the_next_time_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    master, (_, client), _ = with_client_and_worker()
    master.broker.submit(client, jobs(1))
    shortage = Shortage(master.broker, master.members)
    with monkeypatch.context() as patched:
        patched.setattr(master.members, "dismiss", full)
        shortage.relieve()
    assert "even for making room" in caplog.text
    shortage.relieve()
    assert master.broker.largest_client() is None


def full(*_: Any) -> None:
    raise MemoryError


# --- jobs that were not taken as a whole ----------------------------------------------------


class Full(Deque[Any]):
    """A queue that has no memory for more than two."""

    def append(self, job: Any) -> None:
        if len(self) == 2:
            raise MemoryError
        super().append(job)


def breaking_off(taken: List[Any]) -> Iterator[Any]:
    yield from taken
    raise MemoryError


def test_jobs_that_were_taken_in_part_come_again_and_count_once() -> None:
    master, (_, client), (_, worker) = with_client_and_worker()
    with pytest.raises(MemoryError):
        master.broker.submit(client, breaking_off(jobs(1, 2)))
    master.broker.check_invariants()
    assert master.broker.client_back(client) == 0, "it is not to be taken for done"
    master.broker.submit(client, jobs(1, 2, 3))
    assert len(master.broker.take(worker, 5)) == 3
    assert master.broker.client_back(client) == 1


def test_a_job_that_found_no_room_in_the_queue_comes_again() -> None:
    master, (_, client), (_, worker) = with_client_and_worker()
    record = master.broker._client(client)
    record.queue = Full()
    with pytest.raises(MemoryError):
        master.broker.submit(client, jobs(1, 2, 3))
    master.broker.check_invariants()
    record.queue = deque(record.queue)
    master.broker.submit(client, jobs(1, 2, 3))
    assert len(master.broker.take(worker, 5)) == 3
