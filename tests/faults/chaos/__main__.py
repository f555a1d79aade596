"""`python -m tests.faults.chaos`: a run, what happens in it, and what came of it."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Iterator

from tests.faults.chaos.judge import Verdict
from tests.faults.chaos.run import run
from tests.faults.chaos.schedule import KINDS, schedule

SHOWN = 40
"""Problems that are printed."""


def main() -> int:
    """Run the command; returns its exit status: 0 where all came as promised."""
    args = _parser().parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    only = KINDS if args.only is None else args.only
    actions = schedule(seed, args.minutes, clients=args.clients, workers=args.workers, only=only)
    print(f"seed {seed}, {args.minutes:g} minutes, {len(actions)} actions, of {' '.join(only)}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="cwmp-chaos-", dir=args.directory))
    verdict, done = run(
        actions,
        args.minutes * 60,
        directory,
        clients=args.clients,
        workers=args.workers,
        say=lambda line: print(line, flush=True),
    )
    print(*summary(verdict, done), sep="\n")
    if not verdict.problems:
        shutil.rmtree(directory)
        return 0
    print(f"\n{len(verdict.problems)} PROBLEMS with seed {seed}; logs and notes are in {directory}")
    print(*verdict.problems[:SHOWN], sep="\n")
    return 1


def summary(verdict: Verdict, done: Counter[str]) -> Iterator[str]:
    """What came of a run, as a table."""
    rows = {
        "jobs": verdict.jobs,
        "runs": verdict.runs,
        "jobs run more than once": verdict.run_again,
        **{f"outcome: {kind}": count for kind, count in sorted(verdict.outcomes.items())},
        "longest open (s)": round(verdict.longest_s, 1),
        "the same, less what stopped everything (s)": round(verdict.longest_healthy_s, 1),
        **{f"{act} (times)": count for act, count in sorted(done.items())},
    }
    width = max(map(len, rows))
    yield ""
    yield from (f"{name:{width}}  {value:>8}" for name, value in rows.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, help="do again what was done with it (default: a new one)")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"of {' '.join(KINDS)}")
    parser.add_argument("--directory", help="where to keep all files (default: where temporary ones go)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
