"""A cluster whose master and workers are started one by one, are killed, and come back at the same place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from cwmp import ClientThread, ClusterExecutor
from cwmp.messages import JOB_QUEUE
from cwmp.transport import connect
from tests.faults.processes import ROOT, SOON_S
from tests.waiting import wait_until

KEY = "the key of a cluster that is started by hand"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class HandMadeCluster:
    """Master and workers of one port and key. Leaving the block kills whatever runs."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.master: Optional[subprocess.Popen[bytes]] = None
        self.workers: List[subprocess.Popen[bytes]] = []
        self.log = directory / "log"
        self._environment = {**os.environ, "CWMP_AUTHKEY": KEY, "CWMP_HOME": str(directory / "home")}

    def start_master(self) -> subprocess.Popen[bytes]:
        """Start the master, for the first time or again, and wait until it answers."""
        master = self.try_master()
        wait_until(lambda: self.status() is not None, timeout_s=SOON_S, describe=self.log.read_text)
        return master

    def try_master(self) -> subprocess.Popen[bytes]:
        """Start the master, which may fail."""
        self.master = self._start("master", "--host", "127.0.0.1", "--port", str(self.port), "--unlisted")
        return self.master

    def start_worker(self, *options: str, slots: int = 2, address: str = "") -> subprocess.Popen[bytes]:
        """Start a worker; it need not have joined yet."""
        worker = self._start("worker", address or self.address, "--procs", str(slots), *options)
        self.workers.append(worker)
        return worker

    def counts(self) -> Dict[str, int]:
        """How many jobs are queued, running, done, failed and cancelled."""
        status = self.status()
        assert status is not None
        found: Dict[str, int] = status["jobs"]
        return found

    def workers_seen(self) -> List[Dict[str, Any]]:
        """The workers that the master knows."""
        status = self.status()
        return status["workers"] if status else []

    def wait_for_workers(self, count: int) -> None:
        """Until so many are there."""
        wait_until(
            lambda: len(self.workers_seen()) == count,
            timeout_s=SOON_S,
            describe=self.log.read_text,
        )

    def kill_master(self) -> None:
        """kill -9."""
        assert self.master is not None
        self.master.kill()
        self.master.wait()

    def status(self) -> Optional[Dict[str, Any]]:
        """What the master tells of itself; None while there is none."""
        try:
            wire = connect("127.0.0.1", self.port, KEY.encode())
        except OSError:
            return None
        try:
            answer: Dict[str, Any] = wire.call(JOB_QUEUE, "status")
            return answer
        except (OSError, EOFError):
            return None
        finally:
            wire.close()

    def executor(self, **options: Any) -> ClusterExecutor:
        """A new executor of this cluster."""
        return ClusterExecutor(self.address, authkey=KEY, **options)

    def client(self, callback: Any, **options: Any) -> ClientThread:
        """A new client of this cluster, not started."""
        return ClientThread(callback, self.address, authkey=KEY, **options)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cwmp", *arguments],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> HandMadeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        processes = [*self.workers, *([self.master] if self.master is not None else [])]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + 5.0
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
