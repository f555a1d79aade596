"""What was submitted for a cluster: `$CWMP_HOME/slurm/NAME.json`, which every login node can read.

`stop`, `scale`, `keep` and `status` go by these job ids and never by a job's name. Whoever changes a
record holds its lock, also while it submits, so that `stop` never overlooks a job.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from ..errors import UsageError
from ..home import exclusive, private_directory, read_private, write_private
from .options import Options


@dataclass
class Group:
    """Workers submitted together: an array with elements 0 to count - 1, or one job of many nodes."""

    job: str
    count: int
    submitted_at: float  # seconds since the epoch
    layout: str = "array"

    def ids(self) -> List[str]:
        """How SLURM calls each part that can end alone: "17_0", "17_1" of an array, "17" of a job."""
        if self.layout == "job":
            return [self.job]
        return [f"{self.job}_{task}" for task in range(self.count)]


@dataclass
class Pool:
    """One cluster on SLURM, as far as it has been submitted."""

    options: Options
    node: str  # where it was started
    started_at: float  # seconds since the epoch
    wanted: int  # workers that there should be, as `start` or `scale` said last
    master_job: Optional[str] = None  # None with a master that is no job, or not submitted yet
    master_pid: Optional[int] = None  # of --master here, with its birth on `node`
    master_birth: float = 0.0
    groups: List[Group] = field(default_factory=list)
    dismissed: List[str] = field(default_factory=list)  # ids of workers that `scale` sent away
    stopping: bool = False  # `stop` was called: nothing may be submitted any more

    @property
    def name(self) -> str:
        """The name of the cluster."""
        return self.options.name

    def jobs(self) -> List[str]:
        """The ids of all its jobs, the master's first."""
        return [*([self.master_job] if self.master_job else []), *(group.job for group in self.groups)]

    def worker_ids(self) -> Set[str]:
        """The ids of all workers that were submitted and not dismissed."""
        return {job for group in self.groups for job in group.ids()} - set(self.dismissed)


def load(name: str) -> Optional[Pool]:
    """What was recorded under that name; None if nothing, UsageError if it is damaged."""
    path = _path(name)
    data = read_private(path)
    if data is None:
        return None
    try:
        record: Dict[str, Any] = json.loads(data)
        record["options"] = _options(record["options"])
        record["groups"] = [Group(**group) for group in record["groups"]]
        return Pool(**record)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path} is damaged: look for its jobs with squeue, then remove it") from None


def save(pool: Pool) -> None:
    """Write a record down, in one step."""
    write_private(_path(pool.name), json.dumps(asdict(pool), separators=(",", ":")).encode())


def remove(pool: Pool) -> None:
    """Forget a cluster that has ended, and not another that was started under its name since."""
    with locked(), contextlib.suppress(FileNotFoundError):
        recorded = load(pool.name)
        if recorded is not None and recorded.started_at == pool.started_at:
            _path(pool.name).unlink()
            key_path(pool.name).unlink()


def key_path(name: str) -> Path:
    """Where the key of that cluster is kept when it was given in the environment."""
    return private_directory("slurm") / f"{name}.key"


def names() -> List[str]:
    """The names of all recorded clusters."""
    return sorted(path.stem for path in private_directory("slurm").glob("[A-Za-z0-9]*.json"))


def locked() -> contextlib.AbstractContextManager[None]:
    """Keep this user's other processes from changing records, or submitting for them, meanwhile.

    One lock for all clusters: a lock file for each would be left of every one that ever was.
    """
    return exclusive("slurm")


def _path(name: str) -> Path:
    return private_directory("slurm") / f"{name}.json"


def _options(values: Dict[str, Any]) -> Options:
    """Options as they were; JSON has lists only where we have tuples."""
    known = {item.name for item in fields(Options)}
    kept: Dict[str, Any] = {
        key: tuple(value) if type(value) is list else value for key, value in values.items() if key in known
    }
    return Options(**kept)
