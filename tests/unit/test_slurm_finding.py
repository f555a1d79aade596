"""What `slurm_master_host` says where it finds none: what was looked at, what SLURM says, what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional

import pytest

from cwmp import ConnectError, SlurmExecutor, rendezvous, slurm_master_host
from cwmp.errors import SlurmError
from cwmp.slurm import commands, records, submission
from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.options import Options
from cwmp.slurm.records import Pool

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def some_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM whose commands are here."""
    monkeypatch.setattr(commands, "available", lambda: True)


def started(
    monkeypatch: pytest.MonkeyPatch, *jobs: Any, name: str = "night", master: Optional[str] = "16"
) -> Pool:
    """A recorded cluster; SLURM says these jobs of its master, or raises one."""
    pool = Pool(Options(name=name), "login", 0.0, wanted=1, master_job=master)
    records.save(pool)

    def queue(asked: List[str], **_: Any) -> List[SlurmJob]:
        assert asked == [pool.master_job]
        if jobs and isinstance(jobs[0], Exception):
            raise jobs[0]
        return list(jobs)

    monkeypatch.setattr(commands, "queue", queue)
    monkeypatch.setattr(commands, "ended", lambda job: None)
    return pool


def said(name: Optional[str] = "night") -> str:
    with pytest.raises(ConnectError) as caught:
        slurm_master_host(name)
    return str(caught.value)


def test_none_was_started(cwmp_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said() == (
        f"no master of cluster 'night' is published in {cwmp_home}/clusters; "
        "cwmp-slurm has not started one: type cwmp-slurm --name night start"
    )
    monkeypatch.setattr(commands, "available", lambda: False)
    assert said().endswith("start on a login node, for SLURM's commands are not on this PATH")
    monkeypatch.setenv("CWMP_NAME", "day")
    assert "cluster 'day'" in said(None)
    monkeypatch.setenv("CWMP_MASTER", "elsewhere:1")
    assert "cluster 'day'" in said(None), "it is asked for by name"


def test_another_one_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, name="day")
    assert "has not started one (there is day: choose it by name, or by CWMP_NAME)" in said()


AGAIN = "type cwmp-slurm --name night stop, then start"
FAILED = SlurmJob("16", None, "FAILED", "NonZeroExitCode", exit_code="1:0")


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (
            SlurmJob("16", None, "PENDING", "Priority"),
            "its master is job 16, PENDING (Priority: others are b",
        ),
        (
            SlurmJob("16", None, "PENDING"),
            "its master is job 16, PENDING: wait for it, and see cwmp-slurm --name",
        ),
        (FAILED, f"ended: FAILED (NonZeroExitCode), exit code 1:0 (its log LOG ends: | no room): {AGAIN}"),
        (
            SlurmJob("16", None, "RUNNING", node="n1"),
            "job 16 is RUNNING on n1 (its log LOG ends: | no room): if",
        ),
        (
            SlurmJob("16", None, "RUNNING", node="n1"),
            "see whether HOME is the same directory there (CWMP_HOME",
        ),
        (None, f"SLURM no longer knows its master's job 16: {AGAIN}"),
        (SlurmError("squeue timed out"), "job 16, of which SLURM does not tell: squeue timed out"),
    ],
)
def test_what_became_of_its_master(
    cwmp_home: Path, monkeypatch: pytest.MonkeyPatch, job: Any, expected: str
) -> None:
    pool = started(monkeypatch, *([job] if job else []))
    submission.make_log_directory(pool)
    log = Path(submission.log_path(pool, "16"))
    log.write_text("no room\n")
    assert expected.replace("LOG", str(log)).replace("HOME ", f"{cwmp_home} ") in said()


def test_a_master_outside_slurm_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, master=None)
    assert said().endswith("it ran on login, outside SLURM: type cwmp-slurm --name night stop, then start")


def test_one_that_is_published_and_does_not_answer_is_told_of_in_both_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cwmp import defaults

    monkeypatch.setattr(defaults, "ATTRIBUTE_CACHE_S", 0.0)
    started(monkeypatch, SlurmJob("16", None, "PENDING", "BeginTime"))
    here = rendezvous.Cluster.of_this_process("night", "127.0.0.1", 1, b"k")
    rendezvous.publish(here)
    monkeypatch.setattr(rendezvous.Cluster, "is_here", lambda self: False)
    monkeypatch.setattr(rendezvous.Cluster, "hosts", lambda self: ("127.0.0.1",))
    with pytest.raises(ConnectError, match=r"127.0.0.1:1.*its master is job 16, PENDING \(BeginTime"):
        SlurmExecutor("night")
    rendezvous.withdraw(here)
