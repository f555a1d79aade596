"""Ending the jobs of a cluster: asked first, cancelled then, and gone from SLURM at last."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Callable, List, Sequence

from .. import rendezvous
from ..defaults import GRACE_S
from ..errors import ConnectError, CwmpError, UsageError
from . import commands, here, masters, scripts
from .commands import SlurmJob
from .records import Pool
from .waiting import Say, counted

LEAVE_S = 5.0
"""How long workers get to leave that have nothing to finish."""

MASTER_S = 5.0
"""How long a master that was asked to end may take before its job is cancelled."""

GONE_S = 120.0
"""How long jobs that were cancelled may stay: SLURM kills after its KillWait, 30 s on most sites."""

COMPLETING_S = 45.0
"""How long a job that has ended may be on SLURM's hands: it waits that long for nodes that do not answer."""

_POLL_S = (0.1, 1.0)  # between two looks at the queue: at first, and in the long run


def end(pool: Pool, say: Say, *, grace_s: float = GRACE_S) -> None:
    """End all jobs and the master of `pool`; returns when SLURM has none of them left.

    Workers are asked first, and what they run gets `grace_s`. CwmpError says what stays.
    """
    pool = _without_strangers(pool, say)
    workers = [group.job for group in pool.groups]
    running = [job for job in present(workers) if not job.waits]
    commands.cancel_waiting(workers)
    if running and grace_s > 0:
        say(f"asking the workers to end ({counted(len(running), 'job')}); what they run gets {grace_s:g} s")
        _ask_to_end(pool)
        left = _wait(workers, LEAVE_S, lambda left: not left)
        if left:
            _wait(workers, grace_s, lambda left: not _at_work(pool, left))
    if pool.master_job is not None and any(not job.waits for job in present([pool.master_job])):
        commands.signal([pool.master_job])
        _wait([pool.master_job], MASTER_S, lambda left: not left)
    _cancel(pool.jobs(), say)
    _forget_address(pool)
    here.stop(pool)
    rendezvous.sweep()


def _without_strangers(pool: Pool, say: Say) -> Pool:
    """The pool as it still is: a SLURM that lost its state gives the same ids to other jobs of the user."""
    ours = scripts.job_name(pool.name)
    # Some sites put something before or behind the name.
    strangers = {job.job for job in present(pool.jobs()) if ours not in job.name}
    if not strangers:
        return pool
    say(f"SLURM has another job under the id {', '.join(sorted(strangers))} by now: that is left alone")
    master = None if pool.master_job in strangers else pool.master_job
    groups = [group for group in pool.groups if group.job not in strangers]
    return replace(pool, master_job=master, groups=groups)


def _cancel(jobs: Sequence[str], say: Say) -> None:
    """End what is left of these jobs, in SLURM's way; CwmpError when it does not go."""
    if not present(jobs):
        return
    commands.cancel(jobs)
    left = _wait(jobs, COMPLETING_S, lambda left: not left)
    if left:
        left = _wait(jobs, GONE_S - COMPLETING_S, _only_completing)
    stuck = [job for job in left if job.state != "COMPLETING"]
    if stuck:
        which = ", ".join(f"{job.id} ({job.state} on {job.nodes or 'no node'})" for job in stuck)
        raise CwmpError(f"SLURM still has what it was told to cancel: {which}; stop it again in a while")
    if left:
        nodes = ", ".join(sorted({job.nodes for job in left}))
        say(f"SLURM has cancelled {counted(len(left), 'job')} and waits for {nodes} to confirm (COMPLETING)")


def present(jobs: Sequence[str]) -> List[SlurmJob]:
    """Those that SLURM has and that have not ended."""
    return [job for job in commands.queue(jobs) if not job.has_ended]


def _ask_to_end(pool: Pool) -> None:
    """SIGTERM to the agents: of an array they are what the batch script became, else what srun started."""
    commands.signal([group.job for group in pool.groups if group.layout != "job"])
    commands.signal([group.job for group in pool.groups if group.layout == "job"], steps=True)


def _at_work(pool: Pool, left: Sequence[SlurmJob]) -> bool:
    """Whether any of these workers may still be finishing a job: one that its master does not have is not."""
    try:
        joined = {worker.get("slurm_job") for worker in masters.status(pool.name)["workers"]}
    except (ConnectError, UsageError):
        return False
    return any(job.id in joined for job in left)


def _only_completing(left: List[SlurmJob]) -> bool:
    return all(job.state == "COMPLETING" for job in left)


def _wait(
    jobs: Sequence[str], patience_s: float, enough: Callable[[List[SlurmJob]], bool]
) -> List[SlurmJob]:
    """Wait until what is present is `enough`; returns what is present then."""
    deadline = time.monotonic() + patience_s
    pause_s = _POLL_S[0]
    while True:
        left = present(jobs)
        if enough(left) or time.monotonic() >= deadline:
            return left
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_S[1])


def _forget_address(pool: Pool) -> None:
    """Remove what a master that could not say goodbye has published."""
    try:
        cluster = rendezvous.find_cluster(pool.name)
    except UsageError:
        return  # damaged: that is for those who use it
    if cluster is None or pool.master_job is None:
        return
    if cluster.slurm_job == pool.master_job or masters.answering(pool.name) is None:
        rendezvous.withdraw(cluster)
