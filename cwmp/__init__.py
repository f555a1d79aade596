"""cwmp distributes Python jobs over the cores of one machine or the nodes of a cluster.

    >>> from cwmp import ClusterExecutor, LocalCluster
    >>> with LocalCluster(n=2) as cluster, cluster.executor() as executor:   # doctest: +SKIP
    ...     print(list(executor.map(abs, [-1, -2, -3])))
    [1, 2, 3]
"""

from __future__ import annotations

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from .errors import (
    BlobLost,
    ConnectError,
    CwmpError,
    DuplicateJob,
    JobError,
    KeyFileError,
    MasterLost,
    PayloadError,
    RemoteError,
    RemoteTraceback,
    SlurmError,
    UnknownMember,
    UsageError,
    VersionMismatch,
    WorkerLost,
    WrongKey,
)
from .ids import randid

if TYPE_CHECKING:
    from .client import ClientThread
    from .executor import ClusterExecutor
    from .local import LocalCluster
    from .slurm.cluster import SlurmCluster, SlurmExecutor, allocate
    from .slurm.finding import slurm_master_host

_LAZY = {
    "ClientThread": "client",
    "ClusterExecutor": "executor",
    "LocalCluster": "local",
    "SlurmCluster": "slurm.cluster",
    "SlurmExecutor": "slurm.cluster",
    "allocate": "slurm.cluster",
    "slurm_master_host": "slurm.finding",
}


def __getattr__(name: str) -> Any:
    """Import the larger parts when they are first used: a worker or a command needs few of them."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "BlobLost",
    "ClientThread",
    "ClusterExecutor",
    "ConnectError",
    "CwmpError",
    "DuplicateJob",
    "JobError",
    "KeyFileError",
    "LocalCluster",
    "MasterLost",
    "PayloadError",
    "RemoteError",
    "RemoteTraceback",
    "SlurmCluster",
    "SlurmError",
    "SlurmExecutor",
    "UnknownMember",
    "UsageError",
    "VersionMismatch",
    "WorkerLost",
    "WrongKey",
    "__version__",
    "allocate",
    "randid",
    "slurm_master_host",
]
