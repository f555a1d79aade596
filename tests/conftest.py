"""What every test gets: a CWMP_HOME of its own, and the proof that it left nothing behind."""

from __future__ import annotations

import os
import runpy
import signal
import threading
from pathlib import Path
from typing import Dict, Iterator, List, Set

import psutil
import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
_VARIABLES = (
    *("CWMP_MASTER", "CWMP_NAME", "CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE"),
    "CWMP_MASTER_TIMEOUT",
    *("CWMP_ENCRYPT", "CWMP_TLS_CERT", "CWMP_TLS_KEY", "CWMP_TLS_CA"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--large."""
    parser.addoption(
        "--large", action="store_true", help="have all but the tiniest values travel as large ones do"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C reaches what the tests start. With --large, patch values here and in every such process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--large"):
        places = [str(ROOT / "tests" / "large"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        runpy.run_path(str(ROOT / "tests" / "large" / "sitecustomize.py"))


@pytest.fixture(autouse=True)
def cwmp_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for keys and rendezvous files, and no setting inherited from outside."""
    home = tmp_path / "cwmp-home"
    monkeypatch.setenv("CWMP_HOME", str(home))
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child process, thread or socket of a test outlives it."""
    children, threads, sockets = _children(), set(threading.enumerate()), _sockets()
    yield
    wait_until(
        lambda: not (_children() - children)
        and not (set(threading.enumerate()) - threads)
        and not (_sockets() - sockets),
        timeout_s=10,
        describe=lambda: (
            f"left behind: {_describe(_children() - children)}, "
            f"{[t.name for t in set(threading.enumerate()) - threads]}, {_sockets() - sockets}"
        ),
    )


def _children() -> Set[int]:
    """The living descendants of this process."""
    parents = _parents()
    found: Set[int] = set()
    new = {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _parents() -> Dict[int, int]:
    """The parent of every living process; read straight from /proc, where that is much faster."""
    if not os.path.exists("/proc/self/stat"):
        every = psutil.process_iter(["ppid", "status"])
        return {p.pid: p.info["ppid"] for p in every if p.info["status"] != psutil.STATUS_ZOMBIE}
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if state != b"Z":
            parents[int(name)] = int(parent)
    return parents


def _sockets() -> Set[str]:
    """The sockets that this process holds, by inode (empty where the system does not tell)."""
    found = set()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _describe(pids: Set[int]) -> List[str]:
    lines = []
    for pid in pids:
        try:
            lines.append(f"{pid} {' '.join(psutil.Process(pid).cmdline())}")
        except psutil.NoSuchProcess:
            pass
    return lines
