"""When SLURM will end us: from the environment, and from a `squeue` that may answer anything."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from cwmp import defaults, timelimit
from cwmp.loop import Loop
from cwmp.timelimit import TimeLimit, end_in, read_end
from tests.waiting import wait_until

pytestmark = pytest.mark.core

Squeue = Callable[[str], None]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Puts a `squeue` on PATH that runs these shell lines, and notes its arguments."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def write(lines: str) -> None:
        path = tmp_path / "bin" / "squeue"
        path.write_text(f'#!/bin/sh\necho "$LC_ALL $SQUEUE_STATES$*" >> {tmp_path}/asked\n{lines}\n')
        path.chmod(0o755)

    return write


class Seen:
    """A time limit and what it has told."""

    def __init__(self, loop: Loop, **environ: str) -> None:
        self.ends: List[Optional[float]] = []
        self.loop = loop
        environ = {"SLURMD_NODENAME": "node7", **environ}
        self.limit = TimeLimit({**os.environ, **environ}, loop, self.ends.append)

    def ask(self, now: Optional[float] = None) -> None:
        """Until the answer has been read."""
        self.limit.tend(time.monotonic() if now is None else now)
        wait_until(self._answered)

    def _answered(self) -> bool:
        self.loop.poll(0.0)
        return self.limit._process is None


@pytest.mark.parametrize("text", ["", "never", "-5", "0", "1e9", "9" * 30])
def test_an_environment_that_tells_no_end(text: str) -> None:
    assert end_in({"SLURM_JOB_END_TIME": text}) is None


def test_the_end_as_squeue_writes_it() -> None:
    now = int(time.time())
    assert read_end(time.strftime("%Y-%m-%dT%H:%M:%S\n", time.localtime(now))) == now
    for never in ("N/A", " NONE\n", "UNLIMITED", "Unknown"):
        assert read_end(never) is None


@pytest.mark.parametrize("text", ["", "an error", "2033-05-18", "12:00", "2033-05-18T03:33:20 +"])
def test_no_end(text: str) -> None:
    with pytest.raises(ValueError):
        read_end(text)


def test_outside_of_slurm_nobody_is_asked(loop: Loop, squeue: Squeue, tmp_path: Path) -> None:
    squeue("echo N/A")
    seen = Seen(loop, SLURM_JOB_END_TIME="2000000000")
    seen.ask()
    assert seen.ends == []
    assert not (tmp_path / "asked").exists()


def test_the_shell_of_salloc_has_no_end(loop: Loop) -> None:
    ends: List[Optional[float]] = []
    TimeLimit({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "2000000000"}, loop, ends.append)
    assert ends == []


def test_the_environment_is_enough_at_first(loop: Loop, squeue: Squeue, tmp_path: Path) -> None:
    squeue("echo N/A")
    seen = Seen(loop, SLURM_JOB_ID="17", SLURM_JOB_END_TIME=str(int(time.time()) + 100))
    seen.ask()
    [end] = seen.ends
    assert end is not None
    assert 98 < end - time.monotonic() <= 101
    assert not (tmp_path / "asked").exists()
    seen.ask(now=time.monotonic() + 2 * defaults.LIMIT_LOOK_S)
    assert seen.ends[1:] == [None]


def test_squeue_is_asked_in_plain_words(loop: Loop, squeue: Squeue, tmp_path: Path) -> None:
    end = time.time() + 100
    squeue(f"echo {time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(end))}")
    array = {"SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "4"}
    seen = Seen(loop, LC_ALL="de_DE", SQUEUE_STATES="PENDING", **array)
    seen.ask()
    [found] = seen.ends
    assert found is not None
    assert 98 < found - time.monotonic() <= 101
    assert (tmp_path / "asked").read_text() == "C --noheader --jobs 123_4 --format %e\n"


@pytest.mark.parametrize(
    "lines",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
        "echo garbage",
        "exit 0",
        "kill -9 $$",
        "head -c 100000 /dev/zero",
        "echo 2033-05-18T03:33:20; echo 2034-05-18T03:33:20",
    ],
)
def test_an_answer_that_tells_nothing_changes_nothing(loop: Loop, squeue: Squeue, lines: str) -> None:
    squeue(lines)
    seen = Seen(loop, SLURM_JOB_ID="17")
    seen.ask()
    assert seen.ends == []
    squeue("echo N/A")
    seen.ask(now=time.monotonic() + 2 * defaults.LIMIT_LOOK_S)
    assert seen.ends == [None]


def test_nobody_waits_for_a_slow_squeue(loop: Loop, squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimit, "_PATIENCE_S", 5.0)
    squeue("exec sleep 600")
    seen = Seen(loop, SLURM_JOB_ID="17")
    before = time.monotonic()
    seen.limit.tend(before)
    seen.limit.tend(before + 4.9)
    assert seen.limit._process is not None
    seen.limit.tend(before + 5.0)
    assert seen.limit._process is None
    assert time.monotonic() - before < 4.0


def test_without_squeue_there_is_no_end(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = Seen(loop, SLURM_JOB_ID="17")
    seen.ask()
    asked: List[Any] = []
    monkeypatch.setattr(seen.limit, "_ask", asked.append)
    seen.limit.tend(1e12)
    assert (seen.ends, asked) == ([], [])


def test_a_question_under_way_can_be_ended(loop: Loop, squeue: Squeue) -> None:
    squeue("exec sleep 600")
    seen = Seen(loop, SLURM_JOB_ID="17")
    seen.limit.tend(time.monotonic())
    seen.limit.close()
    seen.limit.close()


def test_not_all_agents_ask_at_once() -> None:
    times: Dict[float, None] = dict.fromkeys(timelimit._soon(100.0) for _ in range(20))
    assert len(times) > 1
    assert all(80.0 <= seconds <= 120.0 for seconds in times)


def test_a_clock_that_is_set_meanwhile_moves_no_end(
    loop: Loop, squeue: Squeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = time.time() + 100
    squeue(f"echo {time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(end))}")
    seen = Seen(loop, SLURM_JOB_ID="17")
    real = time.time
    for hours in (5, -7):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + hours * 3600)
        seen.ask(now=time.monotonic() + abs(hours) * 10_000)
    assert len(seen.ends) == 2
    assert all(found is not None and 95 < found - time.monotonic() <= 101 for found in seen.ends)
