"""What a master does that has no memory left: it gives up the client that takes most of it.

Nobody knows how far what it was doing has come. So it closes all connections, too: members that come back
compare with the master what each of them has, and send again what it never took.
"""

from __future__ import annotations

import contextlib
import logging

from .broker import Broker
from .members import CLIENT, Members

log = logging.getLogger("cwmp.master")

_RESERVE_BYTES = 1 << 20


class Shortage:
    """Call `relieve()` after a MemoryError."""

    def __init__(self, broker: Broker, members: Members) -> None:
        self._broker = broker
        self._members = members
        self._reserve = bytearray(_RESERVE_BYTES)  # so that there is some to get out of it with

    def relieve(self) -> None:
        """Make room, and have both sides of every connection agree again."""
        self._reserve = bytearray()
        most = self._broker.largest_client()
        if most is None:
            log.error("out of memory, and no client has jobs here that could be given up")
        else:
            ident, jobs, size = most
            took = f"{jobs:,} open jobs took {size >> 20:,} MiB of it"
            log.error("out of memory: gave up client %d, whose %s", ident, took)
            advice = "have fewer open at once (buffersize=, max_pending=), or give the master more"
            self._members.dismiss((CLIENT, ident), f"it ran out of memory, and our {took}: {advice}")
        self._members.call_back()
        with contextlib.suppress(MemoryError):  # then the next time is harder
            self._reserve = bytearray(_RESERVE_BYTES)
