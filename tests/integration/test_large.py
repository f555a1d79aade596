"""Large values: arguments, functions and results, shared ones, limits, and what happens to damaged ones."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy
import pytest

from cwmp import BlobLost, ClusterExecutor, LocalCluster, PayloadError, UsageError, carriers, defaults
from tests.faults import jobs, shelves
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0
MB = 1 << 20


@pytest.fixture(scope="module")
def here() -> Iterator[LocalCluster]:
    """Everything on one machine."""
    with LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The only worker is as on another machine."""
    directory = tmp_path_factory.mktemp("away")
    with LocalCluster(1) as cluster, shelves.worker_away(cluster, directory):
        os.kill(cluster.pids["workers"][0], 15)
        wait_until(lambda: len(see.status(cluster)["workers"]) == 1, timeout_s=WAIT_S)
        cluster.directory = directory  # type: ignore[attr-defined]
        with cluster.executor() as executor:
            executor.submit(total, random_array()).result(WAIT_S)  # starts what carries large values
        yield cluster
    assert shelves.shelves(str(directory)) == []


@pytest.fixture(params=["here", "client away", "worker away", "both away"])
def cluster(
    here: LocalCluster,
    away: LocalCluster,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> LocalCluster:
    """Clusters with every way that large values can take."""
    if request.param in ("client away", "both away"):
        monkeypatch.setattr(carriers.shelf, "reachable", lambda facts: None)
    return away if request.param in ("worker away", "both away") else here


@pytest.fixture
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


@pytest.fixture
def local(here: LocalCluster) -> Iterator[ClusterExecutor]:
    with here.executor() as executor:
        yield executor


@pytest.fixture
def gate(here: LocalCluster, tmp_path: Path) -> Iterator[see.Gate]:
    with see.Gate(here, tmp_path) as gate:
        yield gate


def same(value: Any) -> Any:
    return value


def total(array: Any) -> float:
    return float(array.sum())


def add_one(array: Any) -> None:
    array += 1


def make(size: int) -> Any:
    return numpy.arange(size)


def identity(value: Any) -> Tuple[int, int]:
    return os.getpid(), id(value)


def deep(value: Any) -> Any:
    return value["list"][0] + len(value["list"][1])


def wait_and_measure(array: Any, begun: str, release: str) -> float:
    jobs.begin_and_wait(begun, release)
    return total(array)


class Heavy:
    """Counts how often each is loaded in a process."""

    loaded: Counter[float] = Counter()

    def __init__(self, data: Any) -> None:
        self.data = data

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.loaded[self.data[0]] += 1


def loads(heavy: Heavy) -> Tuple[int, int]:
    return os.getpid(), heavy.loaded[heavy.data[0]]


def random_array(size: int = MB) -> Any:
    return numpy.random.default_rng().random(size // 8)


# --- arguments, functions, results ----------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [os.urandom(MB), bytearray(os.urandom(MB)), "é" * MB, list(range(200_000)), {"a": [b"x" * 100_000] * 3}],
    ids=["bytes", "bytearray", "str", "list", "nested"],
)
def test_large_values_go_there_and_back(executor: ClusterExecutor, value: Any) -> None:
    assert executor.submit(same, value).result(WAIT_S) == value


@pytest.mark.parametrize("dtype", ["float64", "int8", "complex128", "U7", "datetime64[s]", "object"])
def test_arrays(executor: ClusterExecutor, dtype: str) -> None:
    array = numpy.arange(100_000).astype(dtype)
    found = executor.submit(same, array).result(WAIT_S)
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_an_array_in_a_job_is_read_only(executor: ClusterExecutor) -> None:
    array = random_array()
    with pytest.raises(ValueError, match="read-only"):
        executor.submit(add_one, array).result(WAIT_S)
    assert executor.submit(total, array).result(WAIT_S) == array.sum()


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_an_array_that_comes_back_is_ones_own(executor: ClusterExecutor, size: int) -> None:
    first, second = executor.map(make, [size, size])
    first += 1
    assert (second == numpy.arange(size)).all()
    assert (first == second + 1).all()


def test_a_function_with_a_large_capture(executor: ClusterExecutor) -> None:
    table = random_array()
    results = executor.map(lambda n: float(table[n]), range(50))
    assert list(results) == list(table[:50])
    table[0] = -1.0
    assert executor.submit(lambda: float(table[0])).result(WAIT_S) == -1.0


def test_chunks_of_large_values(executor: ClusterExecutor) -> None:
    arrays = [random_array(100_000) for _ in range(10)]
    results = executor.map(same, arrays, chunksize=4)
    assert all((one == other).all() for one, other in zip(results, arrays))


def test_callbacks_get_large_results(cluster: LocalCluster) -> None:
    found: Dict[int, Any] = {}
    with cluster.client(found.__setitem__) as client:
        for n in range(5):
            client.submit(n, make, 100_000 + n)
    assert {n: len(array) for n, array in found.items()} == {n: 100_000 + n for n in range(5)}


def test_many_threads(executor: ClusterExecutor) -> None:
    failures: List[int] = []

    def submit_some(seed: int) -> None:
        generator = numpy.random.default_rng(seed)
        arrays = [generator.random(20_000) for _ in range(10)]
        futures = [executor.submit(same, array) for array in arrays]
        failures.extend(seed for f, a in zip(futures, arrays) if (f.result(WAIT_S) != a).any())

    threads = [threading.Thread(target=submit_some, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_same_bytes_are_kept_once(cluster: LocalCluster) -> None:
    array = random_array(defaults.NAMED_FROM)
    with cluster.executor() as executor:
        before = shelves.store(cluster)["count"]
        results = executor.map(total, [array] * 10 + [array.copy()] * 10)
        assert list(results) == [array.sum()] * 20
        assert shelves.store(cluster)["count"] <= before + 1
    with cluster.executor() as executor:
        assert executor.submit(total, array.copy()).result(WAIT_S) == array.sum()
        assert shelves.store(cluster)["count"] <= before + 1, "another client sent the same"


def test_a_node_fetches_once(away: LocalCluster) -> None:
    array = random_array()
    with away.executor() as executor:
        executor.submit(total, array).result(WAIT_S)
        [shelf] = shelves.shelves(str(away.directory))  # type: ignore[attr-defined]
        times = {name: os.stat(os.path.join(shelf, name)).st_mtime_ns for name in shelves.files(shelf)}
        assert list(executor.map(total, [array] * 20)) == [array.sum()] * 20
        later = {name: os.stat(os.path.join(shelf, name)).st_mtime_ns for name in shelves.files(shelf)}
        assert later == times


def test_small_jobs_pass_by_a_large_value_on_its_way(away: LocalCluster) -> None:
    with away.executor() as executor:
        executor.submit(jobs.nothing).result(WAIT_S)
        [shelf] = shelves.shelves(str(away.directory))  # type: ignore[attr-defined]
        large = executor.submit(total, random_array(200 * MB))
        slowest = 0.0
        while not large.done():
            began = time.monotonic()
            executor.submit(jobs.nothing).result(WAIT_S)
            slowest = max(slowest, time.monotonic() - began)
        assert large.result(WAIT_S) > 0
        assert slowest < 1.0


def test_results_leave_nothing_behind(cluster: LocalCluster) -> None:
    path = shelves.store(cluster)["directory"]
    with cluster.executor() as executor:
        results = list(executor.map(make, range(100_000, 100_020)))
        assert [len(result) for result in results] == list(range(100_000, 100_020))
        wait_until(
            lambda: not [name for name in shelves.files(path) if name.startswith("w")],
            timeout_s=WAIT_S,
            describe=lambda: str(shelves.files(path)),
        )


def test_files_are_for_this_user_only(here: LocalCluster, local: ClusterExecutor) -> None:
    path = shelves.store(here)["directory"]
    local.submit(total, random_array()).result(WAIT_S)
    assert os.stat(path).st_mode & 0o777 == 0o700
    modes = {os.stat(os.path.join(path, name)).st_mode & 0o777 for name in os.listdir(path)}
    assert modes == {0o600}


# --- shared values --------------------------------------------------------------------------


def test_a_shared_value_is_loaded_once_in_each_slot(executor: ClusterExecutor) -> None:
    shared = executor.share(Heavy(random_array()))
    seen = list(executor.map(loads, [shared] * 50))
    assert {count for _, count in seen} == {1}
    assert len(set(seen)) <= 2
    del shared


@pytest.mark.parametrize("value", [7, "small", list(range(100_000)), os.urandom(MB)], ids=type)
def test_values_of_any_size_can_be_shared(executor: ClusterExecutor, value: Any) -> None:
    with executor.share(value) as shared:
        assert executor.submit(same, shared).result(WAIT_S) == value


def test_a_handle_anywhere_in_the_arguments(executor: ClusterExecutor) -> None:
    with executor.share(10) as ten, executor.share("x" * MB) as text:
        assert executor.submit(deep, {"list": [ten, text]}).result(WAIT_S) == 10 + MB
        assert executor.submit(jobs.echo, key=ten).result(WAIT_S) == ((), {"key": 10})
        assert executor.submit(lambda: ten).result(WAIT_S) == 10
        assert list(executor.map(jobs.add, [ten] * 10, range(10), chunksize=3)) == list(range(10, 20))
        with executor.share([ten, text]) as both:
            assert executor.submit(len, both).result(WAIT_S) == 2


def test_a_shared_array_is_read_only_in_the_job(executor: ClusterExecutor) -> None:
    with executor.share(random_array()) as shared:
        with pytest.raises(ValueError, match="read-only"):
            executor.submit(add_one, shared).result(WAIT_S)


def test_a_client_shares(cluster: LocalCluster) -> None:
    found: Dict[int, Any] = {}
    with cluster.client(found.__setitem__) as client:
        with client.share(random_array()) as shared:
            for n in range(5):
                client.submit(n, len, shared)
    assert set(found.values()) == {MB // 8}


@pytest.mark.parametrize("by", ["close", "del"])
def test_a_shared_value_is_freed_with_its_handle(here: LocalCluster, away: LocalCluster, by: str) -> None:
    for cluster in (here, away):
        path = shelves.store(cluster)["directory"]
        with cluster.executor() as executor:
            before = set(shelves.files(path))
            shared = executor.share(random_array())
            assert executor.submit(len, shared).result(WAIT_S) == MB // 8
            [name] = set(shelves.files(path)) - before
            if by == "close":
                shared.close()
            del shared
            gc.collect()
            wait_until(lambda: name not in shelves.files(path), timeout_s=WAIT_S)  # noqa: B023
            if cluster is away:
                [node] = shelves.shelves(str(away.directory))  # type: ignore[attr-defined]
                wait_until(lambda: name not in shelves.files(node), timeout_s=WAIT_S)  # noqa: B023


def test_a_shared_value_stays_while_a_job_needs_it(
    here: LocalCluster, local: ClusterExecutor, gate: see.Gate
) -> None:
    array = random_array()
    shared = local.share(array)
    futures = [local.submit(wait_and_measure, shared, *gate.paths) for _ in range(6)]
    del shared
    gate.wait_for(2)
    gate.open()
    assert [future.result(WAIT_S) for future in futures] == [array.sum()] * 6


def test_sharing_what_cannot_be_pickled(local: ClusterExecutor) -> None:
    with pytest.raises(PayloadError, match="lock"):
        local.share(threading.Lock())


def test_handles_that_cannot_be_used(here: LocalCluster, local: ClusterExecutor) -> None:
    shared = local.share([1])
    with pytest.raises(pickle.PicklingError, match="only be part of what is submitted"):
        pickle.dumps(shared)
    with here.executor() as other, pytest.raises(UsageError, match="another executor"):
        other.submit(len, shared)
    shared.close()
    shared.close()
    with pytest.raises(UsageError, match="closed"):
        local.submit(len, shared)


def test_a_handle_outlives_its_executor(here: LocalCluster) -> None:
    with here.executor() as executor:
        shared = executor.share(random_array())
    del shared


# --- limits ---------------------------------------------------------------------------------


def test_submit_waits_for_room() -> None:
    limit = 16 * MB
    with shelves.LimitedCluster(2, limit) as cluster, cluster.executor() as executor:
        largest = 0
        sums: List[float] = []
        futures = []
        for _ in range(60):
            array = random_array(2 * MB)
            sums.append(array.sum())
            futures.append(executor.submit(total, array))
            largest = max(largest, shelves.store(cluster)["bytes"])
        assert [future.result(WAIT_S) for future in futures] == sums
        assert largest <= 2 * limit
        assert shelves.store(cluster)["bytes"] <= limit


def test_large_results_pause_what_makes_them() -> None:
    limit = 16 * MB
    with shelves.LimitedCluster(2, limit) as cluster:
        held: List[Any] = []
        slow = threading.Event()

        def done(jobid: int, array: Any) -> None:
            slow.wait(0.02)
            held.append((jobid, len(array)))

        with cluster.client(done) as client:
            for n in range(40):
                client.submit(n, make, 2 * MB // 8)
        assert sorted(held) == [(n, 2 * MB // 8) for n in range(40)]


def test_a_value_beyond_the_limit() -> None:
    with shelves.LimitedCluster(1, 4 * MB) as cluster, cluster.executor() as executor:
        with pytest.raises(PayloadError, match="--blob-limit"):
            executor.submit(total, random_array(5 * MB))
        assert executor.submit(total, numpy.ones(10)).result(WAIT_S) == 10


def test_a_large_argument_is_worth_a_warning_once(
    local: ClusterExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(defaults, "LARGE_WARNING_BYTES", 4 * MB)
    with caplog.at_level(logging.WARNING):
        with local.share(random_array(5 * MB)) as shared:
            local.submit(len, shared).result(WAIT_S)
        local.submit(len, random_array(3 * MB)).result(WAIT_S)
        assert caplog.messages == []
        for _ in range(3):
            local.submit(len, random_array(5 * MB)).result(WAIT_S)
    [message] = caplog.messages
    assert "5 MiB" in message and "share" in message


# --- what vanished or was damaged -----------------------------------------------------------


def vandalise(path: str, how: str) -> None:
    """Do something to all blobs on a shelf that nobody should."""
    for name in shelves.files(path):
        file = os.path.join(path, name)
        if how == "removed":
            os.unlink(file)
        elif how == "truncated":
            os.truncate(file, 1000)
        else:
            with open(file, "r+b") as stream:
                stream.seek(5000)
                stream.write(b"damage")


@pytest.mark.parametrize("how", ["removed", "truncated"])
def test_a_blob_that_is_lost_here_is_the_jobs_error(
    here: LocalCluster, local: ClusterExecutor, gate: see.Gate, how: str
) -> None:
    holding = [local.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
    gate.wait_for(2)
    doomed = local.submit(total, random_array())
    fine = local.submit(jobs.add, 1)
    wait_until(lambda: see.jobs(here)["queued"] == 2, timeout_s=WAIT_S)
    vandalise(shelves.store(here)["directory"], how)
    gate.open()
    with pytest.raises(BlobLost, match="large value"):
        doomed.result(WAIT_S)
    assert fine.result(WAIT_S) == 2
    assert all(future.result(WAIT_S) for future in holding)
    assert local.submit(total, random_array()).result(WAIT_S) > 0


@pytest.mark.parametrize("how", ["removed", "truncated", "altered"])
def test_a_blob_that_is_lost_on_its_way_is_the_jobs_error(
    away: LocalCluster, tmp_path: Path, how: str
) -> None:
    with away.executor() as executor, see.Gate(away, tmp_path) as gate:
        holding = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        gate.wait_for(2)
        wait_until(lambda: see.status(away)["jobs"]["running"] == 2, timeout_s=WAIT_S)
        doomed = executor.submit(total, random_array(defaults.NAMED_FROM))
        wait_until(lambda: see.jobs(away)["queued"] == 1, timeout_s=WAIT_S)
        vandalise(shelves.store(away)["directory"], how)
        gate.open()
        with pytest.raises(BlobLost, match="twice"):
            doomed.result(WAIT_S)
        assert all(future.result(WAIT_S) for future in holding)
        assert executor.submit(total, random_array()).result(WAIT_S) > 0
