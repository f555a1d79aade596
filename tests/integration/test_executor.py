"""ClusterExecutor: everything that `concurrent.futures.Executor` promises."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    as_completed,
    wait,
)
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from cwmp import (
    ClusterExecutor,
    ConnectError,
    LocalCluster,
    PayloadError,
    RemoteError,
    RemoteTraceback,
    WrongKey,
)
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


@pytest.fixture
def held(executor: ClusterExecutor, cluster: LocalCluster, tmp_path: Path) -> Iterator[see.Gate]:
    """An executor's gate with a job of it in both slots; it opens before the executor is left."""
    with see.Gate(cluster, tmp_path) as gate:
        running = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        gate.wait_for(2)
        wait_until(lambda: all(future.running() for future in running), timeout_s=WAIT_S)
        yield gate


# --- submit ---------------------------------------------------------------------------------


def test_it_is_an_executor_that_returns_futures(executor: ClusterExecutor) -> None:
    assert isinstance(executor, Executor)
    future = executor.submit(jobs.add, 1, b=2)
    assert isinstance(future, Future)
    assert future.result(WAIT_S) == 3
    assert future.exception() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert not future.cancel()
    assert "finished returned int" in repr(future)


def test_keyword_arguments_may_have_any_name(executor: ClusterExecutor) -> None:
    future = executor.submit(jobs.echo, 1, fn=2, self=3)
    assert future.result(WAIT_S) == ((1,), {"fn": 2, "self": 3})


def test_submit_without_a_function(executor: ClusterExecutor) -> None:
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]


def test_errors(executor: ClusterExecutor) -> None:
    future = executor.submit(jobs.raise_own, 7)
    with pytest.raises(jobs.OwnError, match="code 7"):
        future.result(WAIT_S)
    error = future.exception()
    assert isinstance(error, jobs.OwnError)
    assert error.hint == "look here"
    assert "finished raised OwnError" in repr(future)


def test_many_threads_share_one_executor(executor: ClusterExecutor) -> None:
    results: List[Any] = []

    def submit_some(name: int) -> None:
        futures = [executor.submit(jobs.add, name, n) for n in range(200)]
        results.append([future.result(WAIT_S) - name for future in futures])

    threads = [threading.Thread(target=submit_some, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(200))] * 8


def test_what_cannot_be_pickled_raises_in_the_caller(executor: ClusterExecutor) -> None:
    with pytest.raises(PayloadError, match="argument 1: cannot pickle _thread.lock object"):
        executor.submit(jobs.echo, threading.Lock())
    lock = threading.Lock()
    with pytest.raises(PayloadError, match="lock"):
        executor.submit(lambda: lock)
    with pytest.raises(TypeError):  # as the standard library has it
        executor.submit(jobs.echo, threading.Lock())
    assert executor.submit(jobs.add, 1).result(WAIT_S) == 2


def test_what_raises_while_it_is_pickled_raises_in_the_caller(executor: ClusterExecutor) -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise LookupError("not me")

    with pytest.raises(PayloadError, match="not me"):
        executor.submit(jobs.echo, Refuses())
    assert executor.submit(jobs.add, 1).result(WAIT_S) == 2


# --- states ---------------------------------------------------------------------------------


def test_pending_running_done(executor: ClusterExecutor, held: see.Gate) -> None:
    future = executor.submit(jobs.begin_and_wait, *held.paths)
    assert not future.running()
    assert not future.done()
    assert "pending" in repr(future)
    held.open()
    assert future.result(WAIT_S)
    long = executor.submit(jobs.nap, 0.5)
    wait_until(long.running, timeout_s=WAIT_S)
    assert not long.done()
    long.result(WAIT_S)
    assert long.done()
    assert not long.running()


def test_result_and_exception_with_a_timeout(executor: ClusterExecutor, held: see.Gate) -> None:
    future = executor.submit(jobs.add, 1)
    with pytest.raises(FutureTimeout):
        future.result(timeout=0.05)
    with pytest.raises(FutureTimeout):
        future.exception(timeout=0.05)
    held.open()
    assert future.result(WAIT_S) == 2


def test_a_cancelled_job_is_taken_from_the_master_and_never_runs(
    cluster: LocalCluster, executor: ClusterExecutor, held: see.Gate, tmp_path: Path
) -> None:
    before = see.jobs(cluster)["cancelled"]
    futures = [executor.submit(jobs.note, str(tmp_path / "trace"), str(n)) for n in range(10)]
    wait_until(lambda: see.jobs(cluster)["queued"] == 10, timeout_s=WAIT_S)
    assert all(future.cancel() for future in futures[:9])
    assert see.jobs(cluster) == {**see.jobs(cluster), "queued": 1, "running": 2, "cancelled": before + 9}
    for future in futures[:9]:
        assert future.cancelled()
        assert future.done()
        assert future.cancel(), "cancelling again says the same"
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()
    held.open()
    futures[9].result(WAIT_S)
    executor.shutdown()
    assert (tmp_path / "trace").read_text() == "9\n"


def test_what_runs_cannot_be_cancelled(executor: ClusterExecutor, gate: see.Gate) -> None:
    future = executor.submit(jobs.begin_and_wait, *gate.paths)
    gate.wait_for(1)
    assert not future.cancel()
    wait_until(future.running, timeout_s=WAIT_S)
    assert not future.cancel()
    assert not future.cancelled()
    gate.open()
    assert future.result(WAIT_S)


def test_jobs_that_are_cancelled_while_they_are_being_submitted(
    executor: ClusterExecutor, held: see.Gate
) -> None:
    futures = []
    for n in range(300):
        futures.append(executor.submit(jobs.add, n))
        if n % 2:
            assert futures[n].cancel()
    held.open()
    done, open_ones = wait(futures, WAIT_S)
    assert not open_ones
    assert [future.cancelled() for future in futures] == [bool(n % 2) for n in range(300)]
    assert [future.result() for future in futures[::2]] == [n + 1 for n in range(0, 300, 2)]


def test_two_threads_that_cancel_one_job(executor: ClusterExecutor, held: see.Gate) -> None:
    def cancel(future: Future[Any], answers: List[bool]) -> None:
        answers.append(future.cancel())

    for _ in range(20):
        future = executor.submit(jobs.nothing)
        answers: List[bool] = []
        threads = [threading.Thread(target=cancel, args=(future, answers)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert answers == [True] * 4
        assert future.cancelled()


# --- callbacks ------------------------------------------------------------------------------


def test_callbacks_before_and_after_the_end(executor: ClusterExecutor, held: see.Gate) -> None:
    calls: List[Any] = []
    future = executor.submit(jobs.add, 1)
    future.add_done_callback(lambda f: calls.append(("before", f.result())))
    future.add_done_callback(lambda f: calls.append(("second", f is future)))
    assert calls == []
    held.open()
    wait_until(lambda: len(calls) == 2, timeout_s=WAIT_S)
    future.add_done_callback(lambda f: calls.append(("after", f.result())))
    assert calls == [("before", 2), ("second", True), ("after", 2)]


def test_a_cancelled_future_calls_back(executor: ClusterExecutor, held: see.Gate) -> None:
    calls: List[bool] = []
    future = executor.submit(jobs.add, 1)
    future.add_done_callback(lambda f: calls.append(f.cancelled()))
    assert future.cancel()
    assert calls == [True]


def test_a_callback_may_submit(executor: ClusterExecutor) -> None:
    results: List[int] = []

    def again(future: Future[int]) -> None:
        results.append(future.result())
        if len(results) < 50:
            executor.submit(jobs.add, future.result()).add_done_callback(again)

    executor.submit(jobs.add, 0).add_done_callback(again)
    wait_until(lambda: len(results) == 50, timeout_s=WAIT_S)
    assert results == list(range(1, 51))


@pytest.mark.parametrize(
    "raises", [jobs.raise_value_error, jobs.interrupt, lambda: sys.exit("from a callback")]
)
def test_a_callback_that_raises_harms_nothing(
    executor: ClusterExecutor, held: see.Gate, raises: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    calls: List[int] = []
    with caplog.at_level(logging.CRITICAL + 1):
        futures = [executor.submit(jobs.add, n) for n in range(20)]
        for future in futures:
            future.add_done_callback(lambda f: raises())
            future.add_done_callback(lambda f: calls.append(f.result()))
        held.open()
        assert [future.result(WAIT_S) for future in futures] == list(range(1, 21))
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    assert sorted(calls) == list(range(1, 21))


@pytest.mark.parametrize("kind", [jobs.Exits, jobs.Interrupts, jobs.FailsWhereLoaded])
def test_a_result_that_raises_where_it_is_loaded_is_only_that_jobs_error(
    executor: ClusterExecutor, kind: type
) -> None:
    future = executor.submit(jobs.make, kind)
    with pytest.raises(PayloadError, match="can't be loaded here"):
        future.result(WAIT_S)
    assert executor.submit(jobs.add, 1).result(WAIT_S) == 2


# --- wait and as_completed ------------------------------------------------------------------


def test_wait_for_the_first(executor: ClusterExecutor, held: see.Gate) -> None:
    queued = executor.submit(jobs.add, 1)
    cancelled = executor.submit(jobs.add, 2)
    assert cancelled.cancel()
    done, open_ones = wait([queued, cancelled], WAIT_S, FIRST_COMPLETED)
    assert (done, open_ones) == ({cancelled}, {queued})
    done, open_ones = wait([queued], 0.05, FIRST_COMPLETED)
    assert (done, open_ones) == (set(), {queued})


def test_wait_for_the_first_exception(executor: ClusterExecutor, held: see.Gate) -> None:
    released = [executor.submit(jobs.add, 1), executor.submit(jobs.raise_value_error)]
    held.open()
    done, _ = wait(released, WAIT_S, FIRST_EXCEPTION)
    assert released[1] in done


def test_wait_for_all_with_cancelled_ones_among_them(executor: ClusterExecutor, held: see.Gate) -> None:
    futures = [executor.submit(jobs.add, n) for n in range(10)]
    waiting: List[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(wait(futures, WAIT_S, ALL_COMPLETED)))
    thread.start()
    for future in futures[::3]:
        assert future.cancel()
    held.open()
    thread.join(WAIT_S)
    [(done, open_ones)] = waiting
    assert done == set(futures)
    assert not open_ones


def test_as_completed_yields_each_future_once(executor: ClusterExecutor, held: see.Gate) -> None:
    futures = [executor.submit(jobs.add, n) for n in range(30)]
    assert all(future.cancel() for future in futures[::2])
    completed = as_completed(futures, timeout=WAIT_S)
    first = [next(completed) for _ in range(15)]
    assert set(first) == set(futures[::2])
    held.open()
    assert set(completed) == set(futures[1::2])


def test_as_completed_with_a_timeout(executor: ClusterExecutor, held: see.Gate) -> None:
    with pytest.raises(FutureTimeout):
        list(as_completed([executor.submit(jobs.add, 1)], timeout=0.05))


# --- map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_keeps_the_order(executor: ClusterExecutor, chunksize: int) -> None:
    results = executor.map(jobs.add, range(20), range(0, 40, 2), chunksize=chunksize)
    assert iter(results) is results
    assert list(results) == [3 * n for n in range(20)]


def test_map_ends_with_the_shortest_and_may_be_empty(executor: ClusterExecutor) -> None:
    assert list(executor.map(jobs.add, [1, 2, 3], [1])) == [2]
    assert list(executor.map(jobs.add, [])) == []
    assert list(executor.map(jobs.add, [], chunksize=5)) == []


@pytest.mark.parametrize("chunksize", [0, -1])
def test_map_with_a_bad_chunksize(executor: ClusterExecutor, chunksize: int) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(jobs.add, [1], chunksize=chunksize)


def test_map_begins_at_once_and_its_results_are_lazy(executor: ClusterExecutor, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    results = executor.map(jobs.begin_and_nap, [str(trace)] * 3, [0, 0, 0.5])
    see.wait_for_lines(trace, 3)
    begun = time.monotonic()
    next(results)
    next(results)
    assert time.monotonic() - begun < 0.4, "the first results do not wait for the last"
    assert len(list(results)) == 1


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_in_the_place_of_the_failed_call(executor: ClusterExecutor, chunksize: int) -> None:
    results = executor.map(divide, [1, 0, 5], chunksize=chunksize)
    assert next(results) == 10
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in divide" in str(caught.value.__cause__)
    assert "attempt 1" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


def divide(n: int) -> float:
    return 10 / n


def test_map_in_chunks_with_an_error_that_cannot_travel(executor: ClusterExecutor) -> None:
    results = executor.map(unpicklable_at, [1, 0], chunksize=2)
    assert next(results) == 1
    with pytest.raises(RemoteError, match="Unpicklable: it holds a lock"):
        next(results)


def unpicklable_at(n: int) -> int:
    if n == 0:
        jobs.raise_unpicklable()
    return n


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_with_a_timeout(executor: ClusterExecutor, held: see.Gate, chunksize: int) -> None:
    results = executor.map(jobs.add, [1, 2], timeout=0.1, chunksize=chunksize)
    with pytest.raises(FutureTimeout):
        next(results)


def test_map_with_a_timeout_that_suffices(executor: ClusterExecutor) -> None:
    assert list(executor.map(jobs.add, [1, 2], timeout=WAIT_S)) == [2, 3]


@pytest.mark.parametrize("chunksize", [1, 5])
def test_an_abandoned_map_cancels_what_has_not_begun(
    cluster: LocalCluster, executor: ClusterExecutor, held: see.Gate, chunksize: int
) -> None:
    results = executor.map(jobs.add, range(100), timeout=0.05, chunksize=chunksize)
    with pytest.raises(FutureTimeout):
        next(results)
    wait_until(lambda: see.jobs(cluster)["queued"] == 0, timeout_s=WAIT_S)


# --- shutdown -------------------------------------------------------------------------------


def test_shutdown_waits(cluster: LocalCluster) -> None:
    executor = cluster.executor()
    futures = [executor.submit(jobs.nap, 0.2, n) for n in range(3)]
    executor.shutdown()
    assert [future.done() for future in futures] == [True] * 3
    executor.shutdown()  # again
    see.wait_for_clients(cluster, 0)


def test_shutdown_without_waiting(cluster: LocalCluster, gate: see.Gate) -> None:
    executor = cluster.executor()
    futures = [executor.submit(jobs.begin_and_wait, *gate.paths) for n in range(3)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    gate.open()
    assert all(future.result(WAIT_S) for future in futures)
    executor.shutdown()
    see.wait_for_clients(cluster, 0)


def test_shutdown_that_cancels(cluster: LocalCluster, gate: see.Gate, tmp_path: Path) -> None:
    executor = cluster.executor()
    running = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
    gate.wait_for(2)
    queued = [executor.submit(jobs.note, str(tmp_path / "never"), "ran") for _ in range(20)]
    wait_until(lambda: see.jobs(cluster)["queued"] == 20, timeout_s=WAIT_S)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert not any(future.done() for future in running)
    gate.open()
    executor.shutdown(wait=True)
    assert all(future.result() for future in running)
    assert not (tmp_path / "never").exists()


def test_use_after_shutdown(cluster: LocalCluster) -> None:
    executor = cluster.executor()
    executor.submit(jobs.nothing)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(jobs.nothing)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(jobs.add, [1])
    with cluster.executor() as other:
        pass
    with pytest.raises(RuntimeError):
        other.submit(jobs.nothing)


def submit_until_refused(
    executor: ClusterExecutor, futures: List[Future[Any]], refusals: List[BaseException]
) -> None:
    try:
        while True:
            futures.append(executor.submit(jobs.add, 1))
    except BaseException as error:
        refusals.append(error)


def test_submitting_and_shutting_down_at_once_ends_either_way(cluster: LocalCluster) -> None:
    for _ in range(10):
        executor = cluster.executor()
        futures: List[Future[Any]] = []
        refusals: List[BaseException] = []
        thread = threading.Thread(target=submit_until_refused, args=(executor, futures, refusals))
        thread.start()
        wait_until(lambda futures=futures: len(futures) > 10, timeout_s=WAIT_S)
        executor.shutdown()
        thread.join(WAIT_S)
        assert [type(refusal) for refusal in refusals] == [RuntimeError]
        assert {future.result(WAIT_S) for future in futures} == {2}


def test_shutdown_in_a_callback(cluster: LocalCluster) -> None:
    executor = cluster.executor()
    ended = threading.Event()

    def end(future: Future[Any]) -> None:
        executor.shutdown()
        ended.set()

    executor.submit(jobs.nap, 0.1).add_done_callback(end)
    assert ended.wait(WAIT_S)
    executor.shutdown()


def test_leaving_the_block_waits(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        futures = [executor.submit(jobs.nap, 0.1, n) for n in range(4)]
    assert [future.done() for future in futures] == [True] * 4


def test_an_error_in_the_block_waits_and_an_interrupt_does_not(cluster: LocalCluster, gate: see.Gate) -> None:
    with pytest.raises(ValueError, match="inside"), cluster.executor() as executor:
        future = executor.submit(jobs.nap, 0.2, "slept")
        raise ValueError("inside")
    assert future.result(timeout=0) == "slept"
    with pytest.raises(KeyboardInterrupt), cluster.executor() as executor:
        future = executor.submit(jobs.begin_and_wait, *gate.paths)
        raise KeyboardInterrupt
    assert future.cancelled() or isinstance(future.exception(timeout=0), CancelledError)
    see.wait_for_clients(cluster, 0)


# --- what stays behind ----------------------------------------------------------------------


def threads_of_cwmp() -> List[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cwmp")]


def test_a_forgotten_executor_ends_its_threads(cluster: LocalCluster) -> None:
    executor = cluster.executor()
    assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    assert len(threads_of_cwmp()) == 2
    del executor
    gc.collect()
    wait_until(lambda: not threads_of_cwmp(), timeout_s=WAIT_S)
    see.wait_for_clients(cluster, 0)


def test_the_jobs_of_a_forgotten_executor_end_first(cluster: LocalCluster, gate: see.Gate) -> None:
    executor = cluster.executor()
    futures = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(5)]
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    assert not any(future.done() for future in futures)
    gate.open()
    assert all(future.result(WAIT_S) for future in futures)
    wait_until(lambda: not threads_of_cwmp(), timeout_s=WAIT_S)


def test_executors_that_the_collector_finds_at_any_moment(cluster: LocalCluster) -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)  # so that its turn comes in cwmp's threads, too
    try:
        for _ in range(10):
            executor = cluster.executor()
            cycle: List[Any] = [executor]
            cycle.append(cycle)
            futures = [executor.submit(jobs.add, n) for n in range(100)]
            del executor, cycle
            assert [future.result(WAIT_S) for future in futures] == list(range(1, 101))
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    wait_until(lambda: not threads_of_cwmp(), timeout_s=WAIT_S)


class Thing:
    """Can be referred to weakly."""

    def __call__(self) -> str:
        return "called"


def test_no_reference_to_arguments_results_or_functions_is_left(executor: ClusterExecutor) -> None:
    def kept(obj: Any) -> Callable[[], Any]:
        return weakref.ref(obj, lambda _: None)

    argument, keyword, function = Thing(), Thing(), Thing()
    local = lambda: None  # noqa: E731
    references = [kept(obj) for obj in (argument, keyword, function, local)]
    executor.submit(jobs.echo, argument, key=keyword).result(WAIT_S)
    executor.submit(function).result(WAIT_S)
    executor.submit(local).result(WAIT_S)
    error = executor.submit(jobs.raise_own, 1)
    result = executor.submit(jobs.make, Thing)
    references += [kept(result.result(WAIT_S)), kept(result), kept(error.exception(WAIT_S)), kept(error)]
    mapped = executor.map(jobs.make, [Thing] * 2)
    references += [kept(next(mapped)), kept(next(mapped))]
    del argument, keyword, function, local, result, error, mapped
    gc.collect()
    wait_until(lambda: not [ref() for ref in references if ref() is not None], timeout_s=10)


def test_what_was_submitted_is_not_kept_while_it_waits(executor: ClusterExecutor, held: see.Gate) -> None:
    argument = Thing()
    reference = weakref.ref(argument)
    future = executor.submit(jobs.echo, argument)
    del argument
    gc.collect()
    assert reference() is None
    held.open()
    future.result(WAIT_S)


# --- no cluster -----------------------------------------------------------------------------


def test_nobody_there() -> None:
    with pytest.raises(ConnectError, match="127.0.0.1:1"):
        ClusterExecutor("127.0.0.1:1", authkey=b"key")


def test_another_key(cluster: LocalCluster) -> None:
    with pytest.raises(WrongKey, match=cluster.address):
        ClusterExecutor(cluster.address, authkey=b"another")
