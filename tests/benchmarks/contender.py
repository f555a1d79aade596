"""One contender in a process of its own: `python -m tests.benchmarks.contender NAME JOBS SEED`.

Prints its measurements as one line of JSON. Its standard input is a line to the benchmark: when
that closes, because the benchmark ended in whatever way, the contender interrupts itself.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from typing import Dict

from . import sections
from .contenders import contenders
from .lifeline import watch_benchmark

OFFSET = 0


def noop_in_main(number: int) -> int:
    """A no-op where users write their functions: in the program itself, and with a global."""
    return number + OFFSET


@dataclass(frozen=True)
class Parameters:
    """What many programs have: a dataclass of their own, ..."""

    offset: int = 0


class Answer(int):
    """... and results that are instances of their own classes."""


def noop_with_classes(number: int) -> int:
    """A no-op of such a program."""
    return Answer(number + Parameters().offset)


def main() -> None:
    """Measure what the command line names, and print it."""
    started_s = time.perf_counter()
    name, jobs, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    watch_benchmark()
    print(json.dumps(_measure(name, jobs, seed, started_s)))


def _measure(name: str, jobs: int, seed: int, started_s: float) -> Dict[str, float]:
    if name == "long-job":
        return sections.long_job(seed)
    if name == "idle":
        return sections.idle()
    table = list(range(10))
    closure = lambda number: number + table[0]  # noqa: E731
    context = contenders(noop_in_main, noop_with_classes, closure)[name]
    return sections.small_jobs(context, jobs, started_s)


if __name__ == "__main__":
    main()
