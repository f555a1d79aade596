"""From what `scale` has measured to its table and the bars that must be met."""

from __future__ import annotations

from typing import Dict, List

from .report import Bar

Size = Dict[str, float]
"""What was measured with one number of nodes; the keys of `COLUMNS`, and with the most nodes the rest."""

COLUMNS = {
    "nodes": ("nodes", "{:,.0f}", 1.0),
    "join_s": ("all in, s", "{:.2f}", 1.0),
    "join_cpu_s": ("master's CPU, s", "{:.2f}", 1.0),
    "jobs_per_s": ("| no-op jobs/s", "{:,.0f}", 1.0),
    "master_s_per_job": ("master's CPU, us a job", "{:.1f}", 1e6),
    "idle_share": ("| idle: master's share of a core", "{:.1%}", 1.0),
}
"""By key: heading, format, factor."""

LOSSES = ("killed", "silent")

JOIN_BAR_S = 60.0
RATE_BAR = 0.7  # of the rate with the fewest nodes
IDLE_BAR = 0.10
RECOVERY_BAR_S = 30.0


def table(sizes: List[Size]) -> List[str]:
    """A line for each size, and what became of the jobs of lost nodes."""
    rows = [[heading for heading, _, _ in COLUMNS.values()]]
    for size in sizes:
        rows.append(
            [
                shown.format(size[key] * factor) if key in size else ""
                for key, (_, shown, factor) in COLUMNS.items()
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    losses = [_loss_line(size, what) for size in sizes for what in LOSSES if f"{what}_jobs" in size]
    return ["", lines[0], "-" * len(lines[0]), *lines[1:], "", *losses]


def _loss_line(size: Size, what: str) -> str:
    nodes, held, jobs = size[f"{what}_nodes"], size[f"{what}_held"], size[f"{what}_jobs"]
    return (
        f"{nodes:,.0f} nodes {what} at once while they held {held:,.0f} of {jobs:,.0f} jobs: "
        f"{size[f'{what}_lost']:,.0f} jobs lost, {size[f'{what}_twice']:,.0f} answered twice, "
        f"the last one in after {size[f'{what}_recovery_s']:.1f} s"
    )


def bars(sizes: List[Size]) -> List[Bar]:
    """The figures that a master promises, as far as they were measured."""
    if not sizes:
        return []
    few, many = min(sizes, key=_nodes), max(sizes, key=_nodes)
    nodes = f"{many['nodes']:,.0f}"
    found = [Bar(f"{nodes} nodes in within {JOIN_BAR_S:.0f} s", f"{many['join_s']:.1f} s",
                 many["join_s"] <= JOIN_BAR_S)]  # fmt: skip
    if few is not many:
        ratio = many["jobs_per_s"] / few["jobs_per_s"]
        text = f"jobs/s with {nodes} nodes at least {RATE_BAR} x that with {few['nodes']:,.0f}"
        found.append(Bar(text, f"{ratio:.2f} x", ratio >= RATE_BAR))
    if "idle_share" in many:
        text = f"{nodes} idle nodes cost the master under {IDLE_BAR:.0%} of a core"
        found.append(Bar(text, f"{many['idle_share']:.1%}", many["idle_share"] < IDLE_BAR))
    return found + [_loss_bar(many, what) for what in LOSSES if f"{what}_jobs" in many]


def _loss_bar(size: Size, what: str) -> Bar:
    nodes, lost, twice = size[f"{what}_nodes"], size[f"{what}_lost"], size[f"{what}_twice"]
    recovery_s = size[f"{what}_recovery_s"]
    text = f"{nodes:,.0f} nodes {what} at once lose nothing, and it is over within {RECOVERY_BAR_S:.0f} s"
    shown = f"{lost:,.0f} lost, {twice:,.0f} twice, {recovery_s:.1f} s"
    # Nodes that held nothing when they were lost would prove nothing.
    met = lost == 0 and twice == 0 and recovery_s <= RECOVERY_BAR_S and size[f"{what}_held"] > 0
    return Bar(text, shown, met)


def one_line(size: Size) -> str:
    """One size, for who watches."""
    return f"{size['nodes']:,.0f} nodes in after {size['join_s']:.2f} s, {size['jobs_per_s']:,.0f} jobs/s"


def _nodes(size: Size) -> float:
    return size["nodes"]
