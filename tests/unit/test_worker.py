"""A worker whose connections end, with a master played by hand."""

from __future__ import annotations

import signal
import socket
from types import SimpleNamespace
from typing import Any, Iterator, List

import pytest

from cwmp.departure import Departure
from cwmp.loop import Loop
from cwmp.transport import RETURN, Wire, dump_message
from cwmp.worker import Worker

pytestmark = pytest.mark.core


class Ends:
    """A worker without slots yet, and the master's ends of its two connections."""

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGCHLD)
        self.loop = Loop()
        self.worker = Worker(1, self.loop, Departure(1.0), lambda line: None)
        ours, self.take = map(Wire, socket.socketpair())
        ours_too, self.report = map(Wire, socket.socketpair())
        joined: Any = SimpleNamespace(take=ours, report=ours_too, ident=3)
        self.worker._open_lines(joined)

    def close(self) -> None:
        self.worker._take_line.close()
        self.worker._report_line.close()
        self.worker.close()
        for wire in (self.take, self.report):
            wire.close()
        self.loop.close()
        signal.signal(signal.SIGCHLD, self._before)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.mark.parametrize("order", [["take", "report"], ["report", "take"]])
def test_whose_jobs_it_runs_is_known_whichever_connection_is_looked_at_first(
    ends: Ends, order: List[str]
) -> None:
    """The master is killed when it has just said so."""
    account = ends.worker._account
    account.begun(7, attempt=1)
    account.sent(account.next_report(), due=1e9)
    ends.report.send_bytes(dump_message((RETURN, [(5, 44)])))
    ends.take.close()
    ends.report.close()
    for name in order:
        getattr(ends.worker, f"_{name}_line")._channel._readable()
    assert account.holding([], [7]) == [(7, (5, 44), 1)]
    ends.loop.poll(0)
    assert ends.worker._lost == "closed by the other side"
