"""The agent of one node: joins a master, serves it as a `Worker`, and gets back to it when it is gone.

The connection may have broken, or the master was started anew, here or on another node: it is looked up
again. The slots go on with what they have begun meanwhile.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import Any, Callable, Dict, Optional

from . import defaults
from .departure import Departure
from .errors import MasterLost
from .joining import Approach, Find, Joined
from .larder import Place
from .loop import Loop
from .messages import this_side
from .place import slurm_place
from .timelimit import TimeLimit
from .worker import Worker

_ANY_PLACE = Place()


def print_to_stderr(line: str) -> None:
    """Where an agent's lines go unless its caller wants them."""
    print(f"cwmp-worker: {line}", file=sys.stderr, flush=True)


class Agent:
    """A worker process. `run()` blocks; `drain()` ends it from a signal handler.

    `find` looks up the master; `wanted` tells which one that is ("at node7:5494"). `slots` jobs run at a
    time. It waits `wait_s` for a master at first, and `master_timeout_s` for one that it had. `leash_fd` is a
    descriptor whose end of file ends the agent at once. `place` is for large values.
    """

    def __init__(
        self,
        find: Find,
        wanted: str = "of this cluster",
        *,
        slots: int,
        grace_s: float = defaults.GRACE_S,
        wait_s: float = defaults.WAIT_S,
        master_timeout_s: float = defaults.MASTER_TIMEOUT_S,
        say: Callable[[str], None] = print_to_stderr,
        leash_fd: Optional[int] = None,
        place: Place = _ANY_PLACE,
    ) -> None:
        self._slots = slots
        self._place = place
        self._wait_s = wait_s
        self._master_timeout_s = master_timeout_s
        self._say = say
        self._leash_fd = leash_fd
        self._loop = Loop()
        self._departure = Departure(grace_s)  # written by signal handlers, too
        self._limit = TimeLimit(os.environ, self._loop, self._on_end)
        self._approach = Approach(find, wanted, say=say)

    def run(self) -> None:
        """Serve until told to leave.

        Raises ConnectError, WrongKey or VersionMismatch at the start, MasterLost later.
        """
        for name in defaults.THREAD_VARIABLES:
            os.environ.setdefault(name, "1")
        gc.freeze()  # slots share what is here now, as long as nobody touches it
        gc.set_threshold(defaults.COLLECT_EVERY, 50, 100)  # leases come and go without cycles
        self._loop.wake_on_signals()
        if self._leash_fd is not None:
            self._loop.watch(self._leash_fd, self._on_leash)
        try:
            self._work()
        finally:
            self._limit.close()
            signal.set_wakeup_fd(-1)
            self._loop.close()

    def drain(self) -> None:
        """Take no more jobs, finish what runs within the grace period, leave. A second call: leave now."""
        self._departure.tell()
        self._loop.wake()

    def _work(self) -> None:
        """Join, serve, and come back as often as it takes."""
        worker = Worker(
            self._slots, self._loop, self._departure, self._say, tend=self._limit.tend, place=self._place
        )
        try:
            joined = self._approach.join(self._hello, self._wait_s, self._pause)
            while joined is not None:
                self._announce(joined)
                lost = worker.serve(joined)
                if lost is None:
                    break
                joined = self._come_back(worker, joined, lost)
        finally:
            worker.close()

    def _come_back(self, worker: Worker, joined: Joined, lost: str) -> Optional[Joined]:
        """A place at the master again, or at its successor; None when told to leave. Raises MasterLost."""
        lost = f"the master at {joined.place} is gone: {lost}"
        if worker.dismissed and not joined.followed:
            raise MasterLost(lost)
        self._say(lost)
        try:
            return self._approach.join(
                lambda: {**self._hello(), **worker.card()}, self._master_timeout_s, worker.bide, again=True
            )
        except OSError as error:
            raise MasterLost(f"{lost}; {error}") from error

    def _hello(self) -> Dict[str, Any]:
        """What we say of ourselves."""
        return this_side(
            "worker",
            slots=self._slots,
            busy=0,
            done=0,
            rss_bytes=0,
            place=slurm_place(),
            ends_in_s=self._departure.ends_in_s(time.monotonic()),
        )

    def _announce(self, joined: Joined) -> None:
        slots = "1 slot" if self._slots == 1 else f"{self._slots} slots"
        self._say(f"connected to {joined.place} (cluster {joined.cluster}), {slots}")

    def _pause(self, seconds: float) -> bool:
        """Wait; False when told to leave."""
        self._loop.poll(0.0 if self._departure.under_way else seconds)
        return not self._departure.under_way

    def _on_end(self, ends_at: Optional[float]) -> None:
        """SLURM has told when our time is up."""
        self._departure.ends_at = ends_at

    def _on_leash(self) -> None:
        if self._leash_fd is not None and not os.read(self._leash_fd, 4096):
            self._loop.forget(self._leash_fd)
            self._leash_fd = None
            self._departure.tell(times=2)
