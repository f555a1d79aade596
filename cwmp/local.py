"""A whole cluster on this machine for one program: `LocalCluster` from within, `run_program` around it.

Such a cluster leaves nothing behind, neither process nor file, whatever happens to the program.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence

from . import cpus, defaults
from .children import START_S, Child, end_children, spawn, wait_ready
from .errors import UsageError
from .program import Program, program_arguments, program_environment

if TYPE_CHECKING:
    from .client import ClientThread
    from .executor import ClusterExecutor

GRACE_S = 0.5
"""What running jobs get when the cluster stops: the program that wanted their results is done."""


# Nobody starts the master of such a cluster again.
_PRIVATE = {"master_timeout": defaults.PRIVATE_MASTER_TIMEOUT_S}
_WORKER_TIMEOUT = ["--master-timeout", f"{defaults.PRIVATE_MASTER_TIMEOUT_S:g}"]


class LocalCluster:
    """A master and its workers on 127.0.0.1, for this program alone; they end when it ends.

    `n` slots in all (default: the usable cores) are spread over `workers` worker processes. What
    jobs print goes to this program's standard error. A bad number is a UsageError; a cluster that
    does not start is a CwmpError.

        with LocalCluster(4) as cluster, cluster.executor() as executor:
            print(sum(executor.map(abs, range(-10, 10))))
    """

    def __init__(self, n: Optional[int] = None, *, workers: int = 1) -> None:
        n = cpus.usable_cpus().count if n is None else _whole(n, "n")
        if _whole(workers, "workers") > n:
            raise UsageError(f"{workers} workers cannot share {n} slots: each needs at least one")
        self._slots = [n // workers + (number < n % workers) for number in range(workers)]
        self._children: List[Child] = []
        self._address = ""
        self._authkey = b""
        # Also at garbage collection and at the end of the interpreter.
        self._finalizer: Optional[Callable[[], Any]] = None

    def start(self) -> LocalCluster:
        """Start it; returns itself when all of it is ready. `with` does this."""
        if self._children:
            raise UsageError("this cluster is running already")
        self._finalizer = weakref.finalize(self, end_children, self._children, os.getpid(), GRACE_S)
        options = ["--leash", "--authkey-file", "-"]
        self._authkey = os.urandom(32).hex().encode()
        try:
            spawn(
                self._slots,
                master=[*options, *self._listing()],
                worker=[*options, "--grace", str(GRACE_S), "--wait", str(START_S), *_WORKER_TIMEOUT],
                outputs=(_visible_output(), _visible_output()),
                into=self._children,
            )
            port = wait_ready(self._children, [self._authkey])
        except BaseException:
            self.stop()
            raise
        self._address = f"127.0.0.1:{port}"
        return self

    def stop(self) -> None:
        """End it: workers first, then the master. Jobs that still run get half a second. Idempotent."""
        if self._finalizer is not None:
            self._finalizer()

    @property
    def address(self) -> str:
        """Where the master listens, as "127.0.0.1:port"."""
        self._check_running()
        return self._address

    @property
    def authkey(self) -> bytes:
        """The key of this cluster, made for it alone."""
        self._check_running()
        return self._authkey

    @property
    def pids(self) -> Dict[str, Any]:
        """The processes: {"master": pid, "workers": [pid, …]}."""
        self._check_running()
        master, *workers = [child.process.pid for child in self._children]
        return {"master": master, "workers": workers}

    def executor(self, **options: Any) -> ClusterExecutor:
        """A new ClusterExecutor that uses this cluster; `options` are its own."""
        from .executor import ClusterExecutor

        return ClusterExecutor(self.address, authkey=self.authkey, **{**_PRIVATE, **options})

    def client(self, callback: Callable[[Any, Any], Any], **options: Any) -> ClientThread:
        """A new ClientThread (not started) that uses this cluster; `options` are its own."""
        from .client import ClientThread

        return ClientThread(callback, self.address, authkey=self.authkey, **{**_PRIVATE, **options})

    def __enter__(self) -> LocalCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listing(self) -> List[str]:
        """How the master is told whether to publish itself."""
        return ["--unlisted"]

    def _check_running(self) -> None:
        if not self._children:
            raise UsageError("this cluster is not running: use it in a `with` block, or call start()")


def _whole(value: int, what: str) -> int:
    if type(value) is int and value >= 1:  # a caller without a type checker may pass anything
        return value
    raise UsageError(f"{what} must be a whole number from 1 up, not {value!r}")


def _visible_output() -> int:
    """Our standard error, for what children print; nowhere if that is closed."""
    try:
        os.fstat(2)
        return 2
    except OSError:
        return subprocess.DEVNULL


# --- a program with a cluster around it -----------------------------------------------------


class _ListedCluster(LocalCluster):
    """A private cluster that other processes of this user find by a name, random unless given."""

    def __init__(self, n: Optional[int], name: Optional[str]) -> None:
        super().__init__(n)
        self.name = name or f"run-{os.urandom(8).hex()}"

    def _listing(self) -> List[str]:
        return ["--name", self.name]


def run_program(command: Sequence[str], n: Optional[int] = None, name: Optional[str] = None) -> int:
    """Run `command` against a private cluster of `n` slots; returns its exit status (128+n: signal n).

    The program finds the cluster through its environment. Signals that reach us meanwhile are for
    the program. A first word that names no command and no script is a UsageError.
    """
    arguments = program_arguments(command)
    cluster = _ListedCluster(n, name)
    with Program() as program, cluster:
        variables = program_environment(
            CWMP_MASTER=cluster.address,
            CWMP_NAME=cluster.name,
            CWMP_MASTER_TIMEOUT=f"{defaults.PRIVATE_MASTER_TIMEOUT_S:g}",
        )
        return program.run(arguments, variables)
