"""What a worker whose time is limited thinks of a job, from what it has seen of its function."""

from __future__ import annotations

import pytest

from cwmp import experience
from cwmp.experience import Experience

pytestmark = pytest.mark.core


def after(*runs: float) -> Experience:
    seen = Experience()
    for took_s in runs:
        seen.note(b"f", took_s)
    return seen


def test_who_knows_nothing_lets_everything_in() -> None:
    assert not Experience().is_unlikely(b"f", left_s=-1.0)
    assert not after(100.0).is_unlikely(b"g", left_s=1.0)


@pytest.mark.parametrize(
    ("runs", "left_s", "unlikely"),
    [
        ([10.0], 9.9, True),
        ([10.0], 10.0, False),
        ([1.0, 100.0], 50.0, False),
        ([1.0, 100.0, 100.0], 50.0, True),
        ([100.0, 1.0, 1.0], 50.0, False),
    ],
)
def test_most_of_the_runs_decide(runs: list[float], left_s: float, unlikely: bool) -> None:
    assert after(*runs).is_unlikely(b"f", left_s) == unlikely


def test_old_runs_are_forgotten() -> None:
    seen = after(*[100.0] * 50)
    assert seen.is_unlikely(b"f", left_s=50.0)
    for _ in range(8):
        seen.note(b"f", 1.0)
    assert not seen.is_unlikely(b"f", left_s=50.0)


def test_functions_that_do_not_come_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experience, "_FUNCTIONS", 2)
    seen = after(100.0)
    seen.note(b"g", 100.0)
    seen.note(b"f", 100.0)
    seen.note(b"h", 100.0)
    assert seen.is_unlikely(b"f", left_s=1.0)
    assert not seen.is_unlikely(b"g", left_s=1.0)
