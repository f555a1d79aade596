"""Whether everything came as promised, by what the programs and the jobs have noted. Touches nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tests.faults.chaos.notes import History

MAX_ATTEMPTS = 3
"""Runs that a job must have had before `WorkerLost` may be its outcome."""
OPEN_S = 60.0
"""So long a job may be open at a healthy cluster: several silent workers in a row, 15 s each."""


class Blocked(NamedTuple):
    """A time in which nobody, or not this client, could get an outcome."""

    from_s: float
    until_s: float
    client: Optional[str] = None


@dataclass
class Verdict:
    """What there is to say. All is well if `problems` is empty."""

    problems: List[str] = field(default_factory=list)
    jobs: int = 0
    runs: int = 0
    run_again: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    longest_healthy_s: float = 0.0


def judge(
    histories: Sequence[History],
    runs: Mapping[str, int],
    blocked: Sequence[Blocked] = (),
    left: Sequence[str] = (),
    *,
    now_s: float,
    open_s: float = OPEN_S,
) -> Verdict:
    """`runs` is how often each job was begun, `left` what is left of the cluster, `now_s` when it ended.

    `open_s` is how long a job may be open, apart from times that were `blocked` for its client.
    """
    verdict = Verdict(runs=sum(runs.values()), run_again=sum(count > 1 for count in runs.values()))
    for history in histories:
        verdict.jobs += len(history.begun)
        _judge_outcomes(history, runs, verdict)
        for job, waited_s in _waits(history, blocked, now_s, verdict):
            if waited_s > open_s:
                verdict.problems.append(f"job {job} was open for {waited_s:.0f} s of a healthy cluster")
    verdict.problems += [f"left behind: {thing}" for thing in left]
    return verdict


def _judge_outcomes(history: History, runs: Mapping[str, int], verdict: Verdict) -> None:
    counts = Counter(end.job for end in history.ends)
    for job, count in counts.items():
        if count > 1:
            verdict.problems.append(f"job {job} has {count} outcomes")
        if job not in history.begun:
            verdict.problems.append(f"job {job} has an outcome and was never submitted")
    for end in history.ends:
        verdict.outcomes[end.kind] += 1
        if end.kind == "ok" and not runs.get(end.job):
            verdict.problems.append(f"job {end.job} has a result and never ran")
        elif end.kind != "ok" and not _excused(end.kind, [end.job], runs):
            verdict.problems.append(f"job {end.job} ended as {end.kind} after {runs.get(end.job, 0)} runs")
    given_up = {job for _, jobs in history.abandoned for job in jobs}
    for kind, jobs in history.abandoned:
        verdict.outcomes[f"given up: {kind}"] += len(jobs)
        if not _excused(kind, jobs, runs):
            verdict.problems.append(f"a map ended with {kind}; none of {jobs} ran often enough for that")
    if history.killed:
        return  # nobody is there to get what is missing
    lost = history.begun.keys() - counts.keys() - given_up
    verdict.problems += [f"job {job} has no outcome" for job in sorted(lost)]
    if not history.finished:
        verdict.problems.append(f"client {history.client} did not come to its end")


def _excused(kind: str, jobs: Sequence[str], runs: Mapping[str, int]) -> bool:
    """Whether this error is right for one of these jobs."""
    return kind == "WorkerLost" and any(runs.get(job, 0) >= MAX_ATTEMPTS for job in jobs)


def _waits(
    history: History, blocked: Sequence[Blocked], now_s: float, verdict: Verdict
) -> Iterator[Tuple[str, float]]:
    """Each job, and how long it was open while its client was not blocked."""
    ends = {end.job: end.at_s for end in history.ends}
    if not history.killed:
        given_up = {job for _, jobs in history.abandoned for job in jobs}
        ends = {**dict.fromkeys(history.begun.keys() - given_up, now_s), **ends}
    for job, until_s in ends.items():
        from_s = history.begun.get(job, until_s)
        healthy_s = until_s - from_s - _blocked_s(from_s, until_s, history.client, blocked)
        verdict.longest_s = max(verdict.longest_s, until_s - from_s)
        verdict.longest_healthy_s = max(verdict.longest_healthy_s, healthy_s)
        yield job, healthy_s


def _blocked_s(from_s: float, until_s: float, client: str, blocked: Sequence[Blocked]) -> float:
    """How much of that time was blocked for that client; times that overlap count once."""
    total = 0.0
    for start, end, whom in sorted(blocked, key=lambda time: time[:2]):
        if whom in (None, client):
            start, end = max(start, from_s), min(end, until_s)
            if end > start:
                total += end - start
                from_s = end
    return total
