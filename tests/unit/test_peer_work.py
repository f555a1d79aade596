"""The work that peers are put through, on a peer that is a function call."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable, Dict, List, Sequence, Set

import psutil
import pytest

from tests.benchmarks import peer_work, processes
from tests.benchmarks.idioms import Idiom
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of time that a test can afford."""
    for name in ("STREAM_S", "PASS_S", "TRIPS_S"):
        monkeypatch.setattr(peer_work, name, 0.01)
    monkeypatch.setattr(peer_work, "SHARED_BYTES", 8_000)


class Inline:
    """Calls at once, and remembers the large arguments."""

    def __init__(self) -> None:
        self.seen: List[bytes] = []
        self.shared: Set[int] = set()

    def each(self, func: Callable[..., Any], arguments: Sequence[Any]) -> List[Any]:
        self.seen += [argument for argument in arguments if isinstance(argument, bytes)]
        return [func(argument) for argument in reversed(arguments)]

    def one(self, func: Callable[..., Any], argument: Any) -> Any:
        return func(argument)

    def with_shared(self, func: Callable[..., Any], value: Any, arguments: Sequence[Any]) -> List[Any]:
        self.shared.add(id(value))
        return [func(value, argument) for argument in arguments]


def measured(idiom: Idiom, omit: Sequence[str] = ()) -> Dict[str, float]:
    """With 10 s of processor time in every stream."""
    return peer_work.measure(idiom, lambda: 10.0, frozenset(omit))


def test_everything_is_measured() -> None:
    peer = Inline()
    found = measured(Idiom(peer.each, peer.one, peer.with_shared))
    assert sorted(found) == [
        "cpu_s_per_10k", "echo_100k_per_s", "echo_1k_per_s", "echo_1m_per_s", "jobs_per_s", "p50_s", "p99_s",
        "shared_s",
    ]  # fmt: skip
    assert all(value > 0 for value in found.values())
    assert found["p50_s"] <= found["p99_s"]


def test_what_is_not_wanted_is_left_out() -> None:
    peer = Inline()
    idiom = Idiom(peer.each, peer.one, peer.with_shared, peer.with_shared)
    assert "shared_plainly_s" in measured(idiom)
    assert {"shared_s", "shared_plainly_s"}.isdisjoint(measured(idiom, ["shared_s", "shared_plainly_s"]))


def test_no_large_argument_is_ever_sent_twice() -> None:
    peer = Inline()
    measured(Idiom(peer.each, peer.one, peer.with_shared))
    assert len(set(peer.seen)) == len(peer.seen) > 100
    assert {len(argument) for argument in peer.seen} == set(peer_work.ECHO_BYTES.values())


def test_wrong_answers_are_an_error_not_a_figure() -> None:
    peer = Inline()

    def forgetful(func: Callable[..., Any], arguments: Sequence[Any]) -> List[Any]:
        return peer.each(func, arguments)[1:]

    with pytest.raises(AssertionError, match="answers to"):
        measured(Idiom(forgetful, peer.one, peer.with_shared))
    with pytest.raises(AssertionError, match="not the right values"):
        measured(Idiom(peer.each, peer.one, lambda func, value, arguments: [0.0]))


def test_processor_time_counts_what_lived_at_the_second_look() -> None:
    before = {(1, 0.5): 2.0, (2, 0.5): 7.0}
    after = {(1, 0.5): 3.0, (3, 0.5): 0.25, (2, 9.9): 1.0}  # 2 is gone, and its number another's
    assert processes.used_s(before, after) == 1.0 + 0.25 + 1.0


def test_processes_are_found_by_their_environment_and_by_their_descent() -> None:
    program = "print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environments = [{**os.environ, "CWMP_HOME": "/nowhere/of/this/test"}, {"PATH": os.defpath}]
    started = [subprocess.Popen([sys.executable, "-c", program], env=env, **pipes) for env in environments]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        pids = [process.pid for process in started]
        marked = [process.pid for process in processes.belonging("/nowhere/of/this/test")]
        assert marked == pids[:1]
        below = processes.belonging("/nowhere/of/this/test", root=os.getpid())
        assert set(pids) <= {process.pid for process in below}
        assert os.getpid() not in {process.pid for process in below}
        processes.kill([process for process in below if process.pid in pids])
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
