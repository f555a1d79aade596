"""Finding the master of a cluster on SLURM; where there is none, saying what was looked at and what to do."""

from __future__ import annotations

from typing import Optional, Tuple

from .. import rendezvous
from ..dial import locate
from ..errors import ConnectError, SlurmError, UsageError
from ..home import home
from . import commands, logs, records
from .commands import SlurmJob
from .reasons import explained
from .records import Pool
from .seats import end_text
from .submission import log_path


def slurm_master_host(name: Optional[str] = None) -> str:
    """Where the master of this user's cluster is, as "host:port": the HOST of clients and `cwmp-worker`.

    `name` is the cluster's, else `$CWMP_NAME`, else "default". The address is one that answers from
    here. ConnectError where none runs: it says what was looked at, what SLURM says, and what to type.

    >>> from cwmp import ClientThread, slurm_master_host
    >>> client = ClientThread(print, slurm_master_host())      # doctest: +SKIP
    """
    host, port, _ = master_of(rendezvous.cluster_name(name))
    return rendezvous.format_address(host, port)


def master_of(name: str) -> Tuple[str, int, bytes]:
    """Address, port and key of that cluster's master, which answers. Raises ConnectError as above."""
    try:
        return locate(lambda: _published(name))[:3]
    except ConnectError as error:
        raise type(error)(f"{error}; {_what_slurm_says(name)}") from None


def _published(name: str) -> rendezvous.Destination:
    """Where that cluster is published, and nowhere else: not where CWMP_MASTER points."""
    cluster = rendezvous.find_cluster(name)
    if cluster is None:
        raise ConnectError(f"no master of cluster {name!r} is published in {home() / 'clusters'}")
    return cluster.destination(known_here=True)


def _what_slurm_says(name: str) -> str:
    """What is known of a cluster whose master cannot be found, and what to type."""
    try:
        pool = records.load(name)
    except UsageError as error:
        return str(error)
    if pool is None:
        return _never_started(name)
    if pool.master_job is None:
        return f"it ran on {pool.node}, outside SLURM: {_again(name)}"
    try:
        job = next(iter(commands.queue([pool.master_job], patience_s=0.0)), None)
        job = job if job is not None and not job.has_ended else commands.ended(pool.master_job) or job
    except SlurmError as error:
        return f"its master is job {pool.master_job}, of which SLURM does not tell: {error}"
    return _what_became_of(pool, job)


def _what_became_of(pool: Pool, job: Optional[SlurmJob]) -> str:
    name = pool.name
    if job is None:
        return f"SLURM no longer knows its master's job {pool.master_job}: {_again(name)}"
    log = logs.told(log_path(pool, job.id))
    if job.has_ended:
        how = end_text(job.state, job.reason, job.exit_code or "")
        return f"its master's job {job.id} has ended: {how}{log}: {_again(name)}"
    state = explained(job.state, job.reason)
    if job.waits:
        return f"its master is job {job.id}, {state}: wait for it, and see cwmp-slurm --name {name} status"
    return (
        f"its master's job {job.id} is {state} on {job.node}{log}: if that stays so, see whether {home()} is "
        "the same directory there (CWMP_HOME moves it)"
    )


def _never_started(name: str) -> str:
    others = records.names()
    known = f" (there is {', '.join(others)}: choose it by name, or by CWMP_NAME)" if others else ""
    here = "" if commands.available() else " on a login node, for SLURM's commands are not on this PATH"
    return f"cwmp-slurm has not started one{known}: type cwmp-slurm --name {name} start{here}"


def _again(name: str) -> str:
    return f"type cwmp-slurm --name {name} stop, then start"
