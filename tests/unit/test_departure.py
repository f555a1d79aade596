"""When a worker takes no more jobs, and when it ends those that run: with time cranked by hand."""

from __future__ import annotations

import pytest

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
