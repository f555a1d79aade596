"""Run one contender in a process of its own, and end whatever it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 100.0  # one contender, all its measurements
ENDING_S = 5.0  # for a contender to clean up after itself
LEFT_BEHIND_S = 2.0  # for the last of its processes to be gone after it


class ContenderFailed(Exception):
    """A contender that ended without an answer, or whose processes outlived it; says why."""


class Runner:
    """A context manager that runs contenders one after the other.

    Each of their processes inherits a `CWMP_HOME` that belongs to this benchmark alone. So they
    see no cluster of the user's, and are recognised wherever they end up in the process tree.
    """

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="cwmp-benchmark-")
        os.chmod(self._home.name, 0o700)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        kill(self._ours())
        self._home.cleanup()

    def run(self, name: str, jobs: int, seed: int) -> Dict[str, float]:
        """Measure one contender. Raises ContenderFailed."""
        argv = [sys.executable, "-m", "tests.benchmarks.contender", name, str(jobs), str(seed)]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self._run(argv, out, err)
            if status != 0:
                raise ContenderFailed(_last_line(err) or f"exit status {status}")
            out.seek(0)
            measured: Dict[str, float] = json.loads(out.read())
        left_behind = self._wait_for_end()
        if left_behind:
            commands = ", ".join(" ".join(process.cmdline()[:4]) for process in left_behind)
            kill(left_behind)
            raise ContenderFailed(f"left {len(left_behind)} processes behind: {commands}")
        return measured

    def _run(self, argv: List[str], out: Any, err: Any) -> Optional[int]:
        """Start, wait, end; None if it had to be ended."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("CWMP_")}
        env["CWMP_HOME"] = self._home.name
        line_in, line_out = os.pipe()  # closing our end tells the contender to end
        try:
            process = subprocess.Popen(
                argv, stdin=line_in, stdout=out, stderr=err, cwd=ROOT, env=env, start_new_session=True
            )
        finally:
            os.close(line_in)
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            err.write(f"\nno answer within {LIMIT_S:.0f} s")
            return None
        finally:
            os.close(line_out)
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                kill(self._ours())
                process.wait()

    def _wait_for_end(self) -> List[psutil.Process]:
        """Those that are still there after a moment."""
        deadline_s = time.monotonic() + LEFT_BEHIND_S
        while True:
            alive = self._ours()
            if not alive or time.monotonic() > deadline_s:
                return alive
            time.sleep(0.05)

    def _ours(self) -> List[psutil.Process]:
        """All processes that carry our CWMP_HOME."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CWMP_HOME") == self._home.name:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in found if process.pid != os.getpid()]


def kill(processes: List[psutil.Process]) -> None:
    """End these at once and wait until they are gone."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=ENDING_S)


def _last_line(stream: Any) -> str:
    stream.seek(0)
    lines = stream.read().strip().splitlines()
    return lines[-1] if lines else ""
