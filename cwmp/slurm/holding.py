"""Holding a pool at its size: the loop around the keeper's rules, for `cwmp-slurm keep` and `adapt`."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Optional

from ..errors import CwmpError, SlurmError, UsageError
from . import commands, here, logs, records, sizing, submission
from .commands import SlurmJob
from .keeper import Bounds, Decision, GivenUp, Keeper, Sight
from .launcher import pool_of
from .look import exit_code, look_at
from .records import Pool
from .seats import Member, end_text
from .view import Look
from .waiting import Say

LOOK_S = 3.0
"""Between two looks. Shorter: a lost worker is replaced sooner, and SLURM is asked more often."""

_SLURM_SHARE = 0.1  # of the time at most, a squeue of ours may be running
_REFUSED_S = (5.0, 300.0)  # pauses after SLURM refused a submission: at first, and in the long run


class Holding:
    """One pool being held. `run` blocks; all is said in lines for people.

    With `bounds` None the pool has the size that `start` or `scale` gave it last.
    """

    def __init__(self, name: str, bounds: Optional[Bounds], say: Say) -> None:
        pool = pool_of(name)
        if pool.options.layout == "job":
            raise UsageError(
                f"the workers of cluster {name!r} are one job of many nodes, whose parts cannot be replaced: "
                "start it with --layout array"
            )
        pool.options.encryption.require("what goes from node to node")
        self._name = name
        self._bounds = bounds
        self._say = say
        self._keeper = Keeper()
        self._trouble = ""  # what was said last of what cannot be seen or done
        self._master_missing = False
        self._refused_s = 0.0  # the pause since SLURM refused a submission
        self._submit_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Hold the pool until `stop` is set or somebody stops the cluster.

        CwmpError when that has become pointless: the master has ended, or no worker lives.
        """
        while True:
            began = time.monotonic()
            if not self._look(began):
                self._say(f"cluster {self._name} was stopped: there is nothing to keep")
                return
            took_s = time.monotonic() - began
            if stop.wait(max(LOOK_S - took_s, took_s / _SLURM_SHARE)):
                return

    def _look(self, now: float) -> bool:
        """One look and what it calls for; False when the cluster was stopped."""
        pool = records.load(self._name)
        if pool is None or pool.stopping:
            return False
        look = look_at(pool, with_logs=False)
        if look.jobs is None:
            self._tell(f"nothing is changed while SLURM does not answer: {look.slurm_error}")
            return True
        self._check_master(look)
        with records.locked():
            if records.load(self._name) != pool:
                return True  # somebody scaled or stopped it meanwhile: look again
            bounds = self._bounds or Bounds(pool.wanted, pool.wanted)
            decision = self._keeper.decide(sight_of(look), bounds, now)
            for line in decision.notes:
                self._say(line)
            self._act(pool, decision, now)
            self._note_size(pool)
        for given_up in decision.given_up:
            self._say(_told(pool, given_up))
        if decision.hopeless:
            raise CwmpError(f"no worker of cluster {self._name!r} lives, and none is submitted any more")
        return True

    def _check_master(self, look: Look) -> None:
        """CwmpError when the master has ended; one that SLURM begins again is waited for."""
        pool = look.pool
        job = _master_job(look)
        if pool.master_job is None:
            missing = not here.runs(pool)
        else:
            missing = job is None or job.has_ended
        if missing and self._master_missing:  # twice: between two lives of a job SLURM may show its death
            if job is None:
                raise CwmpError(f"the master of cluster {self._name!r} has ended: there is nothing to keep")
            how = end_text(job.state, job.reason, exit_code(job.id))
            log = logs.told(submission.log_path(pool, job.id))
            raise CwmpError(f"the master of cluster {self._name!r} (job {job.id}) has ended: {how}{log}")
        self._master_missing = missing

    def _act(self, pool: Pool, decision: Decision, now: float) -> None:
        """Do what was decided. What fails is said, and decided again at a later look."""
        trouble = ""
        if decision.kill:
            try:
                commands.cancel(decision.kill)
            except SlurmError as error:
                trouble = f"cannot cancel {', '.join(decision.kill)}: {error}"
        leavers = [*decision.drain, *decision.cancel]
        if leavers:
            try:
                sizing.dismiss(pool, leavers)
            except CwmpError as error:
                trouble = f"cannot let {', '.join(leavers)} go: {error}"
        if decision.submit and now >= self._submit_at:
            try:
                groups = submission.submit_workers(pool, decision.submit, avoid=decision.avoid)
                jobs = ", ".join(group.job for group in groups)
                self._say(f"submitted {decision.submit} more (job {jobs})")
                self._refused_s = 0.0
            except CwmpError as error:
                trouble = f"cannot submit {decision.submit} more: {error}"
                self._refused_s = min(max(2 * self._refused_s, _REFUSED_S[0]), _REFUSED_S[1])
                self._submit_at = now + self._refused_s
        self._tell(trouble)

    def _note_size(self, pool: Pool) -> None:
        """Write down how many workers there should be, where that is ours to say."""
        if self._bounds is not None and pool.wanted != self._keeper.target:
            pool.wanted = self._keeper.target
            records.save(pool)

    def _tell(self, trouble: str) -> None:
        """Say what is wrong when that has changed."""
        if trouble and trouble != self._trouble:
            self._say(trouble)
        self._trouble = trouble


def bounds_of(least: Optional[int], most: Optional[int]) -> Optional[Bounds]:
    """The bounds that --min and --max give; None where neither is. UsageError when they cross.

    >>> bounds_of(2, 8), bounds_of(None, 8), bounds_of(None, None)
    (Bounds(least=2, most=8), Bounds(least=0, most=8), None)
    """
    if least is None and most is None:
        return None
    if most is None:
        raise UsageError(
            f"--min {least} needs a --max: how many workers may there be when there is much to do?"
        )
    least = least or 0
    if not 0 <= least <= most or most < 1:
        raise UsageError(
            f"from {least} to {most} workers: the most must be 1 or more, and not below the fewest"
        )
    return Bounds(least, most)


def sight_of(look: Look) -> Sight:
    """A look as the keeper's rules take it; SLURM must have answered."""
    pool = look.pool
    ours = {job for group in pool.groups for job in group.ids()}
    master = _master_job(look)
    runs = master is not None and master.state == "RUNNING"
    counts = None if look.status is None else look.status["jobs"]
    return Sight(
        members=tuple(_member(look, job) for job in look.jobs or () if job.id in ours),
        jobs=None if counts is None else counts["queued"] + counts["running"],
        slots=pool.options.slots,
        master_waits=counts is None and pool.master_job is not None and not runs,
    )


def _member(look: Look, job: SlurmJob) -> Member:
    """One worker as both sides see it."""
    member = Member(
        job.id, job.state, job.reason, job.node, ran_s=job.ran_s, dismissed=job.id in look.pool.dismissed
    )
    if job.has_ended:
        return member  # the master may take a moment to notice
    for worker in look.at_master(job.id):
        return replace(
            member,
            worker=worker["id"],
            busy=max(worker["busy"], worker["held"]),
            idle_s=worker["idle_s"],
            draining=worker["draining"],
        )
    return member


def _master_job(look: Look) -> Optional[SlurmJob]:
    return next((job for job in look.jobs or () if job.job == look.pool.master_job), None)


def _told(pool: Pool, given_up: GivenUp) -> str:
    """What there is to say of a worker that is given up: why, and the end of its log."""
    member = replace(given_up.member, exit_code=exit_code(given_up.member.job))
    return f"{replace(given_up, member=member)}{logs.told(submission.log_path(pool, member.job))}"
