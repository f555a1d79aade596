"""What the benchmark of the peers makes of its measurements: the table, the bars, the chart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Dict, List
from xml.etree import ElementTree

import pytest

from tests.benchmarks import chart, peers_report
from tests.benchmarks.report import Rounds

ROOT = Path(__file__).resolve().parents[2]

FLOOR: Dict[str, float] = {
    "jobs_per_s": 120_000.0, "p50_s": 0.0002, "p99_s": 0.0008, "echo_1k_per_s": 50_000.0,
    "echo_100k_per_s": 2_000.0, "echo_1m_per_s": 300.0, "shared_s": 0.25, "cold_s": 0.5, "cpu_s_per_10k": 0.2,
}  # fmt: skip
CWMP = {**FLOOR, "jobs_per_s": 96_000.0, "shared_plainly_s": 0.6}
POOL = {**FLOOR, "jobs_per_s": 8_000.0, "echo_100k_per_s": 1_500.0, "echo_1m_per_s": 200.0}
RAY = {**FLOOR, "jobs_per_s": 9_600.0, "echo_1m_per_s": 299.0}
MACHINE = {"date": "2026-11-23", "cpu": "A <fast> one", "versions": "cwmp 0.1.0, ray 2"}


def rounds(**changes: float) -> Rounds:
    """A run in which cwmp just meets every bar, but for what is changed in its figures."""
    return {"cwmp": [{**CWMP, **changes}], "pool": [POOL], "floor": [FLOOR], "ray": [RAY]}


def missed(measured: Rounds) -> List[str]:
    """The bars that are not met."""
    return [bar.text for bar in peers_report.bars(measured) if not bar.met]


def test_the_middle_of_the_rounds_counts_and_those_without_it_do_not() -> None:
    measured: Rounds = {"cwmp": [{"a": 1.0, "b": 5.0}, {"a": 9.0}, {"a": 2.0}]}
    assert peers_report.median(measured, "cwmp", "a") == 2.0
    assert peers_report.median(measured, "cwmp", "b") == 5.0
    assert peers_report.median(measured, "cwmp", "c") is None
    assert peers_report.median(measured, "ray", "a") is None


def test_figures_that_just_reach_the_bars_meet_them() -> None:
    assert missed(rounds()) == []
    assert len(peers_report.bars(rounds())) == 11


@pytest.mark.parametrize(
    ("change", "bar"),
    [
        ({"jobs_per_s": 95_999.0}, "at least 12 x ProcessPoolExecutor"),
        ({"p50_s": 0.00021}, "p50 round trip"),
        ({"p99_s": 0.00081}, "p99 round trip"),
        ({"echo_100k_per_s": 1_999.0}, "100 kB echo"),
        ({"echo_1m_per_s": 299.0}, "1 MiB echo at least 1.5 x"),
        ({"shared_s": 0.26}, "50 jobs, shared"),
        ({"shared_plainly_s": 0.61}, "not shared"),
        ({"cold_s": 0.51}, "from cold"),
    ],
)
def test_a_figure_short_of_its_bar_is_told(change: Dict[str, float], bar: str) -> None:
    assert any(bar in text for text in missed(rounds(**change)))


def test_every_cluster_peer_that_ran_has_bars_of_its_own() -> None:
    quick, broad = {**RAY, "jobs_per_s": 9_601.0}, {**RAY, "echo_1m_per_s": 301.0}
    assert missed({**rounds(), "dask": [quick], "parsl": [broad]}) == [
        "no-op jobs/s more than 10 x Dask distributed", "1 MiB echo more than 1 x Parsl HTEX",
    ]  # fmt: skip


def test_either_figure_will_do_for_100_kb() -> None:
    slow_pool = {**rounds(echo_100k_per_s=1_500.0), "pool": [{**POOL, "echo_100k_per_s": 1_000.0}]}
    assert missed(slow_pool) == []


def test_nothing_measured_gives_no_bar_and_no_table() -> None:
    assert peers_report.bars({}) == peers_report.table({}) == []
    assert peers_report.bars({"pool": [POOL]}) == []


def test_the_table_has_a_line_for_each_peer_and_one_for_cwmp_without_share() -> None:
    lines = peers_report.table({**rounds(), "loky": []})
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "cwmp", "cwmp without share", "ProcessPoolExecutor", "bare-pipeline floor", "Ray",
    ]  # fmt: skip
    assert " ".join(lines[3].split()) == "cwmp 96,000 0.20 0.80 50,000 2,000 300 0.25 0.50 0.20"
    assert lines[4].split() == ["cwmp", "without", "share", "0.60"]
    assert peers_report.table({"ray": [{"p50_s": 0.001}]})[-1].split() == ["Ray", "-", "1.00", *"-------"]


def test_the_chart_is_an_svg_with_every_peer_and_what_ran() -> None:
    tree = ElementTree.fromstring(chart.draw(rounds(), MACHINE))
    texts = [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("Ray") == texts.count("cwmp") == len(chart.PANELS)
    assert texts.count("cwmp without share") == 1
    assert "96,000" in texts and "0.25" in texts
    assert "A <fast> one" in texts[-1] and "ray 2" in texts[-1]


def test_the_best_bar_is_on_top_and_the_longest_value_has_the_longest_bar() -> None:
    more, less = chart.PANELS[0], chart.PANELS[1]
    assert [label for label, _, _ in chart.bars_of(rounds(), more)][0] == "bare-pipeline floor"
    measured = {**rounds(), "loky": [{"p50_s": 0.0001}]}
    assert [label for label, _, _ in chart.bars_of(measured, less)][0] == "loky"
    tree = ElementTree.fromstring(chart.draw({"cwmp": [{"p50_s": 1.0}], "ray": [{"p50_s": 4.0}]}, {}))
    widths = [float(bar.get("width", "0")) for bar in tree.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.1)


def test_a_run_in_which_everything_failed_can_be_drawn() -> None:
    ElementTree.fromstring(chart.draw({"cwmp": []}, MACHINE))


def test_the_command_draws_what_the_benchmark_has_written(tmp_path: Path) -> None:
    source, drawn = tmp_path / "peers.json", tmp_path / "peers.svg"
    source.write_text(json.dumps({"rounds": rounds(), "machine": MACHINE}))
    command = [sys.executable, "-m", "tests.benchmarks.chart", str(source), str(drawn)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert drawn.read_text().startswith("<svg ")
