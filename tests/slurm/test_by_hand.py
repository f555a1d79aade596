"""Masters and workers in batch scripts of the user's own, without cwmp-slurm."""

from __future__ import annotations

import shlex

from tests.slurm.lab import Lab
from tests.slurm.users import User
from tests.waiting import wait_until


def script(user: User, *argv: object) -> str:
    """A batch script that becomes one of our commands."""
    return f"#!/bin/sh\nexec {shlex.join(user.argv(*argv))}\n"  # type: ignore[arg-type]


def test_a_master_job_and_an_array_of_workers(lab: Lab, user: User) -> None:
    master = lab.submit(script(user, "master", "--port", 0), env=user.environment())
    workers = script(user, "worker", "--wait", 60, "--procs", 2)
    array = lab.submit(workers, "--array=0-3", "-c2", "-N1", env=user.environment())
    user.wait_for_workers(4)
    user.program(jobs=200, seconds=0.01).finish()
    lab.slurm("scancel", array)
    wait_until(lambda: user.workers() == [], describe=lab.report)
    lab.slurm("scancel", master)
