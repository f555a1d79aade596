"""Clusters on SLURM from start to stop, as users type it."""

from __future__ import annotations

import time
from pathlib import Path

from cwmp.encryption import psk_is_possible
from tests.slurm.config import CPUS, GPUS
from tests.slurm.lab import Lab
from tests.slurm.users import User
from tests.waiting import wait_until

FIRST_RESULT_S = 10.0
"""What we promise from `start` to the first result, on free nodes."""


# --- from cold ------------------------------------------------------------------------------


def test_two_commands_from_cold_to_the_first_result_and_stop_leaves_nothing(lab: Lab, user: User) -> None:
    began = time.monotonic()
    user.slurm("-n", 4, "start")
    program = user.program("callbacks", jobs=200, seconds=0.01)
    program.wait_for_results(1)
    first_s = time.monotonic() - began
    assert first_s <= FIRST_RESULT_S
    program.finish()
    user.program("futures", jobs=200, seconds=0.01).finish()

    assert len(user.workers()) == 4
    began = time.monotonic()
    user.stop()
    stop_s = time.monotonic() - began
    assert lab.queue() == [] and lab.strays() == [], "at once, when stop returns"
    print(f"start to first result {first_s:.1f} s, stop {stop_s:.1f} s")


def test_what_would_cross_the_network_in_clear_is_not_submitted(lab: Lab, user: User) -> None:
    """Where it can be encrypted, it is."""
    if psk_is_possible():
        user.start(workers=1)
        told = user.type(*user.argv("status")).stdout
        assert "network  what leaves the machine is encrypted (TLS 1.3" in told
        user.stop()
        return
    before = lab.slurm("squeue", "-h", "-t", "all", "-o", "%A")
    for action in (["start"], ["run", "true"]):
        refused = user.type(*user.argv("slurm", "-n", 2, *action), status=2, CWMP_ENCRYPT="")
        assert refused.stderr.count("\n") == 1
        assert "what goes from node to node must be encrypted" in refused.stderr
    program = "import cwmp; cwmp.SlurmCluster(n=1).start()"
    refused = user.type(user.python, "-c", program, status=1, CWMP_ENCRYPT="")
    assert "UsageError: what goes from node to node must be encrypted" in refused.stderr
    assert set(lab.slurm("squeue", "-h", "-t", "all", "-o", "%A").split()) <= set(before.split())


def test_workers_on_three_nodes_share_the_jobs(user: User) -> None:
    user.start(workers=3, slots=CPUS)
    program = user.program(jobs=90, seconds=0.1)
    program.finish(run_again=0)
    assert len(program.hosts()) == 3
    user.stop()


def test_one_job_of_several_nodes(lab: Lab, user: User) -> None:
    user.start("--layout", "job", workers=3, slots=CPUS)
    assert len(lab.queue()) == 2, "the master's and the workers'"
    program = user.program("futures", jobs=90, seconds=0.1)
    program.finish()
    assert len(program.hosts()) == 3
    user.stop()


def test_a_master_on_the_login_host(lab: Lab, user: User) -> None:
    user.start("--master", "here", workers=2)
    assert [process.host for process in lab.strays() if " master " in process.command] == [user.host]
    user.program(jobs=20, seconds=0.01).finish()
    user.stop()
    assert lab.strays() == []


def test_stop_works_from_another_host(lab: Lab, user: User) -> None:
    user.start(workers=2)
    user.at("n4").stop()
    assert lab.queue() == []


def test_stop_works_when_the_master_is_dead(lab: Lab, user: User) -> None:
    user.start(workers=2)
    [master] = [job for job in lab.queue() if job.name.endswith("-master")]
    lab.slurm("scancel", master.id)
    wait_until(lambda: user.master_status() == {}, describe=lab.report)
    user.stop()
    assert lab.queue() == []


def test_starting_twice_is_refused_with_what_runs(user: User) -> None:
    user.start(workers=1)
    refused = user.slurm("-n", 1, "start", status=None)
    assert refused.returncode != 0
    assert "default" in refused.stderr and "stop" in refused.stderr
    user.program(jobs=5, seconds=0.01).finish()
    user.stop()


def test_two_clusters_by_name(user: User) -> None:
    user.start("--name", "day", workers=1)
    user.start("--name", "night", workers=2)
    day = user.program(jobs=20, seconds=0.05, cluster="day")
    night = user.program("futures", jobs=20, seconds=0.05, cluster="night")
    day.finish()
    night.finish()
    user.stop("--name", "day")
    assert user.master_status("day") == {}
    user.program(jobs=5, seconds=0.01, cluster="night").finish()
    user.stop("--name", "night")


# --- when SLURM has no room -----------------------------------------------------------------


def test_a_start_that_pends_says_why_and_leaves_nothing(lab: Lab, user: User) -> None:
    busy = lab.submit("#!/bin/sh\nexec sleep 600\n", f"-N{len(lab.nodes)}", "--exclusive")
    wait_until(lambda: lab.queue()[0].state == "RUNNING", describe=lab.report)
    began = time.monotonic()
    given_up = user.slurm("-n", 2, "--wait", 5, "start", status=None)
    assert given_up.returncode != 0
    assert 4 < time.monotonic() - began < 15
    assert "PENDING" in given_up.stderr
    assert "Resources" in given_up.stderr or "Priority" in given_up.stderr
    assert [job.id for job in lab.queue()] == [busy]
    lab.slurm("scancel", busy)


def test_workers_come_one_by_one_as_there_is_room(lab: Lab, user: User) -> None:
    blocked = lab.submit("#!/bin/sh\nexec sleep 600\n", "-N3", "--exclusive")
    wait_until(lambda: lab.queue()[0].state == "RUNNING", describe=lab.report)
    user.slurm("-n", 3, "-c", 3, "start")
    program = user.program(seconds=0.1)
    program.wait_for_results(1)
    assert len(user.workers()) == 1, "there is no room for more beside the master"
    lab.slurm("scancel", blocked)
    user.wait_for_workers(3)
    program.finish()
    user.stop()


# --- growing and shrinking ------------------------------------------------------------------


def test_scaling_up_and_down_ends_no_running_job(lab: Lab, user: User) -> None:
    user.start(workers=1)
    program = user.program(seconds=0.5)
    program.wait_for_results(1)
    user.slurm("scale", 4)
    user.wait_for_workers(4)
    wait_until(lambda: sum(worker["busy"] for worker in user.workers()) == 4, describe=program.output)
    user.slurm("scale", 2)
    user.wait_for_workers(2)
    program.finish(run_again=0)
    assert len(lab.queue()) == 3, "the master and two workers"
    user.stop()


# --- for one program ------------------------------------------------------------------------


def test_run_brings_up_a_cluster_for_one_program(lab: Lab, user: User, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = user.program_argv("futures", runs, 50, 0.01)
    done = user.slurm("-n", 2, "run", *command)
    assert done.stdout.count("result ") == 50
    assert lab.queue() == [] and lab.strays() == []


def test_run_returns_the_status_of_the_program_and_stops_all_the_same(lab: Lab, user: User) -> None:
    assert user.slurm("-n", 1, "run", "sh", "-c", "exit 7", status=None).returncode == 7
    assert lab.queue() == []


# --- GPUs -----------------------------------------------------------------------------------

ASKS_FOR_GPUS = """
from cwmp import ClusterExecutor
from tests.slurm.jobs import visible_gpus
with ClusterExecutor() as executor:
    print(*sorted(set(executor.map(visible_gpus, [0.1] * 20))))
"""


def test_each_slot_has_its_share_of_the_gpus(user: User) -> None:
    user.start("--gpus-per-worker", GPUS, workers=1, slots=GPUS)
    done = user.type(user.python, "-c", ASKS_FOR_GPUS)
    assert done.stdout.split() == [str(number) for number in range(GPUS)]
    user.stop()
