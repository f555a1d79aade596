"""Names, directories and settings that sites and users have, and that a script must not stumble over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

import pytest

from tests.slurm.lab import Lab
from tests.slurm.users import ROOT, User
from tests.waiting import wait_until

ODD = "it's a \"pl$ace\" `date` 100%j"

LOOK_AROUND = """
import json, os, sys
from cwmp import ClusterExecutor

def seen():
    return dict(os.environ)

with ClusterExecutor() as executor:
    json.dump([executor.submit(seen).result(), sys.argv[1:]], open(sys.argv[1], "w"))
"""


@pytest.fixture
def odd_user(lab: Lab, tmp_path: Path) -> Iterator[User]:
    """One whose checkout, home and working directory have a name full of traps."""
    place = tmp_path / ODD
    place.mkdir()
    (place / "checkout").symlink_to(ROOT)
    home = place / "home"
    home.mkdir(mode=0o700)
    user = User(lab, home, modules=[place / "checkout"])
    yield user
    user.leave()


def test_odd_directories_a_setup_a_wrapper_and_options_of_sbatch(
    lab: Lab, odd_user: User, tmp_path: Path
) -> None:
    program, output = odd_user.home / "look.py", tmp_path / "seen.json"
    program.write_text(LOOK_AROUND)
    logs = tmp_path / ODD / "logs"
    arguments = ["-c", 2, "--log-dir", logs, "--setup", "export A='b \"c\"' # it is", "--wrap", "env B=1"]
    arguments += ["--sbatch", "--comment='two words'", "--mem-per-cpu", "100M"]
    launcher = ROOT / "bin" / "cwmp-slurm"  # as from a checkout: no PYTHONPATH
    odd_user.type(
        odd_user.python,
        str(launcher),
        *map(str, arguments),
        "run",
        str(program),
        str(output),
        "--time",
        PYTHONPATH="",
    )
    environment, argv = json.loads(output.read_text())
    assert (environment["A"], environment["B"]) == ('b "c"', "1")
    assert environment["SLURM_CPUS_PER_TASK"] == "2"
    assert argv == [str(output), "--time"], "what follows the program is the program's"
    assert len(list(logs.glob("run-*-worker-*_0.log"))) == 1
    assert lab.queue() == []


def test_nothing_of_the_job_that_it_is_typed_in_is_handed_down(
    lab: Lab, odd_user: User, tmp_path: Path
) -> None:
    output = tmp_path / "seen.json"
    program = odd_user.home / "look.py"
    program.write_text(LOOK_AROUND)
    inherited = {"SLURM_NTASKS": "4", "SLURM_MEM_PER_NODE": "9999999", "SLURM_ARRAY_TASK_ID": "3"}
    inherited.update(SBATCH_TIMELIMIT="soon", CWMP_MASTER="nowhere:1", SLURM_NNODES="99")
    odd_user.type(*odd_user.argv("slurm", "start"), **inherited)
    odd_user.type(odd_user.python, str(program), str(output))
    environment, _ = json.loads(output.read_text())
    assert environment["SLURM_NTASKS"] == "1"
    assert "SLURM_MEM_PER_NODE" not in environment and "SBATCH_TIMELIMIT" not in environment
    odd_user.stop()


def test_script_prints_what_start_submits(lab: Lab, odd_user: User) -> None:
    arguments = ["-n", 2, "--time", 5, "--setup", "true", "--sbatch", "--comment=x"]
    printed = odd_user.slurm(*arguments, "script").stdout
    assert lab.queue() == [], "and submits nothing"
    odd_user.slurm(*arguments, "--wait", 0, "start")
    jobs = sorted({job.id.partition("_")[0] for job in lab.queue()}, key=int)
    submitted = [lab.slurm("scontrol", "write", "batch_script", job, "-") for job in jobs]
    assert printed.replace("\n\n#!", "\n#!").split() == "".join(submitted).split()
    odd_user.stop()


@pytest.mark.limits
def test_stop_from_elsewhere_while_slurm_is_away(lab: Lab, odd_user: User) -> None:
    odd_user.start(workers=1)
    lab.stop_controller()
    try:
        refused = odd_user.slurm("stop", status=None)
        seen = odd_user.slurm("status", status=None)
    finally:
        lab.start_controller()
    assert refused.returncode == 1 and "Unable to contact slurm controller" in refused.stderr
    assert seen.returncode == 1 and "1 joined" in seen.stdout, "the master answers all the same"
    wait_until(lambda: odd_user.at("n3").slurm("stop", status=None).returncode == 0)
    assert lab.queue() == [] and odd_user.slurm("stop", status=None).returncode == 1
    assert not os.listdir(odd_user.home / "slurm")
