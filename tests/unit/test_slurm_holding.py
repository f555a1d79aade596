"""The loop of `cwmp-slurm keep` around its rules: what it does when others do not do as they should."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import pytest

from cwmp import encryption
from cwmp.errors import CwmpError, SlurmError, UsageError
from cwmp.slurm import commands, holding, records, sizing, submission
from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.holding import Holding, bounds_of
from cwmp.slurm.keeper import ALL_LOST_S, IDLE_S, LOST_S, Bounds
from cwmp.slurm.options import Options
from cwmp.slurm.records import Group, Pool
from cwmp.slurm.view import Look

pytestmark = pytest.mark.core

MASTER = SlurmJob("16", None, "RUNNING", node="n1")


def worker(number: int, job: str, **facts: Any) -> Dict[str, Any]:
    told = {"id": number, "slurm_job": job, "busy": 0, "held": 0, "idle_s": 0.0, "draining": False}
    return {**told, **facts}


class World:
    """A recorded pool, and what SLURM and the master say of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
        groups = [Group(job="17", count=workers, submitted_at=0.0)]
        options = Options(name="x", workers=workers, encrypt="never")
        self.pool = Pool(options, "login", 0.0, wanted=workers, master_job="16", groups=groups)
        records.save(self.pool)
        self.jobs: Optional[List[SlurmJob]] = [MASTER]
        self.jobs += [SlurmJob("17", task, "RUNNING", node="n1", ran_s=999.0) for task in range(workers)]
        self.status: Optional[Dict[str, Any]] = {
            "jobs": {"queued": 0, "running": 0},
            "workers": [worker(task, f"17_{task}") for task in range(workers)],
        }
        self.meanwhile: Any = None  # done between the look and what it calls for
        self.failure: Optional[Exception] = None  # of whatever is done
        self.said: List[str] = []
        self.did: List[str] = []
        self.tries = 0
        monkeypatch.setattr(holding, "look_at", self.look_at)
        monkeypatch.setattr(submission, "submit_workers", self.submit)
        monkeypatch.setattr(sizing, "dismiss", self.dismiss)
        monkeypatch.setattr(commands, "cancel", lambda jobs: self.note("cancel", *jobs))
        monkeypatch.setattr(commands, "ended", lambda job: None)

    def look_at(self, pool: Pool, **_: Any) -> Look:
        look = Look(pool, self.jobs, "" if self.jobs else "squeue timed out", self.status)
        if self.meanwhile:
            self.meanwhile()
        return look

    def note(self, *words: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.did.append(" ".join(words))

    def submit(self, pool: Pool, count: int, *, avoid: Sequence[str] = ()) -> List[Group]:
        self.tries += 1
        self.note("submit", str(count), *avoid)
        return []

    def dismiss(self, pool: Pool, jobs: Sequence[str]) -> None:
        self.note("dismiss", *jobs)
        pool.dismissed += jobs
        records.save(pool)

    def end(self, task: int, state: str = "FAILED", **facts: Any) -> None:
        assert self.jobs is not None and self.status is not None
        self.jobs[task + 1] = replace(self.jobs[task + 1], state=state, **facts)
        self.forget(task)

    def forget(self, task: int) -> None:
        """The master no longer has that worker."""
        assert self.status is not None
        self.status["workers"] = [w for w in self.status["workers"] if w["slurm_job"] != f"17_{task}"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, 3)


def test_what_cannot_be_encrypted_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has started it did so with another Python."""
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)
    world.pool.options = replace(world.pool.options, encrypt="auto")
    records.save(world.pool)
    with pytest.raises(UsageError, match="CWMP_ENCRYPT=never"):
        Holding("x", None, world.said.append)


def hold(world: World, bounds: Optional[Bounds] = None) -> Holding:
    """A holding that has had its first look."""
    held = Holding("x", bounds, world.said.append)
    assert held._look(0.0)
    assert (world.did, world.said) == ([], [])
    return held


def test_what_ended_is_replaced(world: World) -> None:
    held = hold(world)
    world.end(1, "TIMEOUT")
    assert held._look(3.0)
    assert world.did == ["submit 1"]
    assert world.said == ["worker 17_1 ended: TIMEOUT, after 999 s, on n1", "submitted 1 more (job )"]


def test_a_slurm_that_does_not_answer_changes_nothing_and_is_told_of_once(world: World) -> None:
    held = hold(world)
    jobs, world.jobs = world.jobs, None
    for now in (3.0, 6.0, 9.0):
        assert held._look(now)
    assert world.said == ["nothing is changed while SLURM does not answer: squeue timed out"]
    world.jobs = jobs
    world.end(0)
    assert held._look(12.0)
    assert world.did == ["submit 1"]


def test_a_refused_submission_is_made_again_later_and_later(world: World) -> None:
    held = hold(world)
    world.end(0)
    world.failure = SlurmError("sbatch failed: QOSMaxSubmitJobPerUserLimit")
    for now in range(3, 603, 3):
        assert held._look(float(now))
    assert 5 < world.tries < 10
    assert [line for line in world.said if "cannot submit" in line][
        0
    ] == f"cannot submit 1 more: {world.failure}"
    world.failure = None
    assert held._look(1000.0)
    assert world.did == ["submit 1"]


def test_who_could_not_be_let_go_is_let_go_later(world: World) -> None:
    held = hold(world, Bounds(1, 3))
    assert world.status is not None
    world.status["workers"] = [worker(task, f"17_{task}", idle_s=2 * IDLE_S) for task in range(3)]
    world.failure = CwmpError("nobody can be let go while the master does not answer")
    assert held._look(3.0) and held._look(3.0 + IDLE_S)
    assert world.did == [] and "cannot let 17_0, 17_1 go" in world.said[-1]
    world.failure = None
    assert held._look(6.0 + IDLE_S)
    assert world.did == ["dismiss 17_0 17_1"]
    pool = records.load("x")
    assert pool is not None and pool.wanted == 1, "what there should be is written down"
    assert held._look(9.0 + IDLE_S)
    assert world.did == ["dismiss 17_0 17_1"]


def test_a_worker_that_the_master_lost_is_cancelled_and_replaced(world: World) -> None:
    held = hold(world)
    world.forget(2)
    assert held._look(3.0) and held._look(2.0 + LOST_S)
    assert world.did == []
    assert held._look(4.0 + LOST_S)
    assert world.did == ["cancel 17_2", "submit 1"]


def test_while_the_master_cannot_be_reached_nobody_is_lost(world: World) -> None:
    held = hold(world)
    world.status = None
    for step in range(5):
        assert held._look(step * ALL_LOST_S)
    assert world.did == []


def test_nothing_is_done_when_somebody_scaled_it_meanwhile(world: World) -> None:
    held = hold(world)
    world.end(0)
    pool = records.load("x")
    assert pool is not None
    world.meanwhile = lambda: records.save(replace(pool, wanted=2))
    assert held._look(3.0)
    assert world.did == []
    world.meanwhile = None
    assert held._look(6.0)
    assert world.did == [], "two are there"


def test_a_master_that_slurm_begins_again_is_waited_for(world: World) -> None:
    held = hold(world)
    assert world.jobs is not None
    world.status = None
    for state in ("NODE_FAIL", "PENDING", "PENDING"):
        world.jobs[0] = replace(MASTER, state=state)
        world.jobs[1] = replace(world.jobs[1], state="FAILED")
        assert held._look(3.0)
    assert world.did == [], "whoever came now would find no master"
    world.jobs[0] = MASTER
    assert held._look(6.0)
    assert world.did == ["submit 1"]


def test_a_master_that_has_ended_ends_it_with_the_end_of_its_log(world: World, cwmp_home: Path) -> None:
    held = hold(world)
    assert world.jobs is not None
    world.jobs[0] = replace(MASTER, state="OUT_OF_MEMORY")
    submission.make_log_directory(world.pool)
    Path(submission.log_path(world.pool, "16")).write_text("slurmstepd: oom-kill\n")
    assert held._look(3.0)
    with pytest.raises(CwmpError, match=r"\(job 16\) has ended: OUT_OF_MEMORY.*slurmstepd: oom-kill"):
        held._look(6.0)


def test_it_ends_when_the_cluster_is_stopped(world: World) -> None:
    held = hold(world)
    records.save(replace(world.pool, stopping=True))
    held.run(threading.Event())
    assert world.said == ["cluster x was stopped: there is nothing to keep"]


def test_it_ends_when_told(world: World) -> None:
    stop = threading.Event()
    stop.set()
    Holding("x", None, world.said.append).run(stop)
    assert world.said == []


def test_giving_up_shows_the_end_of_the_log(world: World) -> None:
    held = hold(world)
    assert world.jobs is not None and world.status is not None
    world.status["workers"] = []
    submission.make_log_directory(world.pool)
    Path(submission.log_path(world.pool, "17_3")).write_text("module: command not found\n")
    world.jobs[1:] = []
    groups = [*world.pool.groups, Group(job="17", count=9, submitted_at=0.0)]
    records.save(replace(world.pool, wanted=1, groups=groups))
    now = 0.0
    with pytest.raises(CwmpError, match="no worker of cluster 'x' lives"):
        for task in (1, 2, 3):
            now += 1000.0
            assert held._look(now)
            world.jobs.append(SlurmJob("17", task, "FAILED", node="n1", ran_s=1.0))
            held._look(now + 3.0)
    assert "17_3 is not replaced any more, 3 in a row died young" in world.said[-1]
    assert "ends: | module: command not found" in world.said[-1]


def test_a_job_of_many_nodes_cannot_be_kept(world: World) -> None:
    records.save(replace(world.pool, options=replace(world.pool.options, layout="job")))
    with pytest.raises(UsageError, match="start it with --layout array"):
        Holding("x", None, world.said.append)


@pytest.mark.parametrize(("least", "most"), [(3, 2), (0, 0), (None, 0), (2, None), (-1, 2)])
def test_bounds_that_cross(least: Optional[int], most: Optional[int]) -> None:
    with pytest.raises(UsageError):
        bounds_of(least, most)
