"""The processes of a cluster: find them, add to them, and see them end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import psutil

from cwmp import LocalCluster
from cwmp.messages import JOB_QUEUE
from cwmp.rendezvous import parse_address
from cwmp.transport import Wire, connect
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30.0
"""A deadline for what takes moments on an idle machine."""


def open_wire(cluster: LocalCluster) -> Wire:
    """An authenticated connection to the master that has not said who it is."""
    host, port = parse_address(cluster.address)
    assert port is not None
    return connect(host, port, cluster.authkey)


def status(cluster: LocalCluster) -> Dict[str, Any]:
    """What the master tells of itself."""
    wire = open_wire(cluster)
    try:
        answer: Dict[str, Any] = wire.call(JOB_QUEUE, "status")
        return answer
    finally:
        wire.close()


def jobs(cluster: LocalCluster) -> Dict[str, int]:
    """How many jobs are queued, running, done, failed and cancelled."""
    counts: Dict[str, int] = status(cluster)["jobs"]
    return counts


def wait_for_clients(cluster: LocalCluster, count: int) -> None:
    """Until the master knows `count` clients."""
    wait_until(
        lambda: len(status(cluster)["clients"]) == count,
        timeout_s=SOON_S,
        describe=lambda: str(status(cluster)["clients"]),
    )


def slots_of(worker: int) -> List[int]:
    """The slots of a worker: its children but the guardian, which leads a session of its own."""
    slots = []
    for child in children_of(worker):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if os.getsid(child) != child:
                slots.append(child)
    return slots


def children_of(process: int) -> List[int]:
    """The processes below this one."""
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def family(cluster: LocalCluster) -> List[int]:
    """Every process of a cluster."""
    heads = [cluster.pids["master"], *cluster.pids["workers"]]
    return heads + [child for head in heads for child in children_of(head)]


def is_gone(pid: int) -> bool:
    """Whether a process has ended (its parent may not have noticed yet)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(*pids: int, timeout_s: float = SOON_S) -> None:
    """Until all of these have ended; after that time the rest is killed and named."""
    try:
        wait_until(lambda: all(map(is_gone, pids)), timeout_s=timeout_s)
    except AssertionError:
        left = [pid for pid in pids if not is_gone(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"still running after {timeout_s:g} s: {left}") from None


def wait_for_lines(path: Path, count: int = 1, timeout_s: float = SOON_S) -> List[str]:
    """Until a file has this many lines; returns them."""

    def lines() -> List[str]:
        return path.read_text().splitlines() if path.exists() else []

    wait_until(lambda: len(lines()) >= count, timeout_s=timeout_s, describe=lambda: f"{path}: {lines()}")
    return lines()


@contextlib.contextmanager
def more_workers(cluster: LocalCluster, *, slots: int = 1, grace_s: float = 25.0) -> Iterator[int]:
    """One more worker, with a grace period of its own; yields its pid. Killed at the end if it still runs."""
    command = [sys.executable, "-m", "cwmp", "worker", cluster.address, "--procs", str(slots)]
    environment = {**os.environ, "CWMP_AUTHKEY": cluster.authkey.decode()}
    worker = subprocess.Popen(
        [*command, "--grace", str(grace_s)], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: worker.pid in [known["pid"] for known in status(cluster)["workers"]],
            timeout_s=SOON_S,
            describe=lambda: str(status(cluster)["workers"]),
        )
        yield worker.pid
    finally:
        worker.kill()
        worker.wait()


class Script:
    """A client program that runs against a cluster, as a process of its own."""

    def __init__(self, cluster: LocalCluster, path: Path, source: str, *arguments: str) -> None:
        path.write_text(source)
        environment = {
            **os.environ,
            "CWMP_MASTER": cluster.address,
            "CWMP_AUTHKEY": cluster.authkey.decode(),
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=environment,
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, timeout_s: float = SOON_S) -> Ended:
        """Wait for its end."""
        try:
            stdout, stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
            raise AssertionError(f"still ran after {timeout_s:g} s: {stdout}{stderr}") from None
        return Ended(self.process.returncode, stdout, stderr)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Ended:
    """How a script ended."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.status = code
        self.stdout = stdout
        self.stderr = stderr

    def succeeded(self) -> str:
        """Its output; fails, showing its complaints, unless its exit status is 0."""
        assert self.status == 0, f"exit status {self.status}\n{self.stdout}\n{self.stderr}"
        return self.stdout


def run_script(cluster: LocalCluster, path: Path, source: str, *arguments: str) -> str:
    """What a client program prints; it must succeed within SOON_S."""
    with Script(cluster, path, source, *arguments) as script:
        return script.end().succeeded()


class Gate:
    """Holds jobs back until it is opened: `submit(jobs.begin_and_wait, *gate.paths)`.

    Leaving the block opens it and waits until nothing of the cluster's runs any more.
    """

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        self._cluster = cluster
        self._begun = directory / "begun"
        self._open = directory / "open"
        self.paths = (str(self._begun), str(self._open))

    def wait_for(self, count: int) -> List[int]:
        """Until so many jobs stand before it; returns the slots that run them."""
        return [int(line) for line in wait_for_lines(self._begun, count)]

    def begun(self) -> int:
        """How many jobs have begun so far, tries counted one by one."""
        return len(self._begun.read_text().split()) if self._begun.exists() else 0

    def open(self) -> None:
        """Let all pass, now and from now on."""
        self._open.touch()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        wait_until(lambda: not jobs(self._cluster)["running"], timeout_s=SOON_S)
