"""What is measured: small jobs, one long job among them, and doing nothing at all."""

from __future__ import annotations

import gc
import random
import statistics
import time
from typing import Any, ContextManager, Dict, List

from .contenders import SLOTS, Contender
from .jobs import work

WARM_UP_JOBS = 500
ROUND_TRIPS = 2000
PASSES_S = 1.5  # passes over the jobs are repeated for this long, so that fast contenders count too
LONG_S = 5.0
LONG_JOBS = 10_000
IDLE_S = 10.0
SETTLE_S = 2.0


def small_jobs(context: ContextManager[Contender], jobs: int, started_s: float) -> Dict[str, float]:
    """Cold start since `started_s`, round trips of one job at a time, and jobs a second."""
    with context as contender:
        contender.run_one(0)
        cold_s = time.perf_counter() - started_s
        contender.run_all(WARM_UP_JOBS)
        return {
            "cold_s": cold_s,
            **_round_trips(contender),
            "jobs_per_s": _jobs_per_second(contender, jobs),
        }


def _round_trips(contender: Contender) -> Dict[str, float]:
    """The middle and the slow end of `ROUND_TRIPS` round trips, in seconds."""
    trips_s = []
    for number in range(ROUND_TRIPS):
        begin_s = time.perf_counter()
        contender.run_one(number)
        trips_s.append(time.perf_counter() - begin_s)
    trips_s.sort()
    return {"p50_s": trips_s[ROUND_TRIPS // 2], "p99_s": trips_s[ROUND_TRIPS * 99 // 100]}


def _jobs_per_second(contender: Contender, jobs: int) -> float:
    """Median of passes, each from the first submit to the last result."""
    rates: List[float] = []
    deadline_s = time.perf_counter() + PASSES_S
    while not rates or time.perf_counter() < deadline_s:
        gc.collect()
        begin_s = time.perf_counter()
        results = contender.run_all(jobs)
        rates.append(jobs / (time.perf_counter() - begin_s))
        if sorted(results) != list(range(jobs)):
            raise AssertionError(f"{len(results)} results for {jobs} jobs, or not the right ones")
    return statistics.median(rates)


def long_job(seed: int) -> Dict[str, float]:
    """When the last of many no-ops is in: alone, alone on a single slot, and with one long job among them."""
    import cwmp

    with cwmp.LocalCluster(n=1) as cluster, cluster.executor() as executor:
        _last_noop_s(executor, long_number=-1)
        one_slot_s = _last_noop_s(executor, long_number=-1)
    position = random.Random(seed).randrange(LONG_JOBS)
    with cwmp.LocalCluster(n=SLOTS) as cluster, cluster.executor() as executor:
        _last_noop_s(executor, long_number=-1)
        without_s = _last_noop_s(executor, long_number=-1)
        with_s = _last_noop_s(executor, long_number=position)
    return {"position": position, "one_slot_s": one_slot_s, "without_s": without_s, "with_s": with_s}


def _last_noop_s(executor: Any, long_number: int) -> float:
    """Seconds from the first submit until every job but the long one has answered."""
    gc.collect()
    begin_s = time.perf_counter()
    futures = [executor.submit(work, number, long_number, LONG_S) for number in range(LONG_JOBS)]
    for number, future in enumerate(futures):
        if number != long_number:
            future.result()
    elapsed_s = time.perf_counter() - begin_s
    if long_number >= 0:
        futures[long_number].result()
    return elapsed_s


def idle() -> Dict[str, float]:
    """Share of one core that a cluster with one connected, silent client uses."""
    import psutil

    import cwmp

    with cwmp.LocalCluster(n=SLOTS) as cluster, cluster.executor() as executor:
        executor.submit(work, 0, -1, 0.0).result()
        time.sleep(SETTLE_S)
        master = psutil.Process(cluster.pids["master"])
        workers = [psutil.Process(pid) for pid in cluster.pids["workers"]]
        slots = [slot for worker in workers for slot in worker.children(recursive=True)]
        client = psutil.Process()
        groups = {"master": [master], "workers": workers, "slots": slots, "client": [client]}
        before = {role: _cpu_s(processes) for role, processes in groups.items()}
        time.sleep(IDLE_S)
        shares = {role: (_cpu_s(processes) - before[role]) / IDLE_S for role, processes in groups.items()}
    cluster_share = shares["master"] + shares["workers"] + shares["slots"]
    return {"cluster": cluster_share, "processes": float(1 + len(workers) + len(slots)), **shares}


def _cpu_s(processes: List[Any]) -> float:
    """User and system time that these have used so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
