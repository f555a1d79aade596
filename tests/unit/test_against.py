"""Two checkouts side by side: what is printed of them, and which ones are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

import pytest

from tests.benchmarks import against


def test_ratios_are_those_of_neighbours() -> None:
    """Both got twice as slow in the middle, which says nothing of either."""
    pairs = [({"jobs_per_s": rate}, {"jobs_per_s": rate * 0.9}) for rate in (50_000, 25_000, 25_000)]
    [_, line] = against.table(pairs)
    assert line.split() == ["no-op", "jobs/s", "25,000", "22,500", "0.900", "(0.900", "to", "0.900)"]


def test_the_middle_half_of_all_ratios_is_shown() -> None:
    pairs = [({"p50_s": 1.0}, {"p50_s": ratio}) for ratio in (9.0, 1.0, 1.1, 1.2, 0.1)]
    assert against.table(pairs)[1].endswith("1.100 (1.000 to 1.200)")


def test_only_what_both_have_measured_is_compared() -> None:
    assert len(against.table([({"p50_s": 1.0}, {"cold_s": 1.0})])) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "is not another checkout of cwmp"),
        ([str(against.ROOT)], "is not another checkout of cwmp"),
        (["nowhere", "--pairs", "0"], "must be positive"),
    ],
)
def test_wrong_arguments(
    arguments: List[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["against", *arguments])
    with pytest.raises(SystemExit, match="2"):
        against.main()
    assert complaint in capsys.readouterr().err
