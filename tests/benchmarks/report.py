"""From measurements to what is printed: medians, ratios, and the bars that must be met."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from cwmp.encryption import psk_is_possible

from .sections import IDLE_S, LONG_JOBS, LONG_S

Rounds = Dict[str, List[Dict[str, float]]]
"""By contender or section: one dict of measurements a round."""

LABELS = {
    "cwmp": "cwmp ClusterExecutor",
    "cwmp-client": "cwmp ClientThread",
    "cwmp-main": "cwmp, function of __main__",
    "cwmp-class": "cwmp, classes of __main__",
    "cwmp-closure": "cwmp, lambda with a closure",
    "cwmp-encrypted": "cwmp, encrypted",
    "pool": "ProcessPoolExecutor(2)",
    "farm": "textbook manager farm",
    "floor": "bare-pipeline floor",
}

SECTIONS = ("long-job", "idle")

LONG_JOB_FACTOR = 1.5  # of the time that one slot alone takes for all of them
LONG_JOB_SLACK_S = 0.1  # noticing the long job, and taking back what is queued behind it


@dataclass
class Bar:
    """One figure that must be reached."""

    text: str
    measured: str
    met: bool


def table(rounds: Rounds) -> List[str]:
    """The contenders, one line each."""
    head = ["", "jobs/s", "+-", "p50 ms", "p99 ms", "cold s", "| jobs/s:", "x pool", "x floor"]
    head += ["| p50:", "x pool", "x floor"]
    rows = [head]
    for name, label in LABELS.items():
        if rounds.get(name):
            rows.append(_row(rounds, name, label))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells))
    return ["", lines[0].rstrip(), "-" * len(lines[0]), *lines[1:]] if len(rows) > 1 else []


def _row(rounds: Rounds, name: str, label: str) -> List[str]:
    rate, p50 = median(rounds, name, "jobs_per_s"), median(rounds, name, "p50_s")
    p99, cold = median(rounds, name, "p99_s"), median(rounds, name, "cold_s")
    rates = [measured["jobs_per_s"] for measured in rounds[name]]
    spread = (max(rates) - min(rates)) / 2 / rate if rate else 0.0
    cells = [label, f"{rate:,.0f}", f"{spread:.0%}", f"{1e3 * p50:.3f}", f"{1e3 * p99:.3f}", f"{cold:.2f}"]
    for mine, key in ((rate, "jobs_per_s"), (p50, "p50_s")):
        others = [median(rounds, other, key) for other in ("pool", "floor")]
        cells += ["|", *(f"{mine / other:.2f}" if other else "-" for other in others)]
    return cells


def sections(rounds: Rounds) -> List[str]:
    """The long job among small ones, and the idle cluster, in sentences."""
    lines: List[str] = []
    if rounds.get("long-job"):
        lines += ["", f"One {LONG_S:.0f} s job among {LONG_JOBS:,} no-ops: until the last no-op is in, s"]
        for measured in rounds["long-job"]:
            lines.append(
                f"  without it {measured['without_s']:.3f}, on one slot only {measured['one_slot_s']:.3f}, "
                f"with it {measured['with_s']:.3f} (submitted as number {measured['position']:,.0f})"
            )
    if rounds.get("idle"):
        lines += ["", f"Idle cluster, % of a core over {IDLE_S:.0f} s, one client connected"]
        for measured in rounds["idle"]:
            shares = [f"{role} {measured[role]:.2%}" for role in ("master", "workers", "slots")]
            lines.append(
                f"  {measured['cluster']:.2%} in {measured['processes']:.0f} processes "
                f"({', '.join(shares)}); the client's own {measured['client']:.2%}"
            )
    return lines


def bars(rounds: Rounds) -> List[Bar]:
    """The figures that cwmp promises, as far as they were measured."""
    found: List[Bar] = []
    if rounds.get("cwmp") and rounds.get("pool"):
        ratio = median(rounds, "cwmp", "jobs_per_s") / median(rounds, "pool", "jobs_per_s")
        found.append(Bar("no-op jobs/s at least 10 x ProcessPoolExecutor", f"{ratio:.1f} x", ratio >= 10))
        ratio = median(rounds, "cwmp", "p50_s") / median(rounds, "pool", "p50_s")
        found.append(Bar("p50 round trip at most 1.3 x ProcessPoolExecutor", f"{ratio:.2f} x", ratio <= 1.3))
    if rounds.get("cwmp"):
        cold_s = median(rounds, "cwmp", "cold_s")
        found.append(Bar("cold start to first result at most 1 s", f"{cold_s:.2f} s", cold_s <= 1.0))
    if rounds.get("long-job"):
        found.append(_long_job_bar(rounds["long-job"]))
    if rounds.get("idle"):
        share = median(rounds, "idle", "cluster")
        found.append(Bar("idle cluster under 1 % of a core", f"{share:.2%}", share < 0.01))
    return found


def _long_job_bar(measured: List[Dict[str, float]]) -> Bar:
    """The worst round counts: one job that waited 5 s is one too many."""
    worst = max(measured, key=_long_job_excess_s)
    text = f"a {LONG_S:.0f} s job delays no other beyond what one slot needs"
    shown = f"{worst['with_s']:.2f} s, one slot {worst['one_slot_s']:.2f} s"
    return Bar(text, shown, _long_job_excess_s(worst) <= 0)


def _long_job_excess_s(measured: Dict[str, float]) -> float:
    return measured["with_s"] - LONG_JOB_FACTOR * measured["one_slot_s"] - LONG_JOB_SLACK_S


def bar_lines(found: List[Bar]) -> List[str]:
    """Each bar, what was measured, and whether that meets it."""
    lines = [f"  {'met    ' if bar.met else 'NOT MET'}  {bar.text}: {bar.measured}" for bar in found]
    return ["", "Bars", *lines] if lines else []


def median(rounds: Rounds, name: str, key: str) -> float:
    """Median over the rounds; 0 if that contender gave none."""
    return statistics.median([measured[key] for measured in rounds.get(name, [])] or [0.0])


def one_line(name: str, measured: Dict[str, float]) -> str:
    """One contender's round, for who watches."""
    if name == "long-job":
        return f"last no-op in after {measured['with_s']:.3f} s, {measured['without_s']:.3f} s without it"
    if name == "idle":
        return f"{measured['cluster']:.2%} of a core"
    shown: Tuple[float, ...] = (measured["jobs_per_s"], 1e3 * measured["p50_s"], measured["cold_s"])
    return "{:,.0f} jobs/s, p50 {:.3f} ms, cold {:.2f} s".format(*shown)


def known_names(only: Optional[str]) -> List[str]:
    """The contenders and sections to run, from a comma-separated choice. Raises ValueError."""
    known = [*LABELS, *SECTIONS]
    if not psk_is_possible():
        known.remove("cwmp-encrypted")
    if only is None:
        return known
    chosen = [name.strip() for name in only.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    return [name for name in known if name in chosen]
