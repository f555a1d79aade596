"""What SLURM and its machines do to a cluster in mid-run: no job is lost, none is delivered twice."""

from __future__ import annotations

import time
from typing import Any, Dict, List

import pytest

from tests.slurm.config import CPUS
from tests.slurm.lab import Job, Lab
from tests.slurm.users import SILENCE_S, SOON_S, Program, User
from tests.waiting import wait_until


def nodes_beside_the_master(user: User, lab: Lab) -> List[str]:
    """Nodes that have a worker and not the master."""
    return sorted({worker["node"] for worker in user.workers()} - {master_job(lab).node})


def master_job(lab: Lab) -> Job:
    """The job of the only master."""
    [master] = [job for job in lab.queue() if job.name.endswith("-master")]
    return master


# --- workers --------------------------------------------------------------------------------


def test_one_node_loses_its_power_and_one_its_network_in_mid_run(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=3)
    program = user.program(jobs=120, seconds=0.5)
    crashed, cut = nodes_beside_the_master(user, lab)
    for node in (crashed, cut):
        program.wait_for_runs_on(node, 3)
    lab.crash(crashed)
    lab.cut(cut)
    lost = time.monotonic()
    user.wait_for_workers(1, timeout_s=SILENCE_S)
    print(f"silence noticed after {time.monotonic() - lost:.1f} s")
    lab.mend(cut)  # what ran there has gone on: its results come too late
    program.finish()
    assert len(program.runs()) <= 120 + 2 * 3, "only what ran there was run again"
    lab.declare_dead(crashed)
    user.stop()


def test_a_node_that_reboots_in_mid_run(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=3)
    program = user.program("futures", jobs=60, seconds=0.5)
    node = nodes_beside_the_master(user, lab)[0]
    program.wait_for_runs_on(node, 3)
    lab.shut_down(node)
    lost = time.monotonic()
    user.wait_for_workers(2)
    print(f"closed connection noticed after {time.monotonic() - lost:.1f} s")
    lab.declare_dead(node)
    program.finish()
    lab.boot(node)
    user.wait_for_workers(3)  # requeued
    user.stop()


def test_an_array_element_that_is_cancelled_in_mid_run(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=2)
    program = user.program("futures", jobs=60, seconds=0.2)
    victim = user.workers()[0]
    program.wait_for_results(10)
    cancelled = time.monotonic()
    lab.slurm("scancel", victim["slurm_job"])
    user.wait_for_workers(2)
    print(f"cancelled worker gone after {time.monotonic() - cancelled:.1f} s")
    program.finish()
    user.stop()


def test_a_worker_that_slurm_requeues_comes_back(lab: Lab, user: User) -> None:
    user.start(workers=2)
    program = user.program(jobs=30, seconds=0.5)
    victim = user.workers()[0]
    program.wait_for_results(3)
    lab.slurm("scontrol", "requeue", victim["slurm_job"])
    wait_until(
        lambda: any(w["slurm_job"] == victim["slurm_job"] and w["restarts"] == 1 for w in user.workers()),
        timeout_s=SOON_S,
        describe=lab.report,
    )
    program.finish()
    user.stop()


def test_workers_that_are_preempted_come_back(lab: Lab, user: User) -> None:
    user.start("--sbatch", "--partition=low", workers=3, slots=CPUS)
    program = user.program("futures", jobs=90, seconds=0.3)
    program.wait_for_results(10)
    lost = nodes_beside_the_master(user, lab)[0]
    urgent = lab.submit("#!/bin/sh\nexec sleep 3\n", "--partition=high", "--exclusive", f"-w{lost}")
    wait_until(lambda: len(user.workers()) < 3, timeout_s=SOON_S, describe=lab.report)
    wait_until(lambda: not lab.queue("-j", urgent), timeout_s=SOON_S, describe=lab.report)
    user.wait_for_workers(3)
    program.finish()
    user.stop()


def run_over_the_end(lab: Lab, user: User, program: Program, victim: Dict[str, Any]) -> None:
    """The worker's time ends in mid-run: it is drained before, so that each job runs just once."""
    wait_until(
        lambda: victim["slurm_job"] not in {w["slurm_job"] for w in user.workers()},
        timeout_s=80,
        describe=lambda: f"{user.workers()}\n{program.output()}",
    )
    program.finish()
    assert len(program.runs()) == program.jobs, "no job was cut off by the limit"


def test_an_end_time_that_is_moved_near_in_mid_run(lab: Lab, user: User) -> None:
    user.start("--time", 30, workers=2)
    program = user.program(jobs=100, seconds=0.5)
    victim = user.workers()[0]
    program.wait_for_results(5)
    lab.set_end_time(victim["slurm_job"], in_s=20)
    run_over_the_end(lab, user, program, victim)
    user.stop()


@pytest.mark.limits
def test_a_time_limit_in_mid_run(lab: Lab, user: User) -> None:
    user.start("--sbatch", "--time=1", workers=2)
    victim = user.workers()[0]
    program = user.program(jobs=80, seconds=1.0)
    program.wait_for_results(5)
    user.slurm("scale", 3)  # its time begins later
    run_over_the_end(lab, user, program, victim)
    user.stop()


# --- the master -----------------------------------------------------------------------------


def test_a_master_that_slurm_requeues_is_followed_by_its_workers(lab: Lab, user: User) -> None:
    user.start(workers=2)
    program = user.program(jobs=1000, seconds=0.2)
    program.wait_for_results(5)
    lab.slurm("scontrol", "requeue", master_job(lab).id)
    assert program.wait(timeout_s=SOON_S) == 0
    assert set(program.results()) | set(program.errors()) == set(range(1000)), "each has one end"
    assert len(program.results()) + len(program.errors()) == 1000
    assert program.errors() and "MasterLost" in program.output()
    user.wait_for_workers(2, timeout_s=60)
    user.program("futures", jobs=20, seconds=0.05).finish()
    user.stop()


def test_a_master_whose_node_is_lost_begins_anew_elsewhere(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=3)
    before = master_job(lab)
    lab.crash(before.node)
    lab.declare_dead(before.node)
    wait_until(lambda: user.master_status() != {}, timeout_s=60, describe=lab.report)
    assert master_job(lab).id == before.id and master_job(lab).node != before.node
    user.program(jobs=20, seconds=0.05).finish()
    user.stop()
