"""Two users on one SLURM: neither gets at the other's cluster."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Iterator

import cloudpickle
import psutil
import pytest

import cwmp
from tests.slurm.conftest import unavailable
from tests.slurm.lab import Lab, Unavailable
from tests.slurm.users import ROOT, User

OTHER = "nobody"


def copied_modules(lab: Lab) -> Path:
    """Copies of what a user's programs import, where every user can read them."""
    modules = lab.directory / "modules"
    if not modules.exists():
        for package in (cwmp, cloudpickle, psutil):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, modules / source.name)
        for name in ("jobs.py", "program.py"):
            target = modules / "tests" / "slurm" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "tests" / "slurm" / name, target)
    return modules


def python_of(lab: Lab, user: str, modules: Path) -> str:
    """An interpreter that this user can run, with those modules."""
    complaints = []
    for python in (sys.executable, "/usr/bin/python3"):
        argv = [python, "-c", "import cloudpickle, cwmp, psutil"]
        env = {"PYTHONPATH": str(modules)}
        done = lab.run("login", argv, user=user, env=env, cwd=modules, status=None)
        if done.returncode == 0:
            return python
        complaints.append(f"{python}: {done.stderr.strip()}")
    unavailable(Unavailable(f"{user} can run no Python here: {'; '.join(complaints)}"))


@pytest.fixture
def other(lab: Lab) -> Iterator[User]:
    """The other user, with a home, an interpreter and a checkout that are not root's."""
    if os.geteuid() != 0:
        pytest.skip("only root can have jobs run as other users")
    account = pwd.getpwnam(OTHER)
    home = lab.directory / "home-of-other"
    home.mkdir(mode=0o700)
    os.chown(home, account.pw_uid, account.pw_gid)
    modules = copied_modules(lab)
    other = User(lab, home, name=OTHER, python=python_of(lab, OTHER, modules), modules=[modules])
    yield other
    other.leave()


def test_another_user_neither_connects_nor_stops_and_has_a_cluster_of_their_own(
    lab: Lab, user: User, other: User
) -> None:
    user.start(workers=2)
    status = user.master_status()
    address = f"{status['host']}:{status['port']}"

    assert other.type(*other.argv("status"), status=None).returncode == 1, "they find nothing"
    assert "key" in other.type(*other.argv("status", address), status=1).stderr, "nor are they let in"
    assert other.slurm("stop", status=None).returncode != 0
    stop_ours = other.type(*other.argv("slurm", "stop"), CWMP_HOME=str(user.home), status=None)
    assert stop_ours.returncode != 0

    other.start(workers=1)
    theirs = other.program(jobs=20, seconds=0.05)
    ours = user.program(jobs=20, seconds=0.05)
    theirs.finish()
    ours.finish()
    other.stop()
    assert len(user.workers()) == 2
    user.program(jobs=5, seconds=0.01).finish()
    user.stop()
