"""This checkout against another one of cwmp: `python -m tests.benchmarks.against OTHER`.

A machine that others use as well runs the same code at speeds that differ by half from one minute to the
next. So programs of both checkouts take turns, and what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .machine import facts
from .runner import ROOT, ContenderFailed, Runner

Pair = Tuple[Dict[str, float], Dict[str, float]]
"""Measurements of the other checkout, and of this one."""

FIGURES = {
    "jobs_per_s": ("no-op jobs/s", 1.0, "{:,.0f}"),
    "p50_s": ("round trip p50, ms", 1e3, "{:.3f}"),
    "p99_s": ("round trip p99, ms", 1e3, "{:.3f}"),
    "cold_s": ("cold start to first result, s", 1.0, "{:.2f}"),
}
"""By measurement: heading, factor and format."""


def main() -> int:
    """Measure, print, and return the exit status."""
    args = _parse()
    for key, value in facts().items():
        print(f"{key:>8}: {value}", flush=True)
    pairs: List[Pair] = []
    try:
        with Runner(tree=args.other) as other, Runner() as this:
            for number in range(args.pairs):
                argv = [sys.executable, "-m", "tests.benchmarks.contender"]
                argv += ["cwmp", str(args.jobs), str(number)]
                pairs.append((other.run(argv), this.run(argv)))
                rates = " and ".join(f"{measured['jobs_per_s']:,.0f}" for measured in pairs[-1])
                print(f"pair {number + 1} of {args.pairs}: {rates} jobs/s", flush=True)
    except ContenderFailed as error:
        print(f"against: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *table(pairs)]))
    return 0


def _parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.against", description="This checkout against another one."
    )
    parser.add_argument("other", type=Path, metavar="OTHER", help="another checkout of cwmp")
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="programs of each (%(default)s)")
    parser.add_argument("--jobs", type=int, default=40_000, metavar="N", help="jobs of each (%(default)s)")
    args = parser.parse_args()
    args.other = args.other.resolve()
    if args.pairs < 1 or args.jobs < 1:
        parser.error("--pairs and --jobs must be positive")
    if not (args.other / "tests" / "benchmarks" / "contender.py").is_file() or args.other == ROOT:
        parser.error(f"{args.other} is not another checkout of cwmp")
    return args


def table(pairs: List[Pair]) -> List[str]:
    """A line for each figure: medians, and the ratio of this checkout to the other with its middle half.

    >>> print(*table([({"p50_s": 0.001}, {"p50_s": 0.002})] * 3), sep="\\n")
                                        other        this  ratio (half of all pairs)
    round trip p50, ms                  1.000       2.000  2.000 (2.000 to 2.000)
    """
    lines = [f"{'':<30}{'other':>11} {'this':>11}  ratio (half of all pairs)"]
    for key, (heading, factor, shown) in FIGURES.items():
        if not all(key in measured for pair in pairs for measured in pair):
            continue
        other, this = ([pair[side][key] for pair in pairs] for side in (0, 1))
        ratios = sorted(mine / theirs for theirs, mine in zip(other, this))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        medians = [shown.format(statistics.median(side) * factor) for side in (other, this)]
        ratio = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"{heading:<30}{medians[0]:>11} {medians[1]:>11}  {ratio}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
