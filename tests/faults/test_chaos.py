"""Three minutes of everything at once; `python -m tests.faults.chaos` goes on. And what that relies on."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest

from tests.faults.chaos.judge import MAX_ATTEMPTS, OPEN_S, Blocked, Verdict, judge
from tests.faults.chaos.notes import End, History
from tests.faults.chaos.relay import HOST, Link, Relay
from tests.faults.chaos.schedule import FIRST_S, KINDS, REST_S, schedule

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 3
SEED = 1


@pytest.mark.patient
@pytest.mark.timeout(600)
def test_three_minutes_of_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.chaos", "--directory", str(tmp_path)]
    done = subprocess.run([*command, "--minutes", str(MINUTES), "--seed", str(SEED)], cwd=ROOT, timeout=540)
    assert done.returncode == 0, "see what it printed"
    assert list(tmp_path.glob("cwmp-chaos-*")) == []


# --- the schedule ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_has_one_schedule(seed: int) -> None:
    actions = schedule(seed, MINUTES)
    assert actions == schedule(seed, MINUTES) != schedule(seed + 1, MINUTES)
    assert actions == sorted(actions)
    assert {action.kind for action in schedule(seed, 3 * MINUTES)} == set(KINDS)
    for action in actions:
        assert FIRST_S <= action.at_s <= action.at_s + action.length_s <= MINUTES * 60 - FIRST_S + 0.01


@pytest.mark.parametrize("seed", range(20))
def test_nothing_happens_to_what_is_away(seed: int) -> None:
    away_until: Dict[str, float] = {}
    for action in schedule(seed, 10 * MINUTES):
        assert action.at_s >= away_until.get(action.target, 0.0)
        if action.length_s and "slot" not in action.act:
            away_until[action.target] = action.at_s + action.length_s + REST_S
        away = [who for who, until_s in away_until.items() if "worker" in who and until_s > action.at_s]
        assert len(away) <= 2, "half of them are there to do the jobs"


def test_a_pick_is_always_less_than_the_whole() -> None:
    assert max(action.pick for seed in range(50) for action in schedule(seed, 10 * MINUTES)) < 1.0


def test_the_run_of_every_day_has_all_kinds() -> None:
    assert {action.kind for action in schedule(SEED, MINUTES)} == set(KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_the_master_is_never_away_for_long(seed: int) -> None:
    away = [action for action in schedule(seed, 10 * MINUTES) if action.target == "master"]
    assert {action.act for action in away} == {"kill", "stop"}
    assert all(5 <= action.length_s <= 20 for action in away if action.act == "kill")
    assert all(action.length_s <= 12 for action in away if action.act == "stop")


@pytest.mark.parametrize("kind", KINDS)
def test_only_some_kinds_are_what_these_are_among_all(kind: str) -> None:
    alone = schedule(7, MINUTES, only=[kind])
    assert {action.kind for action in alone} == {kind}
    assert {action for action in schedule(7, MINUTES) if action.kind == kind} <= set(alone)


# --- the judge ------------------------------------------------------------------------------

DAY_S = 86_400.0


def history(*ends: End, begun: Sequence[str] = ("a", "b"), killed: bool = False) -> History:
    """A client that submitted jobs at 100 s, and these outcomes."""
    return History("c", killed, not killed, dict.fromkeys(begun, 100.0), list(ends))


def verdict(
    of: History, *, left: Sequence[str] = (), blocked: Sequence[Blocked] = (), **runs: int
) -> Verdict:
    """Of one client whose jobs ran once each, or as `runs` says."""
    return judge([of], {**dict.fromkeys(of.begun, 1), **runs}, blocked, left, now_s=130.0)


def problems(of: History, **runs: int) -> List[str]:
    return verdict(of, left=(), blocked=(), **runs).problems


FIRST, SECOND = End("a", 101.0, "ok"), End("b", 102.5, "ok")


def test_all_is_well() -> None:
    found = verdict(history(FIRST, SECOND), b=2)
    assert found.problems == []
    assert (found.jobs, found.runs, found.run_again, found.longest_s) == (2, 3, 1, 2.5)
    assert found.outcomes == Counter(ok=2)


def test_a_lost_job() -> None:
    assert problems(history(FIRST)) == ["job b has no outcome"]


def test_a_job_of_a_killed_client_is_not_lost() -> None:
    assert problems(history(FIRST, killed=True)) == []
    assert problems(history(FIRST, FIRST, killed=True)) == ["job a has 2 outcomes"]


def test_an_outcome_that_came_twice() -> None:
    assert problems(history(FIRST, SECOND, FIRST)) == ["job a has 2 outcomes"]


def test_an_outcome_that_nobody_asked_for() -> None:
    stray = End("x", 101.0, "ok")
    assert problems(history(FIRST, SECOND, stray), x=1) == ["job x has an outcome and was never submitted"]


def test_a_wrong_value() -> None:
    assert problems(history(FIRST, SECOND._replace(kind="wrong"))) == ["job b ended as wrong after 1 runs"]


def test_a_result_without_a_run() -> None:
    assert problems(history(FIRST, SECOND), b=0) == ["job b has a result and never ran"]


@pytest.mark.parametrize("kind", ["MasterLost", "BlobLost", "CancelledError"])
def test_an_error_that_nothing_excuses(kind: str) -> None:
    found = problems(history(FIRST, SECOND._replace(kind=kind)), b=MAX_ATTEMPTS)
    assert found == [f"job b ended as {kind} after {MAX_ATTEMPTS} runs"]


def test_a_lost_worker_is_an_outcome_after_enough_runs_only() -> None:
    lost = history(FIRST, SECOND._replace(kind="WorkerLost"))
    assert problems(lost, b=MAX_ATTEMPTS) == []
    assert problems(lost, b=MAX_ATTEMPTS - 1) == [f"job b ended as WorkerLost after {MAX_ATTEMPTS - 1} runs"]


def test_a_map_that_ended_with_an_error() -> None:
    given_up = history(FIRST)
    given_up.abandoned.append(("WorkerLost", ["b"]))
    assert problems(given_up, b=MAX_ATTEMPTS) == []
    [problem] = problems(given_up)
    assert "none of ['b'] ran often enough" in problem


def test_a_client_that_does_not_end() -> None:
    waiting = history(FIRST, SECOND)
    waiting.finished = False
    assert problems(waiting) == ["client c did not come to its end"]


def test_something_left_behind() -> None:
    assert verdict(history(FIRST, SECOND), left=["file f"]).problems == ["left behind: file f"]


def test_a_job_that_was_open_for_too_long() -> None:
    late = history(FIRST, SECOND._replace(at_s=100.0 + OPEN_S + 30))
    [problem] = problems(late)
    assert problem == f"job b was open for {OPEN_S + 30:.0f} s of a healthy cluster"
    away = [
        Blocked(90.0, 110.0),
        Blocked(105.0, 120.0),
        Blocked(130.0, 145.0, "c"),
        Blocked(100.0, 190.0, "d"),
    ]
    found = verdict(late, blocked=away)  # 20 s of everybody's, and 15 s of its own
    assert found.problems == []
    assert found.longest_s == OPEN_S + 30
    assert found.longest_healthy_s == OPEN_S - 5
    assert verdict(late, blocked=away[:1]).problems != []


def test_a_job_that_is_open_to_the_end_is_late_as_well() -> None:
    found = judge([history(FIRST)], {"a": 1}, now_s=100.0 + DAY_S)
    assert found.problems[0] == "job b has no outcome"
    assert "job b was open for 86400 s" in found.problems[1]


# --- the links ------------------------------------------------------------------------------


Ends = Tuple[Link, socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A link, and the two ends of a connection through it."""
    with socket.create_server((HOST, 0)) as server, Relay() as relay:
        link = relay.link(server.getsockname()[1])
        with socket.create_connection((HOST, link.port)) as near:
            far, _ = server.accept()
            with far:
                for end in (near, far):
                    end.settimeout(20.0)
                yield link, near, far


def test_a_link_carries_bytes_both_ways_and_their_end(ends: Ends) -> None:
    _, near, far = ends
    for here, there in ((near, far), (far, near)):
        here.sendall(b"hello")
        assert there.recv(10) == b"hello"
    near.shutdown(socket.SHUT_WR)
    assert far.recv(10) == b""
    far.sendall(b"still here")
    assert near.recv(10) == b"still here"


def test_nothing_passes_a_frozen_link_until_it_thaws(ends: Ends) -> None:
    link, near, far = ends
    link.freeze()
    near.sendall(b"hello")
    far.settimeout(0.3)
    with pytest.raises(socket.timeout):
        far.recv(10)
    with socket.create_connection((HOST, link.port)):  # nor does a new connection, or the end of one
        near.shutdown(socket.SHUT_WR)
        link.thaw()
        far.settimeout(20.0)
        assert (far.recv(10), far.recv(10)) == (b"hello", b"")


def test_a_dropped_link_breaks_at_both_ends_and_takes_new_connections(ends: Ends) -> None:
    link, near, far = ends
    link.drop()
    for end in (near, far):
        assert _is_broken(end)
    with socket.create_connection((HOST, link.port)) as again:
        again.sendall(b"hello")


def _is_broken(end: socket.socket) -> bool:
    try:
        return end.recv(10) == b""
    except ConnectionResetError:
        return True


# --- notes ----------------------------------------------------------------------------------


def test_notes_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("begin a 100.0\nbegin b 100.0\nend a 101.0 ok\nabandon WorkerLost b\nfinished\n")
    expected = history(FIRST)
    expected.abandoned.append(("WorkerLost", ["b"]))
    assert History.read("c", path) == expected
    assert History.read("c", tmp_path / "none", killed=True) == History("c", killed=True)
