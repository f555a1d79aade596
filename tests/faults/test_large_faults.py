"""Killing any part in the middle of large values: no job is lost, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, List

import numpy
import psutil
import pytest

from cwmp import LocalCluster, MasterLost, shelf
from tests.faults import jobs, shelves
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 60.0
MB = 1 << 20


@pytest.fixture(autouse=True)
def no_shelf_left() -> Iterator[None]:
    """Every shelf that a test has brought about is gone after it, or has an owner: a neighbour's."""
    before = set(shelves.shelves())
    yield

    def left() -> List[str]:
        return [path for path in set(shelves.shelves()) - before if shelf.is_deserted(path)]

    wait_until(lambda: not left(), timeout_s=WAIT_S, describe=lambda: str(list(map(shelves.files, left()))))


def total(array: Any, pause_s: float = 0.0) -> float:
    time.sleep(pause_s)
    return float(array.sum())


def make(size: int, pause_s: float = 0.0) -> Any:
    time.sleep(pause_s)
    return numpy.ones(size)


def make_and_die(path: str, size: int) -> Any:
    """A large result; the first time its slot dies with it."""
    jobs.note(path, "tried")
    result = numpy.ones(size)
    if len(Path(path).read_text().split()) == 1:
        result = Deadly()
    return result


class Deadly:
    """Kills the process in the middle of being pickled, when large bytes have been written."""

    def __reduce__(self) -> Any:
        return make_and_die, (b"x" * (5 * MB), Killer())


class Killer:
    """See Deadly."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def arrays(count: int, size: int) -> List[Any]:
    generator = numpy.random.default_rng(7)
    return [generator.random(size // 8) for _ in range(count)]


def begun_files(path: str) -> List[str]:
    """Files of results, and of values on their way."""
    return [name for name in shelves.files(path) if name[0] in "cw" and not shelf.is_digest(name)]


# --- slots and workers ----------------------------------------------------------------------


def test_a_slot_killed_while_it_makes_a_large_result(tmp_path: Path) -> None:
    with LocalCluster(2) as cluster, cluster.executor() as executor:
        path = shelves.store(cluster)["directory"]
        result = executor.submit(make_and_die, str(tmp_path / "tries"), MB).result(WAIT_S)
        assert len(result) == MB
        wait_until(lambda: not begun_files(path), timeout_s=WAIT_S, describe=lambda: str(shelves.files(path)))


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 0.15])
def test_a_slot_killed_at_any_moment(pause_s: float) -> None:
    with LocalCluster(2) as cluster, cluster.executor() as executor:
        [worker] = cluster.pids["workers"]
        path = shelves.store(cluster)["directory"]
        futures = [executor.submit(make, MB // 8 * 20, 0.01) for _ in range(15)]
        for _ in range(3):
            time.sleep(pause_s)
            os.kill(wait_until(lambda: see.slots_of(worker))[0], signal.SIGKILL)
        assert {len(future.result(WAIT_S)) for future in futures} == {MB // 8 * 20}
        futures.clear()
        wait_until(lambda: not begun_files(path), timeout_s=WAIT_S, describe=lambda: str(shelves.files(path)))


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.3])
def test_a_worker_killed_with_large_jobs(pause_s: float) -> None:
    values = arrays(20, 4 * MB)
    with LocalCluster(4, workers=2) as cluster, cluster.executor() as executor:
        path = shelves.store(cluster)["directory"]
        sums = [executor.submit(total, value, 0.02) for value in values]
        results = [executor.submit(make, MB, 0.02) for _ in range(10)]
        time.sleep(pause_s)
        os.kill(cluster.pids["workers"][0], signal.SIGKILL)
        assert [future.result(WAIT_S) for future in sums] == [value.sum() for value in values]
        assert {len(future.result(WAIT_S)) for future in results} == {MB}
        results.clear()
        wait_until(lambda: not begun_files(path), timeout_s=WAIT_S, describe=lambda: str(shelves.files(path)))


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.3])
def test_a_worker_away_killed_in_the_middle_of_transfers(tmp_path: Path, pause_s: float) -> None:
    values = arrays(12, 8 * MB)
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        with shelves.worker_away(cluster, tmp_path / "away") as worker:
            sums = [executor.submit(total, value, 0.02) for value in values]
            results = [executor.submit(make, MB, 0.02) for _ in range(10)]
            time.sleep(pause_s)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: not shelves.shelves(str(tmp_path / "away")), timeout_s=WAIT_S)
            assert [future.result(WAIT_S) for future in sums] == [value.sum() for value in values]
            assert {len(future.result(WAIT_S)) for future in results} == {MB}


@pytest.mark.parametrize("pause_s", [0.05, 0.2])
def test_the_porter_killed_in_the_middle_of_transfers(tmp_path: Path, pause_s: float) -> None:
    values = arrays(10, 8 * MB)
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        with shelves.worker_away(cluster, tmp_path / "away") as worker:
            os.kill(cluster.pids["workers"][0], signal.SIGTERM)
            wait_until(lambda: len(see.status(cluster)["workers"]) == 1, timeout_s=WAIT_S)
            slots = set(see.children_of(worker))
            sums = [executor.submit(total, value) for value in values]
            results = [executor.submit(make, MB) for _ in range(5)]
            [porter] = wait_until(lambda: set(see.children_of(worker)) - slots, timeout_s=WAIT_S)
            time.sleep(pause_s)
            os.kill(porter, signal.SIGKILL)
            outcomes = [future.exception(WAIT_S) for future in sums + results]
            assert outcomes == [None] * 15, "what it was doing is done once more"
            assert executor.submit(total, values[0]).result(WAIT_S) == values[0].sum()
            assert len(executor.submit(make, MB).result(WAIT_S)) == MB
        assert shelves.shelves(str(tmp_path / "away")) == []


# --- the master -----------------------------------------------------------------------------


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_the_master_killed_with_large_jobs(pause_s: float, tmp_path: Path) -> None:
    with LocalCluster(2) as cluster, cluster.executor() as executor:
        path = shelves.store(cluster)["directory"]
        with shelves.worker_away(cluster, tmp_path / "away"):
            futures = [executor.submit(total, value, 0.05) for value in arrays(20, 4 * MB)]
            time.sleep(pause_s)
            os.kill(cluster.pids["master"], signal.SIGKILL)
            for future in futures:
                error = future.exception(WAIT_S)
                assert error is None or isinstance(error, MasterLost)
            with pytest.raises(MasterLost):
                for value in arrays(20, 4 * MB):
                    executor.submit(total, value)
        shelves.wait_for_no_shelf(path)
        assert shelves.shelves(str(tmp_path / "away")) == []


def test_everything_killed_at_once_is_swept_up_by_the_next(tmp_path: Path) -> None:
    cluster = LocalCluster(2).start()
    family = see.family(cluster)
    path = shelves.store(cluster)["directory"]
    with see.Script(cluster, tmp_path / "client.py", UPLOADER, "8") as script:
        assert script.line() == "ready"
        wait_until(lambda: len(shelves.files(path)) > 2, timeout_s=WAIT_S)
        for process in [*family, script.process.pid]:
            psutil.Process(process).kill()
        see.wait_gone(*family)
    cluster.stop()
    with LocalCluster(1):
        shelves.wait_for_no_shelf(path)


# --- clients --------------------------------------------------------------------------------

UPLOADER = """
import sys, time
import numpy
from cwmp import ClusterExecutor
from tests.faults.test_large_faults import make, total
executor = ClusterExecutor()
print("ready", flush=True)
size = int(sys.argv[1]) * (1 << 20) // 8
while True:
    executor.submit(total, numpy.random.random(size))
    executor.submit(make, size)
"""


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("size", [1, 100])
def test_a_client_killed_while_it_brings_large_values(tmp_path: Path, pause_s: float, size: int) -> None:
    with LocalCluster(1) as cluster:
        path = shelves.store(cluster)["directory"]
        with see.Script(cluster, tmp_path / "client.py", UPLOADER, str(size)) as script:
            assert script.line() == "ready"
            wait_until(lambda: shelves.files(path), timeout_s=WAIT_S)
            time.sleep(pause_s)
            script.process.kill()
        wait_until(
            lambda: not begun_files(path) and not see.jobs(cluster)["running"],
            timeout_s=WAIT_S,
            describe=lambda: f"{shelves.files(path)} {see.jobs(cluster)}",
        )
        see.wait_for_clients(cluster, 0)  # until then it may come back
        status = shelves.store(cluster)
        assert status["bytes"] == status["idle"], "nobody needs any of it"
        with cluster.executor() as executor:
            assert executor.submit(total, numpy.ones(MB)).result(WAIT_S) == MB


REMOTE = f"from cwmp import carriers; carriers.shelf.reachable = lambda facts: None{UPLOADER}"


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
def test_a_client_away_killed_while_it_sends(tmp_path: Path, pause_s: float) -> None:
    with LocalCluster(1) as cluster:
        path = shelves.store(cluster)["directory"]
        with see.Script(cluster, tmp_path / "client.py", REMOTE, "100") as script:
            assert script.line() == "ready"
            wait_until(lambda: shelves.files(path), timeout_s=WAIT_S)
            time.sleep(pause_s)
            script.process.kill()
        wait_until(
            lambda: not begun_files(path) and not see.jobs(cluster)["running"],
            timeout_s=WAIT_S,
            describe=lambda: f"{shelves.files(path)} {see.jobs(cluster)}",
        )


# --- left by others -------------------------------------------------------------------------


def test_a_shelf_is_swept_only_when_its_owner_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where no neighbour sweeps
    mine = shelf.Shelf(str(tmp_path))
    try:
        code = "from cwmp import shelf; import os, sys; print(shelf.Shelf(sys.argv[1]).path, flush=True)"
        command = [sys.executable, "-c", f"{code}; os.abort()", str(tmp_path)]
        done = subprocess.run(command, cwd=see.ROOT, capture_output=True, text=True)
        dead = done.stdout.strip()
        assert os.path.isdir(dead)
        assert dead in shelf.sweep()
        assert not os.path.exists(dead)
        assert os.path.isdir(mine.path)
        assert shelf.reachable(mine.facts()) == mine.path
        assert shelf.reachable({**mine.facts(), "token": "another"}) is None
    finally:
        mine.close()
    assert not os.path.exists(mine.path)


def test_files_that_were_never_announced_are_removed() -> None:
    """By the time that has passed since they were last seen to change, whatever their dates say."""
    from cwmp.depot import Depot

    hours = 5 * 3600
    depot = Depot(None, None, lambda client, event: None, "a mark of this test")
    begun = time.monotonic()

    def left_at(seconds: float) -> List[str]:
        depot.look_for_leftovers(begun + seconds)
        return sorted(shelves.files(depot.shelf.path))

    try:
        for name, age_s in (("c1.1", 0), ("w1.2.3", hours), ("c5.9", -hours)):
            shelf.write(depot.shelf.path, name, [b"x"])
            os.utime(os.path.join(depot.shelf.path, name), (0, time.time() - age_s))
        everything = ["c1.1", "c5.9", "w1.2.3"]
        assert left_at(0.0) == everything
        assert left_at(130.0) == everything, "they have just been seen for the first time"
        with open(os.path.join(depot.shelf.path, "c1.1"), "ab") as file:
            file.write(b"more")
        assert left_at(260.0) == ["c1.1"], "it is still being written"
        assert left_at(390.0) == []
    finally:
        depot.close()
