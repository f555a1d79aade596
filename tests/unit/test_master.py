"""The master's rounds, with connections that break in the middle of one."""

from __future__ import annotations

import threading
from typing import Any, Iterator, List

import pytest

from cwmp.master import Master
from cwmp.messages import JOB_QUEUE, RESULT_QUEUE, this_side
from cwmp.transport import Wire, connect, introduce
from tests.waiting import wait_until

pytestmark = pytest.mark.core

KEY = b"the key of this test"


class BrokenSocket:
    """A socket whose other end has just gone."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class Members:
    """A master that serves in a thread, and connections to it."""

    def __init__(self) -> None:
        self.master = Master("127.0.0.1", 0, KEY)
        self.wires: List[Wire] = []
        self._thread = threading.Thread(target=self.master.serve)
        self._thread.start()

    def join(self, role: str, **facts: Any) -> Any:
        """(wire, member id) of somebody new."""
        wire = connect(*self.master.address, KEY)
        self.wires.append(wire)
        return wire, introduce(wire, this_side(role, **facts))["member"]

    def worker(self, room: int) -> Any:
        """A worker that waits for `room` leases."""
        wire, ident = self.join("worker", slots=room, busy=0, done=0, rss_bytes=0)
        wire.request(JOB_QUEUE, "take", ident, room)
        wait_until(lambda: ident in self.master.takes)
        return wire, ident

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        self.master.stop()
        self._thread.join(10)


@pytest.fixture
def members() -> Iterator[Members]:
    members = Members()
    yield members
    members.close()


def test_a_worker_lost_while_it_is_served_costs_the_others_nothing(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    _, lost = members.worker(room=1)
    wire, ident = members.worker(room=2)
    channel = members.master.takes[lost].peer.channel
    channel.sock = BrokenSocket(channel.sock)  # type: ignore[assignment]
    client, client_ident = members.join("client")
    client.call(JOB_QUEUE, "put", client_ident, [(1, b"f", b"x"), (2, b"f", b"y")], True)
    leases: List[Any] = []
    while len(leases) < 2:
        leases += wire.reply()
    assert sorted(lease[3] for lease in leases) == [b"x", b"y"]
    assert members.master.broker.workers() == [ident]
    assert "an error of its own" not in caplog.text
    wire.call(RESULT_QUEUE, "report", ident, {"outcomes": [(lease[0], 0, b"r") for lease in leases]}, True)
    assert client.call(JOB_QUEUE, "status")["jobs"]["done"] == 2


def test_a_client_lost_while_it_is_told_costs_the_others_nothing(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those whose news are due in the same round."""
    wire, ident = members.worker(room=4)
    collecting: List[Wire] = []
    for _ in range(4):
        submit, client = members.join("client")
        collecting.append(members.join("client", member=client)[0])
        submit.call(JOB_QUEUE, "put", client, [(1, b"f", b"x")], True)
        collecting[-1].request(RESULT_QUEUE, "collect", client, 0)
        wait_until(lambda: client in members.master.collects)  # noqa: B023
    for lost in list(members.master.collects.values())[:2]:
        lost.peer.channel.sock = BrokenSocket(lost.peer.channel.sock)  # type: ignore[assignment]
    leases: List[Any] = []
    while len(leases) < 4:
        leases += wire.reply()
    wire.request(RESULT_QUEUE, "report", ident, {"outcomes": [(lease[0], 0, b"r") for lease in leases]}, True)
    for told in collecting[2:]:
        assert told.reply() == (1, [(1, 0, b"r")])
    assert "an error of its own" not in caplog.text


def test_a_worker_knows_whose_job_it_runs_before_anybody_hears_that_it_does(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the job would be run again for a master that is killed in between."""
    wire, ident = members.worker(room=1)
    client, client_ident = members.join("client")
    client.call(JOB_QUEUE, "put", client_ident, [(1, b"f", b"x")], True)
    [lease] = wire.reply()
    monkeypatch.setattr(members.master, "_deliver", lambda: None)
    monkeypatch.setattr(members.master._server, "flush", lambda: None)
    wire.deadline(10)
    assert wire.call(RESULT_QUEUE, "report", ident, {"running": [lease[0]]}, False) == [(client_ident, 1)]
