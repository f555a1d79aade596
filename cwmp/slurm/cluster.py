"""A cluster on SLURM from within a program: `SlurmCluster`, `SlurmExecutor` and `allocate`.

Such a cluster ends with its program, however that ends. A guardian, which is `cwmp-slurm stop --leash`, waits
for the program to let go of a pipe, also by being killed, and then stops everything. Should the guardian
be killed as well, then the master still ends with the program, and the workers with their master.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import weakref
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

from .. import cpus, rendezvous
from ..children import Child, end_children
from ..errors import CwmpError, UsageError
from ..executor import ClusterExecutor
from ..local import LocalCluster
from . import commands, launcher, sizing
from .finding import master_of, slurm_master_host
from .holding import Holding, bounds_of
from .look import look_at
from .options import Options, choose
from .view import join, workers_text

if TYPE_CHECKING:
    from ..client import ClientThread

log = logging.getLogger("cwmp")

EXPLAIN_S = (15.0, 300.0)
"""A cluster of which no worker has joined says why after the first time, and again after the second each."""

_ADAPT_END_S = 10.0  # how long the thread of `adapt` may take to end: it may be waiting for squeue


class SlurmExecutor(ClusterExecutor):
    """A ClusterExecutor on this user's cluster of that name; see `slurm_master_host` for how it is found.

    >>> with SlurmExecutor() as executor:                  # doctest: +SKIP
    ...     print(sum(executor.map(pow, range(10), range(10))))
    """

    def __init__(self, name: Optional[str] = None) -> None:
        host, port, authkey = master_of(rendezvous.cluster_name(name))
        super().__init__(host, port, authkey=authkey)


class SlurmCluster:
    """A cluster of `n` workers on SLURM, with `cpus_per_worker` slots each, for this program alone.

    The workers are one job array. The master runs on this host, or with `master="job"` in a job of its own.
    Further options are those of `cwmp-slurm`, with the same defaults from `slurm.toml` and the
    environment: time, partition, account, mem_per_cpu, gpus_per_worker, setup, wrap, sbatch, sbatch_master,
    log_dir, layout, host, interface, encrypt, tls_cert, tls_key, tls_ca, wait_s, name. A bad one is a
    UsageError before anything is submitted.

    >>> with SlurmCluster(n=32, cpus_per_worker=4, time="02:00:00") as cluster:      # doctest: +SKIP
    ...     with cluster.executor() as executor:
    ...         print(sum(executor.map(abs, range(-10, 10))))
    """

    def __init__(
        self, n: Optional[int] = None, *, cpus_per_worker: Optional[int] = None, **options: Any
    ) -> None:
        self._options = _options(n, cpus_per_worker, options)
        self._finalizer: Optional[Callable[[], Any]] = None
        self._adapting: Optional[Tuple[threading.Thread, threading.Event]] = None
        self._joined = threading.Event()  # ends the thread that says why no worker has

    def start(self) -> SlurmCluster:
        """Submit it; returns itself when the master answers. Workers join as SLURM finds room.

        Raises SlurmError or another CwmpError, and then leaves nothing. `with` does this.
        """
        if self._finalizer is not None:
            raise UsageError("this cluster is running already")
        guardian = Child("slurm", ["stop", "--name", self.name, "--leash"], subprocess.DEVNULL)
        master: List[Child] = []  # if it runs on this host
        # Also at garbage collection and at the end of the interpreter.
        self._finalizer = weakref.finalize(self, _end, guardian, master, os.getpid())
        try:
            launcher.start(self._options, log.info, leashed=master)
        except BaseException:
            self.stop()
            raise
        self._joined = threading.Event()
        watch = threading.Thread(
            target=_explain, args=(self.name, self._joined), name="cwmp-slurm-watch", daemon=True
        )
        watch.start()
        return self

    def stop(self) -> None:
        """End all of it; jobs that still run get a moment. Idempotent. CwmpError says what would not end."""
        self._joined.set()
        self._stop_adapting()
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer()

    @property
    def name(self) -> str:
        """The cluster's name, random unless given; programs of this user find it by CWMP_NAME."""
        return self._options.name

    @property
    def address(self) -> str:
        """Where the master answers, as "host:port"."""
        self._check_running()
        return slurm_master_host(self.name)

    def executor(self) -> SlurmExecutor:
        """A new executor that uses this cluster."""
        self._check_running()
        return SlurmExecutor(self.name)

    def client(self, callback: Callable[[Any, Any], Any], **options: Any) -> ClientThread:
        """A new ClientThread (not started) that uses this cluster; `options` are its own."""
        from ..client import ClientThread

        self._check_running()
        host, port, authkey = master_of(self.name)
        return ClientThread(callback, host, port, authkey=authkey, **options)

    def scale(self, n: int) -> None:
        """Have `n` workers: submit more, or let some go, idle ones first and never a running job."""
        self._check_running()
        if type(n) is not int or n < 0:
            raise UsageError(f"scale to {n!r} workers? It must be a whole number from 0 up")
        self._stop_adapting()
        sizing.scale(self.name, n, log.info)

    def adapt(self, least: int, most: int) -> None:
        """From now on hold between `least` and `most` workers, as many as the queue calls for.

        Workers that end are replaced, too. What happens is logged (logger "cwmp"). `scale` ends this.
        """
        self._check_running()
        self._stop_adapting()
        holding = Holding(self.name, bounds_of(least, most), log.info)
        stop = threading.Event()
        thread = threading.Thread(target=_hold, args=(holding, stop), name="cwmp-slurm-adapt", daemon=True)
        thread.start()
        self._adapting = thread, stop

    def status(self) -> Dict[str, Any]:
        """What `cwmp-slurm status --json` prints: SLURM's view joined with the master's."""
        self._check_running()
        return join(look_at(launcher.pool_of(self.name)))

    def __enter__(self) -> SlurmCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _stop_adapting(self) -> None:
        adapting, self._adapting = self._adapting, None
        if adapting is not None:
            thread, stop = adapting
            stop.set()
            thread.join(_ADAPT_END_S)

    def _check_running(self) -> None:
        if self._finalizer is None:
            raise UsageError("this cluster is not running: use it in a `with` block, or call start()")


def allocate(n: int, *, cpus_per_worker: int = 1, **options: Any) -> Union[SlurmCluster, LocalCluster]:
    """`SlurmCluster(n, …)` where there is SLURM, else a LocalCluster with as many slots, or one a core.

    So a program runs on a laptop as it does on a cluster; the further options matter on SLURM only. Both
    are used in `with`, and have `.executor()`, `.client(callback)` and `.stop()`.

    >>> with allocate(4) as cluster, cluster.executor() as executor:      # doctest: +SKIP
    ...     print(list(executor.map(abs, [-1, -2, -3])))
    """
    chosen = _options(n, cpus_per_worker, options)  # so that mistakes are found on the laptop, too
    if commands.available():
        return SlurmCluster(n, cpus_per_worker=cpus_per_worker, **options)
    return LocalCluster(min(chosen.workers * chosen.slots, cpus.usable_cpus().count))


_OPTIONS = sorted({item.name for item in fields(Options)} - {"workers", "slots"})


def _options(n: Optional[int], cpus_per_worker: Optional[int], given: Dict[str, Any]) -> Options:
    """The options as `cwmp-slurm` would have them. Raises UsageError."""
    for option in given:
        if option not in _OPTIONS:
            raise UsageError(f"no option {option!r} of a cluster on SLURM: use one of {', '.join(_OPTIONS)}")
    values = {"workers": n, "slots": cpus_per_worker, **given}
    for option in ("setup", "sbatch", "sbatch_master"):
        if isinstance(values.get(option), str):
            values[option] = (values[option],)
    for option in ("time", "gpus_per_worker", "mem_per_cpu"):
        if type(values.get(option)) is int:
            values[option] = str(values[option])
    values["name"] = values.get("name") or f"program-{os.urandom(4).hex()}"
    return choose(values, {"master": "here"})


def _explain(name: str, joined: threading.Event) -> None:
    """In a thread: as long as no worker has joined, say now and then what SLURM and the logs tell of them."""
    pause_s, next_s = EXPLAIN_S
    while not joined.wait(pause_s):
        try:
            seen = join(look_at(launcher.pool_of(name)))
        except CwmpError:
            return  # it has been stopped
        if joined.is_set() or any(row["worker"] is not None for row in seen["workers"]):
            return
        log.warning("no worker of cluster %s has joined yet: %s", name, workers_text(seen))
        pause_s = next_s


def _hold(holding: Holding, stop: threading.Event) -> None:
    """The thread of `adapt`."""
    try:
        holding.run(stop)
    except CwmpError as error:
        log.error("the number of workers is no longer adapted: %s", error)
    except Exception:
        log.exception("the number of workers is no longer adapted")


def _end(guardian: Child, master: List[Child], owner: int) -> None:
    """Have the guardian stop it all. Does nothing in a forked copy of the owner."""
    if os.getpid() != owner:
        return
    try:
        complaint = guardian.dismiss()
    finally:
        end_children(master, owner, 0.0)
    if complaint:
        raise CwmpError(complaint)
