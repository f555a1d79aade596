"""Workers that leave while there is work: by command, by signal, and who gets their jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from cwmp import LocalCluster
from cwmp.messages import JOB_QUEUE
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


def drain(cluster: LocalCluster, workers: List[int]) -> List[int]:
    wire = see.open_wire(cluster)
    try:
        drained: List[int] = wire.call(JOB_QUEUE, "drain", workers)
        return drained
    finally:
        wire.close()


def worker_of_pid(cluster: LocalCluster, pid: int) -> Dict[str, Any]:
    [worker] = [worker for worker in see.status(cluster)["workers"] if worker["pid"] == pid]
    return worker


def test_an_idle_worker_that_is_let_go_ends_at_once(cluster: LocalCluster) -> None:
    [pid] = cluster.pids["workers"]
    ident = worker_of_pid(cluster, pid)["id"]
    assert drain(cluster, [ident, ident + 1000]) == [ident]
    see.wait_gone(pid)
    assert see.status(cluster)["workers"] == []


def test_a_busy_worker_that_is_let_go_finishes_what_runs_and_takes_no_more(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        running = executor.submit(jobs.begin_and_wait, *gate.paths)
        gate.wait_for(1)
        with see.more_workers(cluster, grace_s=0.0) as leaver:
            second = executor.submit(jobs.begin_and_wait, *gate.paths)
            gate.wait_for(2)
            waiting = [executor.submit(jobs.pid) for _ in range(10)]
            known = worker_of_pid(cluster, leaver)
            assert drain(cluster, [known["id"]]) == [known["id"]]
            wait_until(lambda: worker_of_pid(cluster, leaver)["draining"], timeout_s=WAIT_S)
            assert worker_of_pid(cluster, leaver)["held"] == 1
            slots = see.slots_of(leaver)
            gate.open()
            see.wait_gone(leaver)
        assert {running.result(WAIT_S), second.result(WAIT_S)} >= set(slots)
        assert not {future.result(WAIT_S) for future in waiting} & set(slots)
    assert see.jobs(cluster)["done"] == 12


def test_a_signal_while_let_go_starts_the_grace_period(cluster: LocalCluster, tmp_path: Path) -> None:
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        with see.more_workers(cluster, grace_s=0.0) as leaver:
            futures = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
            gate.wait_for(2)
            drain(cluster, [worker_of_pid(cluster, leaver)["id"]])
            wait_until(lambda: worker_of_pid(cluster, leaver)["draining"], timeout_s=WAIT_S)
            os.kill(leaver, signal.SIGTERM)
            see.wait_gone(leaver)
        gate.open()
        assert all(future.result(WAIT_S) for future in futures)


def test_a_worker_that_drains_at_a_signal_says_so(cluster: LocalCluster, tmp_path: Path) -> None:
    [pid] = cluster.pids["workers"]
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        with see.more_workers(cluster, grace_s=60.0) as leaver:
            futures = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
            gate.wait_for(2)
            assert not worker_of_pid(cluster, leaver)["draining"]
            os.kill(leaver, signal.SIGTERM)
            wait_until(lambda: worker_of_pid(cluster, leaver)["draining"], timeout_s=WAIT_S)
            assert not worker_of_pid(cluster, pid)["draining"]
            gate.open()
            see.wait_gone(leaver)
        assert all(future.result(WAIT_S) for future in futures)


def test_workers_tell_the_slurm_job_that_they_run_in(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert see.status(cluster)["workers"][0]["slurm_job"] is None
    monkeypatch.setenv("SLURM_JOB_ID", "125")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "123")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with see.more_workers(cluster) as pid:
        worker = worker_of_pid(cluster, pid)
        assert (worker["slurm_job"], worker["restarts"]) == ("123_4", 2)


# --- limited time ---------------------------------------------------------------------------

WORKER = """
import sys
from cwmp import defaults
from cwmp.cli import worker

defaults.DRAIN_AHEAD_S, defaults.CUT_AHEAD_S = 1.0, 0.5
sys.exit(worker.main(sys.argv[1:]))
"""


@contextlib.contextmanager
def limited_worker(cluster: LocalCluster, ends_in_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with one slot in what it takes for a SLURM job that ends so soon."""
    environment = {
        **os.environ,
        "CWMP_AUTHKEY": cluster.authkey.decode(),
        "SLURM_JOB_ID": "17",
        "SLURMD_NODENAME": "node7",
        "SLURM_JOB_END_TIME": str(int(time.time() + ends_in_s)),
    }
    command = [sys.executable, "-c", WORKER, cluster.address, "--procs", "1"]
    worker = subprocess.Popen(command, env=environment, cwd=see.ROOT, stdin=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: any(known["pid"] == worker.pid for known in see.status(cluster)["workers"]),
            timeout_s=WAIT_S,
        )
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_announces_when_its_time_is_up(cluster: LocalCluster) -> None:
    with limited_worker(cluster, 1000.0) as worker:
        assert 900.0 < worker_of_pid(cluster, worker.pid)["ends_in_s"] <= 1000.0
        [pid] = cluster.pids["workers"]
        assert worker_of_pid(cluster, pid)["ends_in_s"] is None


def test_a_worker_whose_time_is_up_hands_back_what_it_cannot_finish(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        elsewhere = executor.submit(jobs.begin_and_wait, *gate.paths)
        [first] = gate.wait_for(1)
        with limited_worker(cluster, 6.0) as worker:
            cut_off = executor.submit(jobs.begin_and_wait, *gate.paths)
            gate.wait_for(2)
            assert worker.wait(WAIT_S) == 0
        assert see.jobs(cluster)["queued"] == 1
        gate.open()
        assert elsewhere.result(WAIT_S) == first
        assert cut_off.result(WAIT_S) == first


def test_a_worker_takes_no_job_that_is_unlikely_to_fit(cluster: LocalCluster, tmp_path: Path) -> None:
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        blocked = executor.submit(jobs.begin_and_wait, *gate.paths)
        [first] = gate.wait_for(1)
        with limited_worker(cluster, 10.0) as worker:
            path = tmp_path / "napped"
            known = executor.submit(jobs.begin_and_nap, str(path), 5.0)
            late_slot = known.result(WAIT_S)
            assert late_slot != first
            too_long = executor.submit(jobs.begin_and_nap, str(path), 0.0)
            short = executor.submit(jobs.pid)
            assert short.result(WAIT_S) == late_slot
            assert not too_long.done()
            assert worker.wait(WAIT_S) == 0
        gate.open()
        assert blocked.result(WAIT_S) == first
        assert too_long.result(WAIT_S) == first
        assert len(path.read_text().split()) == 2


def test_a_worker_that_is_told_by_squeue_only(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1000))
    squeue.write_text(f"#!/bin/sh\necho {end}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    with see.more_workers(cluster) as pid:
        wait_until(lambda: worker_of_pid(cluster, pid)["ends_in_s"], timeout_s=WAIT_S)
        assert 900.0 < worker_of_pid(cluster, pid)["ends_in_s"] <= 1000.0
