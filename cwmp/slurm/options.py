"""All that can be chosen about a cluster on SLURM, checked before anything is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Options:
    """One cluster on SLURM: what `cwmp-slurm`'s flags, its configuration file and `SlurmCluster` say.

    What SLURM would choke on is a UsageError here already.
    """

    name: str = "default"
    workers: int = 1
    slots: int = 1
    layout: str = "array"  # or "job": one job of many nodes
    master: str = "job"  # or "here": a process on this host
    time: Optional[str] = None
    partition: Optional[str] = None
    account: Optional[str] = None
    mem_per_cpu: Optional[str] = None
    gpus_per_worker: Optional[str] = None  # "2" or "a100:2"
    setup: Tuple[str, ...] = ()  # shell lines before the worker or master starts
    wrap: str = ""  # a command in front of it
    sbatch: Tuple[str, ...] = ()  # more options of sbatch, for the workers
    sbatch_master: Tuple[str, ...] = ()  # and for the master
    log_dir: Optional[str] = None  # absolute; default: $CWMP_HOME/logs
    host: Optional[str] = None  # where the master listens
    interface: Optional[str] = None  # and is published
    wait_s: float = 600.0  # for the master to answer; 0: do not wait
