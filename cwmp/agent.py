"""The agent of one node: joins a master, serves it as a `Worker`, and follows it when it moves.

A master that was found by its name may be started anew, here or on another node. Then the agent
looks it up again and begins afresh: what it held is lost to it, and was never lost to its clients.
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
from .errors import ConnectError, MasterLost
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
    time. `leash_fd` is a descriptor whose end of file ends the agent at once. `place` is for large values.
    """

    def __init__(
        self,
        find: Find,
        wanted: str = "of this cluster",
        *,
        slots: int,
        grace_s: float = defaults.GRACE_S,
        wait_s: float = defaults.WAIT_S,
        say: Callable[[str], None] = print_to_stderr,
        leash_fd: Optional[int] = None,
        place: Place = _ANY_PLACE,
    ) -> None:
        self._slots = slots
        self._place = place
        self._wait_s = wait_s
        self._say = say
        self._leash_fd = leash_fd
        self._loop = Loop()
        self._departure = Departure(grace_s)  # written by signal handlers, too
        self._limit = TimeLimit(os.environ, self._loop, self._on_end)
        self._approach = Approach(find, wanted, say=say, pause=self._pause)

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
            lost: Optional[str] = None
            while not self._departure.under_way:
                lost = self._stay(lost)
                if lost is None:
                    break
        finally:
            self._limit.close()
            signal.set_wakeup_fd(-1)
            self._loop.close()

    def drain(self) -> None:
        """Take no more jobs, finish what runs within the grace period, leave. A second call: leave now."""
        self._departure.tell()
        self._loop.wake()

    def _stay(self, lost: Optional[str]) -> Optional[str]:
        """Join and serve; `lost` is why there was no master any more. Returns that of this stay, if so.

        Raises MasterLost where there is no second chance.
        """
        worker = Worker(
            self._slots, self._loop, self._departure, self._say, tend=self._limit.tend, place=self._place
        )
        try:
            try:
                joined = self._approach.join(self._hello(), self._wait_s, again=lost is not None)
            except ConnectError as error:
                if lost is None:
                    raise
                raise MasterLost(f"{lost}; {error}") from error
            if joined is None:
                return None
            self._announce(joined)
            reason = worker.serve(joined)
        finally:
            worker.close()
        if reason is None:
            return None
        lost = f"the master at {joined.place} is gone: {reason}"
        if not joined.followed:
            raise MasterLost(lost)
        self._say(lost)
        return lost

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
