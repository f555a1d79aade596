"""Streams of jobs: how far ahead they submit, what they raise, and that their memory stays flat."""

from __future__ import annotations

import gc
import threading
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import count, islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import psutil
import pytest

from cwmp import ClientThread, ClusterExecutor, LocalCluster, MasterLost, PayloadError, UsageError
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture
def gate(cluster: LocalCluster, tmp_path: Path) -> Iterator[see.Gate]:
    """What ends the jobs that tests leave running."""
    with see.Gate(cluster, tmp_path) as gate:
        yield gate


@pytest.fixture
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


@pytest.fixture(params=["map", "map_unordered"])
def stream(executor: ClusterExecutor, request: pytest.FixtureRequest) -> Callable[..., Iterator[Any]]:
    """Either form."""
    form: Callable[..., Iterator[Any]] = getattr(executor, request.param)
    return form


def halve(n: int) -> float:
    return 1 / n


def exit_at_zero(n: int) -> int:
    if n == 0:
        raise SystemExit("at zero")
    return n


def wait_at_zero(n: int, begun: str, release: str) -> int:
    if n == 0:
        jobs.begin_and_wait(begun, release)
    return n


# --- how far ahead --------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [1, 2, 7, 1000])
def test_all_results_come(stream: Callable[..., Iterator[Any]], buffersize: int, chunksize: int) -> None:
    results = stream(jobs.add, range(50), count(5), buffersize=buffersize, chunksize=chunksize)
    assert sorted(results) == list(range(5, 105, 2))


def test_map_with_a_buffer_keeps_the_order(executor: ClusterExecutor) -> None:
    assert list(executor.map(jobs.add, range(500), buffersize=20)) == list(range(1, 501))


@pytest.mark.parametrize("buffersize", [1, 3, 10])
def test_no_more_than_the_buffer_is_taken_ahead(
    stream: Callable[..., Iterator[Any]], buffersize: int
) -> None:
    source = count()
    results = stream(jobs.add, source, buffersize=buffersize)
    assert next(source) == buffersize
    for taken in range(1, 6):
        next(results)
        assert next(source) == buffersize + 2 * taken, "one more for each result, and the one taken here"
    results.close()  # type: ignore[attr-defined]


def test_chunks_of_a_stream_are_one_job_each(cluster: LocalCluster, executor: ClusterExecutor) -> None:
    before = see.jobs(cluster)["done"]
    source = count()
    results = executor.map_unordered(jobs.add, source, buffersize=2, chunksize=50)
    assert next(source) == 100
    assert len(list(islice(results, 120))) == 120
    results.close()  # type: ignore[attr-defined]
    wait_until(lambda: not see.jobs(cluster)["running"], timeout_s=WAIT_S)
    assert 3 <= see.jobs(cluster)["done"] - before <= 5


def test_endless_iterators_with_the_default_buffer(executor: ClusterExecutor) -> None:
    results = executor.map_unordered(jobs.add, count())
    assert len(set(islice(results, 100))) == 100
    results.close()  # type: ignore[attr-defined]


def test_results_come_as_they_end(executor: ClusterExecutor, gate: see.Gate) -> None:
    call = [range(10), [gate.paths[0]] * 10, [gate.paths[1]] * 10]
    results = executor.map_unordered(wait_at_zero, *call, buffersize=4)
    assert sorted(islice(results, 9)) == list(range(1, 10))
    gate.open()
    assert list(results) == [0]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_a_stream_outlives_the_name_of_its_executor(cluster: LocalCluster, name: str) -> None:
    results = getattr(cluster.executor(), name)(jobs.add, range(100), buffersize=3)
    gc.collect()
    assert sorted(results) == list(range(1, 101))
    del results
    see.wait_for_clients(cluster, 0)


def test_an_abandoned_stream_cancels_what_has_not_begun(
    cluster: LocalCluster, stream: Callable[..., Iterator[Any]], gate: see.Gate
) -> None:
    results = stream(wait_at_zero, [1] + [0] * 100, *map(endlessly, gate.paths), buffersize=50)
    assert next(results) == 1
    gate.wait_for(2)
    wait_until(lambda: see.jobs(cluster)["queued"] == 48, timeout_s=WAIT_S)
    results.close()  # type: ignore[attr-defined]
    assert see.jobs(cluster)["queued"] == 0
    assert gate.begun() == 2


def endlessly(value: Any) -> Iterator[Any]:
    while True:
        yield value


# --- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one(stream: Callable[..., Iterator[Any]], size: int) -> None:
    with pytest.raises(ValueError, match=f"buffersize must be at least 1 or None, not {size}"):
        stream(jobs.add, [1], buffersize=size)
    with pytest.raises(ValueError, match=f"chunksize must be at least 1, not {size}"):
        stream(jobs.add, [1], chunksize=size)


@pytest.mark.parametrize("size", [1.5, "2", True])
def test_a_buffersize_that_is_no_number(stream: Callable[..., Iterator[Any]], size: Any) -> None:
    with pytest.raises(TypeError, match="buffersize must be a whole number or None"):
        stream(jobs.add, [1], buffersize=size)


@pytest.mark.parametrize("chunksize", [1, 2, 5])
def test_an_error_is_that_of_its_own_call(stream: Callable[..., Iterator[Any]], chunksize: int) -> None:
    results = stream(halve, [1, 2, 0, 4], buffersize=1, chunksize=chunksize)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_call_that_exits_leaves_the_others_of_its_chunk(executor: ClusterExecutor) -> None:
    results = executor.map(exit_at_zero, [1, 2, 0, 4], chunksize=4)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(SystemExit, match="at zero"):
        next(results)


def test_a_timeout(stream: Callable[..., Iterator[Any]], gate: see.Gate) -> None:
    results = stream(jobs.begin_and_wait, *map(endlessly, gate.paths), timeout=0.1, buffersize=2)
    with pytest.raises(FutureTimeout):
        next(results)


def test_an_argument_that_cannot_be_pickled(
    cluster: LocalCluster, stream: Callable[..., Iterator[Any]]
) -> None:
    with pytest.raises(PayloadError, match="lock"):
        stream(jobs.echo, [1, 2, threading.Lock()], buffersize=5)
    later = stream(jobs.echo, [1, 2, 3, 4, threading.Lock()], buffersize=2)
    with pytest.raises(PayloadError, match="lock"):
        list(later)


def test_an_iterator_that_raises(stream: Callable[..., Iterator[Any]]) -> None:
    results = stream(halve, map(halve, [1, 1, 1, 0]), buffersize=2)
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_after_shutdown(cluster: LocalCluster) -> None:
    executor = cluster.executor()
    results = executor.map(jobs.add, range(10), buffersize=2)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(results)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map_unordered(jobs.add, range(10))


def test_shutdown_that_cancels(cluster: LocalCluster, gate: see.Gate) -> None:
    executor = cluster.executor()
    results = executor.map_unordered(jobs.begin_and_wait, *map(endlessly, gate.paths), buffersize=10)
    gate.wait_for(2)
    wait_until(lambda: see.jobs(cluster)["queued"] == 8, timeout_s=WAIT_S)  # the worker has given them back
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        next(results)
    gate.open()
    executor.shutdown()


def test_the_master_goes_away() -> None:
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        results = executor.map_unordered(jobs.nap, endlessly(0.01), buffersize=10)
        assert next(results) is None
        psutil.Process(cluster.pids["master"]).kill()
        with pytest.raises(MasterLost):
            deque(results, maxlen=0)


# --- ClientThread ---------------------------------------------------------------------------


class Counting:
    """A callback that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, jobid: Any, value: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_a_bad_max_pending(number: Any) -> None:
    with pytest.raises(UsageError, match="max_pending must be a whole number from 1 up"):
        ClientThread(print, max_pending=number)


def test_submit_waits_while_so_many_are_open(cluster: LocalCluster, gate: see.Gate) -> None:
    done = Counting()
    with cluster.client(done, max_pending=3) as client:
        for jobid in range(3):
            client.submit(jobid, jobs.begin_and_wait, *gate.paths)
        fourth = threading.Thread(target=client.submit, args=(3, jobs.add, 1))
        fourth.start()
        gate.wait_for(2)
        fourth.join(0.2)
        assert fourth.is_alive()
        gate.open()
        fourth.join(WAIT_S)
        assert not fourth.is_alive()
    assert done.count == 4


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_many_threads_wait_their_turn(cluster: LocalCluster, limit: int) -> None:
    done = Counting()
    with cluster.client(done, max_pending=limit) as client:

        def submit_some(name: int) -> None:
            for n in range(100):
                client.submit((name, n), jobs.add, n)

        threads = [threading.Thread(target=submit_some, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done.count == 400


def test_a_callback_may_submit_beyond_the_limit(cluster: LocalCluster) -> None:
    seen = []

    def done(jobid: int, value: Any) -> None:
        seen.append(jobid)
        if jobid < 20:
            client.submit(jobid + 1, jobs.nothing)

    with cluster.client(done, max_pending=1) as client:
        client.submit(0, jobs.nothing)
    assert seen == list(range(21))


def test_who_waits_to_submit_is_told_that_the_master_is_gone(tmp_path: Path) -> None:
    with LocalCluster(1) as cluster:
        gate = see.Gate(cluster, tmp_path)
        client = cluster.client(print, max_pending=1, on_error=lambda jobid, error: None)
        client.start()
        client.submit(0, jobs.begin_and_wait, *gate.paths)
        gate.wait_for(1)
        killer = threading.Timer(0.2, psutil.Process(cluster.pids["master"]).kill)
        killer.start()
        with pytest.raises(MasterLost):
            client.submit(1, jobs.nothing)
        killer.join()
        client.stop()


# --- memory ---------------------------------------------------------------------------------


def memory(cluster: LocalCluster) -> Dict[str, float]:
    """Resident MiB of client, master, worker and slots."""
    gc.collect()
    [worker] = cluster.pids["workers"]
    processes = {"client": None, "master": cluster.pids["master"], "worker": worker}
    processes.update((f"slot {n}", pid) for n, pid in enumerate(sorted(see.slots_of(worker))))
    return {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in processes.items()}


def growth(cluster: LocalCluster, run: Callable[[int], None], warm_up: int, count: int) -> Dict[str, float]:
    """By how many MiB each process grows over `count` jobs, when `warm_up` have been done before."""
    run(warm_up)
    before = memory(cluster)
    run(count)
    after = memory(cluster)
    return {name: round(after[name] - before[name], 1) for name in before}


def in_order(cluster: LocalCluster) -> Callable[[int], None]:
    """How to do n jobs through `map(buffersize=)`."""

    def run(n: int) -> None:
        with cluster.executor() as executor:
            assert sum(executor.map(jobs.add, range(n), buffersize=1000)) == n * (n + 1) // 2

    return run


def as_they_come(cluster: LocalCluster) -> Callable[[int], None]:
    """How to do n jobs through `map_unordered`."""

    def run(n: int) -> None:
        with cluster.executor() as executor:
            assert sum(executor.map_unordered(jobs.add, range(n))) == n * (n + 1) // 2

    return run


def by_callback(cluster: LocalCluster) -> Callable[[int], None]:
    """How to do n jobs through `ClientThread(max_pending=)`."""

    def run(n: int) -> None:
        done = Counting()
        with cluster.client(done, max_pending=1000) as client:
            for jobid in range(n):
                client.submit(jobid, jobs.add, jobid)
        assert done.count == n

    return run


FORMS = [in_order, as_they_come, by_callback]


@pytest.mark.parametrize("form", FORMS)
def test_memory_stays_flat_over_50_000_jobs(
    cluster: LocalCluster, form: Callable[[LocalCluster], Callable[[int], None]]
) -> None:
    """4 MiB are 84 bytes a job: the least that could leak is an object."""
    grown = growth(cluster, form(cluster), 10_000, 50_000)
    assert max(grown.values()) < 4, grown


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", FORMS)
def test_memory_stays_flat_over_a_million_jobs(
    cluster: LocalCluster, form: Callable[[LocalCluster], Callable[[int], None]]
) -> None:
    grown = growth(cluster, form(cluster), 50_000, 1_000_000)
    print(f"\n{form.__name__}: MiB grown over a million jobs: {grown}")
    assert max(grown.values()) < 50, grown
