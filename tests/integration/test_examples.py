"""The examples, run as a user runs them; none may leave a process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LIMIT_S = 90.0
LEFT_BEHIND_S = 5.0

PRIMES = ["1000000000039", "1000000000061", "1000000000063", "1000000000091"]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Dict[str, str]]:
    """No cluster in sight. What carries this CWMP_HOME afterwards was left behind by the test."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    env = {key: value for key, value in os.environ.items() if not key.startswith("CWMP_")}
    env.update(CWMP_HOME=str(home), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    yield env
    left_behind = processes_of(home)
    deadline_s = time.monotonic() + LEFT_BEHIND_S
    while left_behind and time.monotonic() < deadline_s:
        time.sleep(0.05)
        left_behind = processes_of(home)
    told = [describe(process) for process in left_behind]
    for process in left_behind:
        process.kill()
    assert not told


def processes_of(home: Path) -> List[psutil.Process]:
    """Every process with this CWMP_HOME, wherever it is in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("CWMP_HOME") == str(home)
        except (psutil.Error, OSError):
            continue
        if ours and process.pid != os.getpid():
            found.append(process)
    return found


def describe(process: psutil.Process) -> str:
    """Its pid and command, as far as it is still there."""
    try:
        return f"{process.pid}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}: just ended"


def run(env: Dict[str, str], *argv: object) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_executor(environment: Dict[str, str]) -> None:
    lines = run(environment, sys.executable, EXAMPLES / "executor.py").splitlines()
    assert lines == ["2**31 - 1 is prime: True", *PRIMES]


def test_callback(environment: Dict[str, str]) -> None:
    lines = run(environment, sys.executable, EXAMPLES / "callback.py").splitlines()
    assert len(lines) == len(set(lines)) == 50
    assert sorted(line.split()[0] for line in lines if line.endswith("is prime")) == PRIMES


def test_census_on_a_cluster_of_its_own(environment: Dict[str, str]) -> None:
    printed = run(environment, sys.executable, EXAMPLES / "stdlib_census.py", "--limit", "40")
    check_census(printed)
    assert "on a cluster of its own at 127.0.0.1:" in printed


def test_census_on_a_cluster_that_is_up(environment: Dict[str, str]) -> None:
    argv = [sys.executable, ROOT / "bin" / "cwmp-local", "-n", "2", "run"]
    printed = run(environment, *argv, EXAMPLES / "stdlib_census.py", "--limit", "40")
    check_census(printed)
    assert "on the cluster that was up" in printed


def check_census(printed: str) -> None:
    """40 files were counted, both ways, with the same answers."""
    assert printed.startswith("Parsing 40 modules of ")
    total = re.search(r"^total +40 +([\d,]+) +([\d,]+) +([\d,]+)  \w+, \d+ lines \(.*\.py\)$", printed, re.M)
    assert total is not None, printed
    assert all(int(count.replace(",", "")) > 100 for count in total.groups())
    assert "files that failed: none" in printed
    assert re.search(r"a speed-up of \d+\.\d\d on \d+ usable core", printed)
    assert "Both ways gave the same answers." in printed


def test_census_tells_which_files_failed_and_why(environment: Dict[str, str], tmp_path: Path) -> None:
    library = tmp_path / "library"
    (library / "package").mkdir(parents=True)
    (library / "good.py").write_text("def first():\n    pass\n")
    (library / "package" / "bad.py").write_text("print 'two'\n")
    (library / "package" / "worse.py").write_bytes(b"# -*- coding: nonsense -*-\n")
    program = (
        "import runpy, sys, sysconfig\n"
        f"sysconfig.get_path = lambda name: {str(library)!r}\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    printed = run(environment, sys.executable, "-c", program, EXAMPLES / "stdlib_census.py")
    assert "files that failed: 2" in printed
    assert re.search(r"^  package.bad\.py: SyntaxError: .*print.*\(bad\.py, line 1\)$", printed, re.M)
    assert re.search(r"^  package.worse\.py: SyntaxError: .*nonsense", printed, re.M)
    assert "It has 3 modules; 1 of them parse." in printed
    assert "Both ways gave the same answers." in printed


@pytest.mark.parametrize("whole_group", [True, False], ids=["as a terminal does", "the program alone"])
def test_ctrl_c_in_the_census_leaves_nothing(environment: Dict[str, str], whole_group: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "stdlib_census.py"), "--tests"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        wait_for_slots(process.pid)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert err.splitlines()[-1:] == ["interrupted"]
    assert "speed-up" not in out


def wait_for_slots(pid: int) -> None:
    """Until the cluster below this process has its master, its worker and a slot."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        if len(psutil.Process(pid).children(recursive=True)) >= 3:
            return
        time.sleep(0.01)
    raise AssertionError(f"no slots below {pid} after {LIMIT_S:.0f} s")
