"""One peer in a program of its own: `python -m tests.benchmarks.peer NAME STARTED_S [KEYS]`.

Prints its measurements as one line of JSON, but for the `KEYS` (separated by commas) that are not wanted. The
cold start counts from `STARTED_S`, the monotonic clock when the benchmark started this process. Its standard
input is a line to the benchmark, see `lifeline`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import Callable, Dict, List

from .idioms import IDIOMS
from .jobs import noop
from .lifeline import watch_benchmark

ROOT_VARIABLE = "CWMP_BENCHMARK_PID"
"""In the environment: the process below which all belongs to the peer that runs."""


def main() -> None:
    """Measure what the command line names, and print it."""
    name, started_s, omit = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    watch_benchmark()
    with contextlib.redirect_stdout(sys.stderr):  # peers print, too
        measured = _measure(name, started_s, omit)
    print(json.dumps(measured), flush=True)


def _measure(name: str, started_s: float, omit: List[str]) -> Dict[str, float]:
    with IDIOMS[name]() as idiom:
        if idiom.one(noop, 7) != 7:
            raise AssertionError("not the right answer")
        cold_s = time.monotonic() - started_s
        from . import peer_work  # the rest is not part of a cold start

        omitted = frozenset(key for keys in omit for key in keys.split(","))
        return {"cold_s": cold_s, **peer_work.measure(idiom, _cpu_meter(), omitted)}


def _cpu_meter() -> Callable[[], float]:
    """A function that tells what all processes of this peer, this one too, have used since its last call."""
    import psutil

    from .processes import CpuTimes, belonging, cpu_times, used_s

    last: CpuTimes = {}

    def cpu_s() -> float:
        nonlocal last
        everybody = belonging(os.environ["CWMP_HOME"], int(os.environ[ROOT_VARIABLE]))
        before, last = last, cpu_times([*everybody, psutil.Process()])
        return used_s(before, last)

    return cpu_s


if __name__ == "__main__":
    main()
