"""The words of `cwmp-slurm`: what becomes of its arguments before anything is done with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List

import pytest

from cwmp.cli import slurm
from cwmp.slurm import launcher, sizing
from cwmp.slurm.options import Options
from cwmp.slurm.records import Group, Pool

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commands of SLURM's, whatever the machine has, and no allocation around us."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> List[Options]:
    """The options of each cluster that `start` would have started."""
    options: List[Options] = []

    def start(chosen: Options, say: Any) -> Pool:
        options.append(chosen)
        return Pool(chosen, "login1", 0.0, wanted=1, master_job="16", groups=[Group("17", 1, 0.0)])

    monkeypatch.setattr(launcher, "start", start)
    return options


def test_every_option_reaches_the_cluster(started: List[Options], capsys: pytest.CaptureFixture[str]) -> None:
    line = "--name x -n 4 -c 2 --time 1:00:00 --partition p --account a --mem-per-cpu 4G --gpus-per-worker 1"
    line += " --layout job --master here --interface ib0 --wait 2.5 --wrap wrapper --log-dir /logs"
    more = ["--setup", "module load x", "--setup", "-v", "--sbatch", "--qos=high", "--sbatch", "-C fast"]
    assert slurm.main([*line.split(), *more, "--sbatch-master", "--qos=low", "start"]) == 0
    expected = Options(
        name="x",
        workers=4,
        slots=2,
        time="1:00:00",
        partition="p",
        account="a",
        mem_per_cpu="4G",
        gpus_per_worker="1",
        layout="job",
        master="here",
        interface="ib0",
        wait_s=2.5,
        wrap="wrapper",
        log_dir="/logs",
        setup=("module load x", "-v"),
        sbatch=("--qos=high", "-C fast"),
        sbatch_master=("--qos=low",),
    )
    assert started == [expected]
    assert capsys.readouterr().out == (
        "cwmp-slurm: cluster x is ready (jobs 16, 17); workers join as SLURM starts them\n"
    )


def test_without_waiting_it_is_not_called_ready(
    started: List[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm.main(["--wait", "0", "start"]) == 0
    assert "is submitted (jobs 16, 17): look at it with status" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["start", "5"], "Only `scale` takes a number: use -n N"),
        (["scale"], "scale to how many workers?"),
        (["scale", "few"], "'few' is not a whole number"),
        (["run"], "run what?"),
        (["-n", "0", "start"], "'0' is not a whole number from 1 up"),
        (["--time", "soon", "start"], "--time 'soon' is no time of SLURM's"),
        (["--sbatch", "--array=1-2", "start"], "would break"),
        (["--name", "a b", "stop"], "bad cluster name"),
        (["--wait", "long", "start"], "'long' is not a number of seconds"),
        ([], "ACTION"),
        (["restart"], "restart"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: List[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = slurm.main(argv)
    except SystemExit as left:
        status = left.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert status == 2
    assert complaint in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("action", [["start"], ["run", "true"]])
def test_a_machine_without_slurm(
    action: List[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "program_arguments", list)
    assert slurm.main(action) == 1
    error = capsys.readouterr().err
    assert "no sbatch, squeue and scancel on this machine's PATH" in error


@pytest.mark.parametrize("action", [["stop"], ["status"], ["scale", "2"], ["keep"]])
def test_what_is_not_there_says_what_to_type(action: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["--name", "night", *action]) == 1
    assert "cwmp-slurm --name night start" in capsys.readouterr().err


def test_script_prints_both_and_needs_no_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["-n", "3", "script"]) == 0
    text = capsys.readouterr().out
    assert text.count("#!/bin/bash\n") == 2 and "#SBATCH --array=0-2\n" in text
    assert slurm.main(["-n", "3", "--master", "here", "script"]) == 0
    assert capsys.readouterr().out.count("#!/bin/bash\n") == 1


def test_scale_takes_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Dict[str, int] = {}
    monkeypatch.setattr(sizing, "scale", lambda name, count, say: asked.update({name: count}))
    assert slurm.main(["scale", "7"]) == 0
    assert slurm.main(["--name", "night", "scale", "0"]) == 0
    assert asked == {"default": 7, "night": 0}


def test_what_follows_run_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: List[Any] = []

    def run(options: Options, command: List[str], say: Any) -> int:
        ran.append((options.workers, options.name.startswith("run-"), command))
        return 7

    monkeypatch.setattr(launcher, "run", run)
    argv = ["-n", "2", "--sbatch", "--qos=x", "run", "job.py", "-n", "9", "--time", "x", "stop"]
    assert slurm.main(argv) == 7
    assert ran == [(2, True, ["job.py", "-n", "9", "--time", "x", "stop"])]


def test_help_names_every_action_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        slurm.main(["--help"])
    text = capsys.readouterr().out
    for word in [*slurm._ACTIONS, *slurm._VALUE_OPTIONS]:
        assert word in text
    assert isinstance(slurm._parser(), argparse.ArgumentParser)
