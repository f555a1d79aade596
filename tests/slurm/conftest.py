"""The lab that all tests of this directory share, and the proof that each leaves it as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Generator, Iterator, NoReturn

import pytest

from tests.slurm.lab import Lab, Unavailable
from tests.slurm.users import User
from tests.waiting import wait_until

NODES = 4


def unavailable(reason: Unavailable) -> NoReturn:
    """Skip the test, or fail it where CI has made sure that it can run."""
    if os.environ.get("CWMP_REQUIRE_SLURM"):
        pytest.fail(f"CWMP_REQUIRE_SLURM is set, but there is no private SLURM: {reason}")
    pytest.skip(f"no private SLURM: {reason}")


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    """One lab for the whole run."""
    try:
        lab = Lab.up(NODES)
    except Unavailable as reason:
        unavailable(reason)
    yield lab
    lab.down()


@pytest.fixture
def lab(running_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab with every node idle. The test must have ended its jobs and their processes by itself."""
    yield running_lab
    try:
        if not request.node.stash.get(_FAILED, False):
            wait_until(
                lambda: not running_lab.leftovers(),
                timeout_s=10,
                describe=lambda: "left behind: " + "\n".join(running_lab.leftovers()),
            )
    finally:
        running_lab.reset()


@pytest.fixture
def user(lab: Lab, cwmp_home: Path) -> Iterator[User]:
    """Who runs the tests, at the login host, with a home of the test's own."""
    cwmp_home.mkdir(mode=0o700)
    user = User(lab, cwmp_home)
    yield user
    user.leave()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the one for all tests: the lab's processes are this one's, and `lab` looks after them."""


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show what SLURM says when a test has failed, before the lab is cleaned up."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        lab = getattr(item, "funcargs", {}).get("lab")
        if lab is not None:
            report.sections.append(("the lab", lab.report()))
        user = getattr(item, "funcargs", {}).get("user")
        if user is not None:
            report.sections.append(("masters and workers", user.logs()))
    return report
