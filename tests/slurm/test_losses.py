"""What SLURM and its machines do to a cluster in mid-run: no job is lost, none is delivered twice."""

from __future__ import annotations

import time
from typing import List

import pytest

from tests.slurm.lab import Job, Lab
from tests.slurm.users import SILENCE_S, SOON_S, User
from tests.waiting import wait_until


def nodes_beside_the_master(user: User, lab: Lab) -> List[str]:
    """Nodes that have a worker and not the master."""
    return sorted({worker["node"] for worker in user.workers()} - {master_job(lab).node})


def master_job(lab: Lab) -> Job:
    """The job of the only master."""
    [master] = [job for job in lab.queue() if job.name.endswith("-master")]
    return master


# --- machines -------------------------------------------------------------------------------


def test_one_node_loses_its_power_and_one_its_network(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=3)
    program = user.program(seconds=0.3)
    crashed, cut = nodes_beside_the_master(user, lab)
    for node in (crashed, cut):
        program.wait_for_runs_on(node, 3)
    lab.crash(crashed)
    lab.cut(cut)
    lost = time.monotonic()
    user.wait_for_workers(1, timeout_s=SILENCE_S)
    print(f"silence noticed after {time.monotonic() - lost:.1f} s")
    lab.mend(cut)  # what ran there has gone on: its results come too late
    program.finish(run_again=2 * 3)
    lab.declare_dead(crashed)
    user.stop()


def test_a_node_that_reboots(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=3)
    program = user.program("futures", seconds=0.3)
    node = nodes_beside_the_master(user, lab)[0]
    program.wait_for_runs_on(node, 3)
    lab.shut_down(node)
    lost = time.monotonic()
    user.wait_for_workers(2)
    print(f"closed connection noticed after {time.monotonic() - lost:.1f} s")
    lab.declare_dead(node)
    lab.boot(node)
    user.wait_for_workers(3)  # SLURM has begun it again
    program.finish(run_again=3)
    user.stop()


def test_a_node_of_a_job_of_several_nodes(lab: Lab, user: User) -> None:
    user.start("--layout", "job", workers=3, slots=3)
    program = user.program(seconds=0.3)
    node = nodes_beside_the_master(user, lab)[0]
    program.wait_for_runs_on(node, 3)
    lab.shut_down(node)
    lab.declare_dead(node)
    user.wait_for_workers(2)
    program.finish(run_again=3)
    assert len(user.workers()) == 2, "the others stay"
    user.stop()


# --- workers --------------------------------------------------------------------------------


def test_an_array_element_that_is_cancelled(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=2)
    program = user.program("futures", seconds=0.2)
    victim = user.workers()[0]
    program.wait_for_results(10)
    lab.slurm("scancel", victim["slurm_job"])
    cancelled = time.monotonic()
    user.wait_for_workers(2)
    print(f"cancelled worker gone after {time.monotonic() - cancelled:.1f} s")
    program.finish(run_again=2)
    user.stop()


def test_a_worker_that_is_requeued_comes_back(lab: Lab, user: User) -> None:
    user.start(workers=2)
    program = user.program(seconds=0.2)
    victim = user.workers()[0]["slurm_job"]
    program.wait_for_results(3)
    lab.slurm("scontrol", "requeue", victim)
    wait_until(
        lambda: any(w["slurm_job"] == victim and w["restarts"] == 1 for w in user.workers()),
        timeout_s=SOON_S,
        describe=lambda: str(user.workers()),
    )
    program.finish(run_again=1)
    user.stop()


def test_a_worker_that_is_preempted_comes_back(lab: Lab, user: User) -> None:
    user.start("--sbatch", "--partition=low", workers=3, slots=3)
    program = user.program("futures", seconds=0.3)
    program.wait_for_results(10)
    node = nodes_beside_the_master(user, lab)[0]
    urgent = lab.submit("#!/bin/sh\nexec sleep 3\n", "--partition=high", "--exclusive", f"-w{node}")
    wait_until(lambda: len(user.workers()) < 3, timeout_s=SOON_S, describe=lab.report)
    wait_until(lambda: not lab.queue("-j", urgent), timeout_s=SOON_S, describe=lab.report)
    user.wait_for_workers(3)
    program.finish(run_again=3)
    user.stop()


# --- time limits ----------------------------------------------------------------------------


@pytest.mark.limits
def test_an_end_that_is_moved_near(lab: Lab, user: User) -> None:
    user.start("--time", 30, workers=2)
    victim = user.workers()[0]["slurm_job"]
    program = user.program(seconds=0.5)
    lab.set_end_time(victim, in_s=40)  # SLURM looks every 30 s: once before that
    user.wait_until_gone(victim, timeout_s=60)
    program.finish(run_again=0)  # it left before that
    user.stop()


# --- the master -----------------------------------------------------------------------------


def test_a_master_that_is_requeued_is_followed_by_its_workers(lab: Lab, user: User) -> None:
    user.start(workers=2)
    program = user.program(seconds=0.2)
    program.wait_for_results(5)
    lab.slurm("scontrol", "requeue", master_job(lab).id)
    wait_until(program.errors, timeout_s=SOON_S, describe=program.output)
    assert "MasterLost" in program.output()
    program.wait()
    ends = program.results() + program.errors()
    assert sorted(ends) == list(range(len(ends))), "each job has one end"
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
