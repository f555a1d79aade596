"""Which processes belong to a benchmark, wherever they are in the process tree, and how to end them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Dict, List, Optional, Tuple

import psutil

CpuTimes = Dict[Tuple[int, float], float]
"""By process (pid and time of its birth): seconds of user and system time."""

_PR_SET_CHILD_SUBREAPER = 36
_ENDING_S = 5.0


def adopt_orphans() -> None:
    """On Linux: processes below this one whose parents end become our children, not init's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_orphans() -> None:
    """Collect the exit status of adopted children; only while there are no others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def belonging(home: str, root: Optional[int] = None) -> List[psutil.Process]:
    """The living processes, but this one, that inherited this `CWMP_HOME` or descend from `root`.

    The second finds those that overwrite their environment with a title. Zombies do not count.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("CWMP_HOME") == home:
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue
    if root is not None:
        try:
            found.update({process.pid: process for process in psutil.Process(root).children(recursive=True)})
        except psutil.Error:
            pass
        found.pop(root, None)
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def cpu_times(processes: List[psutil.Process]) -> CpuTimes:
    """What each of these has used so far; those that are gone by now are left out."""
    found: CpuTimes = {}
    for process in processes:
        try:
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            continue
    return found


def used_s(before: CpuTimes, after: CpuTimes) -> float:
    """Processor time between two looks, of all that were there at the second one."""
    return sum(seconds - before.get(process, 0.0) for process, seconds in after.items())


def kill(processes: List[psutil.Process]) -> None:
    """End these at once and wait until they are gone."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=_ENDING_S)
