"""What the benchmark of the master's scale makes of its measurements."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from tests.benchmarks import scale_report

FEW: Dict[str, float] = {
    "nodes": 10, "join_s": 0.1, "join_cpu_s": 0.02, "jobs_per_s": 40_000, "master_s_per_job": 3.2e-6,
}  # fmt: skip
LOSS = {"nodes": 500, "jobs": 64_000, "held": 32_000, "lost": 0, "twice": 0, "recovery_s": 6.0}
MANY: Dict[str, float] = {
    **FEW, "nodes": 1000, "join_s": 1.5, "jobs_per_s": 30_000, "idle_share": 0.021,
    **{f"killed_{key}": value for key, value in LOSS.items()},
}  # fmt: skip


def test_the_table_has_a_line_for_each_size_and_one_for_each_loss() -> None:
    lines = scale_report.table([FEW, MANY])
    assert [line.split() for line in lines if "0.02" in line] == [
        ["10", "0.10", "0.02", "40,000", "3.2"],
        ["1,000", "1.50", "0.02", "30,000", "3.2", "2.1%"],
    ]
    assert "500 nodes killed at once while they held 32,000 of 64,000 jobs: 0 jobs lost" in lines[-1]


def test_the_bars_are_met_by_good_figures() -> None:
    bars = scale_report.bars([MANY, FEW])
    assert [bar.met for bar in bars] == [True] * 4
    assert bars[1].measured == "0.75 x"


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"join_s": 60.1}), (1, {"jobs_per_s": 27_900}), (2, {"idle_share": 0.1}), (3, {"killed_lost": 1}),
        (3, {"killed_twice": 1}), (3, {"killed_recovery_s": 30.1}), (3, {"killed_held": 0}),
    ],
)  # fmt: skip
def test_a_bar_that_is_not_met_is_told(number: int, change: Dict[str, Any]) -> None:
    bars = scale_report.bars([FEW, {**MANY, **change}])
    assert [bar.met for bar in bars] == [at != number for at in range(4)]


def test_one_size_alone_has_nothing_to_be_compared_with() -> None:
    assert len(scale_report.bars([FEW])) == 1
    assert scale_report.bars([]) == []
