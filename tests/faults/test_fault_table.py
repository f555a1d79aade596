"""The fault table: what dies x when x what the caller sees. Nothing is left after any of it."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Callable, Iterator, List

import psutil
import pytest

from cwmp import LocalCluster, MasterLost, WorkerLost
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """One worker with two slots; all its processes have ended after the test."""
    yield from _cluster(2, 1)


@pytest.fixture
def pair() -> Iterator[LocalCluster]:
    """Two workers with one slot each."""
    yield from _cluster(2, 2)


def _cluster(slots: int, workers: int) -> Iterator[LocalCluster]:
    with LocalCluster(slots, workers=workers) as cluster:
        processes = see.family(cluster)
        yield cluster
    see.wait_gone(*processes)


@pytest.fixture
def gate(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[see.Gate]:
    """What ends the jobs that tests leave running."""
    gate = see.Gate(request.getfixturevalue(request.param), tmp_path)
    yield gate
    gate.open()


in_cluster = pytest.mark.parametrize("gate", ["cluster"], indirect=True)
in_pair = pytest.mark.parametrize("gate", ["pair"], indirect=True)


def worker_of(cluster: LocalCluster, slot: int) -> int:
    """Which worker a slot belongs to."""
    [worker] = [worker for worker in cluster.pids["workers"] if slot in see.slots_of(worker)]
    return int(worker)


# --- a slot ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_slot_killed_while_running_once(cluster: LocalCluster, tmp_path: Path, number: int) -> None:
    trace = tmp_path / "tries"
    with cluster.executor() as executor:
        unlucky = executor.submit(jobs.die_the_first_time, str(trace), number)
        others = [executor.submit(jobs.add, n) for n in range(200)]
        assert [future.result(WAIT_S) for future in others] == list(range(1, 201))
        slot = unlucky.result(WAIT_S)
    first, second = see.wait_for_lines(trace, 2)
    assert slot == int(second) != int(first)
    assert len(see.slots_of(cluster.pids["workers"][0])) == 2
    assert see.jobs(cluster) == {"queued": 0, "running": 0, "done": 201, "failed": 0, "cancelled": 0}


@in_cluster
def test_slot_killed_from_outside_each_time(cluster: LocalCluster, gate: see.Gate) -> None:
    with cluster.executor() as executor:
        doomed = executor.submit(jobs.begin_and_wait, *gate.paths)
        for attempt in range(1, 4):
            slot = gate.wait_for(attempt)[-1]
            assert executor.submit(jobs.add, attempt).result(WAIT_S) == attempt + 1
            os.kill(slot, signal.SIGKILL)
        error = doomed.exception(WAIT_S)
        assert isinstance(error, WorkerLost)
        assert len(error.attempts) == 3
        assert {attempt["signal"] for attempt in error.attempts} == {signal.SIGKILL}
        assert {attempt["cause"] for attempt in error.attempts} == {"killed by SIGKILL"}
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    assert gate.begun() == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_slot_killed_while_idle(cluster: LocalCluster, number: int) -> None:
    [worker] = cluster.pids["workers"]
    with cluster.executor() as executor:
        executor.submit(jobs.nothing).result(WAIT_S)
        before = set(see.slots_of(worker))
        for slot in before:
            os.kill(slot, number)
        wait_until(
            lambda: len(set(see.slots_of(worker)) - before) == 2,
            timeout_s=WAIT_S,
            describe=lambda: f"{before} -> {see.slots_of(worker)}",
        )
        assert list(executor.map(jobs.add, range(100))) == list(range(1, 101))


@in_cluster
def test_both_slots_killed_while_jobs_wait_behind_them(cluster: LocalCluster, gate: see.Gate) -> None:
    with cluster.executor() as executor:
        held = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        behind = [executor.submit(jobs.add, n) for n in range(300)]
        for slot in gate.wait_for(2):
            os.kill(slot, signal.SIGKILL)
        gate.open()
        assert all(future.result(WAIT_S) for future in held)
        assert [future.result(WAIT_S) for future in behind] == list(range(1, 301))


def test_only_the_job_that_kills_its_slot_is_charged(cluster: LocalCluster) -> None:
    """More deaths than one job is allowed, with many jobs in the queue of each slot that dies."""
    with cluster.executor() as executor:
        futures = []
        for n in range(1000):
            futures.append(executor.submit(jobs.add, n))
            if n % 100 == 50:
                futures.append(executor.submit(jobs.raise_signal, signal.SIGKILL))
        wait(futures, WAIT_S)
        errors = [future.exception(0) for future in futures]
    lost = [error for error in errors if isinstance(error, WorkerLost)]
    assert len(lost) == 10
    assert [len(error.attempts) for error in lost] == [3] * 10
    assert sum(error is None for error in errors) == 1000


def test_jobs_that_are_taken_back_often_are_never_charged(cluster: LocalCluster, tmp_path: Path) -> None:
    """A failing job tells which attempt it was: hand-outs that came to nothing count, but do not charge."""
    with cluster.executor() as executor:
        futures = [executor.submit(jobs.raise_value_error, str(n)) for n in range(300)]
        for _ in range(6):
            executor.submit(jobs.nap, 0.05)
            for slot in see.slots_of(cluster.pids["workers"][0]):
                os.kill(slot, signal.SIGSTOP)
                os.kill(slot, signal.SIGCONT)
        futures += [executor.submit(jobs.raise_value_error, str(n)) for n in range(300)]
        errors = [future.exception(WAIT_S) for future in futures]
    assert {type(error) for error in errors} == {ValueError}


def test_a_long_job_delays_none_of_the_short_ones(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        executor.submit(jobs.nothing).result(WAIT_S)
        short = [executor.submit(jobs.nothing) for _ in range(1000)]
        long = executor.submit(jobs.nap, 3.0)
        short += [executor.submit(jobs.nothing) for _ in range(1000)]
        done, open_ones = wait(short, 2.5)
        assert not open_ones, f"{len(open_ones)} jobs wait behind the long one"
        assert not long.done()


def test_no_job_stays_behind_long_ones(cluster: LocalCluster, tmp_path: Path) -> None:
    """What a worker cannot begin goes back to the master, where another worker would find it."""
    with cluster.executor() as executor:
        for turn in range(20):
            list(executor.map(jobs.add, range(300)))  # short jobs: the worker keeps many in stock
            directory = tmp_path / str(turn)
            directory.mkdir()
            with see.Gate(cluster, directory) as gate:
                held = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
                gate.wait_for(2)
                others = [executor.submit(jobs.nothing) for _ in range(50)]
                wait_until(
                    lambda: (see.jobs(cluster)["queued"], see.jobs(cluster)["running"]) == (50, 2),
                    timeout_s=5.0,
                    describe=lambda: str(see.status(cluster)),
                )
                gate.open()
                wait([*held, *others], WAIT_S)


def test_a_slot_killed_in_the_middle_of_a_large_result(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        futures = [executor.submit(jobs.text_of, 20 << 20) for _ in range(6)]
        wait_until(lambda: any(future.done() for future in futures), timeout_s=WAIT_S)
        for slot in see.slots_of(cluster.pids["workers"][0]):
            os.kill(slot, signal.SIGKILL)
        assert [len(future.result(60)) for future in futures] == [20 << 20] * 6


# --- a worker, kill -9 ----------------------------------------------------------------------


@in_pair
def test_worker_killed_while_idle(pair: LocalCluster, gate: see.Gate) -> None:
    with pair.executor() as executor:
        busy = executor.submit(jobs.begin_and_wait, *gate.paths)
        survivor = worker_of(pair, gate.wait_for(1)[0])
        [victim] = set(pair.pids["workers"]) - {survivor}
        below = see.children_of(victim)
        os.kill(victim, signal.SIGKILL)
        see.wait_gone(victim, *below)
        wait_until(lambda: len(see.status(pair)["workers"]) == 1, timeout_s=3.0)
        gate.open()
        assert busy.result(WAIT_S)
        assert list(executor.map(jobs.add, range(100))) == list(range(1, 101))
    assert gate.begun() == 1


@in_pair
def test_worker_killed_while_busy(pair: LocalCluster, gate: see.Gate) -> None:
    with pair.executor() as executor:
        held = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        queued = [executor.submit(jobs.add, n) for n in range(200)]
        victim = worker_of(pair, gate.wait_for(2)[0])
        below = see.children_of(victim)
        os.kill(victim, signal.SIGKILL)
        see.wait_gone(victim, *below)
        wait_until(lambda: see.jobs(pair)["running"] == 1, timeout_s=3.0)
        gate.open()
        slots = {future.result(WAIT_S) for future in held}
        assert [future.result(WAIT_S) for future in queued] == list(range(1, 201))
    assert not slots & set(below), "only the other worker's results count"
    assert gate.begun() == 3


@in_cluster
def test_only_worker_killed_and_another_one_comes(cluster: LocalCluster, gate: see.Gate) -> None:
    with cluster.executor() as executor:
        held = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        gate.wait_for(2)
        queued = [executor.submit(jobs.add, n) for n in range(50)]
        os.kill(cluster.pids["workers"][0], signal.SIGKILL)
        wait_until(lambda: not see.status(cluster)["workers"], timeout_s=3.0)
        assert not any(future.done() for future in [*held, *queued])
        gate.open()
        with see.more_workers(cluster):
            assert [future.result(WAIT_S) for future in queued] == list(range(1, 51))
            assert all(future.result(WAIT_S) for future in held)


def test_worker_killed_in_the_middle_of_many_small_jobs(pair: LocalCluster) -> None:
    with pair.executor() as executor:
        futures = [executor.submit(jobs.nap, 0.0005, n) for n in range(4000)]
        wait_until(lambda: futures[500].done(), timeout_s=WAIT_S)
        os.kill(pair.pids["workers"][0], signal.SIGKILL)
        assert [future.result(WAIT_S) for future in futures] == list(range(4000))


@in_cluster
def test_a_job_whose_workers_all_die_is_given_up(cluster: LocalCluster, gate: see.Gate) -> None:
    with cluster.executor() as executor:
        held = executor.submit(jobs.begin_and_wait, *gate.paths)
        gate.wait_for(1)
        os.kill(cluster.pids["workers"][0], signal.SIGKILL)
        for loss in range(2, 6):
            with see.more_workers(cluster) as worker:
                gate.wait_for(loss)
                os.kill(worker, signal.SIGKILL)
                wait_until(lambda: not see.status(cluster)["workers"], timeout_s=3.0)
        error = held.exception(WAIT_S)
        assert isinstance(error, WorkerLost)
        assert len(error.attempts) == 5
        assert "its whole worker was lost" in str(error)


@in_pair
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.soak
def test_worker_that_falls_silent(pair: LocalCluster, gate: see.Gate) -> None:
    with pair.executor() as executor:
        held = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        victim = worker_of(pair, gate.wait_for(2)[0])
        os.kill(victim, signal.SIGSTOP)
        try:
            gate.open()
            assert all(future.result(25) for future in held)
            assert len(see.status(pair)["workers"]) == 1
            assert gate.begun() == 3
        finally:
            os.kill(victim, signal.SIGCONT)
        see.wait_gone(victim)  # it finds out that it was given up


# --- a worker, told to stop -----------------------------------------------------------------


@pytest.fixture
def leaving(cluster: LocalCluster) -> Iterator[Callable[[float], Any]]:
    """More workers with a grace period; the cluster's own one is gone, so that they do all the work."""
    os.kill(cluster.pids["workers"][0], signal.SIGTERM)
    wait_until(lambda: not see.status(cluster)["workers"], timeout_s=WAIT_S)
    yield lambda grace_s: see.more_workers(cluster, grace_s=grace_s)


@in_cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_told_to_stop_finishes_what_runs_and_returns_the_rest(
    cluster: LocalCluster, gate: see.Gate, leaving: Callable[[float], Any], number: int, tmp_path: Path
) -> None:
    with cluster.executor() as executor, leaving(30.0) as worker:
        held = executor.submit(jobs.begin_and_wait, *gate.paths)
        queued = [executor.submit(jobs.add, n) for n in range(100)]
        [slot] = gate.wait_for(1)
        os.kill(worker, number)
        wait_until(lambda: see.jobs(cluster)["queued"] == 100, timeout_s=WAIT_S)
        assert not see.is_gone(worker)
        gate.open()
        assert held.result(WAIT_S) == slot
        see.wait_gone(worker, slot)
        assert not any(future.done() for future in queued)
        with leaving(1.0):
            assert [future.result(WAIT_S) for future in queued] == list(range(1, 101))
    assert gate.begun() == 1


@in_cluster
def test_a_job_longer_than_the_grace_period_goes_elsewhere_uncharged(
    cluster: LocalCluster, gate: see.Gate, leaving: Callable[[float], Any]
) -> None:
    with cluster.executor() as executor:
        held = executor.submit(jobs.begin_and_wait, *gate.paths)
        for turn in range(1, 7):  # more often than deaths or lost workers would be forgiven
            with leaving(0.1) as worker:
                slot = gate.wait_for(turn)[-1]
                os.kill(worker, signal.SIGTERM)
                see.wait_gone(worker, slot)
                assert not held.done()
        with leaving(0.1):
            gate.wait_for(7)
            gate.open()
            assert held.result(WAIT_S)


@in_cluster
def test_a_second_signal_ends_a_worker_at_once(
    cluster: LocalCluster, gate: see.Gate, leaving: Callable[[float], Any]
) -> None:
    with cluster.executor() as executor:
        held = executor.submit(jobs.begin_and_wait, *gate.paths)
        with leaving(600.0) as worker:
            [slot] = gate.wait_for(1)
            os.kill(worker, signal.SIGTERM)
            # Two signals that are not taken in between are one.
            wait_until(lambda: see.status(cluster)["workers"][0]["draining"], timeout_s=WAIT_S)
            os.kill(worker, signal.SIGTERM)
            see.wait_gone(worker, slot)
        with leaving(600.0) as worker:
            gate.open()
            assert held.result(WAIT_S)


# --- the slots of a killed worker -----------------------------------------------------------


def test_slots_end_with_their_worker_even_in_a_call_that_holds_the_gil(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    trace = tmp_path / "begun"
    [worker] = cluster.pids["workers"]
    executor = cluster.executor()
    try:
        for _ in range(2):
            executor.submit(jobs.begin_and_hold_the_interpreter, str(trace))
        slots = [int(line) for line in see.wait_for_lines(trace, 2)]
        below = see.children_of(worker)
        assert set(slots) <= set(below)
        os.kill(worker, signal.SIGKILL)
        see.wait_gone(worker, *below, timeout_s=5.0)
    finally:
        os.kill(cluster.pids["master"], signal.SIGKILL)
        executor.shutdown()


def test_slots_end_with_their_worker_also_without_its_guardian(cluster: LocalCluster, tmp_path: Path) -> None:
    [worker] = cluster.pids["workers"]
    slots = see.slots_of(worker)
    [guardian] = set(see.children_of(worker)) - set(slots)
    os.kill(guardian, signal.SIGKILL)
    with cluster.executor() as executor:
        assert list(executor.map(jobs.add, range(50))) == list(range(1, 51))
    os.kill(worker, signal.SIGKILL)
    see.wait_gone(worker, *slots, timeout_s=5.0)


# --- the master -----------------------------------------------------------------------------


def test_master_killed_with_open_jobs(cluster: LocalCluster, tmp_path: Path) -> None:
    processes = see.family(cluster)
    trace = str(tmp_path / "begun")
    executor = cluster.executor()
    errors: dict[Any, BaseException] = {}
    client = cluster.client(lambda jobid, result: None, on_error=errors.__setitem__)
    client.start()
    futures = [executor.submit(jobs.begin_and_nap, trace, 600) for _ in range(5)]
    for n in range(5):
        client.submit(n, jobs.nap, 600)
    see.wait_for_lines(Path(trace), 1)
    os.kill(cluster.pids["master"], signal.SIGKILL)
    client.wait(3.0)
    done, _ = wait(futures, 3.0)
    assert {type(future.exception(0)) for future in done} == {MasterLost}
    assert len(done) == 5
    assert {type(error) for error in errors.values()} == {MasterLost}
    assert len(errors) == 5
    assert cluster.address in str(errors[0])
    with pytest.raises(MasterLost):
        executor.submit(jobs.nothing)
    with pytest.raises(MasterLost):
        client.submit("after", jobs.nothing)
    client.stop()
    executor.shutdown()
    see.wait_gone(*processes, timeout_s=5.0)


def test_master_killed_while_nobody_has_a_job(cluster: LocalCluster) -> None:
    processes = see.family(cluster)
    with cluster.executor() as executor:
        executor.submit(jobs.nothing).result(WAIT_S)
        os.kill(cluster.pids["master"], signal.SIGKILL)
        see.wait_gone(*processes, timeout_s=5.0)
        wait_until(lambda: executor._session.lost, timeout_s=3.0)
        with pytest.raises(MasterLost):
            executor.submit(jobs.nothing)


def test_master_killed_under_wait_raises_in_the_waiting_thread(cluster: LocalCluster) -> None:
    with pytest.raises(MasterLost), cluster.client(lambda jobid, result: None) as client:
        client.submit(1, jobs.nap, 600)
        os.kill(cluster.pids["master"], signal.SIGKILL)


def test_master_killed_amid_submissions(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        futures = []
        with pytest.raises(MasterLost):
            while True:
                futures.append(executor.submit(jobs.nothing))
                if len(futures) == 2000:
                    os.kill(cluster.pids["master"], signal.SIGKILL)
        done, open_ones = wait(futures, 5.0)
        assert not open_ones
        assert {type(future.exception()) for future in done} <= {MasterLost, type(None)}


def test_master_told_to_stop(cluster: LocalCluster) -> None:
    processes = see.family(cluster)
    with cluster.executor() as executor:
        future = executor.submit(jobs.nap, 600)
        os.kill(cluster.pids["master"], signal.SIGTERM)
        assert isinstance(future.exception(5.0), MasterLost)
        see.wait_gone(*processes, timeout_s=5.0)


@pytest.mark.soak
def test_master_that_falls_silent(cluster: LocalCluster, tmp_path: Path) -> None:
    master, [worker] = cluster.pids["master"], cluster.pids["workers"]
    below = see.children_of(worker)
    with cluster.executor() as idle, cluster.executor() as executor:
        idle.submit(jobs.nothing).result(WAIT_S)
        waiting = idle.submit(jobs.begin_and_nap, str(tmp_path / "begun"), 600)
        see.wait_for_lines(tmp_path / "begun", 1)
        os.kill(master, signal.SIGSTOP)
        begun = time.monotonic()
        try:
            future = executor.submit(jobs.nothing)
            assert isinstance(future.exception(40), MasterLost)
            assert time.monotonic() - begun < 35 + 5, "unanswered requests"
            assert isinstance(waiting.exception(40), MasterLost)
            assert time.monotonic() - begun < 35 + 5, "POLL_S + REPLY_S"
            see.wait_gone(worker, *below)
        finally:
            os.kill(master, signal.SIGCONT)


# --- kill -9 of each part in turn -----------------------------------------------------------


def parts(cluster: LocalCluster) -> List[int]:
    worker = cluster.pids["workers"][0]
    return [cluster.pids["master"], worker, *see.slots_of(worker)]


@pytest.mark.parametrize("index", range(3), ids=["master", "worker", "slot"])
@pytest.mark.parametrize("when", ["idle", "busy"])
def test_nothing_outlives_the_cluster(index: int, when: str) -> None:
    with LocalCluster(1) as cluster:
        wait_until(lambda: len(parts(cluster)) == 3, timeout_s=WAIT_S)
        processes = see.family(cluster)
        executor = cluster.executor()
        if when == "busy":
            executor.submit(jobs.start_a_sleeper).result(WAIT_S)
            future = executor.submit(jobs.nap, 600)
            wait_until(future.running, timeout_s=WAIT_S)
            processes = see.family(cluster)
        os.kill(parts(cluster)[index], signal.SIGKILL)
        if index == 2:
            wait_until(lambda: len(parts(cluster)) == 3, timeout_s=WAIT_S)
            processes += [pid for pid in see.family(cluster) if pid not in processes]
        executor._session.close()
        executor.shutdown()
    see.wait_gone(*processes)
    assert not psutil.Process().children(recursive=True)
