"""What a worker says of the SLURM job that it runs in."""

from __future__ import annotations

from typing import Dict, Optional

import pytest

from cwmp.place import slurm_job, slurm_place

pytestmark = pytest.mark.core

ARRAY = {"SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "0"}


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "17"}, "17"),
        (ARRAY, "123_0"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": ""}, "125"),
    ],
)
def test_the_job_as_squeue_names_it(environ: Dict[str, str], job: Optional[str]) -> None:
    assert slurm_job(environ) == job


def test_there_is_nothing_to_say_outside_of_slurm() -> None:
    assert slurm_place({"SLURM_RESTART_COUNT": "3"}) == {}


@pytest.mark.parametrize(("count", "restarts"), [("", 0), ("2", 2), ("-1", 0), ("many", 0)])
def test_restarts(count: str, restarts: int) -> None:
    environ = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": count}
    assert slurm_place(environ) == {"slurm_job": "17", "restarts": restarts}
