"""Who goes when a cluster on SLURM gets smaller."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.options import Options
from cwmp.slurm.records import Group, Pool
from cwmp.slurm.sizing import Seat, choose_leavers, seats_of

pytestmark = pytest.mark.core

WAITING, IDLE, BUSY = Seat("1_3", True), Seat("1_1", False, 8), Seat("1_0", False, 7, True)
STARTING = Seat("1_2", False)


def worker(ident: int, job: str, busy: int = 0, **facts: Any) -> Dict[str, Any]:
    """A worker as the master's status tells of it."""
    return {"id": ident, "slurm_job": job, "busy": busy, "held": busy, "draining": False, **facts}


def pool(*groups: Group, dismissed: List[str]) -> Pool:
    """A pool of these workers."""
    return Pool(Options(), "login1", 0.0, wanted=4, master_job="9", groups=list(groups), dismissed=dismissed)


@pytest.mark.parametrize(
    ("count", "leavers"),
    [
        (0, []),
        (1, [WAITING]),
        (2, [WAITING, IDLE]),
        (3, [WAITING, IDLE, STARTING]),
        (4, [WAITING, IDLE, STARTING, BUSY]),
        (9, [WAITING, IDLE, STARTING, BUSY]),
    ],
)
def test_who_costs_nothing_goes_first_and_the_busy_last(count: int, leavers: List[Seat]) -> None:
    assert choose_leavers([BUSY, IDLE, STARTING, WAITING], count) == leavers


def test_of_equals_the_youngest_goes() -> None:
    seats = [Seat(f"1_{number}", False, number) for number in range(5)]
    assert choose_leavers(seats, 2) == [seats[4], seats[3]]


def test_seats_of_an_array() -> None:
    every = pool(Group("1", 5, 0.0), dismissed=["1_4"])
    states = ["RUNNING", "RUNNING", "PENDING", "COMPLETING", "RUNNING"]
    jobs = [SlurmJob("1", task, state) for task, state in enumerate(states)]
    workers = [worker(7, "1_0", busy=1), worker(8, "1_4"), worker(9, "other"), {"id": 3, "slurm_job": None}]
    assert seats_of(every, jobs, workers) == [
        Seat("1_0", False, 7, True),
        Seat("1_1", False),
        Seat("1_2", True),
    ]


def test_who_holds_jobs_that_have_not_begun_is_busy() -> None:
    every = pool(Group("1", 1, 0.0), dismissed=[])
    held = {**worker(7, "1_0"), "held": 3}
    assert seats_of(every, [SlurmJob("1", 0, "RUNNING")], [held]) == [Seat("1_0", False, 7, True)]


def test_seats_of_a_job_of_many_nodes() -> None:
    every = pool(Group("1", 3, 0.0, layout="job"), Group("2", 2, 0.0, layout="job"), dismissed=[])
    jobs = [SlurmJob("1", None, "RUNNING"), SlurmJob("2", None, "PENDING")]
    workers = [worker(7, "1"), worker(8, "1", draining=True), worker(9, "1", busy=2)]
    assert seats_of(every, jobs, workers) == [
        Seat("1", False, 7),
        Seat("1", False, 9, True),
        Seat("2", True),
        Seat("2", True),
    ]
