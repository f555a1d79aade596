"""A cluster on hosts of its own network, whose cables can be pulled.

The master, each worker and the program are on hosts with an address and a /dev/shm of their own, so all that
passes between them goes over the network. Nothing of it is left when the block is over.

    with Lan.up(directory, ["server", "n1", "desk"]) as lan:
        cluster = Cluster(lan, directory)
        cluster.start(workers=["n1"])
        lan.cut("n1")
        lan.mend("n1")
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import psutil

from tests.faults.chaos.notes import History
from tests.hosts import Host, HostFailed, Network, end
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30.0
"""A deadline for what takes moments on an idle machine."""
SWITCH = "switch"
"""The host that the others hang on. Nothing else runs there."""
SERVER, DESK = "server", "desk"
"""Where the master is, and where the user's program is."""
PORT = 5494
_NEEDED = ("ip", "unshare", "nsenter")
_SEARCHED = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


class Unavailable(Exception):
    """This machine cannot have such a network; the text says why."""


class Lan:
    """The hosts and their cables, from `up` to `down`."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.addresses = {SWITCH: "10.77.0.1", **{name: f"10.77.0.{10 + n}" for n, name in enumerate(names)}}
        self._hosts: Dict[str, Host] = {}
        self._network: Network
        self._hosts_file = directory / "hosts"
        lines = [f"{address} {name}\n" for name, address in self.addresses.items()]
        self._hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))

    @classmethod
    def up(cls, directory: Path, names: Sequence[str]) -> Lan:
        """Make hosts of these names. Raises `Unavailable` where that cannot be."""
        missing = [name for name in _NEEDED if not shutil.which(name, path=_SEARCHED)]
        if missing:
            raise Unavailable(f"no {', '.join(missing)} here (Debian: iproute2, util-linux)")
        lan = cls(directory, names)
        try:
            try:
                switch = lan._hosts[SWITCH] = Host(SWITCH, lan._hosts_file)
                lan._network = Network(switch, lan.addresses)
            except HostFailed as error:
                raise Unavailable(f"no namespaces for hosts here: {error}") from None
            for name in names:
                lan._hosts[name] = Host(name, lan._hosts_file, base=switch, own_memory=True)
                lan._network.plug(lan._hosts[name])
        except BaseException:
            lan.down()
            raise
        return lan

    def down(self) -> None:
        """End every process on every host. The network goes with the last one."""
        for name in reversed(list(self._hosts)):  # the first holds the others
            self._hosts.pop(name).kill()

    def __enter__(self) -> Lan:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def cut(self, host: str) -> None:
        """Pull a host's cable. What runs on it goes on, and sees only silence."""
        self._network.switch(self._hosts[host], "down")

    def mend(self, host: str) -> None:
        """Plug it in again."""
        self._network.switch(self._hosts[host], "up")

    def silence(self, host: str, seconds: float) -> None:
        """Cut a host off for so long."""
        self.cut(host)
        time.sleep(seconds)
        self.mend(host)

    def memory(self, host: str) -> Path:
        """A host's /dev/shm, as seen from here."""
        return Path(f"/proc/{self._hosts[host].pid}/root/dev/shm")

    def start(
        self, host: str, argv: Sequence[str], env: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a host. `tests.hosts.end` kills it."""
        return self._hosts[host].start(argv, env={**env, "PATH": _SEARCHED}, cwd=ROOT, **options)


class Cluster:
    """A master on the host `server` and workers on others, each with so many slots."""

    def __init__(self, lan: Lan, directory: Path, slots: int = 2) -> None:
        self.lan = lan
        self._directory = directory
        self._slots = slots
        self._processes: Dict[str, subprocess.Popen[str]] = {}
        self._key = directory / "key"
        self._key.touch(mode=0o600)
        self._key.write_text(secrets.token_hex(32))
        self._address = f"{lan.addresses[SERVER]}:{PORT}"

    def start(self, workers: Sequence[str]) -> None:
        """Start the master, and a worker on each of these hosts."""
        lan = self.lan
        self._start(SERVER, "master", "--host", lan.addresses[SERVER], "--port", str(PORT))
        wait_until(lambda: self.status(), timeout_s=SOON_S, describe=self.logs)
        for host in workers:
            self._start(host, "worker", self._address, "--procs", str(self._slots))
        self.wait_for_workers(*workers)

    def _environment(self) -> Dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CWMP_", "SLURM_"))}
        return {
            **kept,
            "CWMP_AUTHKEY_FILE": str(self._key),
            "CWMP_ENCRYPT": "never",  # this network is ours alone, and not every Python can encrypt
            "CWMP_HOME": os.environ["CWMP_HOME"],
            "CWMP_MASTER": self._address,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self._directory),
        }

    def _start(self, host: str, *arguments: str) -> None:
        self._processes[host] = self.run_on(host, host, "cwmp", *arguments)

    def run_on(self, host: str, log: str, module: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a module on a host; what it prints goes to that log."""
        argv = [sys.executable, "-m", module, *arguments]
        with open(self._directory / f"{log}.log", "a") as output:
            return self.lan.start(
                host, argv, self._environment(), stdin=subprocess.PIPE, stdout=output, stderr=output
            )

    def end(self) -> None:
        """Kill all of it."""
        for process in self._processes.values():
            end(process)

    def pid(self, host: str) -> int:
        """Of the master or worker on that host, as this machine numbers it."""
        [process] = psutil.Process(self._processes[host].pid).children()
        return process.pid

    def status(self) -> Dict[str, Any]:
        """What the master tells of itself; {} where it does not answer."""
        done = self.lan.start(
            SERVER,
            [sys.executable, "-m", "cwmp", "status", "--json", self._address],
            self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        answer, _ = done.communicate(timeout=SOON_S)
        return json.loads(answer) if done.returncode == 0 else {}

    def workers(self) -> Dict[str, Dict[str, Any]]:
        """What the master knows of each worker, by host."""
        return {worker["node"]: worker for worker in self.status().get("workers", [])}

    def wait_for_workers(self, *hosts: str, timeout_s: float = SOON_S) -> None:
        """Until the master has those, and no others."""
        wait_until(lambda: sorted(self.workers()) == sorted(hosts), timeout_s=timeout_s, describe=self.logs)

    def logs(self) -> str:
        """All that was printed."""
        files = sorted(self._directory.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)


class Program:
    """A program at the host `desk`: `tests.faults.chaos.client` with these options, and what it noted."""

    def __init__(self, cluster: Cluster, directory: Path, form: str, *options: str) -> None:
        self._cluster = cluster
        self._notes, self._runs, self._stop = (directory / name for name in ("notes", "runs", "stop"))
        files = ("--notes", str(self._notes), "--runs", str(self._runs), "--stop", str(self._stop))
        module = "tests.faults.chaos.client"
        self._process = cluster.run_on(DESK, "program", module, form, "--name", "p", *files, *options)

    def history(self) -> History:
        """What it has noted so far."""
        return History.read("p", self._notes)

    def runs(self) -> List[List[str]]:
        """Job and host for each time that one was begun."""
        lines = self._runs.read_text().splitlines() if self._runs.exists() else []
        return [line.split() for line in lines]

    def times_run(self) -> Counter[str]:
        """How often each job was begun."""
        return Counter(job for job, _ in self.runs())

    def on(self, host: str) -> List[str]:
        """The jobs that were begun there."""
        return [job for job, where in self.runs() if where == host]

    def wait_for_ends(self, count: int, timeout_s: float = SOON_S) -> None:
        """Until so many jobs have an outcome."""
        wait_until(lambda: len(self.history().ends) >= count, timeout_s=timeout_s, describe=self.report)

    def wait_for_runs_on(self, host: str, count: int) -> None:
        """Until so many jobs were begun there."""
        wait_until(lambda: len(self.on(host)) >= count, timeout_s=SOON_S, describe=self.report)

    def report(self) -> str:
        """Its last notes, and all that was printed."""
        notes = self._notes.read_text().splitlines()[-20:] if self._notes.exists() else []
        return "\n".join([*notes, self._cluster.logs()])

    def finish(self, timeout_s: float = 60.0) -> History:
        """Let it come to its end."""
        self._stop.touch()
        try:
            status: Optional[int] = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        assert status == 0, (
            f"exit status {status} (none: still running after {timeout_s:g} s)\n{self.report()}"
        )
        return self.history()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)
