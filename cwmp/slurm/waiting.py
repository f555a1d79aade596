"""Waiting for the master to answer, and saying meanwhile what it waits for."""

from __future__ import annotations

import time
from typing import Callable, Optional

from .. import rendezvous
from ..errors import ConnectError, CwmpError, SlurmError, UsageError, WrongKey
from . import commands, logs, masters
from .commands import SlurmJob
from .reasons import explained
from .records import Pool
from .submission import log_path

Say = Callable[[str], None]
"""What takes the lines that tell people what is going on."""

_LOOK_S = 0.1  # between two looks at the rendezvous file
_ASK_S = (0.5, 5.0)  # between two questions to SLURM: at first, and in the long run
_REMIND_S = 60.0  # the same is said again after this


def counted(count: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "worker"), counted(3, "slot")
    ('1 worker', '3 slots')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class MasterWait:
    """One wait for the master that `pool` has submitted."""

    def __init__(self, pool: Pool, known: Optional[str], say: Say) -> None:
        """`known` is the nonce of what was published before, by a master that is no more."""
        self._pool = pool
        self._known = known
        self._say = say
        self._ask_at = 0.0
        self._pause_s = _ASK_S[0]
        self._job: Optional[SlurmJob] = None
        self._doubt = ""  # why SLURM's view is not known
        self._unreached = ""  # why a master that is published does not count
        self._said = ("", 0.0)

    def until(self, deadline: float) -> rendezvous.Cluster:
        """The cluster as soon as its master answers; CwmpError when it ends, or at the deadline."""
        while True:
            cluster = self._published()
            if cluster is not None and self._answers(cluster):
                return cluster
            now = time.monotonic()
            if now >= deadline:
                raise CwmpError(self._late())
            if now >= self._ask_at:
                self._ask(min(deadline - now, commands.COMMAND_S))
            time.sleep(_LOOK_S)

    def _published(self) -> Optional[rendezvous.Cluster]:
        cluster = rendezvous.find_cluster(self._pool.name)
        return cluster if cluster is not None and cluster.nonce != self._known else None

    def _answers(self, cluster: rendezvous.Cluster) -> bool:
        try:
            masters.call(cluster, "status")
        except WrongKey:
            raise
        except (ConnectError, UsageError) as error:
            self._unreached = str(error)
            return False
        return True

    def _ask(self, timeout_s: float) -> None:
        """Look at SLURM, and say what has changed; CwmpError when the master's job has ended."""
        master = self._pool.master_job
        if master is None:
            return
        try:
            found = commands.queue([master], patience_s=0.0, timeout_s=max(1.0, timeout_s))
            self._job = found[0] if found else commands.ended(master)
            self._doubt = ""
        except SlurmError as error:
            self._doubt = f"; SLURM does not tell: {error}"
        else:
            if self._job is None or self._job.has_ended:
                raise CwmpError(self._ended(master))
        self._pause_s = min(self._pause_s * 1.5, _ASK_S[1])
        self._ask_at = time.monotonic() + self._pause_s
        self._tell(f"waiting for the master: {self._where()}")

    def _tell(self, line: str) -> None:
        before, at = self._said
        if line != before or time.monotonic() >= at + _REMIND_S:
            self._said = (line, time.monotonic())
            self._say(line)

    def _where(self) -> str:
        """The master's job and what it is doing."""
        master, job = self._pool.master_job, self._job
        if master is None:
            return "it runs on this host"
        if job is None:
            return f"job {master}{self._doubt}"
        place = f" on {job.node}" if job.node else ""
        unreached = f"; {self._unreached}" if self._unreached else ""
        return f"job {master} is {explained(job.state, job.reason)}{place}{self._doubt}{unreached}"

    def _ended(self, master: str) -> str:
        """What there is to say of a master that ended."""
        job = commands.ended(master) or self._job
        log = logs.told(log_path(self._pool, master))
        if job is None:
            return f"the master's job {master} is gone, and SLURM has forgotten it{log}"
        code = f", exit code {job.exit_code}" if job.exit_code else ""
        place = f" on {job.node}" if job.node else ""
        return f"the master's job {master} ended as {explained(job.state, job.reason)}{place}{code}{log}"

    def _late(self) -> str:
        """What there is to say at the deadline."""
        line = f"no master within {self._pool.options.wait_s:g} s: {self._where()}"
        if self._pool.master_job is not None and self._job is not None and not self._job.waits:
            line += logs.told(log_path(self._pool, self._pool.master_job))
        return f"{line}; --wait S waits longer, --wait 0 not at all"
