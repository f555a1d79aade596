"""A cluster on this machine that stays when the command that started it returns: `cwmp-local start`.

`home()/local/NAME.json` records which processes were started, so that `stop` ends exactly those;
their output goes to `home()/logs`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from . import rendezvous
from .children import START_S, STOP_S, Child, end_children, spawn, wait_ready
from .errors import CwmpError, UsageError
from .home import exclusive, home, home_key, private_directory, read_private, write_private

GRACE_S = 5.0
"""What running jobs get when the cluster stops: other programs may wait for them."""

_POLL_S = 0.02  # between two looks at a process that is not our child
_TAIL_LINES = 10
_ROLES = ("worker", "master")  # the order in which they stop


class Process(NamedTuple):
    """One process that was started; pid and birth together say which it is."""

    role: str
    pid: int
    birth: float

    def runs(self) -> bool:
        """Whether it still runs."""
        return rendezvous.process_birth(self.pid) == self.birth


def start(name: str, slots: int) -> List[Process]:
    """Start a master and a worker with `slots` slots; returns them when they are ready.

    CwmpError if a cluster of that name runs already, or if it does not start; then nothing stays.
    """
    with exclusive("local"):
        _refuse_running(name)
        key_options, stdin = _key_for_children()
        children: List[Child] = []
        try:
            with _log(name, "master") as master_log, _log(name, "worker") as worker_log:
                spawn(
                    [slots],
                    master=["--name", name, *key_options],
                    worker=["--name", name, *key_options, "--grace", str(GRACE_S), "--wait", str(START_S)],
                    outputs=(master_log, worker_log),
                    into=children,
                )
                # Before anything can go wrong with us, so that `stop` finds them.
                processes = _record(name, children)
                wait_ready(children, stdin)
        except BaseException as error:
            end_children(children, os.getpid(), 0.0)
            tail = "".join(_tail(_log_path(name, role)) for role in ("master", "worker"))
            _forget(name)
            if isinstance(error, CwmpError):
                raise CwmpError(f"cluster {name!r} did not start: {error}{tail}") from None
            raise
        for child in children:
            child.let_go()
        return processes


def stop(name: str) -> List[str]:
    """End what `start` began, and remove its files; returns what was done, in lines for people.

    CwmpError if `start` began nothing of that name on this node.
    """
    with exclusive("local"):
        processes = _recorded(name)
        if not processes:
            raise CwmpError(_not_started(name))
        said = []
        for role in _ROLES:
            said += [_stop(process) for process in processes if process.role == role]
        rendezvous.sweep()
        if any("had ended" in line for line in said):
            _forget(name, keep_logs=True)
            said.append(
                f"the logs are kept: {_log_path(name, 'worker')} and {_log_path(name, 'master').name}"
            )
        else:
            _forget(name)
        return said


def _stop(process: Process) -> str:
    """End one process: ask, wait, kill."""
    who = f"{process.role} (pid {process.pid})"
    if not process.runs():
        return f"{who} had ended already"
    grace_s = GRACE_S if process.role == "worker" else 0.0
    for number, patience_s in ((signal.SIGTERM, grace_s + STOP_S), (signal.SIGKILL, STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        deadline = time.monotonic() + patience_s
        while process.runs() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not process.runs():
            return (
                f"{who} stopped" if number == signal.SIGTERM else f"{who} killed: it did not stop when asked"
            )
    raise CwmpError(f"{who} does not end, even when killed")


def _refuse_running(name: str) -> None:
    """CwmpError if processes of an earlier start, or any master of that name, run."""
    running = [process for process in _recorded(name) if process.runs()]
    if running:
        who = ", ".join(f"{process.role} pid {process.pid}" for process in running)
        raise CwmpError(f"cluster {name!r} runs already ({who}): cwmp-local stop --name {name}")
    cluster = rendezvous.find_cluster(name)
    if cluster is not None:
        raise CwmpError(f"cluster {name!r} runs already (master pid {cluster.pid} on {cluster.node})")


def _not_started(name: str) -> str:
    cluster = rendezvous.find_cluster(name)
    if cluster is None:
        return f"cluster {name!r} is not running"
    return (
        f"cluster {name!r} was not started by cwmp-local: its master is pid {cluster.pid} on {cluster.node}, "
        "stop that"
    )


def _key_for_children() -> Tuple[List[str], List[bytes]]:
    """How the children find the key that clients will find: (arguments, lines for standard input)."""
    key = os.environ.get("CWMP_AUTHKEY")
    if key is not None:
        return ["--authkey-file", "-"], [rendezvous.find_key(key)]
    path = os.environ.get("CWMP_AUTHKEY_FILE")
    if path is None:
        home_key()
        path = str(home() / "authkey")
    return ["--authkey-file", os.path.abspath(path)], []


# --- files ----------------------------------------------------------------------------------


def _record_path(name: str) -> Path:
    return private_directory("local") / f"{name}.json"


def _log_path(name: str, role: str) -> Path:
    return private_directory("logs") / f"{name}-{role}.log"


def _record(name: str, children: Sequence[Child]) -> List[Process]:
    """Write down what was started; returns it."""
    processes = []
    for child in children:
        pid = child.process.pid
        processes.append(Process(child.role, pid, rendezvous.process_birth(pid) or 0.0))
    record = {"node": platform.node(), "processes": processes}
    write_private(_record_path(name), json.dumps(record).encode())
    return processes


def _recorded(name: str) -> List[Process]:
    """What `start` began under that name; empty if nothing."""
    path = _record_path(name)
    data = read_private(path)
    if data is None:
        return []
    try:
        record: Dict[str, Any] = json.loads(data)
        node = str(record["node"])
        processes = [Process(str(role), int(pid), float(birth)) for role, pid, birth in record["processes"]]
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path} is damaged: remove it") from None
    if node != platform.node():
        raise CwmpError(f"cluster {name!r} was started on {node}: use cwmp-local there")
    return processes


def _forget(name: str, *, keep_logs: bool = False) -> None:
    """Remove the files of a cluster that has ended."""
    with contextlib.suppress(FileNotFoundError):
        _record_path(name).unlink()
    for role in () if keep_logs else _ROLES:
        with contextlib.suppress(FileNotFoundError):
            _log_path(name, role).unlink()


@contextlib.contextmanager
def _log(name: str, role: str) -> Iterator[int]:
    """A descriptor of the new, empty log of that process."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    descriptor = os.open(_log_path(name, role), flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _tail(path: Path) -> str:
    """The end of a log, to be put behind an error."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return ""
    return "".join(f" | {line}" for line in lines)
