"""When a worker takes no more jobs, and when it ends those that run: with time cranked by hand."""

from __future__ import annotations

import pytest

from cwmp import defaults
from cwmp.departure import Departure

pytestmark = pytest.mark.core


def test_a_worker_that_nobody_told_stays() -> None:
    departure = Departure(grace_s=5.0)
    assert not departure.under_way
    assert departure.next_step(now=1e9) is None
    assert not departure.is_over(now=1e9)


def test_the_grace_period_counts_from_the_first_look() -> None:
    departure = Departure(grace_s=5.0)
    departure.tell()
    assert departure.under_way
    assert departure.next_step(now=100.0) == 105.0
    assert not departure.is_over(now=104.9)
    assert departure.is_over(now=105.0)


def test_the_second_time_means_now() -> None:
    departure = Departure(grace_s=5.0)
    departure.tell()
    assert not departure.is_over(now=100.0)
    departure.tell()
    assert departure.is_over(now=100.1)


def test_who_holds_the_leash_grants_nothing() -> None:
    departure = Departure(grace_s=5.0)
    departure.tell(times=2)
    assert departure.is_over(now=0.0)


def test_who_is_let_go_by_the_master_has_all_the_time() -> None:
    departure = Departure(grace_s=5.0)
    departure.let_go()
    assert departure.under_way
    assert departure.next_step(now=1e9) is None
    assert not departure.is_over(now=1e9)


def test_a_signal_while_let_go_starts_the_grace_period() -> None:
    departure = Departure(grace_s=5.0)
    departure.let_go()
    assert not departure.is_over(now=1000.0)
    departure.tell()
    assert departure.next_step(now=1000.0) == 1005.0
    assert departure.is_over(now=1005.0)


# --- limited time ---------------------------------------------------------------------------

END = 1000.0
DRAIN, CUT = END - defaults.DRAIN_AHEAD_S, END - defaults.CUT_AHEAD_S


def limited(grace_s: float = 5.0) -> Departure:
    departure = Departure(grace_s)
    departure.ends_at = END
    return departure


def test_who_has_no_limit_has_no_time_left_to_tell() -> None:
    departure = Departure(grace_s=5.0)
    departure.look(now=1e9)
    assert not departure.under_way
    assert departure.left_s(now=0.0) is None
    assert departure.ends_in_s(now=0.0) is None


def test_a_worker_drains_before_its_time_is_up() -> None:
    departure = limited()
    departure.look(now=DRAIN - 0.1)
    assert not departure.under_way
    assert departure.next_step(now=0.0) == DRAIN
    departure.look(now=DRAIN)
    assert departure.under_way
    assert departure.next_step(now=DRAIN) == CUT
    assert not departure.is_over(now=CUT - 0.1)
    assert departure.is_over(now=CUT)


def test_jobs_have_the_time_until_they_are_cut_off() -> None:
    departure = limited()
    assert departure.left_s(now=900.0) == CUT - 900.0
    assert departure.ends_in_s(now=900.0) == 100.0


def test_a_signal_may_shorten_that_time_but_not_lengthen_it() -> None:
    departure = limited(grace_s=20.0)
    departure.tell()
    assert departure.next_step(now=500.0) == 520.0
    departure = limited(grace_s=20.0)
    departure.tell()
    assert departure.next_step(now=CUT - 1.0) == CUT


def test_who_is_let_go_still_has_its_limit() -> None:
    departure = limited()
    departure.let_go()
    assert departure.next_step(now=0.0) == CUT


def test_an_end_that_moves_counts_at_once() -> None:
    departure = limited()
    departure.ends_at = END + 3600.0
    departure.look(now=END)
    assert not departure.under_way
    departure.ends_at = None
    departure.look(now=1e9)
    assert not departure.under_way


def test_a_signal_that_announces_the_end_of_the_time_shortens_nothing() -> None:
    departure = Departure(grace_s=25.0)
    departure.ends_at = 1000.0
    departure.tell()
    assert departure.next_step(950.0) == 1000.0 - defaults.CUT_AHEAD_S and departure.under_way
    early = Departure(grace_s=25.0)
    early.ends_at = 1000.0
    early.tell()
    assert early.next_step(900.0) == 925.0, "nothing to do with the limit"
    departure.tell()
    assert departure.is_over(951.0), "told twice: now"
