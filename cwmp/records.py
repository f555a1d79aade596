"""What the broker remembers: one record for each job, client and worker. No rules in here."""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import Any, Deque, Dict, List, Optional, Set, Tuple

from . import defaults
from .messages import Event, Packed

QUEUED = "queued"
LEASED = "leased"
STARTED = "running"
_EXTENDED_S = 30.0  # a worker's end moves by less than that because clocks differ
WITHDRAWN = "withdrawn"  # a tombstone in a queue; nothing else remembers the job


class JobRecord:
    """One job of one client, from submit to its event."""

    __slots__ = ("client", "number", "function", "call", "state", "attempt", "deaths", "losses")

    def __init__(self, client: ClientRecord, number: int, function: Packed, call: Packed) -> None:
        self.client = client
        self.number = number
        self.function = function
        self.call = call
        self.state = QUEUED
        self.attempt = 0  # hand-outs so far
        self.deaths: Optional[List[Dict[str, Any]]] = None  # charged: slots that died running it
        self.losses: Optional[List[Dict[str, Any]]] = None  # uncharged: workers lost under it

    def clear(self) -> None:
        """Keep nothing of what was submitted."""
        self.function = self.call = b""

    def taken_out(self) -> JobRecord:
        """The same job as a record that stands in no queue; this one becomes a tombstone."""
        job = copy(self)
        self.state = WITHDRAWN
        self.clear()
        return job


class LargeJobRecord(JobRecord):
    """A job that refers to blobs. They are kept for as long as it has its pins."""

    __slots__ = ("pins",)

    def __init__(
        self, client: ClientRecord, number: int, function: Packed, call: Packed, pins: object
    ) -> None:
        super().__init__(client, number, function, call)
        self.pins: Optional[object] = pins

    def clear(self) -> None:
        """Keep nothing of what was submitted."""
        super().clear()
        self.pins = None


_RECORD_BYTES = 300  # that a job or an event takes besides its data


class ClientRecord:
    """One client program: its queue, its open jobs and the events that it has yet to collect."""

    def __init__(self, ident: int, facts: Dict[str, Any]) -> None:
        self.ident = ident
        self.facts = facts
        self.queue: Deque[JobRecord] = deque()  # may hold tombstones
        self.queued = 0  # jobs in `queue` that are not tombstones
        self.open: Dict[int, JobRecord] = {}
        self.events: List[Event] = []
        self.acknowledged = 0  # sequence number of the last event dropped from `events`
        self.result_pins: Deque[Tuple[int, object]] = deque()  # with the number of the event that needs them
        self.gone = False
        self.away = False  # its connection broke: nothing of it is begun until it comes back
        self.requests = 0  # taken from it since it joined, as it counts them, too
        self.max_attempts: Optional[int] = facts.get("max_attempts")  # None: the broker's
        self.last_function = b""

    def size(self) -> int:
        """How many bytes its open jobs and its events take, about."""
        calls = sum(len(job.call) for job in self.open.values())
        answers = sum(len(data) for _, _, data in self.events if data is not None)
        return calls + answers + _RECORD_BYTES * (len(self.open) + len(self.events))

    def bring_forward(self, share: int, unfit: Set[Any]) -> int:
        """Put up to `share` jobs first whose function is not in `unfit`; returns how many there are.

        Looks at no more than the first `LOOK_AHEAD_JOBS`.
        """
        fit: List[JobRecord] = []
        others: List[JobRecord] = []
        while self.queue and len(fit) < share and len(others) < defaults.LOOK_AHEAD_JOBS:
            job = self.queue.popleft()
            if job.state is QUEUED:
                (others if job.function in unfit else fit).append(job)
        self.queue.extendleft(reversed(others))
        self.queue.extendleft(reversed(fit))
        return len(fit)

    def describe(self) -> Dict[str, Any]:
        """What `cwmp-status` tells of it."""
        return {
            "id": self.ident,
            **self.facts,
            "away": self.away,
            "queued": self.queued,
            "running": len(self.open) - self.queued,
        }


class WorkerRecord:
    """One agent: what it holds and what it last said of itself."""

    def __init__(self, ident: int, facts: Dict[str, Any], now: float) -> None:
        self.ident = ident
        self.facts: Dict[str, Any] = {}
        self.held: Dict[int, JobRecord] = {}
        self.offered: Dict[int, Tuple[int, int]] = {}  # tickets of an earlier master, see `returning`
        self.reports = 0  # taken from it since it joined, as it counts them, too
        self.used = now  # when it was last heard while it held jobs
        self.draining = False  # it gets no more jobs
        self.ends_at: Optional[float] = None  # when its time is up
        self.unfit: Set[Any] = set()  # functions that it has no time for
        self.hear(now, facts)

    def hear(self, now: float, facts: Optional[Dict[str, Any]] = None) -> None:
        """It is alive, and perhaps has news of itself."""
        self.heard = now
        if self.held:
            self.used = now
        if facts:
            self.draining = facts.get("draining", False) or self.draining
            if "ends_in_s" in facts:
                self._set_end(None if facts["ends_in_s"] is None else now + facts["ends_in_s"])
            self.facts.update(facts)

    def _set_end(self, ends_at: Optional[float]) -> None:
        if ends_at is None or (self.ends_at is not None and ends_at > self.ends_at + _EXTENDED_S):
            self.unfit.clear()  # it has got more time
        self.ends_at = ends_at

    def describe(self, now: float) -> Dict[str, Any]:
        """What `cwmp-status` tells of it."""
        return {
            "id": self.ident,
            "slurm_job": None,
            **self.facts,
            "ends_in_s": None if self.ends_at is None else round(self.ends_at - now, 3),
            "held": len(self.held),
            "draining": self.draining,
            "idle_s": 0.0 if self.held else round(now - self.used, 3),
            "silent_s": round(now - self.heard, 3),
        }


def place(worker: WorkerRecord, job: JobRecord) -> Dict[str, Any]:
    """Where an attempt ran, for the history of a job."""
    return {
        "attempt": job.attempt,
        "node": worker.facts.get("node"),
        "pid": None,
        "signal": None,
        "exit_code": None,
        "peak_rss_bytes": None,
        "oom": None,
        "stderr": None,
    }
