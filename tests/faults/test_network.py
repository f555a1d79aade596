"""What a network does to a cluster: cables are pulled and plugged in again, and every outcome comes once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.faults.chaos.judge import Verdict, judge
from tests.faults.network import DESK, SERVER, Cluster, Lan, Program, Unavailable
from tests.waiting import wait_until

SHORT_S = 5.0
"""A silence of which nobody is to notice anything."""
FOUND_S = 15.0
"""A worker that is not heard for so long has lost its jobs."""
SLACK_S = 5.0
"""For the machine that all hosts share."""
FOR_GOOD_S = 60.0
"""A deadline for jobs whose worker is gone: it is found, and they run elsewhere behind others."""
VAST = 100_000_000

pytestmark = [pytest.mark.patient, pytest.mark.timeout(180)]


@pytest.fixture
def lan(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lan]:
    """A server, a desk and two hosts for workers; skips where there can be none, unless that is required."""
    try:
        lan = Lan.up(tmp_path, [SERVER, DESK, "n1", "n2"])
    except Unavailable as reason:
        if os.environ.get("CWMP_REQUIRE_NETNS"):
            pytest.fail(f"CWMP_REQUIRE_NETNS is set, but there is no private network: {reason}")
        pytest.skip(f"no private network: {reason}")
    with lan:
        yield lan


@pytest.fixture
def alone(lan: Lan, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with one worker, on n1."""
    yield from _cluster(lan, tmp_path, ["n1"])


@pytest.fixture
def pair(lan: Lan, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with workers on n1 and n2."""
    yield from _cluster(lan, tmp_path, ["n1", "n2"])


def _cluster(lan: Lan, directory: Path, workers: List[str]) -> Iterator[Cluster]:
    cluster = Cluster(lan, directory)
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.end()


def judged(program: Program, timeout_s: float = 60.0) -> Verdict:
    """Let the program end; each of its jobs has exactly one outcome, the right one."""
    history = program.finish(timeout_s)
    verdict = judge([history], program.times_run(), now_s=time.monotonic(), open_s=timeout_s)
    print(f"{verdict.jobs} jobs, {verdict.runs} runs; the longest was open for {verdict.longest_s:.1f} s")
    assert verdict.problems == [], program.report()
    return verdict


# --- silence that ends soon -----------------------------------------------------------------


@pytest.mark.parametrize("host, form", [("n1", "futures"), (DESK, "callbacks"), (DESK, "stream")])
def test_a_cut_of_seconds_is_not_noticed(alone: Cluster, tmp_path: Path, host: str, form: str) -> None:
    with Program(alone, tmp_path, form, "--kinds", "nap") as program:
        program.wait_for_ends(3)
        alone.lan.silence(host, SHORT_S)
        program.wait_for_ends(len(program.history().ends) + 10)
        verdict = judged(program)
    assert verdict.runs == verdict.jobs


@pytest.mark.parametrize(
    "kind, cut, seen_on",
    [("vast-argument", DESK, SERVER), ("vast-argument", "n1", "n1"), ("vast-result", "n1", SERVER)],
    ids=["from the program", "to the worker", "from the worker"],
)
def test_a_cut_of_seconds_in_the_middle_of_a_large_value(
    alone: Cluster, tmp_path: Path, kind: str, cut: str, seen_on: str
) -> None:
    with Program(alone, tmp_path, "callbacks", "--kinds", kind, "--jobs", "1") as program:
        master = alone.pid(SERVER)
        # The master is held while the cable is pulled, which takes longer than the rest of the value.
        wait_until(lambda: VAST / 100 < bytes_in(alone.lan.memory(seen_on)), timeout_s=30, pause_s=0.0005)
        os.kill(master, signal.SIGSTOP)
        alone.lan.cut(cut)
        os.kill(master, signal.SIGCONT)
        time.sleep(SHORT_S)
        there = bytes_in(alone.lan.memory(seen_on))
        alone.lan.mend(cut)
        assert there < VAST, "it was there before the cable was pulled"
        verdict = judged(program)
    assert verdict.runs == verdict.jobs == 1
    print(f"cut at {there / VAST:.0%}")


def bytes_in(memory: Path) -> int:
    """How much of large values there is."""
    total = 0
    for path in memory.glob("cwmp-*/*"):
        try:
            total += path.stat().st_blocks * 512 if path.name != "owner" else 0
        except OSError:
            pass  # renamed or removed just now
    return total


# --- silence that does not ------------------------------------------------------------------


def silence(cluster: Cluster, how: str, host: str) -> None:
    """Let nothing be heard from a worker any more."""
    if how == "cut":
        cluster.lan.cut(host)
    else:
        os.kill(cluster.pid(host), signal.SIGSTOP)


def end_silence(cluster: Cluster, how: str, host: str) -> None:
    """The contrary."""
    if how == "cut":
        cluster.lan.mend(host)
    else:
        os.kill(cluster.pid(host), signal.SIGCONT)


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_worker_that_falls_silent_loses_its_jobs_and_comes_back(
    pair: Cluster, tmp_path: Path, how: str
) -> None:
    with Program(pair, tmp_path, "callbacks", "--kinds", "nap") as program:
        program.wait_for_runs_on("n1", 4)
        silence(pair, how, "n1")
        begun_s = time.monotonic()
        pair.wait_for_workers("n2", timeout_s=FOUND_S + SLACK_S)
        print(f"found after {time.monotonic() - begun_s:.1f} s")
        open_jobs = program.history().open()
        wait_until(
            lambda: not open_jobs & program.history().open(), timeout_s=FOR_GOOD_S, describe=program.report
        )
        print(f"{len(open_jobs)} jobs had ended elsewhere after {time.monotonic() - begun_s:.1f} s")
        end_silence(pair, how, "n1")  # what has been done there meanwhile comes too late
        mended_s = time.monotonic()
        pair.wait_for_workers("n1", "n2")
        print(f"back {time.monotonic() - mended_s:.1f} s after it was mended")
        program.wait_for_runs_on("n1", len(program.on("n1")) + 4)
        judged(program)


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_worker_that_falls_silent_for_good(pair: Cluster, tmp_path: Path, how: str) -> None:
    with Program(pair, tmp_path, "futures", "--kinds", "nap", "--jobs", "24") as program:
        program.wait_for_runs_on("n1", 2)
        silence(pair, how, "n1")
        begun_s = time.monotonic()
        pair.wait_for_workers("n2", timeout_s=FOUND_S + SLACK_S)
        print(f"found after {time.monotonic() - begun_s:.1f} s")
        judged(program)


def test_a_program_that_is_cut_off_for_longer_than_every_time_limit(alone: Cluster, tmp_path: Path) -> None:
    with Program(alone, tmp_path, "callbacks", "--kinds", "nap") as program:
        program.wait_for_ends(3)
        alone.lan.silence(DESK, 40.0)
        before = len(program.history().ends)
        program.wait_for_ends(before + 10)
        judged(program)
