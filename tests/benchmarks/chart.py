"""Draw what `peers --json` has measured: `python -m tests.benchmarks.chart FILE.json FILE.svg`.

A panel for each kind of work, a bar for each peer, and under them when, where and with which versions it ran.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from html import escape
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from .peers_report import LABELS, PLAINLY, median
from .report import Rounds


class Panel(NamedTuple):
    """One kind of work: its measurement, what is written over it, and how values are written."""

    key: str
    title: str
    factor: float
    shown: str
    more_is_better: bool


PANELS = (
    Panel("jobs_per_s", "No-op jobs, one by one: jobs/s", 1.0, "{:,.0f}", True),
    Panel("p50_s", "Round trip of one no-op job (median), ms", 1e3, "{:.2f}", False),
    Panel("echo_1k_per_s", "Echo of 1 KB: jobs/s", 1.0, "{:,.0f}", True),
    Panel("echo_100k_per_s", "Echo of 100 kB: jobs/s", 1.0, "{:,.0f}", True),
    Panel("echo_1m_per_s", "Echo of 1 MiB: jobs/s", 1.0, "{:,.0f}", True),
    Panel("shared_s", "One array of 32 MiB used by 50 jobs, s", 1.0, "{:.2f}", False),
    Panel("cold_s", "From the start of the program to its first result, s", 1.0, "{:.2f}", False),
    Panel("cpu_s_per_10k", "CPU seconds of all processes for 10,000 no-op jobs", 1.0, "{:.2f}", False),
)
PANELS_IN_A_ROW = 2

PANEL_WIDTH, LABEL_WIDTH, VALUE_WIDTH = 490, 170, 60
BAR_HEIGHT, BAR_STEP = 12, 17
TITLE_HEIGHT, MARGIN, NOTE_STEP = 36, 16, 16
OURS, THEIRS, INK, PALE_INK = "#c2410c", "#94a3b8", "#1e293b", "#64748b"

Bars = List[Tuple[str, float, bool]]
"""(label, value, whether it is ours) from top to bottom."""


def main() -> int:
    """Read, draw, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.chart", description="Draw what `peers --json` has measured."
    )
    parser.add_argument("measured", type=Path, metavar="FILE.json", help="from tests.benchmarks.peers")
    parser.add_argument("chart", type=Path, metavar="FILE.svg", help="where to draw")
    args = parser.parse_args()
    measured = json.loads(args.measured.read_text())
    args.chart.write_text(draw(measured["rounds"], measured["machine"]))
    return 0


def draw(rounds: Rounds, machine: Dict[str, str]) -> str:
    """The whole chart as the text of an SVG file."""
    panels = [(panel, bars) for panel in PANELS for bars in [bars_of(rounds, panel)] if bars]
    notes = notes_of(machine, max((len(measured) for measured in rounds.values()), default=0))
    parts: List[str] = []
    top = MARGIN
    for first in range(0, len(panels), PANELS_IN_A_ROW):
        row = panels[first : first + PANELS_IN_A_ROW]
        for column, (panel, bars) in enumerate(row):
            parts += _panel(MARGIN + column * (PANEL_WIDTH + MARGIN), top, panel, bars)
        top += TITLE_HEIGHT + BAR_STEP * max(len(bars) for _, bars in row) + MARGIN
    for line in notes:
        top += NOTE_STEP
        parts.append(_text(MARGIN, top, line, PALE_INK, size=11))
    width, height = MARGIN + PANELS_IN_A_ROW * (PANEL_WIDTH + MARGIN), top + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif">'
    )
    background = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def bars_of(rounds: Rounds, panel: Panel) -> Bars:
    """Who has this measurement, the best one first."""
    found: Bars = []
    for name, label in LABELS.items():
        value = median(rounds, name, panel.key)
        if value is not None:
            found.append((label, value, name == "cwmp"))
    plainly_s = median(rounds, "cwmp", "shared_plainly_s")
    if panel.key == "shared_s" and plainly_s is not None:
        found.append((PLAINLY, plainly_s, True))
    found.sort(key=lambda bar: bar[1], reverse=panel.more_is_better)
    return found


def notes_of(machine: Dict[str, str], rounds: int) -> List[str]:
    """What is written under the chart."""
    facts = {
        "date": "{}", "cpu": "{}", "cores": "cores: {}", "system": "{}", "load": "load {}", "python": "{}",
        "versions": "{}",
    }  # fmt: skip
    said = "; ".join(shown.format(machine[fact]) for fact, shown in facts.items() if machine.get(fact))
    how = f"Two worker processes each; {'medians of ' if rounds > 1 else ''}{_rounds(rounds)}. "
    return textwrap.wrap(how + said, 150)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _panel(left: float, top: float, panel: Panel, bars: Bars) -> List[str]:
    """Title and bars of one panel; the longest bar is as long as there is room."""
    better = "more is better" if panel.more_is_better else "less is better"
    parts = [
        _text(left, top + 14, panel.title, INK, weight="bold"),
        _text(left, top + 28, better, PALE_INK, size=10),
    ]
    longest = max(value for _, value, _ in bars) or 1.0
    room = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
    for number, (label, value, ours) in enumerate(bars):
        y = top + TITLE_HEIGHT + number * BAR_STEP
        length = max(1.0, room * value / longest)
        colour, weight = (OURS, "bold") if ours else (THEIRS, "normal")
        begin, baseline = left + LABEL_WIDTH, y + BAR_HEIGHT - 2
        shown = panel.shown.format(value * panel.factor)
        parts += [
            _text(begin - 6, baseline, label, INK, size=11, weight=weight, anchor="end"),
            f'<rect x="{begin}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>',
            _text(begin + length + 5, baseline, shown, INK, size=11, weight=weight),
        ]
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    size: int = 12,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    raise SystemExit(main())
