"""Where a worker runs, as SLURM calls it: the job, and how often SLURM has started that anew."""

from __future__ import annotations

import os
from typing import Dict, Mapping, Optional, Union

Facts = Dict[str, Union[str, int]]


def slurm_job(environ: Mapping[str, str] = os.environ) -> Optional[str]:
    """The SLURM job that this process is part of, as `squeue` names it; None outside of one.

    >>> slurm_job({"SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "4"})
    '123_4'
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environ.get("SLURM_JOB_ID") or None


def slurm_place(environ: Mapping[str, str] = os.environ) -> Facts:
    """What a worker tells its master of the SLURM job that it runs in; nothing outside of one.

    >>> slurm_place({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"})
    {'slurm_job': '17', 'restarts': 1}
    """
    job = slurm_job(environ)
    if job is None:
        return {}
    restarts = environ.get("SLURM_RESTART_COUNT", "")
    return {"slurm_job": job, "restarts": int(restarts) if restarts.isdecimal() else 0}
