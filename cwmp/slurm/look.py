"""Looking at a cluster on SLURM: what SLURM, the master and the logs of what failed have to say."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from .. import rendezvous
from ..errors import ConnectError, SlurmError, UsageError
from . import commands, logs, masters
from .commands import SlurmJob
from .records import Pool
from .submission import log_path
from .view import Look, failed


def look_at(pool: Pool, *, patience_s: float = 0.0, with_logs: bool = True) -> Look:
    """One look. Whoever does not answer is told so in it; SLURM is asked again for `patience_s`."""
    jobs, slurm_error = _ask_slurm(pool, patience_s)
    status, address, master_error = _ask_master(pool)
    tails: Dict[str, Tuple[str, List[str]]] = {}
    codes: Dict[str, str] = {}
    for job in failed(pool, jobs or ()) if with_logs else ():
        path = log_path(pool, job.id)
        tails[job.id] = path, logs.tail(path)
        codes[job.id] = exit_code(job.id)
    return Look(
        pool,
        jobs=jobs,
        slurm_error=slurm_error,
        status=status,
        master_error=master_error,
        address=address,
        logs=tails,
        exit_codes=codes,
    )


def exit_code(job: str) -> str:
    """The exit code of an ended job as SLURM writes it ("127:0"); "" where that cannot be learned."""
    try:
        found = commands.ended(job)
    except SlurmError:
        return ""
    return (found.exit_code if found is not None else None) or ""


def _ask_slurm(pool: Pool, patience_s: float) -> Tuple[Optional[Sequence[SlurmJob]], str]:
    try:
        return commands.queue(pool.jobs(), patience_s=patience_s), ""
    except SlurmError as error:
        return None, str(error)


def _ask_master(pool: Pool) -> Tuple[Optional[Dict[str, Any]], str, str]:
    """Its status, its address, and why there is none."""
    address = ""
    try:
        cluster = rendezvous.find_cluster(pool.name)
        if cluster is not None:
            address = rendezvous.format_address(*cluster.address())
        return masters.status(pool.name), address, ""
    except (ConnectError, UsageError) as error:
        return None, address, str(error)
