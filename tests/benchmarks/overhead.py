"""What a job costs on two slots: `python -m tests.benchmarks.overhead --help`.

Each contender runs in a process of its own, one after the other, for several rounds; the table
shows medians over the rounds. A cold start counts from before the imports.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any, Dict, List

from . import report
from .machine import facts
from .runner import ContenderFailed, Runner

SEED = 2
FARM_SHARE = 4  # the farm gets a fraction of the jobs: it is slow, and no faster with more


def main() -> int:
    """Measure, print, and return the exit status."""
    args = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    about = facts()
    _print_lines(f"{key:>7}: {value}" for key, value in about.items())
    failures: Dict[str, str] = {}
    try:
        rounds = _measure(args.names, args.jobs, args.rounds, failures)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    bars = report.bars(rounds)
    print(f"\n{args.jobs:,} no-op jobs, median of {args.rounds} rounds")
    _print_lines(report.table(rounds))
    _print_lines(report.sections(rounds))
    _print_lines(f"FAILED  {name}: {reason}" for name, reason in failures.items())
    _print_lines(report.bar_lines(bars))
    if args.json:
        shown = [vars(bar) for bar in bars]
        answer = {"machine": about, "jobs": args.jobs, "rounds": rounds, "bars": shown, "failures": failures}
        args.json.write_text(json.dumps(answer, indent=1) + "\n")
    missed = failures or not all(bar.met for bar in bars)
    return 1 if args.check and missed else 0


def _parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.overhead", description="What a job costs on two slots."
    )
    parser.add_argument("--jobs", type=int, default=20_000, metavar="N", help="jobs a pass (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there, too")
    parser.add_argument("--only", metavar="NAMES", help="of " + ", ".join(report.known_names(None)))
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is not met")
    args = parser.parse_args()
    if args.jobs < FARM_SHARE or args.rounds < 1:
        parser.error("--jobs and --rounds must be positive")
    try:
        args.names = report.known_names(args.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    return args


def _measure(names: List[str], jobs: int, rounds: int, failures: Dict[str, str]) -> report.Rounds:
    """Run everything, interleaved; what fails is noted and not tried again."""
    measured: report.Rounds = {name: [] for name in names}
    with Runner() as runner:
        for number in range(rounds):
            for name in names:
                if name in failures:
                    continue
                share = jobs // FARM_SHARE if name == "farm" else jobs
                try:
                    argv = [sys.executable, "-m", "tests.benchmarks.contender"]
                    measured[name].append(runner.run([*argv, name, str(share), str(SEED + number)]))
                    if runner.left_behind:
                        failures[name] = f"left {runner.left_behind} processes behind"
                except ContenderFailed as error:
                    failures[name] = str(error)
                shown = failures.get(name) or report.one_line(name, measured[name][-1])
                print(f"round {number + 1} of {rounds}  {name:<13} {shown}", file=sys.stderr)
    return measured


def _print_lines(lines: Any) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
