"""What one master can carry: `python -m tests.benchmarks.scale --help`.

A real master and a real client; the workers are simulated (see `nodes`), in a few driver processes. At
each size all nodes join at once and no-op jobs stream through them. With the most nodes it measures
as well what the idle ones cost, and what becomes of the jobs when half of the nodes are killed in the
same instant and when a quarter falls silent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any, List

from cwmp import ClientThread, ClusterExecutor

from . import scale_report
from .jobs import noop
from .machine import facts
from .report import bar_lines
from .swarm import Driver, Swarm

DRIVERS = 4
WARM_UP_JOBS = 5_000
SETTLE_S = 3.0
IDLE_S = 10.0
JOB_S = 5.0  # of the jobs whose nodes are lost, one for each slot: all are submitted within that
PATIENCE_S = 90.0

Size = scale_report.Size


def main() -> int:
    """Measure, print, and return the exit status."""
    args = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    about = facts()
    print("\n".join(f"{key:>7}: {value}" for key, value in about.items()), flush=True)
    sizes: List[Size] = []
    for nodes in args.nodes:
        sizes.append(_measure(nodes, args, largest=nodes == max(args.nodes)))
        print(scale_report.one_line(sizes[-1]), file=sys.stderr)
    bars = scale_report.bars(sizes)
    print("\n".join(scale_report.table(sizes) + bar_lines(bars)))
    if args.json:
        answer = {"machine": about, "slots": args.slots, "sizes": sizes, "bars": [vars(bar) for bar in bars]}
        args.json.write_text(json.dumps(answer, indent=1) + "\n")
    return 1 if args.check and not all(bar.met for bar in bars) else 0


def _parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scale", description="What one master can carry."
    )
    parser.add_argument(
        "--nodes", type=_sizes, default=[10, 100, 1000], metavar="N,…", help="sizes (10,100,1000)"
    )
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="slots a node (%(default)s)")
    parser.add_argument("--jobs", type=int, default=20_000, metavar="N", help="jobs a pass (%(default)s)")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="of which the median counts (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there, too")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is not met")
    args = parser.parse_args()
    if min(args.slots, args.jobs, args.passes) < 1:
        parser.error("--slots, --jobs and --passes must be positive")
    return args


def _sizes(text: str) -> List[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < DRIVERS:
        raise argparse.ArgumentTypeError(f"there must be at least {DRIVERS} nodes")
    return sizes


def _measure(nodes: int, args: Any, largest: bool) -> Size:
    """Everything at one size."""
    with Swarm(nodes, args.slots, DRIVERS) as swarm:
        cpu_s = swarm.master_cpu_s()
        size: Size = {"nodes": nodes, "join_s": swarm.join()}
        size["join_cpu_s"] = swarm.master_cpu_s() - cpu_s
        size.update(_stream(swarm, args.jobs, args.passes))
        if largest:
            size["idle_share"] = _idle_share(swarm)
            half, quarter = swarm.drivers[: DRIVERS // 2], swarm.drivers[DRIVERS // 2 : DRIVERS * 3 // 4]
            for what, drivers, number in (
                ("killed", half, signal.SIGKILL), ("silent", quarter, signal.SIGSTOP)
            ):  # fmt: skip
                loss = lose(swarm, drivers, number, JOB_S)
                size.update({f"{what}_{key}": value for key, value in loss.items()})
        swarm.check_log()
    return size


def _stream(swarm: Swarm, jobs: int, passes: int) -> Size:
    """Jobs a second through a `ClusterExecutor`, and what each costs the master."""
    rates, costs = [], []
    with ClusterExecutor(swarm.address, authkey=swarm.key) as executor:
        for number in range(passes + 1):
            count = jobs if number else min(jobs, WARM_UP_JOBS)
            gc.collect()
            cpu_s, begin_s = swarm.master_cpu_s(), time.perf_counter()
            futures = [executor.submit(noop, job) for job in range(count)]
            answers = [future.result()[0][0] for future in futures]  # a node's result: (args, kwargs)
            elapsed_s = time.perf_counter() - begin_s
            if answers != list(range(count)):
                raise AssertionError("not the right answers")
            if number:
                rates.append(count / elapsed_s)
                costs.append((swarm.master_cpu_s() - cpu_s) / count)
    return {"jobs_per_s": statistics.median(rates), "master_s_per_job": statistics.mean(costs)}


def _idle_share(swarm: Swarm) -> float:
    """Of one core, for the beats of nodes that have nothing to do."""
    time.sleep(SETTLE_S)
    cpu_s, begin_s = swarm.master_cpu_s(), time.perf_counter()
    time.sleep(IDLE_S)
    return (swarm.master_cpu_s() - cpu_s) / (time.perf_counter() - begin_s)


def lose(swarm: Swarm, drivers: List[Driver], number: signal.Signals, job_s: float) -> Size:
    """Lose the nodes of these drivers while every slot has a job of `job_s`, and count what comes back."""
    nodes = sum(driver.count for driver in drivers)
    jobs = swarm.slots * sum(driver.count for driver in swarm.drivers)
    swarm.set_job_s(job_s)
    answers = [0] * jobs

    def done(jobid: int, result: Any) -> None:
        if result[0][0] != jobid:
            raise AssertionError(f"job {jobid} was answered with {result}")
        answers[jobid] += 1

    def failed(jobid: int, error: BaseException) -> None:
        """It stays unanswered, and so counts as lost."""

    before = swarm.status()["jobs"]["done"]
    with ClientThread(done, swarm.address, authkey=swarm.key, on_error=failed) as client:
        for job in range(jobs):
            client.submit(job, noop, job)
        _wait_until_handed_out(swarm, before + jobs)
        held = swarm.held(drivers)
        begin_s = time.perf_counter()
        swarm.lose(drivers, number)
        with contextlib.suppress(TimeoutError):
            client.wait(PATIENCE_S)
        recovery_s = time.perf_counter() - begin_s
        client.stop()
    lost, twice = answers.count(0), sum(count > 1 for count in answers)
    return {
        "nodes": nodes, "jobs": jobs, "held": held, "lost": lost, "twice": twice, "recovery_s": recovery_s,
    }  # fmt: skip


def _wait_until_handed_out(swarm: Swarm, jobs: int) -> None:
    """Until this many have been handed out in all, or done already. Raises RuntimeError."""
    deadline_s = time.perf_counter() + PATIENCE_S
    while True:
        state = swarm.status()["jobs"]
        if state["done"] + state["running"] >= jobs:
            return
        if time.perf_counter() > deadline_s:
            raise RuntimeError(f"not all jobs were handed out within {PATIENCE_S:g} s: {state}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
