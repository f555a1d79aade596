"""SLURM's commands, faked on the PATH: what is made of odd, late, cut-off and failing answers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from cwmp.errors import SlurmError
from cwmp.rendezvous import process_birth
from cwmp.slurm import commands
from cwmp.slurm.commands import SlurmJob
from tests.waiting import wait_until

pytestmark = pytest.mark.core

Fake = Callable[[str, str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a command on the PATH that notes how it was called and then runs some lines of Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(commands, "_AGAIN_S", 0.01)

    def make(name: str, body: str) -> Path:
        notes = tmp_path / f"{name}.calls"
        head = (
            f"#!{sys.executable} -S\nimport json, os, sys, time\n"
            f"text = sys.stdin.read()\n"
            f"with open({str(notes)!r}, 'a') as notes:\n"
            "    notes.write(json.dumps([sys.argv[1:], text, dict(os.environ)]) + '\\n')\n"
            f"call = sum(1 for line in open({str(notes)!r}))\n"
        )
        path = directory / name
        path.write_text(head + body)
        path.chmod(0o755)
        return notes

    return make


def calls(notes: Path) -> List[Any]:
    """(arguments, standard input, environment) of each call so far."""
    return [json.loads(line) for line in notes.read_text().splitlines()]


def says(text: str) -> str:
    """A command that prints that and succeeds."""
    return f"sys.stdout.write({text!r})"


def fails(complaint: str, status: int = 1) -> str:
    """A command that complains and fails."""
    return f"sys.stderr.write({complaint!r}); sys.exit({status})"


# --- squeue ---------------------------------------------------------------------------------

LINE = "17|{task}|{state}|{reason}|{node}|{nodes}|{left}|{used}|{name}|.\n"


def line(**fields: str) -> str:
    """One line as squeue prints it for us."""
    usual = {"task": "N/A", "state": "RUNNING", "reason": "None", "node": "n1", "nodes": "n1"}
    return LINE.format(**{**usual, "left": "9:58", "used": "0:02", "name": "cwmp-x", **fields})


def test_a_running_job(fake: Fake) -> None:
    notes = fake("squeue", says(line()))
    assert commands.queue(["17"]) == [
        SlurmJob("17", None, "RUNNING", node="n1", nodes="n1", name="cwmp-x", time_left_s=598.0, ran_s=2.0)
    ]
    arguments, _, environment = calls(notes)[0]
    assert "--jobs=17" in arguments and "--array" in arguments and "--states=all" in arguments
    assert environment["LC_ALL"] == "C", "a localised answer could not be understood"


def test_what_waits_is_nowhere_and_has_no_reason_of_none(fake: Fake) -> None:
    text = line(state="PENDING", node="n/a", nodes="", left="UNLIMITED", used="0:00", reason="Resources")
    fake("squeue", says(text + line(task="3", state="PENDING", node="(null)", left="NOT_SET", reason="None")))
    first, second = commands.queue(["17"])
    assert (first.node, first.nodes, first.reason, first.time_left_s) == ("", "", "Resources", None)
    assert (second.id, second.node, second.reason, second.time_left_s) == ("17_3", "", "", None)
    assert first.waits and not first.has_ended


def test_an_array_that_is_not_expanded_is_expanded(fake: Fake) -> None:
    fake("squeue", says(line(task="[1-3,8%2]", state="PENDING")))
    assert [job.id for job in commands.queue(["17"])] == ["17_1", "17_2", "17_3", "17_8"]


@pytest.mark.parametrize("name", ["two words", "pipes|and|dots|.", "", "  x", "état 'q' \"z\" $HOME"])
def test_job_names_may_be_anything(fake: Fake, name: str) -> None:
    fake("squeue", says(line(name=name)))
    assert [job.name for job in commands.queue(["17"])] == [name]


def test_states_come_without_their_decoration(fake: Fake) -> None:
    fake("squeue", says(line(state="CANCELLED by 1000")))
    [job] = commands.queue(["17"])
    assert job.state == "CANCELLED" and job.has_ended


@pytest.mark.parametrize("text", [line()[:-3], "17|N/A|RUNN", "slurm is being upgraded\n", line() + "18|"])
def test_an_answer_that_is_cut_off_or_something_else_is_no_answer(fake: Fake, text: str) -> None:
    fake("squeue", says(text))
    with pytest.raises(SlurmError, match="cannot be understood"):
        commands.queue(["17"])


def test_a_failing_squeue_is_never_an_empty_one(fake: Fake) -> None:
    notes = fake("squeue", fails("squeue: error: Parse error in file slurm.conf\n"))
    with pytest.raises(SlurmError, match="squeue .* failed with status 1: .*Parse error"):
        commands.queue(["17"])
    assert len(calls(notes)) == 1, "that does not pass by itself"


def test_what_squeue_printed_before_it_failed_does_not_count(fake: Fake) -> None:
    fake("squeue", says(line()) + "\n" + fails("squeue: error: Segmentation violation\n", 139))
    with pytest.raises(SlurmError):
        commands.queue(["17"])


@pytest.mark.parametrize(
    "complaint",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "slurm_load_jobs error: Slurm backup controller in standby mode",
    ],
)
def test_a_controller_that_restarts_is_waited_for(fake: Fake, complaint: str) -> None:
    notes = fake("squeue", f"if call < 3: {fails(complaint)}\n{says(line())}")
    assert len(commands.queue(["17"])) == 1
    assert len(calls(notes)) == 3


def test_a_controller_that_stays_away_is_an_error_in_the_end(fake: Fake) -> None:
    fake("squeue", fails("Unable to contact slurm controller (connect failure)"))
    began = time.monotonic()
    with pytest.raises(SlurmError, match="Unable to contact"):
        commands.queue(["17"], patience_s=0.2)
    assert time.monotonic() - began < 5


def test_a_job_that_slurm_has_forgotten_is_missing(fake: Fake) -> None:
    fake("squeue", fails("slurm_load_jobs error: Invalid job id specified\n"))
    assert commands.queue(["17"]) == []


def test_one_forgotten_job_does_not_hide_the_others(fake: Fake) -> None:
    body = "asked = [a for a in sys.argv if a.startswith('--jobs=')][0][7:]\n"
    body += f"if asked != '17': {fails('slurm_load_jobs error: Invalid job id specified')}\n" + says(line())
    fake("squeue", body)
    assert [job.id for job in commands.queue(["16", "17", "99"])] == ["17"]


def test_nothing_is_asked_about_no_job(fake: Fake) -> None:
    assert commands.queue([]) == []


def test_a_command_that_hangs_is_killed_with_all_that_it_started(fake: Fake, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"child = os.fork()\nif child: open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child}}')\n"
    fake("squeue", body + "time.sleep(60)")
    with pytest.raises(SlurmError, match="timed out after 1"):
        commands.queue(["17"], patience_s=0.0, timeout_s=1.0)
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: process_birth(pid) is None)


def test_commands_that_are_not_there(fake: Fake) -> None:
    assert not commands.available()
    with pytest.raises(SlurmError, match="no squeue on this machine"):
        commands.queue(["17"])
    for name in ("sbatch", "squeue", "scancel"):
        fake(name, "")
    assert commands.available()


# --- sbatch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["17\n", "17;cluster2\n", "Welcome to the cluster!\n\n17\n", " 17 \n"])
def test_the_job_id(fake: Fake, said: str) -> None:
    notes = fake("sbatch", says(said))
    assert commands.submit("#!/bin/bash\nname='é'\n", ["--hold"]) == "17"
    arguments, script, _ = calls(notes)[0]
    assert arguments == ["--parsable", "--hold"]
    assert script == "#!/bin/bash\nname='é'\n"


def test_sbatch_that_does_not_say_which_job(fake: Fake) -> None:
    fake("sbatch", says("job submitted, thanks\n"))
    with pytest.raises(SlurmError, match="did not say which job"):
        commands.submit("#!/bin/bash\n")


def test_refused(fake: Fake) -> None:
    fake("sbatch", fails("sbatch: error: Batch job submission failed: Invalid account\n"))
    with pytest.raises(SlurmError, match="Invalid account"):
        commands.submit("#!/bin/bash\n")


def test_a_submission_that_may_have_gone_through_is_not_repeated(fake: Fake) -> None:
    notes = fake("sbatch", fails("sbatch: error: Socket timed out on send/recv operation\n"))
    with pytest.raises(SlurmError, match="timed out"):
        commands.submit("#!/bin/bash\n")
    assert len(calls(notes)) == 1


def test_a_submission_that_reached_nobody_is_repeated(fake: Fake) -> None:
    notes = fake("sbatch", f"if call == 1: {fails('Unable to contact slurm controller')}\n" + says("5\n"))
    assert commands.submit("#!/bin/bash\n") == "5"
    assert len(calls(notes)) == 2


def test_what_slurm_gave_to_our_own_job_is_not_handed_down(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = fake("sbatch", says("5\n"))
    ours: Dict[str, str] = {"SLURM_CONF": "/etc/x.conf", "LANG": "de_DE.UTF-8", "CWMP_HOME": "/c"}
    theirs = ["SLURM_NTASKS", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_NODE", "SBATCH_TIMELIMIT"]
    theirs += ["SRUN_CPUS_PER_TASK", "SQUEUE_FORMAT", "CWMP_MASTER", "CWMP_NAME", "PMI_RANK"]
    monkeypatch.delenv("LC_ALL", raising=False)
    for name, value in {**ours, **dict.fromkeys(theirs, "7")}.items():
        monkeypatch.setenv(name, value)
    commands.submit("#!/bin/bash\n")
    environment = calls(notes)[0][2]
    assert {name: environment.get(name) for name in ours} == ours
    assert set(theirs) & environment.keys() == set()
    assert "LC_ALL" not in environment, "the job's language is the user's"


# --- scancel and scontrol -------------------------------------------------------------------


@pytest.mark.parametrize(
    "complaint",
    [
        "scancel: error: Kill job error on job id 17: Invalid job id specified\n",
        """\
scancel: error: Kill job error on job id 17_3: Job/step already completing or completed
scancel: error: Kill job error on job id 17_4: Invalid job id specified
""",
    ],
)
def test_ending_what_has_ended_is_fine(fake: Fake, complaint: str) -> None:
    fake("scancel", fails(complaint))
    commands.cancel(["17"])


def test_other_failures_to_cancel_are_told(fake: Fake) -> None:
    fake("scancel", fails("scancel: error: Kill job error on job id 17: Access/permission denied\n"))
    with pytest.raises(SlurmError, match="permission denied"):
        commands.cancel(["17"])


def test_signals_go_to_running_jobs_only(fake: Fake) -> None:
    notes = fake("scancel", "")
    commands.signal(["17", "18_3"])
    commands.signal(["19"], "INT", steps=True)
    commands.signal([])
    commands.cancel([])
    commands.cancel_waiting(["17"])
    assert [arguments for arguments, _, _ in calls(notes)] == [
        ["--signal=TERM", "--state=RUNNING", "--batch", "17", "18_3"],
        ["--signal=INT", "--state=RUNNING", "19"],
        ["--state=PENDING", "17"],
    ]


RECORD = (
    "JobId=19 ArrayJobId=17 ArrayTaskId=3 JobName=two words UserId=u(1) JobState=FAILED "
    "Reason=NonZeroExitCode Dependency=(null) Requeue=1 Restarts=2 ExitCode=78:0 RunTime=00:01:05 "
    "NodeList=n2 BatchHost=n2 Command=x\n"
)


def test_one_that_ended(fake: Fake) -> None:
    fake("scontrol", says(RECORD.replace("19", "20").replace("TaskId=3", "TaskId=4") + RECORD))
    found = commands.ended("17_3")
    assert found is not None
    assert (found.id, found.state, found.reason) == ("17_3", "FAILED", "NonZeroExitCode")
    assert (found.exit_code, found.restarts, found.ran_s, found.node) == ("78:0", 2, 65.0, "n2")
    assert found.name == "two words"


def test_one_that_is_forgotten(fake: Fake) -> None:
    fake("scontrol", fails("slurm_load_jobs error: Invalid job id specified\n"))
    assert commands.ended("17_3") is None


def test_ctrl_c_does_not_reach_a_submission(fake: Fake) -> None:
    """The terminal sends SIGINT to a whole process group: sbatch must not be in ours."""
    fake("sbatch", says("5\n").replace("'5\\n'", "str(os.getpgrp()) + '\\n'"))
    assert commands.submit("#!/bin/bash\n") != str(os.getpgrp())
    assert threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT)
