"""What `cwmp-slurm status` shows: SLURM's view joined with the master's, from made-up views of both."""

from __future__ import annotations

import json
from typing import Any, Dict, List

import pytest

from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.options import Options
from cwmp.slurm.records import Group, Pool
from cwmp.slurm.view import LOGS_SHOWN, Look, failed, join, report

pytestmark = pytest.mark.core


def pool(count: int = 3, **facts: Any) -> Pool:
    """A pool with its master in job 16 and its workers in the array 17."""
    options = Options(name="night", workers=count, slots=4)
    groups = [Group(job="17", count=count, submitted_at=0.0)]
    return Pool(options, "login", 0.0, wanted=count, master_job="16", groups=groups, **facts)


def job(task: int, state: str = "RUNNING", **facts: Any) -> SlurmJob:
    return SlurmJob("17", task, state, **{"node": f"n{task + 1}", "time_left_s": 3600.0, **facts})


MASTER = SlurmJob("16", None, "RUNNING", node="n1", time_left_s=7200.0)


def worker(number: int, slurm_job: Any, **facts: Any) -> Dict[str, Any]:
    told = {"id": number, "slurm_job": slurm_job, "node": f"n{number}", "slots": 4, "busy": 1, "done": 10}
    return {**told, "held": 1, "idle_s": 0.0, "draining": False, "ends_in_s": None, **facts}


def status(*workers: Dict[str, Any]) -> Dict[str, Any]:
    counts = {"queued": 5, "running": 2, "done": 20, "failed": 0, "cancelled": 0}
    return {"jobs": counts, "workers": list(workers), "clients": [{}, {}]}


def lines_of(look: Look) -> List[str]:
    return report(join(look)).splitlines()


def test_all_is_well() -> None:
    jobs = [MASTER, job(0), job(1)]
    both = status(worker(1, "17_0"), worker(2, "17_1", busy=0, ends_in_s=59.9))
    assert lines_of(Look(pool(2), jobs, status=both, address="n1:5494")) == [
        "cluster  night",
        "master   job 16 RUNNING on n1, 2:00:00 left, answers on n1:5494",
        "jobs     5 queued, 2 running, 20 done, 0 failed, 0 cancelled",
        "clients  2",
        "workers  2 wanted, 2 joined with 8 slots, 1 busy",
        "  SLURM job  node  state    worker  slots  busy  done  time left",
        "  17_0       n1    RUNNING       1      4     1    10    1:00:00",
        "  17_1       n2    RUNNING       2      4     0    10       0:59",
    ]


def test_what_waits_says_why() -> None:
    jobs = [
        SlurmJob("16", None, "PENDING", reason="Priority"),
        job(0, "PENDING", reason="Resources", node=""),
        job(1, "PENDING", reason="Resources", node=""),
        job(2),
    ]
    lines = lines_of(Look(pool(), jobs, master_error="no master of cluster 'night' is running"))
    assert lines[1] == "master   job 16 PENDING (Priority: others are before it in the queue)"
    assert lines[2] == "         the master did not answer: no master of cluster 'night' is running"
    assert lines[3] == (
        "workers  3 wanted, 0 joined with 0 slots, 0 busy, 1 running but not joined, "
        "2 PENDING (Resources: no node is free for it yet)"
    )


def test_a_slurm_that_does_not_answer_is_not_an_empty_one() -> None:
    look = Look(pool(), slurm_error="squeue timed out after 60 s", status=status(worker(1, "17_0")))
    view = join(look)
    assert view["slurm_error"] == "squeue timed out after 60 s"
    assert [(row["slurm_job"], row["state"]) for row in view["workers"]] == [("17_0", None)]
    assert "         SLURM did not answer: squeue timed out after 60 s" in report(view).splitlines()
    assert report(join(Look(pool(), slurm_error="x"))).splitlines()[-1] == "workers  3 wanted"


def test_what_failed_shows_its_log_and_of_many_the_last_few() -> None:
    jobs = [MASTER, *(job(n, "FAILED", reason="NonZeroExitCode") for n in range(9)), job(9, "CANCELLED")]
    shown = failed(pool(10), jobs)
    assert [each.id for each in shown] == ["17_6", "17_7", "17_8"] and len(shown) == LOGS_SHOWN
    logs = {each.id: (f"/logs/{each.id}.log", ["module: not found"]) for each in shown}
    view = join(Look(pool(10), jobs, logs=logs, exit_codes={each.id: "127:0" for each in shown}))
    assert len(view["ended"]) == 10
    assert view["ended"][8]["log_tail"] == ["module: not found"]
    text = report(view)
    assert (
        "  worker 17_6 ended: FAILED (NonZeroExitCode), exit code 127:0, on n7\n"
        "    its log /logs/17_6.log ends:\n"
        "    | module: not found\n"
    ) in text
    assert "  worker 17_9 ended: CANCELLED, on n10\n" in text
    assert text.endswith("  and 6 more that failed before: --json lists them")


def test_a_master_that_failed_shows_its_log() -> None:
    jobs = [SlurmJob("16", None, "FAILED", node="n1")]
    assert failed(pool(), jobs) == jobs
    lines = lines_of(Look(pool(), jobs, logs={"16": ("/logs/16.log", [])}, master_error="no answer"))
    assert lines[1:3] == ["master   job 16 FAILED on n1", "         its log is empty: /logs/16.log"]


def test_those_that_were_sent_away_are_shown_while_they_finish_and_not_mourned() -> None:
    jobs = [job(0), job(1), job(2, "COMPLETED")]
    view = join(Look(pool(dismissed=["17_1", "17_2"]), jobs, status=status(worker(1, "17_0"))))
    assert [(row["slurm_job"], row["leaves"]) for row in view["workers"]] == [("17_0", False), ("17_1", True)]
    assert view["ended"] == []
    assert "leaves when done" in report(view)


def test_workers_that_only_the_master_knows_are_shown() -> None:
    both = status(worker(1, None, node="desk"), worker(2, "99_1"), worker(3, "17_0"))
    view = join(Look(pool(1), [job(0, "COMPLETED")], status=both))
    shown = [(row["worker"], row["slurm_job"], row["state"]) for row in view["workers"]]
    assert shown == [(1, None, None), (2, "99_1", None), (3, "17_0", None)]
    assert "  -          desk  -" in report(view)


def test_a_job_of_many_nodes_has_a_row_for_each_worker() -> None:
    many = SlurmJob("17", None, "RUNNING", node="n1", nodes="n[1-2]")
    view = join(Look(pool(2), [many], status=status(worker(1, "17"), worker(2, "17"))))
    assert [(row["slurm_job"], row["node"]) for row in view["workers"]] == [("17", "n1"), ("17", "n2")]


def test_a_master_outside_slurm() -> None:
    here = pool()
    here.master_job = None
    assert lines_of(Look(here, [], status=status(), address="login:7000"))[1] == (
        "master   a process on login, outside SLURM, answers on login:7000"
    )


def test_it_is_json() -> None:
    look = Look(pool(), [MASTER, job(0), job(1, "FAILED")], status=status(worker(1, "17_0")))
    assert json.loads(json.dumps(join(look))) == join(look)
