"""What `cwmp-slurm` writes down about a cluster, and who can read it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cwmp.errors import UsageError
from cwmp.slurm import records, submission
from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.options import Options
from cwmp.slurm.records import Group, Pool

pytestmark = pytest.mark.core


def pool(name: str = "night", **facts: object) -> Pool:
    """A pool with a master and two arrays."""
    options = Options(name=name, workers=3, setup=("a", "b"), wait_s=2.5)
    groups = [Group("17", 2, 100.0), Group("18", 1, 200.0)]
    return Pool(options, "login1", 50.0, wanted=3, master_job="16", groups=groups, **facts)  # type: ignore[arg-type]


def test_what_was_saved_is_loaded() -> None:
    saved = pool(dismissed=["17_1"], stopping=True)
    records.save(saved)
    assert records.load("night") == saved
    assert records.load("day") is None


def test_the_file_is_for_its_owner_alone(cwmp_home: Path) -> None:
    records.save(pool())
    path = cwmp_home / "slurm" / "night.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_jobs_and_workers() -> None:
    every = pool(dismissed=["17_1"])
    every.groups.append(Group("19", 4, 300.0, layout="job"))
    assert every.jobs() == ["16", "17", "18", "19"]
    assert every.worker_ids() == {"17_0", "18_0", "19"}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"options": 1}', '{"options": {"name": "x y"}}'])
def test_a_damaged_record_says_what_to_do(cwmp_home: Path, damage: str) -> None:
    records.save(pool())
    (cwmp_home / "slurm" / "night.json").write_text(damage)
    with pytest.raises(UsageError, match="night.json is damaged: look for its jobs with squeue"):
        records.load("night")


def test_options_that_a_later_version_wrote_are_left_out(cwmp_home: Path) -> None:
    records.save(pool())
    path = cwmp_home / "slurm" / "night.json"
    record = json.loads(path.read_text())
    record["options"]["colour"] = "red"
    path.write_text(json.dumps(record))
    assert records.load("night") == pool()


def test_names() -> None:
    for name in ("night", "day.2"):
        records.save(pool(name))
    assert records.names() == ["day.2", "night"]


def test_only_the_own_record_is_removed() -> None:
    old, new = pool(), pool()
    new.started_at = 60.0
    records.save(new)
    records.remove(old)
    assert records.load("night") == new, "somebody has started it anew"
    records.remove(new)
    records.remove(new)
    assert records.load("night") is None


def test_a_record_stays_small_however_long_its_workers_are_replaced(
    monkeypatch: pytest.MonkeyPatch, cwmp_home: Path
) -> None:
    numbers = iter(range(100, 10_000))
    live = {"17"}
    monkeypatch.setattr(submission.commands, "submit", lambda script, options=(): str(next(numbers)))
    present = [SlurmJob(job, 0, "RUNNING") for job in live]
    monkeypatch.setattr(submission.commands, "queue", lambda jobs: [j for j in present if j.job in jobs])
    long = pool(dismissed=["17_0", "18_0"])
    for _ in range(200):
        submission.submit_workers(long, 1)
    assert long.groups[0].job == "17", "it still runs"
    assert len(long.groups) <= 2 * submission.ENDED_GROUPS + 1
    assert long.dismissed == ["17_0"]
    assert (cwmp_home / "slurm" / "night.json").stat().st_size < 10_000
    assert records.load("night") == long


def test_many_workers_are_several_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = []
    monkeypatch.setattr(
        submission.commands, "submit", lambda script, options=(): scripts.append(script) or str(len(scripts))
    )
    empty = Pool(Options(name="x"), "login1", 0.0, wanted=0)
    groups = submission.submit_workers(empty, 2500)
    assert [(group.job, group.count) for group in groups] == [("1", 1000), ("2", 1000), ("3", 500)]
    assert [script.count("#SBATCH --array=0-999\n") for script in scripts] == [1, 1, 0]
    assert records.load("x") == empty
