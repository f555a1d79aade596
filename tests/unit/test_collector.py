"""Reading in turns: the dispatcher and the threads that wait take each event exactly once."""

from __future__ import annotations

import socket
import threading
from typing import Any, Iterator, List

import pytest

from cwmp import collector as collector_room
from cwmp.collector import Collector, Spin
from cwmp.cpus import CpuCount
from cwmp.frames import header
from cwmp.transport import RETURN, Wire, dump_message
from tests.waiting import wait_until

pytestmark = pytest.mark.core


class Side:
    """A collector whose master is this test."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.wire, self.master = Wire(ours), Wire(theirs)
        self.wire.deadline(10)
        self.collector = Collector(self.wire, ident=7)
        self.dispatched: List[Any] = []
        self.taken: List[Any] = []

    def send(self, seq: int, *events: Any) -> None:
        self.master.send_bytes(dump_message((RETURN, (seq, list(events)))))

    def read(self) -> None:
        self.collector.read(self.dispatched.extend)

    def take(self, events: List[Any]) -> bool:
        self.taken.extend(events)
        return True

    def aside(self) -> threading.Thread:
        """The dispatcher, standing aside for a visitor who came while it was reading."""
        self.collector.visit(self.take)
        thread = threading.Thread(target=self.collector.stand_aside)
        thread.start()
        wait_until(lambda: self.collector.aside)
        return thread


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setattr(collector_room, "_ASIDE_S", 5.0)  # time enough for a slow machine
    side = Side()
    yield side
    side.wire.close()
    side.master.close()


def test_who_has_had_no_visitor_does_not_stand_aside(side: Side) -> None:
    side.collector.stand_aside()  # or this would take the five seconds, twice
    assert not side.collector.aside


def test_a_visitor_leaves_at_once_while_the_dispatcher_reads(side: Side) -> None:
    side.collector.visit(side.take)
    side.send(1, "for the dispatcher")
    side.read()
    assert (side.taken, side.dispatched) == ([], ["for the dispatcher"])


def test_a_visitor_reads_while_the_dispatcher_stands_aside(side: Side) -> None:
    thread = side.aside()
    for seq in (1, 2, 3):
        side.send(seq, f"event {seq}")
        side.collector.visit(side.take)
    side.collector.recall()
    thread.join(10)
    side.send(4, "event 4")
    side.read()
    assert (side.taken, side.dispatched) == (["event 1", "event 2", "event 3"], ["event 4"])


def test_what_a_visitor_does_not_take_is_the_dispatchers(side: Side) -> None:
    thread = side.aside()
    side.send(1, "of somebody else")
    side.collector.visit(lambda events: False)
    thread.join(10)  # it was recalled
    side.read()
    assert side.dispatched == ["of somebody else"]


def test_an_interrupt_in_a_visit_loses_nothing(side: Side) -> None:
    def interrupted(events: List[Any]) -> bool:
        raise KeyboardInterrupt

    thread = side.aside()
    side.send(1, "precious")
    with pytest.raises(KeyboardInterrupt):
        side.collector.visit(interrupted)
    side.collector.recall()
    thread.join(10)
    side.read()
    assert side.dispatched == ["precious"]


def test_two_replies_or_half_of_one_are_the_dispatchers(side: Side) -> None:
    thread = side.aside()
    side.send(1, "one")
    side.send(2, "two")
    side.collector.visit(side.take)
    thread.join(10)
    side.read()
    side.read()
    thread = side.aside()
    side.master.sock.sendall(header(100))
    side.collector.visit(side.take)
    thread.join(10)
    assert (side.taken, side.dispatched) == ([], ["one", "two"])


def test_the_end_of_the_connection_is_the_dispatchers(side: Side) -> None:
    thread = side.aside()
    side.master.close()
    side.collector.visit(side.take)
    thread.join(10)
    with pytest.raises(EOFError):
        side.read()


def test_the_dispatcher_comes_back_by_itself(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_room, "_ASIDE_S", 0.001)
    side.collector.visit(side.take)
    side.collector.stand_aside()
    assert not side.collector.aside


def test_what_visitors_have_read_is_acknowledged(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    side.collector.start()
    assert b"collect" in side.master.recv_bytes()
    monkeypatch.setattr(collector_room.defaults, "MAX_BATCH_JOBS", 1)
    thread = side.aside()
    side.send(5, "many")
    side.collector.visit(side.take)
    side.collector.recall()
    thread.join(10)
    side.master.deadline(10)
    assert b"collect" in side.master.recv_bytes()


def test_looking_pays_until_it_was_in_vain_some_times_in_a_row() -> None:
    spin = Spin()
    for found in (False, False, True, False, False):
        assert spin.pays()
        spin.note(found)
    assert spin.pays()
    spin.note(found=False)
    rests = [spin.pays() for _ in range(collector_room._PAUSE)]
    assert not any(rests) and spin.pays()


def test_with_one_processor_nobody_looks_without_sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, looks in ((1, False), (2, True)):
        monkeypatch.setattr(collector_room, "usable_cpus", lambda count=count: CpuCount(count, "as told"))
        side = Side()
        assert (side.collector._spin is not None) == looks
        side.wire.close()
        side.master.close()
