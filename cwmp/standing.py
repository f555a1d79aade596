"""The standing requests of members: a worker's for jobs, a client's for events."""

from __future__ import annotations

from .server import Peer


class Take:
    """A worker's standing request for work."""

    def __init__(self, peer: Peer, limit: int, slots: int) -> None:
        self.peer = peer
        self.limit = limit  # leases that it wants in all
        self.sent = 0
        self._slots = slots

    @property
    def room(self) -> int:
        """How many leases it would take now."""
        return self.limit - self.sent

    @property
    def portion(self) -> int:
        """The fewest leases worth a message of their own.

        Who has room for more than its slots can run at once has measured jobs so short that a job
        for each slot is no burden. Other jobs may be long: they are spread as widely as possible.
        """
        return self._slots if self.room > self._slots else 1


class Collect:
    """A client's standing request for events."""

    def __init__(self, peer: Peer, sent: int, now: float) -> None:
        self.peer = peer
        self.sent = sent  # number of the last event sent
        self.when = now  # when it was last sent anything
