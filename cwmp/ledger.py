"""What the broker keeps account of, and how it looks from outside; the rules are in `broker`.

Pure, as the broker is.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any, Deque, Dict, List, Optional, Protocol, Tuple, Type, TypeVar

from . import defaults
from .errors import UnknownMember, UsageError
from .records import LEASED, QUEUED, STARTED, ClientRecord, JobRecord, WorkerRecord

_T = TypeVar("_T")


class Blobs(Protocol):
    """What keeps the large values that jobs refer to; the broker owns its *pins* with its jobs."""

    def pin(self, refs: Any) -> Optional[object]:
        """Keep these for as long as what is returned exists; None if one is not here."""

    def bring_result(self, worker: int, refs: Any) -> Optional[object]:
        """Take in the large parts of a result; they stay for as long as what is returned exists."""


class NoBlobs:
    """Where there are none."""

    def pin(self, refs: Any) -> Optional[object]:
        """There is none of these."""
        return None

    def bring_result(self, worker: int, refs: Any) -> Optional[object]:
        """There is none of these."""
        return None


class Ledger:
    """Members and counts.

    Members and hand-outs are numbered from `first` on: two masters that do not begin at the same one do not
    confuse what one of them has said with what the other has.
    """

    def __init__(
        self, max_attempts: int = defaults.MAX_ATTEMPTS, blobs: Optional[Blobs] = None, first: int = 1
    ) -> None:
        self.max_attempts = max_attempts
        self.blobs: Blobs = blobs or NoBlobs()
        self.queued = 0  # jobs that could be handed out now
        self.done = self.failed = self.cancelled = self.stale = 0  # since the start
        self._clients: Dict[int, ClientRecord] = {}
        self._workers: Dict[int, WorkerRecord] = {}
        self._ready: Deque[ClientRecord] = deque()  # clients with queued jobs, next to be served first
        self._idents = count(first)
        self._tickets = count(1 + ((first - 1) << 20))

    def status(self, now: float) -> Dict[str, Any]:
        """What there is, as plain values: `jobs`, `workers` and `clients` of `cwmp-status`."""
        running = sum(len(worker.held) for worker in self._workers.values())
        return {
            "jobs": {
                "queued": sum(client.queued for client in self._clients.values()),
                "running": running,
                "done": self.done,
                "failed": self.failed,
                "cancelled": self.cancelled,
            },
            "workers": [worker.describe(now) for worker in self._workers.values()],
            "clients": [client.describe() for client in self._clients.values()],
        }

    def workers(self) -> List[int]:
        """The ids of the workers that are here."""
        return list(self._workers)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every job is in exactly one place and every count is right."""
        held = {id(job) for worker in self._workers.values() for job in worker.held.values()}
        assert len(held) == sum(len(worker.held) for worker in self._workers.values()), "leased twice"
        for client in self._clients.values():
            queued = [job for job in client.queue if job.state == QUEUED]
            in_queue = set(map(id, queued))
            assert len(queued) == len(in_queue) == client.queued, "queue count"
            assert (client in self._ready) == bool(client.queued and not client.away), "ready list"
            assert all(client.open.get(job.number) is job for job in queued), "queued but not open"
            for job in client.open.values():
                assert (job.state == QUEUED) == (id(job) in in_queue), "open job is nowhere"
                assert (job.state in (LEASED, STARTED)) == (id(job) in held), "leased to nobody"
                assert len(job.deaths or ()) < (client.max_attempts or self.max_attempts), "tried too often"
        assert len(self._ready) == len(set(map(id, self._ready))), "ready twice"
        present = [client for client in self._clients.values() if not client.away]
        assert self.queued == sum(client.queued for client in present), "total count"

    def largest_client(self) -> Optional[Tuple[int, int, int]]:
        """The client that takes most memory: (id, open jobs, bytes); None where none takes any."""
        sizes = [(client.size(), client) for client in self._clients.values()]
        size, client = max(sizes, key=lambda entry: entry[0], default=(0, None))
        return (client.ident, len(client.open), size) if client is not None and size else None

    def _requeue(self, job: JobRecord) -> None:
        """Put a job that was leased first in its client's line."""
        client = job.client
        if client.gone:
            return
        job.state = QUEUED
        client.queue.appendleft(job)
        self._note_queued(client, 1)

    def _note_queued(self, client: ClientRecord, count: int) -> None:
        """So many jobs have joined a client's line."""
        if not client.away:
            if count and not client.queued:
                self._ready.append(client)
            self.queued += count
        client.queued += count

    def _note_unqueued(self, client: ClientRecord, count: int) -> None:
        """So many jobs of a client's line became tombstones."""
        client.queued -= count
        if client.away:
            return
        self.queued -= count
        if count and not client.queued:
            self._ready.remove(client)

    def _client(self, ident: int) -> ClientRecord:
        try:
            return self._clients[ident]
        except (KeyError, TypeError):
            raise UnknownMember(f"no client {ident!r} is here: it never joined, or has left") from None

    def _worker(self, ident: int) -> WorkerRecord:
        try:
            return self._workers[ident]
        except (KeyError, TypeError):
            raise UnknownMember(
                f"no worker {ident!r} is here: it never joined, has left, or was silent for too long"
            ) from None


def checked(value: Any, kind: Type[_T]) -> _T:
    """The value, if it is what the protocol says. Raises UsageError before anything has moved."""
    if type(value) is not kind:
        raise UsageError(f"a message holds {type(value).__name__} where {kind.__name__} belongs")
    return value
