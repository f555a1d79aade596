"""A million jobs queued at once: what each costs in memory and time. Run it with `-m soak`."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

import psutil
import pytest

from cwmp import ClusterExecutor, LocalCluster
from cwmp.futures import ClusterFuture
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

WAIT_S = 60.0
MEASURED = 100_000  # of the first jobs of a queue


class Drained(NamedTuple):
    """What a queue has cost."""

    bytes_each: Dict[str, float]  # in client and master
    job_s: float


def memory(cluster: LocalCluster) -> Dict[str, int]:
    """Resident bytes of client and master."""
    gc.collect()
    pids = {"client": None, "master": cluster.pids["master"]}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def queue_up(executor: ClusterExecutor, cluster: LocalCluster, count: int) -> List[ClusterFuture]:
    """So many jobs at the master."""
    futures = [executor.submit(jobs.add, n) for n in range(count)]
    wait_until(
        lambda: see.jobs(cluster)["queued"] >= count - 2000,
        timeout_s=WAIT_S,
        describe=lambda: str(see.jobs(cluster)),
    )
    return futures


def drain(executor: ClusterExecutor, cluster: LocalCluster, directory: Path, count: int) -> Drained:
    """Queue up so many jobs behind one that waits, let it go, and see how the queue empties."""
    directory.mkdir()
    with see.Gate(cluster, directory) as gate:
        holding = executor.submit(jobs.begin_and_wait, *gate.paths)
        gate.wait_for(1)
        wait_until(holding.running, timeout_s=WAIT_S)
        before = memory(cluster)
        futures = queue_up(executor, cluster, count)
        after = memory(cluster)
        measured = min(count, MEASURED)
        gate.open()
        began = time.monotonic()
        futures[measured - 1].result()
        job_s = (time.monotonic() - began) / measured
        assert sum(future.result() for future in futures) == count * (count + 1) // 2
    return Drained({name: (after[name] - before[name]) / count for name in before}, job_s)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_million_queued_jobs(tmp_path: Path) -> None:
    """Under 1 KiB each in client and master together, and each no more work than one of 10,000."""
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        few = [drain(executor, cluster, tmp_path / str(n), 10_000).job_s for n in range(15)]
        many = drain(executor, cluster, tmp_path / "many", 1_000_000)
    few_s = sorted(few)[7]
    print(f"\nbytes a queued job: {many.bytes_each}")
    print(f"microseconds a job: {few_s * 1e6:.1f} of 10,000, {many.job_s * 1e6:.1f} of a million")
    assert sum(many.bytes_each.values()) < 1024
    assert many.job_s < 1.2 * few_s
