"""What a worker has to report, and what it says again after its connection broke."""

from __future__ import annotations

import pytest

from cwmp import defaults
from cwmp.account import Account, given_up

pytestmark = pytest.mark.core


def sent(account: Account, due: float = 15.0) -> dict:  # type: ignore[type-arg]
    """The next report, on its way."""
    report = account.next_report()
    account.sent(report, due)
    return report


def test_a_report_carries_what_there_is_and_nothing_else() -> None:
    account = Account()
    assert not account.has_news
    account.outcomes.append((1, 0, b"r"))
    account.returned.append(2)
    assert account.has_news
    assert sent(account) == {"outcomes": [(1, 0, b"r")], "returned": [2]}
    assert not account.has_news
    assert len(account) == 1


def test_one_report_holds_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_BATCH_JOBS", 2)
    account = Account()
    account.outcomes += [(n, 0, b"") for n in range(5)]
    sizes = [len(sent(account)["outcomes"]) for _ in range(3)]
    assert sizes == [2, 2, 1]


def test_a_receipt_that_is_due_is_missed() -> None:
    account = Account()
    account.sent({}, due=5.0)
    assert not account.is_overdue(now=5.0)
    assert account.is_overdue(now=5.1)
    account.acknowledged(None)
    assert not account.is_overdue(now=99.0)


def test_a_master_that_knows_us_is_told_again_only_what_it_never_heard() -> None:
    account = Account()
    reports = []
    for ticket in (1, 2, 3):
        account.outcomes.append((ticket, 0, b"r"))
        reports.append(sent(account))
    account.acknowledged(None)
    assert account.goes_on(taken=2) == reports[2:]
    account.sent(reports[2], due=20.0)
    assert account.goes_on(taken=2) == reports[2:], "the connection broke once more"
    account.sent(reports[2], due=20.0)
    assert account.goes_on(taken=3) == []


def test_a_limit_is_not_said_again() -> None:
    """It counts from a `take` that has ended with the connection."""
    account = Account()
    account.sent({"outcomes": [(1, 0, b"")], "limit": 50}, due=15.0)
    assert account.goes_on(taken=0) == [{"outcomes": [(1, 0, b"")]}]


def test_another_master_is_told_the_outcomes_and_nothing_else() -> None:
    account = Account()
    account.begun(1, attempt=2)
    account.outcomes.append((1, 0, b"r"))
    account.returned.append(5)
    account.died.append((6, {"cause": "killed"}))
    sent(account)
    account.outcomes.append((7, 0, b"s"))
    account.begins_anew()
    assert account.next_report() == {"outcomes": [(1, 0, b"r"), (7, 0, b"s")]}
    account.sent({}, due=1.0)
    assert account.goes_on(taken=1) == [], "its reports are counted from the beginning"


def test_what_is_held_is_named_as_far_as_the_master_has_told() -> None:
    account = Account()
    account.begun(1, attempt=2)
    account.begun(2, attempt=1)
    sent(account)
    account.acknowledged([(77, 5), None])  # the second one ended in the meantime
    account.outcomes.append((1, 0, b"r"))
    sent(account)
    leases = [(2, 1, b"f", b"x"), (3, 1, b"f", b"x")]
    assert account.holding(leases, waiting=[4]) == [
        (1, (77, 5), 2),
        (4, None, 0),
        (2, None, 1),
        (3, None, 0),
    ]


def test_what_was_acknowledged_is_forgotten() -> None:
    account = Account()
    account.begun(1, attempt=1)
    sent(account)
    account.acknowledged([(7, 1)])
    account.outcomes.append((1, 0, b""))
    sent(account)
    account.acknowledged(None)
    assert account.holding([(1, 2, b"f", b"x")], []) == [(1, None, 0)]


def test_what_came_to_nothing_is_given_up() -> None:
    report = {"outcomes": [(1, 0, b"")], "died": [(2, {})], "returned": [3], "unfit": [4]}
    assert given_up(report) == [2, 3, 4]
