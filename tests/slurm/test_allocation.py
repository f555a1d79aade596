"""`cwmp-slurm run` inside an allocation: all of its nodes work, nothing is submitted and nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from tests.hosts import Process, end
from tests.slurm.config import CONTROLLER
from tests.slurm.lab import Lab
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
CWMP_SLURM = [sys.executable, str(ROOT / "bin" / "cwmp-slurm")]

PROGRAM = """\
import os, subprocess, sys, time
from cwmp import ClusterExecutor, rendezvous
from cwmp.slurm import masters

def node(number):
    time.sleep(0.1)
    return os.uname().nodename

with ClusterExecutor() as executor:
    print("jobs", *sorted(set(executor.map(node, range(40)))), flush=True)
name = os.environ["CWMP_NAME"]
print("slots", *sorted(worker["slots"] for worker in masters.status(name)["workers"]))
print("master", rendezvous.find_cluster(name).node, "program", os.uname().nodename)
print("queue", len(subprocess.check_output(["squeue", "-h"]).splitlines()), flush=True)
if sys.argv[1:] == ["stay"]:
    time.sleep(600)
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def run(lab: Lab, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return lab.run(CONTROLLER, argv, **options)


def cwmp_processes(lab: Lab) -> List[Process]:
    """Master, agents, slots and srun; not the allocation's own commands."""
    return [process for process in lab.strays() if "__main__.py" in process.command]


def test_from_salloc(lab: Lab, program: str) -> None:
    done = run(lab, "salloc", "-N3", "-c4", *CWMP_SLURM, "-n", "9", "run", program, status=7)
    assert "that this is typed in has its nodes already: -n has no effect" in done.stderr
    slots = min(4, len(os.sched_getaffinity(0)))
    assert done.stdout.splitlines() == [
        "jobs n1 n2 n3",
        f"slots {slots} {slots} {slots}",
        "master n1 program login",
        "queue 1",
    ]


@pytest.mark.parametrize(
    ("options", "slots"), [(["-N2", "--ntasks-per-node=1"], 1), (["-N2", "-n4", "-c2", "--mem=100"], 4)]
)
def test_from_a_batch_script_with_all_the_cores_that_were_granted(
    lab: Lab, program: str, options: List[str], slots: int
) -> None:
    script = f"#!/bin/sh\n{' '.join(CWMP_SLURM)} run {program}\necho status $?\n"
    job = lab.submit(script, *options)
    wait_until(lambda: not lab.queue(), describe=lab.report)
    said = (lab.directory / "log" / f"{job}.out").read_text()
    slots = min(slots, len(os.sched_getaffinity(0)))
    expected = f"jobs n1 n2\nslots {slots} {slots}\nmaster n1 program n1\nqueue 1\nstatus 7\n"
    assert expected in said


def test_a_program_that_a_signal_ended(lab: Lab) -> None:
    run(lab, "salloc", "-N1", *CWMP_SLURM, "run", "sh", "-c", "kill -9 $$", status=128 + 9)


def test_what_cannot_run_starts_nothing(lab: Lab) -> None:
    done = run(lab, "salloc", "-N1", *CWMP_SLURM, "run", "no-such-program", status=2)
    assert "cwmp-slurm: no such command or script: no-such-program" in done.stderr


@pytest.mark.parametrize("end_by", ["kill -9", "scancel", "TERM"])
def test_all_ends_whatever_ends_it(lab: Lab, program: str, end_by: str) -> None:
    argv = ["salloc", "-N2", *CWMP_SLURM, "run", program, "stay"]
    running = lab.start(CONTROLLER, argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert running.stdout is not None
        wait_until(lambda: running.stdout and running.stdout.readline().startswith("queue"))
        assert cwmp_processes(lab)
        if end_by == "scancel":
            lab.slurm("scancel", lab.queue()[0].id)
        else:
            [ours] = [p for p in lab.strays() if p.command.startswith(" ".join(CWMP_SLURM))]
            os.kill(ours.pid, signal.SIGKILL if end_by == "kill -9" else signal.SIGTERM)
        wait_until(lambda: not cwmp_processes(lab), describe=lab.report)
        wait_until(lambda: not lab.queue(), describe=lab.report)
        for process in lab.strays():
            if process.command.startswith(f"{sys.executable} {program}"):
                assert end_by != "TERM", "the program is told"
                os.kill(process.pid, signal.SIGKILL)
    finally:
        end(running)
