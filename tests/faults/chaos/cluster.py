"""The cluster under test: a master, workers and programs as processes, each with a link that can fail."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

import psutil

from tests.faults.chaos.notes import History
from tests.faults.chaos.relay import HOST, Link, Relay
from tests.faults.processes import slots_of
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
SLOTS = 2
GRACE_S = 10
FORMS = ("callbacks", "futures", "stream")
MARK = "CWMP_CHAOS_RUN"
"""Variable in the environment of all that is started, by which what is left of it is found."""
START_S = 30.0
STOP_S = GRACE_S + 10.0
_LOCKS = ".lock"
"""Files that end so may stay in CWMP_HOME: they hold nothing, and removing one would not be safe."""

if TYPE_CHECKING:
    Process = subprocess.Popen[bytes]


class Member:
    """One place in the cluster, and who has it now: the so-and-so-many-th, or nobody."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = -1
        self.process: Optional[Process] = None
        self.link: Optional[Link] = None

    @property
    def holder(self) -> Process:
        """Who has it now; there must be somebody."""
        assert self.process is not None, f"nobody is {self.name}"
        return self.process

    @property
    def role(self) -> str:
        """`master`, `worker` or `client`."""
        return self.name.split()[0]

    @property
    def number(self) -> int:
        """Which worker or client."""
        return int(self.name.split()[1])

    @property
    def label(self) -> str:
        """The name of who has it now, without spaces: "client-1.0"."""
        return f"{self.name.replace(' ', '-')}.{self.generation}"

    def slot(self, pick: float) -> Optional[psutil.Process]:
        """One of a worker's slots, by where it is among them; None where there is none at the moment."""
        with contextlib.suppress(psutil.NoSuchProcess):
            slots = sorted(pid for pid in slots_of(self.holder.pid) if not _is_porter(pid))
            return psutil.Process(slots[int(pick * len(slots))]) if slots else None
        return None


class Cluster:
    """All of it. Use it in a `with` block, which ends whatever is still there."""

    def __init__(self, directory: Path, clients: int, workers: int) -> None:
        """`directory` is empty; what is left of the cluster afterwards is looked for there, too."""
        self.problems: List[str] = []
        names = ["master", *(f"worker {n}" for n in range(workers)), *(f"client {n}" for n in range(clients))]
        self.members = {name: Member(name) for name in names}
        self._directory = directory
        self._port = 0
        self._relay = Relay()
        self._let_go: List[Process] = []
        self._killed: List[Process] = []
        self._clients: List[str] = []  # labels of all that there were
        self._killed_clients: List[str] = []
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        for name in ("home", "temporary", "logs", "notes"):
            (directory / name).mkdir(mode=0o700)
        self._key = directory / "key"
        self._key.touch(mode=0o600)
        self._key.write_text(secrets.token_hex(32))
        self._stop_file = directory / "stop"
        self._runs_file = directory / "runs"

    # --- beginning and end ------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        self._relay.__enter__()
        try:
            self.start("master")
            for name, member in self.members.items():
                if name != "master":
                    member.link = self._relay.link(self._port)
                    self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill whatever has not ended by itself."""
        now = [member.process for member in self.members.values() if member.process is not None]
        for process in (*now, *self._let_go, *self._killed):
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._relay.__exit__()

    def finish(self, timeout_s: float) -> None:
        """Let the programs come to their end, then workers and master; a problem for each that does not."""
        self._stop_file.touch()
        deadline = time.monotonic() + timeout_s
        for member in self._having("client"):
            self._expect_end(member.label, member.holder, deadline - time.monotonic())
        for role in ("worker", "master"):
            for member in self._having(role):
                member.holder.terminate()
            for member in self._having(role):
                self._expect_end(member.label, member.holder, STOP_S)
        for process in self._let_go:
            self._expect_end("a worker that was let go", process, STOP_S)

    def _having(self, role: str) -> List[Member]:
        return [member for member in self.members.values() if member.role == role]

    def _expect_end(self, name: str, process: Process, timeout_s: float) -> None:
        try:
            status = process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self.problems.append(f"{name} did not end within {timeout_s:.0f} s")
        else:
            if status != 0:
                self.problems.append(f"{name} ended with status {status}")

    # --- what is done to it -----------------------------------------------------------------

    def start(self, name: str) -> None:
        """Have this place taken, or taken anew."""
        member = self.members[name]
        member.generation += 1
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CWMP_")}
        environment.update(
            CWMP_HOME=str(self._directory / "home"),
            CWMP_AUTHKEY_FILE=str(self._key),
            CWMP_NAME="chaos",
            TMPDIR=str(self._directory / "temporary"),
            PYTHONPATH=str(ROOT),
        )
        environment[MARK] = self._mark
        if member.link is not None:
            environment["CWMP_MASTER"] = f"{HOST}:{member.link.port}"
        with open(self._log(member), "ab") as log:
            member.process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments(member)],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if name == "master" and not self._port:
            self._port = self._announced_port(member)

    def _arguments(self, member: Member) -> List[str]:
        """What to run. Every other worker and program takes the master for one of another machine."""
        large_values = ["--blob-dir", str(self._directory / "temporary")]
        if member.role == "master":
            return ["cwmp", "master", "--host", HOST, "--port", str(self._port), "--leash", *large_values]
        if member.role == "worker":
            options = ["--procs", str(SLOTS), "--grace", str(GRACE_S), "--leash"]
            return ["cwmp", "worker", *options, *(large_values if member.number % 2 == 0 else [])]
        self._clients.append(member.label)
        files = {"notes": self._notes(member.label), "runs": self._runs_file, "stop": self._stop_file}
        options = [word for option, file in files.items() for word in (f"--{option}", str(file))]
        form = FORMS[(member.number + member.generation) % len(FORMS)]
        far = ["--far"] if member.number % 2 == 0 else []
        return ["tests.faults.chaos.client", form, "--name", member.label, *options, *far]

    def _announced_port(self, master: Member) -> int:
        def find() -> Optional[re.Match[str]]:
            return re.search(r"listening on \S+:(\d+)", self._log(master).read_text())

        return int(wait_until(find, timeout_s=START_S, describe=self._log(master).read_text)[1])

    def _log(self, member: Member) -> Path:
        return self._directory / "logs" / f"{member.label}.log"

    def _notes(self, client: str) -> Path:
        return self._directory / "notes" / client

    def kill(self, name: str) -> None:
        """kill -9, and leave the place empty."""
        member = self.members[name]
        if member.role == "client":
            self._killed_clients.append(member.label)
        member.holder.kill()
        self._killed.append(member.holder)
        member.process = None

    def let_go(self, name: str) -> None:
        """Ask a worker to leave, and leave the place empty."""
        member = self.members[name]
        member.holder.terminate()
        self._let_go.append(member.holder)
        member.process = None

    def replace_ended(self) -> List[str]:
        """A new process for each that has ended by itself, which is a problem; tells who that was."""
        here = [member for member in self.members.values() if member.process is not None]
        ended = [member for member in here if member.holder.poll() is not None]
        labels = [member.label for member in ended]
        for member in ended:
            self.problems.append(f"{member.label} ended by itself with status {member.holder.returncode}")
            self._killed.append(member.holder)
            self.start(member.name)
        return labels

    # --- what came of it --------------------------------------------------------------------

    def histories(self) -> List[History]:
        """What each program has noted."""
        killed = set(self._killed_clients)
        return [History.read(label, self._notes(label), label in killed) for label in self._clients]

    def runs(self) -> Counter[str]:
        """How often each job was begun."""
        lines = self._runs_file.read_text().splitlines() if self._runs_file.exists() else []
        return Counter(line.split()[0] for line in lines)

    def left(self, patience_s: float = 5.0) -> List[str]:
        """Processes and files that are still there a moment after the end."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._left_now(), timeout_s=patience_s)
        return self._left_now()

    def _left_now(self) -> List[str]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
                if process.environ().get(MARK) == self._mark:
                    found.append(f"process {process.pid} {' '.join(process.cmdline())}")
        for place in ("home", "temporary"):
            for path in sorted((self._directory / place).iterdir()):
                files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
                if files and path.suffix != _LOCKS:
                    found.append(f"{path} ({len(files)} files)")
        return found


def _is_porter(child: int) -> bool:
    """Whether a worker's child carries large values, with sockets only; a slot has pipes.

    It is no slot: a value that it was fetching when it was killed is `BlobLost`. Where there is no /proc it
    is taken for one.
    """
    files = Path(f"/proc/{child}/fd")
    try:
        return not any(os.readlink(file).startswith("pipe:") for file in files.iterdir())
    except OSError:
        return False  # no /proc, or it has just ended
