"""The master is killed and started again at the same place: nothing is lost, nothing told twice."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator, List

import numpy as np
import pytest

from cwmp import LocalCluster, MasterLost, shelf
from tests.faults.by_hand import HandMadeCluster
from tests.faults.processes import SOON_S, wait_for_lines, wait_gone
from tests.waiting import wait_until

pytestmark = pytest.mark.core


def note_and_wait(notes: str, name: int, gate: str) -> int:
    """Note this run, wait for the gate to open, and note that it has ended."""
    with open(notes, "a") as file:
        file.write(f"{name} {os.getpid()}\n")
    end = time.monotonic() + 60
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.01)
    with open(f"{notes}.ended", "a") as file:
        file.write(f"{name}\n")
    return name


def total(array: Any) -> float:
    """The sum of an array."""
    return float(array.sum())


def twice(array: Any) -> Any:
    """An array of the same size."""
    return 2 * array


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[HandMadeCluster]:
    with HandMadeCluster(tmp_path) as cluster:
        cluster.start_master()
        yield cluster


def runs(notes: Path) -> Counter[int]:
    """How often each job has run."""
    return Counter(int(line.split()[0]) for line in notes.read_text().splitlines())


def test_running_jobs_go_on_and_are_not_run_again(cluster: HandMadeCluster, tmp_path: Path) -> None:
    cluster.start_worker(slots=2)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    with cluster.executor() as executor:
        futures = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in range(2)]
        wait_for_lines(notes, 2)
        wait_until(lambda: all(future.running() for future in futures), timeout_s=SOON_S)
        cluster.kill_master()
        cluster.start_master()
        cluster.wait_for_workers(1)
        gate.touch()
        assert [future.result(timeout=SOON_S) for future in futures] == [0, 1]
    assert runs(notes) == {0: 1, 1: 1}


def test_what_ended_while_there_was_no_master_is_not_run_again(
    cluster: HandMadeCluster, tmp_path: Path
) -> None:
    cluster.start_worker(slots=2)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    with cluster.executor() as executor:
        futures = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in range(2)]
        wait_until(lambda: all(future.running() for future in futures), timeout_s=SOON_S)
        cluster.kill_master()
        gate.touch()
        wait_for_lines(tmp_path / "notes.ended", 2)
        cluster.start_master()
        assert [future.result(timeout=SOON_S) for future in futures] == [0, 1]
    assert runs(notes) == {0: 1, 1: 1}


def test_queued_and_new_jobs_survive_and_each_callback_is_called_once(cluster: HandMadeCluster) -> None:
    cluster.start_worker(slots=2)
    called: List[int] = []
    with cluster.client(lambda jobid, result: called.append(jobid)) as client:
        client.submit(-1, abs, -1)
        wait_until(lambda: called == [-1], timeout_s=SOON_S)
        for n in range(20_000):
            client.submit(n, abs, n)
            if n == 10_000:
                cluster.kill_master()
            if n == 15_000:
                cluster.start_master()
    assert sorted(called) == list(range(-1, 20_000))


def test_several_restarts_in_a_row(cluster: HandMadeCluster) -> None:
    cluster.start_worker(slots=2)
    with cluster.executor() as executor:
        futures = [executor.submit(time.sleep, 0.002) for _ in range(2000)]
        for _ in range(3):
            wait_until(lambda: bool((cluster.status() or {"workers": ()})["workers"]), timeout_s=SOON_S)
            cluster.kill_master()
            cluster.start_master()
        assert [future.result(timeout=2 * SOON_S) for future in futures] == [None] * 2000


def test_large_and_shared_values_are_there_as_before(cluster: HandMadeCluster, tmp_path: Path) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    array = np.arange(500_000, dtype=float)
    with cluster.executor() as executor, executor.share(array) as shared:
        blocking = executor.submit(note_and_wait, str(notes), 0, str(gate))
        queued = [executor.submit(total, array + n) for n in range(5)] + [executor.submit(total, shared)]
        wait_for_lines(notes)
        cluster.kill_master()
        cluster.start_master()
        gate.touch()
        queued.append(executor.submit(total, shared))
        assert blocking.result(timeout=SOON_S) == 0
        expected = [float((array + n).sum()) for n in [0, 1, 2, 3, 4, 0, 0]]
        assert [future.result(timeout=SOON_S) for future in queued] == expected


def another_that_sweeps(cluster: HandMadeCluster, directory: Path) -> None:
    """Every master looks at its start for what dead ones have left."""
    with LocalCluster(1):
        pass


def another_of_the_same_name_and_key(cluster: HandMadeCluster, directory: Path) -> None:
    """It listens on another port."""
    with HandMadeCluster(directory) as other:
        other.start_master()


def a_start_that_finds_the_port_taken(cluster: HandMadeCluster, directory: Path) -> None:
    """By somebody who is gone before the next one."""
    with socket.create_server(("127.0.0.1", cluster.port)):
        assert cluster.try_master().wait(SOON_S) == 1


@pytest.mark.parametrize(
    "intrude", [another_that_sweeps, another_of_the_same_name_and_key, a_start_that_finds_the_port_taken]
)
def test_others_leave_the_large_values_of_a_dead_master_alone_while_it_is_waited_for(
    cluster: HandMadeCluster, tmp_path: Path, intrude: Callable[[HandMadeCluster, Path], None]
) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    array = np.arange(500_000, dtype=float)
    with cluster.executor() as executor, executor.share(array) as shared:
        executor.submit(note_and_wait, str(notes), 0, str(gate))
        queued = executor.submit(total, array + 1)
        wait_for_lines(notes)
        cluster.kill_master()
        intrude(cluster, tmp_path)
        cluster.start_master()
        gate.touch()
        assert queued.result(timeout=SOON_S) == float((array + 1).sum())
        for _ in range(2):  # the first one does not use it up
            assert executor.submit(total, shared).result(timeout=SOON_S) == float(array.sum())


def test_large_values_on_their_way_between_machines(
    cluster: HandMadeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither program nor worker can see what the master keeps."""
    monkeypatch.setattr(shelf, "reachable", lambda facts: None)
    status = cluster.status()
    assert status is not None
    stay = shelf.Stay(status["blobs"]["directory"])  # or other masters here would take it for deserted
    cluster.start_worker("--blob-dir", str(tmp_path), slots=2)
    arrays = [np.arange(500_000, dtype=float) + n for n in range(30)]
    with cluster.executor() as executor:
        executor.submit(total, arrays[0]).result(timeout=SOON_S)

        def fail_for_a_second() -> None:
            cluster.kill_master()
            time.sleep(1.0)
            cluster.start_master()

        failure = threading.Timer(0.2, fail_for_a_second)
        failure.start()
        futures = [executor.submit(twice, array) for array in arrays]
        for array, future in zip(arrays, futures):
            assert (future.result(timeout=SOON_S) == 2 * array).all()
        failure.join()
    stay.end()


@pytest.mark.parametrize("last", ["worker", "program"])
def test_nothing_is_left_of_a_master_that_does_not_come_back(cluster: HandMadeCluster, last: str) -> None:
    """Whoever used its large values last removes them."""
    status = cluster.status()
    assert status is not None
    directory = status["blobs"]["directory"]
    worker = cluster.start_worker("--master-timeout", "2", slots=1)
    with cluster.executor(master_timeout=1) as executor:
        assert executor.submit(total, np.ones(100_000)).result(timeout=SOON_S) == 100_000.0
        if last == "program":
            worker.terminate()
            wait_gone(worker.pid)
        cluster.kill_master()
        assert os.path.exists(directory), "somebody may come for it"
        with pytest.raises(MasterLost):
            executor.submit(time.sleep, 60).result(timeout=SOON_S)
    wait_gone(worker.pid)
    wait_until(lambda: not os.path.exists(directory), timeout_s=SOON_S)


def test_cancelling_while_there_is_no_master(cluster: HandMadeCluster, tmp_path: Path) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    with cluster.executor() as executor:
        blocking = executor.submit(note_and_wait, str(notes), 0, str(gate))
        queued = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in (1, 2, 3)]
        wait_for_lines(notes)
        wait_until(blocking.running, timeout_s=SOON_S)  # what has just begun may be begun again
        cluster.kill_master()
        cancelled: List[bool] = []
        thread = threading.Thread(target=lambda: cancelled.append(queued[1].cancel()))
        thread.start()
        cluster.start_master()
        gate.touch()
        thread.join(SOON_S)
        assert cancelled == [True]
        assert blocking.result(timeout=SOON_S) == 0
        assert [queued[0].result(timeout=SOON_S), queued[2].result(timeout=SOON_S)] == [1, 3]
    assert runs(notes) == Counter([0, 1, 3])
