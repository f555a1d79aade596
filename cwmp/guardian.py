"""A process that outlives its worker by a moment, to end what a killed worker leaves behind.

Each slot leads a process group, in which the programs that its jobs start live as well. The guardian
knows the groups. When the worker's end of the pipe closes, for whatever reason, it kills them. It runs
no user code and shares no interpreter with any, so a job that never lets go of the GIL can't stop it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Set, Tuple

from .shelf import sweep_one

_PR_SET_PDEATHSIG = 1


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

    def sweep(self, path: str) -> None:
        """Remove this shelf at the end, if its owner has died too; see `shelf`."""
        self._tell(b"=%s\n" % os.fsencode(path))

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
        close_all_but(reading)
        groups, shelves = _read_orders(reading)
        for group in groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:
                pass  # gone already
        for path in shelves:
            sweep_one(path)
    finally:
        os._exit(0)


def _read_orders(reading: int) -> Tuple[Set[int], Set[str]]:
    """The groups that are being watched when the pipe ends, and the shelves to look after."""
    groups: Set[int] = set()
    shelves: Set[str] = set()
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if line[:1] == b"=":
                shelves.add(os.fsdecode(line[1:-1]))
                continue
            change = groups.add if line[:1] == b"+" else groups.discard
            change(int(line[1:]))
    return groups, shelves


def die_with_parent(parent: int) -> None:
    """Linux: have the kernel kill this process when its worker ends, whatever it is doing then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def close_all_but(keep: int) -> None:
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
