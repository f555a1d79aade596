"""A client's requests that were not answered, and what to do with them when it is back at a master.

Pure. Replies come in the order of the requests. The master counts those that change something, as we do: so
after a broken connection both know which of them it has taken.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Container, Deque, Iterable, List, NamedTuple, Optional, Set, Tuple

from . import defaults
from .messages import Job

OnReply = Callable[[Any], None]


def do_nothing(_: Any) -> None:
    """With a reply that nobody waits for."""


COUNTED = ("put", "cancel", "offer")
"""What the master counts. The other requests only ask, and can be asked again."""


class Request(NamedTuple):
    """A request, and who waits for its reply. `args` are those after the client's id."""

    target: str
    method: str
    args: Tuple[Any, ...]
    on_reply: OnReply


Settled = List[Tuple[OnReply, Any]]
"""Whom to tell what."""


def sort_out(requests: Iterable[Request], still_open: Container[int]) -> Tuple[Settled, Set[int], List[Any]]:
    """What to make of requests to a master that is no more, where the next one knows of nothing.

    Returns whom to tell what, the jobs that are withdrawn because they are not submitted again, and the
    large values that were on their way.
    """
    settled: Settled = []
    withdrawn: Set[int] = set()
    arrivals: List[Any] = []
    for request in requests:
        if request.method in ("cancel", "alive"):
            gone = [n for n in request.args[0] if n in still_open and n not in withdrawn]
            withdrawn.update(gone)
            settled.append((request.on_reply, gone if request.method == "cancel" else []))
            continue
        if request.method == "offer":
            arrivals += [arrival for arrival in request.args[0] if arrival[0]]
        if request.method != "put":
            settled.append((request.on_reply, None))
    return settled, withdrawn, arrivals


def first_batch(pending: List[Job]) -> int:
    """How many of these jobs, oldest first, fit into one message."""
    size = 0
    for count, job in enumerate(pending, 1):
        size += len(job[2])
        if count >= defaults.MAX_BATCH_JOBS or size >= defaults.MAX_BATCH_BYTES:
            return count
    return len(pending)


class Outbox:
    """Requests under way, oldest first.

    >>> outbox = Outbox()
    >>> outbox.add(Request("JobQueue", "put", ([1],), print), due=15.0)
    >>> outbox.add(Request("JobQueue", "put", ([2],), print), due=16.0)
    >>> taken, again = outbox.goes_on(taken=1)
    >>> [request.args for request in taken], [request.args for request in again], len(outbox)
    ([([1],)], [([2],)], 0)
    """

    def __init__(self) -> None:
        self._awaited: Deque[Tuple[float, Request]] = deque()  # when the reply is due
        self._count = 0  # counted requests that this master was sent

    def __len__(self) -> int:
        return len(self._awaited)

    def add(self, request: Request, due: float) -> None:
        """A request is about to be sent; the last word on it should be here at `due`."""
        self._awaited.append((due, request))
        self._count += request.method in COUNTED

    def take_out(self, request: Request) -> None:
        """It could not be sent after all."""
        if self._awaited and self._awaited[-1][1] is request:
            self._awaited.pop()
            self._count -= request.method in COUNTED

    def answered(self) -> Request:
        """A reply has come: the request that it is for."""
        return self._awaited.popleft()[1]

    def is_overdue(self, now: float) -> bool:
        """Whether a reply should have come by now."""
        return bool(self._awaited) and now > self._awaited[0][0]

    def holds(self, method: str, on_reply: Optional[OnReply] = None) -> bool:
        """Whether such a request is under way."""
        return any(r.method == method and on_reply in (None, r.on_reply) for _, r in self._awaited)

    def goes_on(self, taken: int) -> Tuple[List[Request], List[Request]]:
        """The master still knows us, and has taken so many: (taken without our hearing, to be sent again)."""
        requests = self.drain()
        already = taken - (self._count - sum(request.method in COUNTED for request in requests))
        heard: List[Request] = []
        again: List[Request] = []
        for request in requests:
            counted = request.method in COUNTED
            (heard if counted and already > 0 else again).append(request)
            already -= counted
        self._count = taken
        return heard, again

    def begins_anew(self) -> List[Request]:
        """The master is another one, or has given us up: what was on its way to the one before."""
        self._count = 0
        return self.drain()

    def drain(self) -> List[Request]:
        """All of them; none is under way any more."""
        requests = [request for _, request in self._awaited]
        self._awaited.clear()
        return requests
