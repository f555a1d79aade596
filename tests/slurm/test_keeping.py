"""`cwmp-slurm keep` holds a pool at its size, and knows when to stop trying."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import Iterator

import pytest

from tests.hosts import end
from tests.slurm.lab import Lab
from tests.slurm.users import SILENCE_S, User
from tests.waiting import wait_until


@contextmanager
def keeping(user: User, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`cwmp-slurm keep` runs meanwhile."""
    process = user.lab.start(
        user.host,
        user.argv("slurm", *arguments),
        env=user.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        end(process)


def test_a_dead_worker_is_replaced(lab: Lab, user: User) -> None:
    user.start(workers=2)
    with keeping(user, "keep"):
        program = user.program(seconds=0.3)
        program.wait_for_results(3)
        victim = user.workers()[0]["slurm_job"]
        lab.slurm("scancel", victim)
        cancelled = time.monotonic()
        user.wait_until_gone(victim)
        user.wait_for_workers(2)
        print(f"cancelled worker replaced after {time.monotonic() - cancelled:.1f} s")
        program.finish(run_again=1)
        user.stop()
    assert lab.queue() == [], "what was stopped is not replaced"


def test_a_worker_on_a_vanished_node_is_replaced_before_slurm_notices(lab: Lab, user: User) -> None:
    user.start(workers=2, slots=3)
    with keeping(user, "keep"):
        [master] = [job for job in lab.queue() if job.name.endswith("-master")]
        lost = next(worker["node"] for worker in user.workers() if worker["node"] != master.node)
        lab.crash(lost)
        crashed = time.monotonic()
        wait_until(
            lambda: lost not in {worker["node"] for worker in user.workers()},
            timeout_s=SILENCE_S,
            describe=lab.report,
        )
        user.wait_for_workers(2)
        print(f"vanished worker replaced after {time.monotonic() - crashed:.1f} s")
        lab.declare_dead(lost)
        user.stop()


@pytest.mark.limits
def test_workers_whose_time_is_up_in_mid_run_are_replaced(user: User) -> None:
    user.start("--sbatch", "--time=1", workers=2)
    with keeping(user, "keep"):
        program = user.program("futures", seconds=0.5)
        for worker in user.workers():
            user.wait_until_gone(worker["slurm_job"], timeout_s=70)
        user.wait_for_workers(2)
        program.finish(run_again=0)
        user.stop()


def test_the_pool_grows_with_the_queue(user: User) -> None:
    user.start(workers=1)
    with keeping(user, "keep", "--min", 1, "--max", 3):
        program = user.program("futures", seconds=0.3)
        user.wait_for_workers(3)
        program.finish(run_again=0)
        user.stop()


@pytest.mark.limits
def test_a_setup_that_is_broken_is_given_up_with_its_reason(lab: Lab, user: User) -> None:
    user.slurm("-n", 1, "--master", "here", "--setup", "module load nonesuch", "start")
    with keeping(user, "keep") as keeper:
        output, _ = keeper.communicate(timeout=90)
        assert keeper.returncode != 0
        assert "module load nonesuch" in output
    user.slurm("stop", status=None)
    assert lab.queue() == []
