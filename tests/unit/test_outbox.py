"""Requests without an answer: which of them to send again."""

from __future__ import annotations

from typing import Any, List

import pytest

from cwmp import defaults
from cwmp.outbox import Outbox, Request, first_batch, sort_out

pytestmark = pytest.mark.core


def ignore(value: Any) -> None:
    """Somebody who does not care."""


def request(method: str, *args: Any, on_reply: Any = ignore) -> Request:
    return Request("JobQueue", method, args, on_reply)


def outbox_with(*requests: Request) -> Outbox:
    outbox = Outbox()
    for number, one in enumerate(requests):
        outbox.add(one, due=float(number))
    return outbox


def test_replies_come_in_order() -> None:
    first, second = request("put", [1]), request("cancel", [1])
    outbox = outbox_with(first, second)
    assert outbox.answered() is first
    assert outbox.answered() is second
    assert not len(outbox)


def test_a_reply_that_is_due_is_missed() -> None:
    outbox = outbox_with(request("put", []))
    assert not outbox.is_overdue(0.0)
    assert outbox.is_overdue(0.1)
    outbox.answered()
    assert not outbox.is_overdue(9.9)


def test_what_was_taken_is_not_sent_again() -> None:
    put, cancel, offer = request("put", [1]), request("cancel", [1]), request("offer", [])
    outbox = outbox_with(put, cancel, offer)
    outbox.answered()
    assert outbox.goes_on(taken=2) == ([cancel], [offer])
    outbox.add(offer, due=1.0)
    assert outbox.goes_on(taken=2) == ([], [offer]), "it broke once more"


def test_who_only_asked_asks_again() -> None:
    put, status, alive = request("put", [1]), request("status"), request("alive", [1])
    assert outbox_with(put, status, alive).goes_on(taken=1) == ([put], [status, alive])


def test_what_could_not_be_sent_is_not_counted() -> None:
    put, other = request("put", [1]), request("put", [2])
    outbox = outbox_with(put, other)
    outbox.take_out(other)
    outbox.take_out(other)
    assert outbox.goes_on(taken=1) == ([put], [])


def test_another_master_counts_from_the_beginning() -> None:
    put = request("put", [1])
    outbox = outbox_with(put, put)
    assert outbox.begins_anew() == [put, put]
    outbox.add(put, due=1.0)
    assert outbox.goes_on(taken=0) == ([], [put])


def test_a_prompt_put_is_found() -> None:
    outbox = outbox_with(request("put", [], on_reply=print))
    assert outbox.holds("put") and outbox.holds("put", print)
    assert not outbox.holds("put", ignore) and not outbox.holds("offer")


def test_another_master_learns_nothing_of_what_was_to_be_withdrawn() -> None:
    told: List[Any] = []
    requests = [
        request("put", [1, 2, 3]),
        request("cancel", [1, 9], on_reply=told.append),
        request("cancel", [1, 2], on_reply=told.append),
        request("alive", [3], on_reply=told.append),
        request("offer", [("c1.7", "c1.7", 10), ("", "digest", 5)], [], [], False, on_reply=told.append),
    ]
    settled, withdrawn, arrivals = sort_out(requests, still_open={1, 2, 3})
    for on_reply, value in settled:
        on_reply(value)
    assert told == [[1], [2], [], None], "each of them is told once that it was withdrawn"
    assert withdrawn == {1, 2, 3}
    assert arrivals == [("c1.7", "c1.7", 10)]


def test_a_batch_is_bounded_in_jobs_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: List[Any] = [(n, b"f", b"x" * 100) for n in range(10)]
    assert first_batch(jobs) == 10
    monkeypatch.setattr(defaults, "MAX_BATCH_BYTES", 250)
    assert first_batch(jobs) == 3
    monkeypatch.setattr(defaults, "MAX_BATCH_JOBS", 2)
    assert first_batch(jobs) == 2
    assert first_batch([]) == 0
