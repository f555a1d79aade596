"""Handing the jobs of a cluster to SLURM, so that whatever was submitted is recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from .. import rendezvous
from ..errors import CwmpError, SlurmError, UsageError
from ..home import home, write_private
from . import commands, records, scripts
from .records import Group, Pool

ARRAY_SIZE = 1000
"""Elements in one array. SLURM refuses larger ones unless its MaxArraySize was raised."""

ENDED_GROUPS = 20
"""Submissions of which nothing is left that a record remembers, for `status` to show what became of them."""

_MAIN = Path(__file__).resolve().parent.with_name("__main__.py")


def place(name: str) -> scripts.Place:
    """This installation, as the scripts of the cluster `name` tell of it."""
    given = os.environ.get("CWMP_AUTHKEY_FILE")
    key_file = str(records.key_path(name)) if "CWMP_AUTHKEY" in os.environ else given
    return scripts.Place(
        python=sys.executable,
        main=str(_MAIN),
        home=str(home()),
        key_file=None if key_file is None else os.path.abspath(key_file),
    )


def place_of(pool: Pool) -> scripts.Place:
    """The same, and a key that we have in $CWMP_AUTHKEY is where the scripts will look for it.

    SLURM gets neither the key nor a variable with it: it keeps both for its administrators to see.
    """
    key = os.environ.get("CWMP_AUTHKEY")
    if key is not None:
        write_private(records.key_path(pool.name), rendezvous.find_key(key))
    return place(pool.name)


def make_log_directory(pool: Pool) -> None:
    """SLURM drops a job without a word when it cannot open its log."""
    path = Path(scripts.log_directory(pool.options, str(home())))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise UsageError(f"cannot make the log directory {path}: {error.strerror}: use --log-dir") from None
    if not writable:
        raise UsageError(f"cannot write in the log directory {path}: use --log-dir")


def submit_master(pool: Pool) -> str:
    """Submit the master and record it; returns its job's id. Needs the record's lock."""
    with undisturbed():
        pool.master_job = _submitted(pool, scripts.master_script(pool.options, place_of(pool)), "-master")
        records.save(pool)
    return pool.master_job


def submit_workers(pool: Pool, count: int, *, avoid: Sequence[str] = ()) -> List[Group]:
    """Submit `count` more workers, not for the nodes `avoid`, and record them. Needs the record's lock.

    CwmpError when the cluster is being stopped, SlurmError when SLURM refuses them.
    """
    if pool.stopping:
        raise CwmpError(f"cluster {pool.name!r} is being stopped: nothing is submitted for it any more")
    _forget_old_groups(pool)
    groups = []
    while count > 0:
        size = count if pool.options.layout == "job" else min(count, ARRAY_SIZE)
        with undisturbed():
            job = _submitted(pool, scripts.workers_script(pool.options, place_of(pool), size, avoid))
            groups.append(Group(job=job, count=size, submitted_at=time.time(), layout=pool.options.layout))
            pool.groups.append(groups[-1])
            records.save(pool)
        count -= size
    return groups


def _submitted(pool: Pool, script: str, ending: str = "") -> str:
    """The id of the new job; SlurmError when there is none, or when that is not known."""
    try:
        return commands.submit(script)
    except SlurmError as error:
        if "timed out" not in str(error) and "did not say" not in str(error):
            raise
        name = scripts.job_name(pool.name) + ending
        raise SlurmError(
            f"{error}: it may be in SLURM's queue all the same: look with squeue --me --name={name}, and "
            f"end it with scancel --me --name={name}"
        ) from None


def _forget_old_groups(pool: Pool) -> None:
    """Keep the record of a pool small whose workers have been replaced for weeks."""
    if len(pool.groups) <= 2 * ENDED_GROUPS:
        return
    present = {job.job for job in commands.queue([group.job for group in pool.groups]) if not job.has_ended}
    ended = [group for group in pool.groups if group.job not in present]
    forgotten = ended[:-ENDED_GROUPS]
    pool.groups = [group for group in pool.groups if group not in forgotten]
    jobs = {group.job for group in pool.groups}
    pool.dismissed = [job for job in pool.dismissed if job.partition("_")[0] in jobs]


def log_path(pool: Pool, job: str) -> str:
    """Where the worker "17_3", or the master's job "16", writes its output."""
    return scripts.log_path(pool.options, str(home()), job, master=job == pool.master_job)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back while something is submitted and written down: a job unknown to us would stay."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    held: List[int] = []
    before: Dict[int, Any] = {}
    number: int
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not None:
            before[number] = signal.signal(number, lambda got, _frame: held.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)
