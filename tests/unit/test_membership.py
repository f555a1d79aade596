"""How a program gets back to its master: how long it tries, and what ends that."""

from __future__ import annotations

import errno
import logging
import threading
from typing import Any, List

import pytest

from cwmp import membership
from cwmp.errors import ConnectError, UsageError, VersionMismatch, WrongKey
from cwmp.membership import Joined, Membership, membership_of
from cwmp.rendezvous import Destination

pytestmark = pytest.mark.core

FORMER: Any = Joined(7, "node7:5494", "tested", "nonce", {}, None, None, None, True, 0)  # type: ignore[arg-type]


class Way:
    """A way to a master whose look-ups fail with these errors, one after the other; the last one for ever."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.looked = 0

    def __call__(self) -> Destination:
        self.looked += 1
        raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]


@pytest.mark.parametrize(
    "passing", [ConnectError("refused"), WrongKey("somebody else's"), OSError(5, "Input/output error")]
)
def test_what_may_pass_is_waited_for(passing: Exception) -> None:
    way = Way(passing, passing, VersionMismatch("enough"))
    with pytest.raises(VersionMismatch):
        Membership(way, 60.0).come_back(FORMER)
    assert way.looked == 3


def test_the_time_is_limited_and_the_last_error_is_told() -> None:
    way = Way(ConnectError("refused"), ConnectError("refused again"))
    with pytest.raises(ConnectError, match="refused again"):
        Membership(way, 0.3).come_back(FORMER)
    assert way.looked > 1


def test_a_lack_of_memory_is_not_the_masters_absence() -> None:
    way = Way(OSError(errno.ENOMEM, "Cannot allocate memory"))
    with pytest.raises(MemoryError):
        Membership(way, 60.0).come_back(FORMER)
    assert way.looked == 1


def test_without_patience_there_is_one_attempt() -> None:
    way = Way(ConnectError("refused"))
    with pytest.raises(ConnectError):
        Membership(way, 0.0).come_back(FORMER)
    assert way.looked == 1


def test_who_gives_up_stops_waiting() -> None:
    waiting = Membership(Way(ConnectError("refused")), 60.0)
    threading.Timer(0.2, waiting.give_up).start()
    with pytest.raises(ConnectError):
        waiting.come_back(FORMER)


def test_a_wait_that_takes_longer_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(membership, "_SAY_AFTER_S", 0.0)
    refused: List[Exception] = [ConnectError("refused")] * 3
    with caplog.at_level(logging.WARNING, "cwmp"), pytest.raises(VersionMismatch):
        Membership(Way(*refused, VersionMismatch("enough")), 60.0).come_back(FORMER)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting up to 60 s for the master at node7:5494: refused"
    ]


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", True])
def test_a_number_of_attempts_that_cannot_be(attempts: Any) -> None:
    with pytest.raises(UsageError, match="max_attempts"):
        membership_of(None, None, None, attempts, None)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), "soon"])
def test_a_time_that_cannot_be(seconds: Any) -> None:
    with pytest.raises(UsageError, match="wait for a master"):
        membership_of(None, None, None, None, seconds)
