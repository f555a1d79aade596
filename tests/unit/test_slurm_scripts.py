"""The batch scripts, compared with those in golden/, and what a shell and sbatch make of their quoting.

`CWMP_WRITE_GOLDEN=1` writes the files anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cwmp.slurm import scripts
from cwmp.slurm.options import Options
from cwmp.slurm.scripts import Place

pytestmark = pytest.mark.core

GOLDEN = Path(__file__).parent / "golden"
PLAIN = Place("/usr/bin/python3", "/opt/cwmp/cwmp/__main__.py", "/home/ada/.cwmp")
ODD = Place("/opt/my python", "/opt/o'h\"ome/$x/cwmp/__main__.py", "/home/a da/.cwmp", "/keys/a b")
FULL = Options(
    name="night-1",
    workers=40,
    slots=4,
    time="2:00:00",
    partition="short,long",
    account="physics",
    mem_per_cpu="4G",
    gpus_per_worker="a100:2",
    setup=("module load python/3.11", "export GREETING='it is \"on\"'"),
    wrap="apptainer exec 'my image.sif'",
    sbatch=("--qos=high", "--comment='two words'"),
    sbatch_master=("--qos=low",),
    log_dir="/scratch/l%ogs \"x\" 'y'",
    interface="ib0",
    encrypt="always",
    tls_cert="/tls/my node.pem",
    tls_key="/tls/node.key",
    tls_ca="/tls/ca.pem",
)

SCRIPTS = {
    "master.sh": scripts.master_script(Options(), PLAIN),
    "worker.sh": scripts.workers_script(Options(), PLAIN, 1),
    "full-master.sh": scripts.master_script(FULL, ODD),
    "full-workers.sh": scripts.workers_script(FULL, ODD, 40, avoid=("n7", "n8")),
    "one-job.sh": scripts.workers_script(Options(workers=3, slots=8, layout="job", time="1"), PLAIN, 3),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_text_is_that_of_the_golden_file(name: str) -> None:
    path = GOLDEN / f"slurm-{name}"
    if os.environ.get("CWMP_WRITE_GOLDEN"):
        path.write_text(SCRIPTS[name])
    assert SCRIPTS[name] == path.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_it(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[name], text=True, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_program_takes_the_place_of_the_shell(name: str) -> None:
    assert SCRIPTS[name].splitlines()[-1].startswith("exec "), "else SLURM's signal ends the shell alone"


def executed(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script whose program was replaced by one that prints its arguments and environment."""
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=20, cwd=tmp_path, env=dict(os.environ)
    )


def printing(tmp_path: Path) -> Place:
    """A place whose interpreter prints how it was called."""
    python = tmp_path / "my 'py\"thon"
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"; echo " home=$CWMP_HOME tmp=$TMPDIR name=$CWMP_NAME"\n')
    python.chmod(0o755)
    return Place(str(python), "/a $b/`c`/__main__.py", "/ho me/'x'", "/key file")


def test_a_shell_hands_every_argument_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_NAME", "another")
    monkeypatch.setenv("TMPDIR", "/no/such/directory")
    done = executed(scripts.master_script(Options(name="x"), printing(tmp_path)), tmp_path)
    expected = "</a $b/`c`/__main__.py><master><--name><x><--authkey-file></key file>"
    expected += "<--encrypt><auto><--port><0>"
    assert done.stdout.splitlines()[-1] == f"{expected} home=/ho me/'x' tmp= name="


def test_a_line_of_setup_that_fails_ends_the_job_and_is_named(tmp_path: Path) -> None:
    lines = ("export A=1", "no-such-command 'it is'", "echo not reached")
    done = executed(scripts.workers_script(Options(setup=lines), printing(tmp_path), 1), tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "cwmp-slurm: --setup failed with status 127: no-such-command 'it is'"
    )
    assert "not reached" not in done.stdout and "<worker>" not in done.stdout


def test_setup_prepares_what_the_program_sees(tmp_path: Path) -> None:
    options = Options(setup=("export CWMP_HOME='over ridden'", "# a remark"))
    done = executed(scripts.workers_script(options, printing(tmp_path), 1), tmp_path)
    assert "home=over ridden" in done.stdout


def test_no_script_carries_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from cwmp.slurm import submission

    monkeypatch.setenv("CWMP_AUTHKEY", "very-secret")
    for layout in ("array", "job"):
        options = Options(layout=layout)
        place = submission.place("c")
        both = scripts.master_script(options, place) + scripts.workers_script(options, place, 2)
        assert "very-secret" not in both and "--authkey " not in both


def test_the_place_is_this_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cwmp.slurm import submission

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CWMP_AUTHKEY_FILE", "key")
    place = submission.place("c")
    assert os.path.isabs(place.python) and os.path.isfile(place.main) and os.path.isabs(place.home)
    assert place.key_file == str(tmp_path / "key"), "a job may begin in another directory"


@pytest.mark.parametrize(
    ("time", "ahead"), [(None, 30), ("1", 10), ("2:00", 10), ("3", 30), ("1-0", 30), ("UNLIMITED", 30)]
)
def test_the_signal_comes_early_but_not_at_the_start(time: str, ahead: int) -> None:
    script = scripts.workers_script(Options(time=time), PLAIN, 1)
    assert f"#SBATCH --signal=B:TERM@{ahead}\n" in script
    assert f"--grace {ahead - 5}\n" in script


def test_where_the_logs_are(tmp_path: Path) -> None:
    options = Options(name="x")
    assert scripts.log_path(options, "/h", "17_3") == "/h/logs/x-worker-17_3.log"
    assert scripts.log_path(options, "/h", "16", master=True) == "/h/logs/x-master-16.log"
    many = replace(options, layout="job", log_dir="/l")
    assert scripts.log_path(many, "/h", "17") == "/l/x-workers-17.log"
