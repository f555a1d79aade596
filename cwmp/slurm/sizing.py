"""Changing how many workers a cluster has: more are submitted, those who go are never running a job."""

from __future__ import annotations

import time
from typing import Any, Dict, List, NamedTuple, Sequence

from ..errors import ConnectError, CwmpError
from . import commands, ending, masters, records, submission
from .commands import SlurmJob
from .launcher import pool_of
from .records import Pool
from .waiting import Say, counted

JOIN_S = 10.0
"""How long a worker that has begun may take to join before it is told to end instead of drained."""

_LOOK_S = 0.3


class Seat(NamedTuple):
    """One worker as both sides see it: its job, and its number at the master if it has joined."""

    job: str
    waits: bool
    worker: int = -1  # -1: not joined
    busy: bool = False


def scale(name: str, count: int, say: Say) -> None:
    """Have `count` workers: submit more, or let some go, idle ones first and never a running job.

    CwmpError when the cluster is being stopped, or when not all that should go can be told to.
    """
    with records.locked():
        pool = pool_of(name)
        present = ending.present([group.job for group in pool.groups])
        if pool.stopping:
            raise CwmpError(f"cluster {name!r} is being stopped")
        seats = seats_of(pool, present, [])
        missing = count - len(seats)
        pool.wanted = count
        records.save(pool)
        if missing > 0:
            groups = submission.submit_workers(pool, missing)
            jobs = ", ".join(group.job for group in groups)
            say(f"{counted(len(seats), 'worker')} before, {missing} more submitted (job {jobs})")
        elif missing < 0:
            leavers = choose_leavers(seats_of(pool, present, _workers(name)), -missing)
            let_go(pool, leavers)
            say(f"{counted(len(seats), 'worker')} before; {_told(leavers)}")
        else:
            say(f"{counted(count, 'worker')}: as it was")


def dismiss(pool: Pool, jobs: Sequence[str]) -> None:
    """Let the workers of these jobs ("17_3") go; needs the record's lock."""
    present = ending.present(jobs)
    seats = seats_of(pool, present, _workers(pool.name))
    let_go(pool, [seat for seat in seats if seat.job in jobs])


def seats_of(pool: Pool, present: Sequence[SlurmJob], workers: Sequence[Dict[str, Any]]) -> List[Seat]:
    """Everyone who is there or is to come, and has not been let go.

    A waiting job of many nodes has a seat for each of them; one that runs, for those that joined.
    """
    joined: Dict[str, List[Seat]] = {}
    for worker in workers:
        if worker.get("slurm_job") and not worker.get("draining"):
            seat = Seat(worker["slurm_job"], False, worker["id"], worker["busy"] > 0 or worker["held"] > 0)
            joined.setdefault(seat.job, []).append(seat)
    seats: List[Seat] = []
    for job in present:
        group = next((group for group in pool.groups if group.job == job.job), None)
        if group is None or job.id in pool.dismissed or job.state == "COMPLETING":
            continue
        if group.layout == "job":
            seats += joined.get(job.id) or [Seat(job.id, job.waits)] * group.count
        else:
            seats += joined.get(job.id, [Seat(job.id, job.waits)])[:1]
    return seats


def choose_leavers(seats: Sequence[Seat], count: int) -> List[Seat]:
    """Who goes when `count` have to: who waits, who is idle, who has not joined, and busy ones last."""

    def reluctance(place: int) -> Any:
        seat = seats[place]
        joined = seat.worker >= 0
        return (not seat.waits, seat.busy, not joined, -place)  # of equals the youngest

    return [seats[place] for place in sorted(range(len(seats)), key=reluctance)[:count]]


def let_go(pool: Pool, seats: Sequence[Seat]) -> None:
    """Let these go; needs the record's lock. CwmpError when some cannot be told."""
    of_many = {group.job for group in pool.groups if group.layout == "job"}
    if any(seat.worker < 0 and seat.job in of_many for seat in seats):
        raise CwmpError("a job of many nodes cannot be made smaller before its workers have joined")
    pool.dismissed += [seat.job for seat in seats if seat.job not in of_many]
    for group in pool.groups:
        group.count -= sum(seat.job == group.job and seat.job in of_many for seat in seats)
    records.save(pool)
    commands.cancel_waiting([seat.job for seat in seats if seat.worker < 0])
    masters.drain(pool.name, [seat.worker for seat in seats if seat.worker >= 0])
    _drain_late([seat.job for seat in seats if seat.worker < 0], pool.name)


def _drain_late(jobs: List[str], name: str) -> None:
    """Drain those that have begun and are about to join; who does not join has no work and is told to end."""
    deadline = time.monotonic() + JOIN_S
    while True:
        jobs = [job.id for job in ending.present(jobs) if not job.waits and job.state != "COMPLETING"]
        if not jobs:
            return
        joined = {worker["slurm_job"]: worker["id"] for worker in masters.status(name)["workers"]}
        masters.drain(name, [joined[job] for job in jobs if job in joined])
        jobs = [job for job in jobs if job not in joined]
        if time.monotonic() >= deadline:
            commands.signal(jobs)
            return
        time.sleep(_LOOK_S)


def _workers(name: str) -> List[Dict[str, Any]]:
    """What the master says of its workers. CwmpError when it does not: who is busy is not known then."""
    try:
        workers: List[Dict[str, Any]] = masters.status(name)["workers"]
    except ConnectError as error:
        raise CwmpError(f"nobody can be let go while the master does not answer: {error}") from None
    return workers


def _told(leavers: Sequence[Seat]) -> str:
    """Who goes, and when."""
    busy = sum(seat.busy for seat in leavers)
    jobs = ", ".join(seat.job for seat in leavers[:10]) + (", …" if len(leavers) > 10 else "")
    when = f", {busy} of them when what they run has ended" if busy else ""
    return f"{len(leavers)} of them leave{when} (job {jobs})"
