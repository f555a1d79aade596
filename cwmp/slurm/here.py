"""A master on the host that `cwmp-slurm start --master here` is typed on, instead of in a job."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from dataclasses import replace
from typing import List, Optional

from .. import addresses, rendezvous
from ..children import STOP_S, Child, end_children, spawn, wait_ready
from ..errors import CwmpError
from ..home import home
from . import logs, records, scripts
from .records import Pool
from .submission import place_of

_POLL_S = 0.02  # between two looks at a process that is not our child


def log_path(pool: Pool) -> str:
    """Where that master writes."""
    return scripts.log_path(pool.options, str(home()), "here", master=True)


def start(pool: Pool, leashed: Optional[List[Child]] = None) -> None:
    """Start it in the background and record it; returns when it accepts connections.

    With a list `leashed`, to which it is added, it ends with this process.
    """
    options = replace(pool.options, host=_host(pool), interface=None)
    arguments = scripts.master_arguments(options, place_of(pool))
    if leashed is not None:
        arguments.append("--leash")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(log_path(pool), flags, 0o600)
    children: List[Child] = []
    try:
        spawn([], master=arguments, worker=[], outputs=(log, log), into=children)
        pool.master_pid = children[0].process.pid
        pool.master_birth = rendezvous.process_birth(pool.master_pid) or 0.0
        records.save(pool)
        wait_ready(children, [])
    except BaseException as error:
        end_children(children, os.getpid(), 0.0)
        if isinstance(error, CwmpError):
            raise CwmpError(f"the master did not start: {error}{logs.told(log_path(pool))}") from None
        raise
    finally:
        os.close(log)
    if leashed is None:
        children[0].let_go()
    else:
        leashed += children


def _host(pool: Pool) -> str:
    """Where it listens: what it would find out by itself, did our way of starting it not name a host."""
    if pool.options.interface is not None:
        return addresses.address_of(pool.options.interface, addresses.interfaces())
    return pool.options.host or "0.0.0.0"


def runs(pool: Pool) -> bool:
    """Whether that master runs; of one on another host this is taken on trust."""
    if pool.master_pid is None:
        return False
    return pool.node != platform.node() or rendezvous.process_birth(pool.master_pid) == pool.master_birth


def stop(pool: Pool) -> None:
    """End that master; CwmpError that says where it runs when that is another host."""
    if not runs(pool):
        return
    assert pool.master_pid is not None
    if pool.node != platform.node():
        raise CwmpError(
            f"the master of cluster {pool.name!r} runs on {pool.node} (pid {pool.master_pid}), not in a job: "
            f"type cwmp-slurm --name {pool.name} stop there"
        )
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pool.master_pid, number)
        deadline = time.monotonic() + STOP_S
        while runs(pool) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
