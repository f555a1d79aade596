"""Starting and stopping a cluster on SLURM, and running one program on one."""

from __future__ import annotations

import platform
import time
from collections import Counter
from dataclasses import replace
from typing import Iterator, List, Optional, Sequence

from .. import rendezvous
from ..children import Child
from ..defaults import GRACE_S
from ..errors import CwmpError, SlurmError
from ..program import Program, program_arguments, program_environment
from . import commands, ending, here, masters, records, submission
from .commands import SlurmJob
from .options import WAIT_S, Options
from .records import Pool
from .waiting import MasterWait, Say, counted

RUN_GRACE_S = 2.0
"""What jobs that still run get at the end of `run`: the program that wanted their results is done."""


def start(options: Options, say: Say, *, leashed: Optional[List[Child]] = None) -> Pool:
    """Submit the master, then the workers; returns when the master answers.

    With `options.wait_s` 0 that is not waited for. Whatever goes wrong, nothing stays, or the error
    says what does. CwmpError when a cluster of that name runs already. A master on this host ends with
    this process if there is a list `leashed`, to which it is added.
    """
    if not commands.available():
        raise SlurmError("no sbatch, squeue and scancel on this machine's PATH: type this on a login node")
    options.encryption.require("what goes from node to node")
    deadline = time.monotonic() + options.wait_s
    pool = Pool(options, platform.node(), time.time(), wanted=options.workers)
    submission.make_log_directory(pool)
    with records.locked():
        _refuse_running(options.name)
        before = rendezvous.read(options.name)
        failure = _submit(pool, say, leashed)
    try:
        if failure is not None:
            raise failure
        if options.wait_s > 0:
            cluster = MasterWait(pool, None if before is None else before.nonce, say).until(deadline)
            say(f"the master answers on {rendezvous.format_address(*cluster.address())}")
    except BaseException as error:
        raise _given_up(pool, error, say) from None
    return pool


def stop(name: str, say: Say, *, grace_s: float = GRACE_S) -> None:
    """End all jobs of a cluster, asking them first; returns when SLURM has none of them left.

    What the workers run gets `grace_s` to end. CwmpError says what cannot be ended from here.
    """
    with records.locked():
        pool = pool_of(name)
        pool.stopping = True  # from now on nothing is submitted for it
        records.save(pool)
    ending.end(pool, say, grace_s=grace_s)
    records.remove(pool)


def pool_of(name: str) -> Pool:
    """The record of a cluster; a CwmpError that says what to type when there is none."""
    pool = records.load(name)
    if pool is not None:
        return pool
    others = records.names()
    known = f"; there is {', '.join(others)}: --name {others[0]}" if others else ""
    cluster = rendezvous.find_cluster(name)
    if cluster is not None:
        whose = f"its master is pid {cluster.pid} on {cluster.node}"
        raise CwmpError(f"cluster {name!r} was not started by cwmp-slurm: {whose}{known}")
    raise CwmpError(f"no cluster {name!r} was started by cwmp-slurm: cwmp-slurm --name {name} start{known}")


def run(options: Options, command: Sequence[str], say: Say) -> int:
    """Start a cluster, run `command` here against it, stop it whatever happens; the command's exit status."""
    arguments = program_arguments(command)
    options = replace(options, wait_s=options.wait_s or WAIT_S)  # it needs the master at once
    with Program() as program:
        pool = start(options, say)
        try:
            return program.run(arguments, program_environment(CWMP_NAME=pool.name))
        finally:
            with submission.undisturbed():
                stop(pool.name, say, grace_s=RUN_GRACE_S)


# --- a start that fails, or must not begin --------------------------------------------------


def _submit(pool: Pool, say: Say, leashed: Optional[List[Child]]) -> Optional[BaseException]:
    """Record the pool and hand everything to SLURM; what went wrong, if anything. Needs the lock."""
    try:
        records.save(pool)
        _submit_all(pool, say, leashed)
    except BaseException as error:
        return error
    return None


def _submit_all(pool: Pool, say: Say, leashed: Optional[List[Child]]) -> None:
    if pool.options.master == "here":
        here.start(pool, leashed)
        say(f"the master runs on this host (pid {pool.master_pid})")
    else:
        say(f"submitted the master: job {submission.submit_master(pool)}")
    groups = submission.submit_workers(pool, pool.wanted)
    kind = "job" if pool.options.layout == "job" else "job array"
    jobs = " and ".join(f"{kind} {group.job}" for group in groups)
    say(f"submitted {counted(pool.wanted, 'worker')} of {counted(pool.options.slots, 'slot')}: {jobs}")


def _refuse_running(name: str) -> None:
    """CwmpError when a cluster of that name runs, or waits; a record of one that has ended is nothing."""
    pool = records.load(name)
    if pool is not None:
        present = ending.present(pool.jobs())
        if present or here.runs(pool):
            what = ", ".join(_counts(pool, present)) or f"a master on {pool.node} (pid {pool.master_pid})"
            raise CwmpError(
                f"cluster {name!r} runs already: {what}; see cwmp-slurm --name {name} status, "
                f"or end it with cwmp-slurm --name {name} stop"
            )
    cluster = masters.answering(name)
    if cluster is not None:
        raise CwmpError(
            f"cluster {name!r} runs already, and was not started by cwmp-slurm: "
            f"its master is pid {cluster.pid} on {cluster.node}"
        )


def _counts(pool: Pool, present: Sequence[SlurmJob]) -> Iterator[str]:
    """What there is of a cluster, in a few words for each state."""
    for job in present:
        if job.id == pool.master_job:
            yield f"master job {job.id} {job.state}{f' on {job.node}' if job.node else ''}"
    states = Counter(job.state for job in present if job.id != pool.master_job)
    for state, count in sorted(states.items()):
        yield f"{counted(count, 'worker')} {state}"


def _given_up(pool: Pool, error: BaseException, say: Say) -> BaseException:
    """Undo a start that failed; what to raise, which says what stays."""
    stays = ""
    with submission.undisturbed():
        try:
            with records.locked():
                pool = records.load(pool.name) or pool
                pool.stopping = True
                records.save(pool)
            ending.end(pool, say, grace_s=0.0)
        except CwmpError as trouble:
            stays = f"; some of it may still be there ({trouble}): type cwmp-slurm --name {pool.name} stop"
        else:
            records.remove(pool)
    if isinstance(error, CwmpError):
        return CwmpError(f"cluster {pool.name!r} did not start: {error}{stays}")
    say(f"cluster {pool.name!r} was not started{stays or ', and nothing of it stays'}")
    return error
