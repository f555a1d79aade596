"""From the measurements of `peers` to its table, and the bars that cwmp must meet."""

from __future__ import annotations

import statistics
from typing import Dict, List, Optional, Tuple

from .report import Bar, Rounds

LABELS = {
    "cwmp": "cwmp",
    "pool": "ProcessPoolExecutor",
    "loky": "loky",
    "farm": "textbook manager farm",
    "floor": "bare-pipeline floor",
    "dask": "Dask distributed",
    "ray": "Ray",
    "parsl": "Parsl HTEX",
    "ipyparallel": "ipyparallel",
    "mpi4py": "mpi4py.futures",
}

CLUSTER_PEERS = ("dask", "ray", "parsl", "ipyparallel", "mpi4py")
"""Those that can use several machines, as cwmp can."""

COLUMNS: Dict[str, Tuple[str, float, str]] = {
    "jobs_per_s": ("no-op jobs/s", 1.0, "{:,.0f}"),
    "p50_s": ("p50 ms", 1e3, "{:.2f}"),
    "p99_s": ("p99 ms", 1e3, "{:.2f}"),
    "echo_1k_per_s": ("1 KB echo/s", 1.0, "{:,.0f}"),
    "echo_100k_per_s": ("100 kB echo/s", 1.0, "{:,.0f}"),
    "echo_1m_per_s": ("1 MiB echo/s", 1.0, "{:,.0f}"),
    "shared_s": ("32 MiB in 50 jobs, s", 1.0, "{:.2f}"),
    "cold_s": ("first result, s", 1.0, "{:.2f}"),
    "cpu_s_per_10k": ("CPU s for 10,000", 1.0, "{:.2f}"),
}
"""By measurement: heading, factor and format."""

PLAINLY = "cwmp without share"

NOOP_OF_POOL, NOOP_OF_FLOOR, NOOP_OF_PEERS = 12.0, 0.8, 10.0
P50_OF_POOL, P99_OF_P50 = 1.0, 4.0
ECHO_OF_POOL, ECHO_100K_PER_S = 1.5, 2000.0
SHARED_S, SHARED_PLAINLY_S, COLD_S = 0.25, 0.6, 0.5


def median(rounds: Rounds, name: str, key: str) -> Optional[float]:
    """Over the rounds that have it; None if none has."""
    values = [measured[key] for measured in rounds.get(name, []) if key in measured]
    return statistics.median(values) if values else None


def table(rounds: Rounds) -> List[str]:
    """The peers, one line each."""
    rows = [["", *(heading for heading, _, _ in COLUMNS.values())]]
    for name, label in LABELS.items():
        if rounds.get(name):
            rows.append([label, *(_cell(key, median(rounds, name, key)) for key in COLUMNS)])
    plainly_s = median(rounds, "cwmp", "shared_plainly_s")
    if plainly_s is not None:
        cells = [_cell(key, plainly_s) if key == "shared_s" else "" for key in COLUMNS]
        rows.insert(2, [PLAINLY, *cells])
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return ["", lines[0], "-" * len(lines[0]), *lines[1:]]


def _cell(key: str, value: Optional[float]) -> str:
    _, factor, shown = COLUMNS[key]
    return "-" if value is None else shown.format(value * factor)


def bars(rounds: Rounds) -> List[Bar]:
    """The figures that cwmp is to reach, as far as what they are measured against has run."""
    pool = LABELS["pool"]
    found = [
        _against(rounds, "pool", "jobs_per_s", f"no-op jobs/s at least {{}} x {pool}", NOOP_OF_POOL),
        _against(rounds, "floor", "jobs_per_s", "no-op jobs/s at least {} x the floor", NOOP_OF_FLOOR),
        *_ahead_of_all(rounds, "jobs_per_s", "no-op jobs/s more than {} x", NOOP_OF_PEERS),
        _against(rounds, "pool", "p50_s", f"p50 round trip at most {{}} x {pool}", P50_OF_POOL, less=True),
        _p99_bar(rounds),
        _echo_100k_bar(rounds),
        _against(rounds, "pool", "echo_1m_per_s", f"1 MiB echo at least {{}} x {pool}", ECHO_OF_POOL),
        *_ahead_of_all(rounds, "echo_1m_per_s", "1 MiB echo more than {} x", 1.0),
        _at_most(rounds, "shared_s", "32 MiB in 50 jobs, shared, within {} s", SHARED_S),
        _at_most(rounds, "shared_plainly_s", "32 MiB in 50 jobs, not shared, within {} s", SHARED_PLAINLY_S),
        _at_most(rounds, "cold_s", "first result from cold within {} s", COLD_S),
    ]
    return [bar for bar in found if bar is not None]


def _against(
    rounds: Rounds, peer: str, key: str, text: str, factor: float, less: bool = False
) -> Optional[Bar]:
    """cwmp's figure as a multiple of a peer's, which must be at least (or at most) `factor`."""
    mine, theirs = median(rounds, "cwmp", key), median(rounds, peer, key)
    if mine is None or not theirs:
        return None
    ratio = mine / theirs
    return Bar(text.format(f"{factor:g}"), f"{ratio:.2f} x", ratio <= factor if less else ratio >= factor)


def _ahead_of_all(rounds: Rounds, key: str, text: str, factor: float) -> List[Optional[Bar]]:
    return [_against(rounds, peer, key, f"{text} {LABELS[peer]}", factor) for peer in CLUSTER_PEERS]


def _at_most(rounds: Rounds, key: str, text: str, limit_s: float) -> Optional[Bar]:
    mine_s = median(rounds, "cwmp", key)
    if mine_s is None:
        return None
    return Bar(text.format(f"{limit_s:g}"), f"{mine_s:.2f} s", mine_s <= limit_s)


def _p99_bar(rounds: Rounds) -> Optional[Bar]:
    p50_s, p99_s = median(rounds, "cwmp", "p50_s"), median(rounds, "cwmp", "p99_s")
    if not p50_s or not p99_s:
        return None
    ratio = p99_s / p50_s
    return Bar(f"p99 round trip at most {P99_OF_P50:g} x p50", f"{ratio:.1f} x", ratio <= P99_OF_P50)


def _echo_100k_bar(rounds: Rounds) -> Optional[Bar]:
    """Either is enough."""
    key = "echo_100k_per_s"
    mine, pool = median(rounds, "cwmp", key), median(rounds, "pool", key)
    if mine is None:
        return None
    ratio = mine / pool if pool else 0.0
    text = f"100 kB echo at least {ECHO_100K_PER_S:,.0f}/s or {ECHO_OF_POOL:g} x ProcessPoolExecutor"
    return Bar(text, f"{mine:,.0f}/s, {ratio:.2f} x", mine >= ECHO_100K_PER_S or ratio >= ECHO_OF_POOL)


def one_line(measured: Dict[str, float]) -> str:
    """One peer's round, for who watches."""
    shown = [f"{heading} {_cell(key, measured.get(key))}" for key, (heading, _, _) in COLUMNS.items()]
    return ", ".join(shown)
