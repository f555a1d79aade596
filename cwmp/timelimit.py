"""When SLURM will end the job that this process runs in.

The environment tells it where SLURM is new enough, and `squeue` everywhere. It is asked again now and
then, because `scontrol update` may change it: in a child process, so that nobody waits for it.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from typing import Callable, Mapping, Optional

from . import defaults
from .loop import Loop
from .place import slurm_job

_NEVER = ("N/A", "NONE", "Unknown", "UNLIMITED")
_PATIENCE_S = 30.0  # for an answer of squeue
_LONGEST_ANSWER = 200


def end_in(environ: Mapping[str, str]) -> Optional[float]:
    """The end of the job as seconds since 1970, where the environment tells it.

    >>> end_in({"SLURM_JOB_END_TIME": "1700000000"}), end_in({})
    (1700000000.0, None)
    """
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() and 0 < int(text) < 1 << 40 else None


def read_end(text: str) -> Optional[float]:
    """The end of the job, as `squeue -o %e` writes it; None: there is no end. Raises ValueError.

    >>> read_end("N/A") is None, read_end("2033-05-18T03:33:20") > 2e9 - 86400
    (True, True)
    """
    text = text.strip()
    if text in _NEVER:
        return None
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


class TimeLimit:
    """The end of our SLURM job, read again every `LIMIT_LOOK_S`.

    `on_end(ends_at)` is called whenever it becomes known or changes: on the clock of `time.monotonic()`, None
    for no end. What SLURM does not tell, or not in a form that we know, changes nothing.
    """

    def __init__(
        self, environ: Mapping[str, str], loop: Loop, on_end: Callable[[Optional[float]], None]
    ) -> None:
        # The shell of `salloc` may run on a login node, which outlives the job: only slurmd names a node.
        self._job = slurm_job(environ) if "SLURMD_NODENAME" in environ else None
        plain = {name: value for name, value in environ.items() if not name.startswith("SQUEUE_")}
        self._environ = {**plain, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
        self._loop = loop
        self._on_end = on_end
        # What SLURM says is of its own clock, so ours is looked at once: it may be set while we run.
        self._epoch = time.monotonic() - time.time()
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._answer = b""
        self._give_up = 0.0
        end = end_in(environ) if self._job else None
        self._next_look = 0.0
        if end is not None:
            self._tell(end)
            self._next_look = time.monotonic() + _soon(defaults.LIMIT_LOOK_S)

    def tend(self, now: float) -> None:
        """Ask if it is time to; to be called every few seconds."""
        if self._process is not None:
            if now >= self._give_up:
                self.close()
        elif self._job is not None and now >= self._next_look:
            self._next_look = now + _soon(defaults.LIMIT_LOOK_S)
            self._give_up = now + _PATIENCE_S
            self._ask(self._job)

    def close(self) -> None:
        """End a question that has no answer yet."""
        if self._process is not None and self._process.stdout is not None:
            self._loop.forget(self._process.stdout)
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, job: str) -> None:
        try:
            self._process = subprocess.Popen(
                ["squeue", "--noheader", "--jobs", job, "--format", "%e"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environ,
                bufsize=0,
            )
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                self._job = None  # there is no squeue here
            return
        assert self._process.stdout is not None
        self._answer = b""
        self._loop.watch(self._process.stdout, self._on_output)

    def _on_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 4096)
        self._answer += data
        if data and len(self._answer) < _LONGEST_ANSWER:
            return
        answer = self._answer.decode(errors="replace")
        self.close()
        try:
            end = read_end(answer)
        except (ValueError, OverflowError):
            return  # squeue failed, or knows the job no more: the next answer may be better
        if end is None:
            self._on_end(None)
        else:
            self._tell(end)

    def _tell(self, end: float) -> None:
        self._on_end(self._epoch + end)


def _soon(seconds: float) -> float:
    """About so many seconds: not all agents should ask in the same moment."""
    return seconds * random.uniform(0.8, 1.2)
