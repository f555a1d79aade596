"""How an agent waits for its master: how long, how often, and what ends the waiting."""

from __future__ import annotations

import socket
import threading
from itertools import islice
from typing import Any, Dict, List

import pytest

from cwmp import defaults, joining
from cwmp.errors import ConnectError, UsageError, VersionMismatch, WrongKey
from cwmp.joining import Approach, pauses, spread_s
from cwmp.rendezvous import Destination

pytestmark = pytest.mark.core


class Try:
    """An approach whose look-ups fail with these errors, one after the other."""

    def __init__(self, *errors: Exception, stop_after: int = 1000) -> None:
        self.errors = list(errors)
        self.stop_after = stop_after
        self.said: List[str] = []
        self.paused: List[float] = []
        self.approach = Approach(self.find, "of cluster 'x'", say=self.said.append)

    def find(self) -> Destination:
        raise self.errors.pop(0)

    def pause(self, seconds: float) -> bool:
        self.paused.append(seconds)
        return len(self.paused) < self.stop_after

    def join(self, wait_s: float = 60.0, **options: Any) -> Any:
        return self.approach.join(dict, wait_s, self.pause, **options)


def test_pauses_grow_and_differ() -> None:
    first, second = (list(islice(pauses(), 30)) for _ in range(2))
    assert first != second
    assert all(0.02 < pause <= 1.5 for pause in first)
    assert max(first[:3]) < 0.2
    assert min(first[15:]) >= 0.5


def test_what_may_pass_is_waited_for_and_said_once() -> None:
    passing = [ConnectError("nobody there"), ConnectError("another cluster"), ConnectError("still nobody")]
    seen = Try(*passing, VersionMismatch("too old"))
    with pytest.raises(VersionMismatch):
        seen.join()
    assert seen.said == ["waiting up to 60 s for a master of cluster 'x': nobody there"]
    assert len(seen.paused) == 3


@pytest.mark.parametrize("error", [WrongKey("no"), VersionMismatch("no"), UsageError("no")])
def test_what_does_not_pass_ends_the_waiting(error: Exception) -> None:
    with pytest.raises(type(error)):
        Try(error).join()


def test_a_wrong_key_may_pass_when_the_master_was_ours_before() -> None:
    with pytest.raises(VersionMismatch):
        Try(WrongKey("somebody else is there now"), VersionMismatch("no")).join(again=True)


def test_a_home_that_cannot_be_read_may_pass_when_the_master_was_ours_before() -> None:
    """As on a network disk that stands still for a moment."""
    error = OSError(5, "Input/output error")
    with pytest.raises(VersionMismatch):
        Try(error, VersionMismatch("no")).join(again=True)
    with pytest.raises(OSError, match="Input/output error"):
        Try(error).join()


def test_without_patience_there_is_one_attempt() -> None:
    seen = Try(ConnectError("nobody there"))
    with pytest.raises(ConnectError, match="nobody there"):
        seen.join(wait_s=0.0)
    assert (seen.said, seen.paused) == ([], [])


def test_who_is_told_to_leave_stops_waiting() -> None:
    assert Try(*[ConnectError("nobody there")] * 9, stop_after=3).join() is None


def test_a_master_that_hangs_up_on_us_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = Destination(("127.0.0.1",), listener.getsockname()[1], b"key")
        found: List[Destination] = [where]

        def find() -> Destination:
            if not found:
                raise VersionMismatch("enough")
            return found.pop()

        def pause(seconds: float) -> bool:
            return True

        listener.settimeout(10)
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(VersionMismatch):
            Approach(find, "", say=lambda line: None).join(dict, 60.0, pause)
        thread.join()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"SLURM_ARRAY_TASK_COUNT": str(defaults.SPREAD_FROM)}, 0.0),
        ({"SLURM_ARRAY_TASK_COUNT": "100"}, 36 * defaults.SPREAD_S),
        ({"SLURM_STEP_NUM_TASKS": "100"}, 36 * defaults.SPREAD_S),
        ({"SLURM_ARRAY_TASK_COUNT": "a lot"}, 0.0),
        ({"SLURM_ARRAY_TASK_COUNT": "1000000"}, defaults.SPREAD_MAX_S),
    ],
)
def test_many_agents_of_one_job_spread(environ: Dict[str, str], seconds: float) -> None:
    assert spread_s(environ) == pytest.approx(seconds)


@pytest.mark.parametrize(("host", "spreads"), [("192.0.2.1", True), ("127.0.0.1", False)])
def test_who_is_one_of_many_waits_a_part_of_that_first(
    monkeypatch: pytest.MonkeyPatch, host: str, spreads: bool
) -> None:
    """But not to join a master of its own machine, which the others do not join."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1000000")
    tried: List[Destination] = []

    def enter(where: Destination, hello: Dict[str, Any], timeout_s: float) -> None:
        tried.append(where)
        raise VersionMismatch("enough")

    monkeypatch.setattr(joining, "_enter", enter)
    seen = Try()
    seen.approach._find = lambda: Destination((host,), 1, b"key")
    with pytest.raises(VersionMismatch):
        seen.join()
    assert len(tried) == 1
    assert len(seen.paused) == spreads
    assert all(0 < seconds <= defaults.SPREAD_MAX_S for seconds in seen.paused)


def test_who_is_told_to_leave_before_its_turn_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1000000")
    seen = Try(stop_after=1)
    seen.approach._find = lambda: Destination(("192.0.2.1",), 1, b"key")
    assert seen.join() is None
