"""Starting, stopping and scaling a cluster on SLURM."""

from __future__ import annotations

from typing import Callable, List

from .options import Options
from .records import Group, Pool

Say = Callable[[str], None]
"""What takes the lines that tell people what is going on."""


def start(options: Options, say: Say) -> Pool:
    """Submit the master, then the workers; returns when the master answers, or leaves nothing."""
    raise NotImplementedError


def stop(name: str, say: Say) -> None:
    """End all jobs of a cluster, asking them first; returns when SLURM has none of them left."""
    raise NotImplementedError


def scale(name: str, count: int, say: Say) -> None:
    """Have `count` workers: submit more, or send away idle ones first and never a running job."""
    raise NotImplementedError


def pool_of(name: str) -> Pool:
    """The record of a cluster; a CwmpError that says what to type when there is none."""
    raise NotImplementedError


def submit_workers(pool: Pool, count: int) -> Group:
    """Submit `count` more workers and record them. The caller holds `records.locked(pool.name)`."""
    raise NotImplementedError


def dismiss(pool: Pool, ids: List[str]) -> None:
    """Send workers away by id ("17_3"): waiting ones are cancelled, others drained. Needs the lock, too."""
    raise NotImplementedError


def log_path(pool: Pool, job_id: str) -> str:
    """Where the worker "17_3", or the master's job "16", writes its output."""
    raise NotImplementedError
