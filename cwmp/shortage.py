"""What a master does that has no memory left: it gives up the client that takes most of it.

Nobody knows how far what it was doing has come. So it closes all connections, too: members that come back
compare with the master what each of them has, and send again what it never took.
"""

from __future__ import annotations

import logging
import mmap
from typing import Optional

from .broker import Broker
from .members import CLIENT, Members

log = logging.getLogger("cwmp.master")

_RESERVE_BYTES = 16 << 20  # of address space; nothing is ever written there
_RETAKE_S = 60.0

STACK_BYTES = 1 << 20
"""What a thread of a master needs at most. With the usual 8 MiB, handshakes meet a tight `ulimit -v`."""


class Shortage:
    """Call `relieve()` after a MemoryError, and `recover(now)` now and then."""

    def __init__(self, broker: Broker, members: Members) -> None:
        self._broker = broker
        self._members = members
        self._reserve = _reserve()  # so that there is some to get out of it with
        self._retake = 0.0  # when to look for another one

    def relieve(self) -> None:
        """Make room, and have both sides of every connection agree again."""
        try:
            if self._reserve is not None:
                self._reserve.close()
                self._reserve = None
            self._give_up_largest()
            self._members.call_back()
        except MemoryError:  # the next round meets it as well, and by then some more is free
            log.error("out of memory, even for making room")

    def recover(self, now: float) -> None:
        """Take a reserve again, but not at once: what was freed serves those who come back."""
        if self._reserve is not None:
            return
        if not self._retake:
            self._retake = now + _RETAKE_S
        elif now >= self._retake:
            self._retake = 0.0
            self._reserve = _reserve()

    def _give_up_largest(self) -> None:
        most = self._broker.largest_client()
        if most is None:
            log.error("out of memory, and no client has jobs here that could be given up")
            return
        ident, jobs, size = most
        took = f"{jobs:,} open jobs took {size >> 20:,} MiB of it"
        log.error("out of memory: gave up client %d, whose %s", ident, took)
        advice = "have fewer open at once (buffersize=, max_pending=), or give the master more"
        self._members.dismiss((CLIENT, ident), f"it ran out of memory, and our {took}: {advice}")


def _reserve() -> Optional[mmap.mmap]:
    """Address space of our own, where twice as much is free."""
    try:
        mmap.mmap(-1, 2 * _RESERVE_BYTES, mmap.MAP_PRIVATE).close()
        return mmap.mmap(-1, _RESERVE_BYTES, mmap.MAP_PRIVATE)
    except (OSError, MemoryError):
        return None
