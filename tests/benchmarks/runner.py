"""Run one contender in a process of its own, and end whatever it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import psutil

from .processes import adopt_orphans, belonging, bury_orphans, kill

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0  # one contender, all its measurements
ENDING_S = 5.0  # for a contender to clean up after itself
LEFT_BEHIND_S = 2.0  # for the last of its processes to be gone after it


class ContenderFailed(Exception):
    """A contender that ended without an answer, or whose processes outlived it; says why."""


class Runner:
    """A context manager that runs contenders one after the other.

    Each of their processes inherits a `CWMP_HOME` that belongs to this benchmark alone, and works and
    keeps its temporary files in that directory. So they see no cluster of the user's, and are recognised
    wherever they end up in the process tree. They import from the checkout `tree`.
    """

    def __init__(
        self, environment: Optional[Dict[str, str]] = None, adopt: bool = False, tree: Path = ROOT
    ) -> None:
        self._environment = environment or {}
        self._tree = tree
        self._root = os.getpid() if adopt else None  # adopting: whatever is below this process is theirs
        if adopt:
            adopt_orphans()
        self.left_behind = 0
        """Processes that the last contender did not end itself."""
        self._home = tempfile.TemporaryDirectory(prefix="cwmp-benchmark-")
        os.chmod(self._home.name, 0o700)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        kill(self._theirs())
        self._home.cleanup()

    def run(self, argv: Sequence[str]) -> Dict[str, float]:
        """The measurements of one contender: the last line that this command prints, as JSON.

        Raises ContenderFailed. What it leaves behind is ended, and counted in `left_behind`.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self._run(argv, out, err)
            if status != 0:
                raise ContenderFailed(_last_line(err) or f"exit status {status}")
            measured: Dict[str, float] = json.loads(_last_line(out))
        left_behind = self._wait_for_end()
        self.left_behind = len(left_behind)
        kill(left_behind)
        if self._root is not None:
            bury_orphans()
        return measured

    def _run(self, argv: Sequence[str], out: Any, err: Any) -> Optional[int]:
        """Start, wait, end; None if it had to be ended."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("CWMP_")}
        home = self._home.name
        env.update(self._environment, CWMP_HOME=home, PYTHONPATH=str(self._tree), TMPDIR=home)
        line_in, line_out = os.pipe()  # closing our end tells the contender to end
        try:
            process = subprocess.Popen(
                argv, stdin=line_in, stdout=out, stderr=err, cwd=self._home.name, env=env,
                start_new_session=True,
            )  # fmt: skip
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
                kill(self._theirs())
                process.wait()

    def _wait_for_end(self) -> List[psutil.Process]:
        """Those that are still there after a moment."""
        deadline_s = time.monotonic() + LEFT_BEHIND_S
        while True:
            alive = self._theirs()
            if not alive or time.monotonic() > deadline_s:
                return alive
            time.sleep(0.05)

    def _theirs(self) -> List[psutil.Process]:
        return belonging(self._home.name, self._root)


def _last_line(stream: Any) -> str:
    """The last line with anything to read in it."""
    stream.seek(0)
    lines = [line for line in stream.read().splitlines() if any(map(str.isalnum, line))]
    return lines[-1] if lines else ""
