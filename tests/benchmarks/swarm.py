"""A real master and any number of simulated nodes around it, as processes that end with a `with` block."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import psutil

from cwmp.children import Child, end_children, spawn, wait_ready
from cwmp.messages import JOB_QUEUE
from cwmp.transport import connect

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
_EXPECTED = re.compile(r"cwmp-master: listening on |worker \d+ lost: ")
ANSWER_S = 150.0  # a driver's answer to any command


class Driver:
    """One process full of nodes, from outside."""

    def __init__(self, count: int, slots: int) -> None:
        self.count = count
        argv = [sys.executable, "-m", "tests.benchmarks.nodes", str(count), str(slots)]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def command(self, do: str, **details: Any) -> None:
        """Say what is to be done; `answer` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **details}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> Dict[str, Any]:
        """The next answer. Raises RuntimeError."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"a driver of {self.count} nodes was silent for {ANSWER_S:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a driver of {self.count} nodes has ended")
        answer: Dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Swarm:
    """A context manager: a master, and `nodes` nodes of `slots` slots in `drivers` processes, not yet joined.

    What one driver does is independent of the others, so killing it kills its share of the nodes.
    """

    def __init__(self, nodes: int, slots: int, drivers: int) -> None:
        self.nodes, self.slots = nodes, slots
        self.key = os.urandom(32).hex().encode()
        self.port = 0
        self.drivers: List[Driver] = []
        self.master: Optional[psutil.Process] = None
        self._lost: List[Driver] = []
        self._log = tempfile.TemporaryFile("w+")
        self._children: List[Child] = []
        self._shares = [nodes // drivers + (number < nodes % drivers) for number in range(drivers)]

    def __enter__(self) -> Swarm:
        try:
            master = ["--leash", "--authkey-file", "-", "--unlisted"]
            output = self._log.fileno()
            spawn([], master=master, worker=[], outputs=(output, output), into=self._children)
            self.port = wait_ready(self._children, [self.key])
            self.master = psutil.Process(self._children[0].process.pid)
            for share in self._shares:
                self.drivers.append(Driver(share, self.slots))
            for driver in self.drivers:
                driver.answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self.drivers + self._lost:
            driver.end()
        end_children(self._children, os.getpid(), 0.0)
        self._log.close()

    @property
    def address(self) -> str:
        """Of the master."""
        return f"{HOST}:{self.port}"

    def join(self) -> float:
        """All nodes at once; seconds until the last one is in."""
        begin_s = time.perf_counter()
        self._each("join", host=HOST, port=self.port, key=self.key.decode())
        join_s = time.perf_counter() - begin_s
        seen = len(self.status()["workers"])
        if seen != self.nodes:
            raise RuntimeError(f"{self.nodes} nodes have joined, and the master knows of {seen}")
        return join_s

    def set_job_s(self, job_s: float) -> None:
        """From now on a job takes this long; 0: it is done as soon as it is there."""
        self._each("set", job_s=job_s)

    def held(self, drivers: List[Driver]) -> int:
        """Leases that the nodes of these drivers hold. Raises RuntimeError if one has lost its master."""
        held = 0
        for answer in self._each("tell", drivers=drivers):
            if answer["lost"]:
                raise RuntimeError(f"a node lost its master: {answer['lost']}")
            held += answer["held"]
        return held

    def lose(self, drivers: List[Driver], number: signal.Signals) -> None:
        """Send this signal to drivers: all their nodes die, or fall silent, in the same instant."""
        for driver in drivers:
            driver.process.send_signal(number)
            self.drivers.remove(driver)
            self._lost.append(driver)

    def master_cpu_s(self) -> float:
        """Processor time that the master has used."""
        assert self.master is not None
        times = self.master.cpu_times()
        return float(times.user + times.system)

    def status(self) -> Dict[str, Any]:
        """What the master says of itself."""
        wire = connect(HOST, self.port, self.key)
        try:
            status: Dict[str, Any] = wire.call(JOB_QUEUE, "status")
            return status
        finally:
            wire.close()

    def check_log(self) -> None:
        """Raise RuntimeError if the master has noted anything but the loss of nodes."""
        self._log.seek(0)
        strange = [line for line in self._log if not _EXPECTED.match(line)]
        if strange:
            raise RuntimeError(f"the master noted {len(strange)} unexpected lines: {''.join(strange[:40])}")

    def _each(self, do: str, drivers: Optional[List[Driver]] = None, **details: Any) -> List[Dict[str, Any]]:
        chosen = self.drivers if drivers is None else drivers
        for driver in chosen:
            driver.command(do, **details)
        return [driver.answer() for driver in chosen]
