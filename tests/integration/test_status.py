"""What the master tells of jobs, workers and clients while work goes on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Iterator

import pytest

import cwmp
from cwmp import LocalCluster
from cwmp.messages import PROTOCOL, python_minor
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, workers=2) as cluster:
        yield cluster


def test_a_cluster_without_work(cluster: LocalCluster) -> None:
    status = see.status(cluster)
    assert (status["host"], status["port"]) == ("127.0.0.1", int(cluster.address.split(":")[1]))
    assert status["pid"] == cluster.pids["master"]
    assert status["version"] == cwmp.__version__
    assert status["python"] == python_minor()
    assert status["protocol"] == PROTOCOL
    assert 0 < status["uptime_s"] < 60
    assert status["jobs"] == {"queued": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0}
    assert status["clients"] == []
    assert sorted(worker["pid"] for worker in status["workers"]) == sorted(cluster.pids["workers"])
    for worker in status["workers"]:
        assert (worker["node"], worker["slots"], worker["busy"], worker["done"]) == (platform.node(), 1, 0, 0)
        assert worker["silent_s"] < 15


def test_workers_go_on_reporting_their_memory(cluster: LocalCluster) -> None:
    wait_until(
        lambda: all(worker["rss_bytes"] > 5 << 20 for worker in see.status(cluster)["workers"]),
        timeout_s=WAIT_S,
        describe=lambda: str(see.status(cluster)["workers"]),
    )


def test_jobs_and_clients_are_counted(cluster: LocalCluster, tmp_path: Path) -> None:
    with see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor, cluster.executor() as other:
        futures = [executor.submit(jobs.begin_and_wait, *gate.paths) for _ in range(2)]
        gate.wait_for(2)
        failing = executor.submit(jobs.raise_value_error)
        cancelled = other.submit(jobs.nothing)
        wait_until(lambda: see.jobs(cluster)["queued"] == 2, timeout_s=WAIT_S)
        assert cancelled.cancel()
        assert see.jobs(cluster) == {"queued": 1, "running": 2, "done": 0, "failed": 0, "cancelled": 1}
        clients = see.status(cluster)["clients"]
        assert [client["pid"] for client in clients] == [os.getpid()] * 2
        assert sorted((client["queued"], client["running"]) for client in clients) == [(0, 0), (1, 2)]
        wait_until(
            lambda: [worker["busy"] for worker in see.status(cluster)["workers"]] == [1, 1],
            timeout_s=WAIT_S,
            describe=lambda: str(see.status(cluster)["workers"]),
        )
        gate.open()
        assert all(future.result(WAIT_S) for future in futures)
        assert failing.exception(WAIT_S)
    wait_until(lambda: not see.status(cluster)["clients"], timeout_s=WAIT_S)
    assert see.jobs(cluster) == {"queued": 0, "running": 0, "done": 2, "failed": 1, "cancelled": 1}
    wait_until(
        lambda: sum(worker["done"] for worker in see.status(cluster)["workers"]) == 3,
        timeout_s=WAIT_S,
        describe=lambda: str(see.status(cluster)["workers"]),
    )
    wait_until(lambda: not any(w["busy"] for w in see.status(cluster)["workers"]), timeout_s=WAIT_S)


def test_workers_come_and_go(cluster: LocalCluster) -> None:
    with see.more_workers(cluster, slots=3) as pid:
        [worker] = [worker for worker in see.status(cluster)["workers"] if worker["pid"] == pid]
        assert worker["slots"] == 3
    wait_until(lambda: len(see.status(cluster)["workers"]) == 2, timeout_s=WAIT_S)
    assert sorted(w["pid"] for w in see.status(cluster)["workers"]) == sorted(cluster.pids["workers"])
