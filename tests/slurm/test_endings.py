"""However a cluster comes to its end, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.slurm.conftest import unavailable
from tests.slurm.lab import Lab, Unavailable
from tests.slurm.users import SOON_S, User
from tests.waiting import wait_until


def begin(user: User, *arguments: object) -> subprocess.Popen[str]:
    """`cwmp-slurm`, started and not waited for."""
    argv = user.argv("slurm", *arguments)
    return user.lab.start(user.host, argv, env=user.environment(), stdin=subprocess.DEVNULL)


def signal_it(lab: Lab, number: signal.Signals) -> None:
    """Signal the only `cwmp-slurm` that runs."""
    [process] = [process for process in lab.strays() if "-m cwmp slurm" in process.command]
    os.kill(process.pid, number)


def test_a_start_that_is_interrupted_while_it_waits(lab: Lab, user: User) -> None:
    busy = lab.submit("#!/bin/sh\nexec sleep 600\n", f"-N{len(lab.nodes)}", "--exclusive")
    wait_until(lambda: lab.queue()[0].state == "RUNNING", describe=lab.report)
    starting = begin(user, "-n", 2, "start")
    wait_until(lambda: len(lab.queue()) == 4, describe=lab.report)
    signal_it(lab, signal.SIGINT)
    assert starting.wait(SOON_S) != 0
    assert [job.id for job in lab.queue()] == [busy]
    user.slurm("stop", status=1)  # nothing is recorded, either
    lab.slurm("scancel", busy)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end(lab: Lab, user: User, tmp_path: Path, number: signal.Signals) -> None:
    runs = tmp_path / "runs"
    running = begin(user, "-n", 2, "run", *user.program_argv("callbacks", runs, 0, 0.1))
    wait_until(runs.exists, timeout_s=SOON_S, describe=lab.report)
    signal_it(lab, number)
    assert running.wait(SOON_S) != 0
    assert lab.queue() == [] and lab.strays() == []


def test_all_jobs_cancelled_at_once(lab: Lab, user: User) -> None:
    user.start(workers=3, slots=2)
    program = user.program(seconds=0.2)
    program.wait_for_results(5)
    lab.slurm("scancel", *{job.id.partition("_")[0] for job in lab.queue()})
    wait_until(program.errors, timeout_s=SOON_S, describe=program.output)
    assert "MasterLost" in program.output()
    program.wait()
    wait_until(lambda: lab.strays() == [], describe=lab.report)
    user.stop()


# --- where SLURM does not follow processes --------------------------------------------------


@pytest.fixture
def loose_lab() -> Iterator[Lab]:
    """A lab whose SLURM ends only those processes of a job that stay in their group."""
    try:
        lab = Lab.up(1, proctrack="pgid")
    except Unavailable as reason:
        unavailable(reason)
    yield lab
    lab.down()


def test_workers_take_their_slots_along_where_slurm_would_not(loose_lab: Lab, cwmp_home: Path) -> None:
    cwmp_home.mkdir(mode=0o700)
    user = User(loose_lab, cwmp_home)
    user.start(workers=1, slots=2)
    program = user.program(seconds=60.0)
    wait_until(lambda: len(program.runs()) == 2, describe=loose_lab.report)
    loose_lab.slurm("scancel", *{job.id.partition("_")[0] for job in loose_lab.queue()})
    wait_until(program.errors, timeout_s=SOON_S, describe=program.output)
    program.end()
    wait_until(lambda: loose_lab.leftovers() == [], timeout_s=SOON_S, describe=loose_lab.report)
