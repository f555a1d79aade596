"""A process that outlives its worker by a moment, to end what a killed worker leaves behind.

Each slot leads a process group, in which the programs that its jobs start live as well. The guardian
knows the groups. When the worker's end of the pipe closes, for whatever reason, it kills them. It runs
no user code and shares no interpreter with any, so a job that never lets go of the GIL can't stop it.
"""

from __future__ import annotations

import os
import signal
from typing import Set


class Guardian:
    """The worker's side: which process groups to end when this process ends."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _stand_guard(reading, self._writing)
        os.close(reading)

    def watch(self, group: int) -> None:
        """Kill this process group once this process is gone."""
        self._tell(b"+%d\n" % group)

    def release(self, group: int) -> None:
        """This group is gone already; its number may be used again by others."""
        self._tell(b"-%d\n" % group)

    def dismiss(self) -> None:
        """End the guardian, and with it every group that is still being watched."""
        os.close(self._writing)
        os.waitpid(self.pid, 0)

    def _tell(self, line: bytes) -> None:
        try:
            os.write(self._writing, line)
        except BrokenPipeError:
            pass  # somebody killed it; PR_SET_PDEATHSIG still ends the slots themselves


def _stand_guard(reading: int, writing: int) -> None:
    """In the guardian's own process: read until the worker is gone, kill, exit."""
    try:
        os.close(writing)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(reading)
        for group in _read_groups(reading):
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:
                pass  # gone already
    finally:
        os._exit(0)


def _read_groups(reading: int) -> Set[int]:
    """The groups that are being watched when the pipe ends."""
    groups: Set[int] = set()
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            change = groups.add if line[:1] == b"+" else groups.discard
            change(int(line[1:]))
    return groups


def _close_all_but(keep: int) -> None:
    """Hold no descriptor of the worker: its sockets and its output must end when it ends."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory
