"""The state and the rules: jobs, leases, fair queues, attempts, expiry.

Pure: no thread, lock, socket, log or clock; `now` is an argument and answers are return values.

    submit                take                      finish
    ------> QUEUED -----------------> LEASED -----------------> gone (an event for its client)
              ^  |                      |  |
              |  | cancel               |  | running
              |  +--------> gone        |  v
              |                         | RUNNING -- finish --> gone
              +-- give_back, lost ------+--+
              +-- died, while attempts are left
"""

from __future__ import annotations

from collections import deque
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from . import defaults
from .errors import UsageError
from .hearsay import cause_of_death
from .ledger import checked
from .messages import ERROR, LOST, RESULT, RUNNING, VANISHED, Event, Job, Lease, Outcome
from .records import (
    LEASED,
    QUEUED,
    STARTED,
    WITHDRAWN,
    ClientRecord,
    JobRecord,
    LargeJobRecord,
    WorkerRecord,
    place,
)
from .returning import Returning


class Broker(Returning):
    """Who has which job, and who gets which next.

    >>> broker = Broker()
    >>> client, worker = broker.join_client({}), broker.join_worker({"slots": 1}, now=0.0)
    >>> broker.submit(client, [(1, b"f", b"x")])
    False
    >>> [(ticket, attempt, function, call)] = broker.take(worker, room=5)
    >>> broker.finish(worker, [(ticket, RESULT, b"y")])
    {1}
    >>> broker.collect(client, after=0)
    (1, [(1, 0, b'y')])
    """

    # --- members -----------------------------------------------------------------------------

    def join_client(self, facts: Dict[str, Any], ident: Optional[int] = None) -> int:
        """A client program introduces itself; returns its id, the one that it had if that is free."""
        ident = self._free(ident)
        self._clients[ident] = ClientRecord(ident, facts)
        return ident

    def join_worker(self, facts: Dict[str, Any], now: float, ident: Optional[int] = None) -> int:
        """A worker introduces itself; returns its id, the one that it had if that is free."""
        ident = self._free(ident)
        self._workers[ident] = WorkerRecord(ident, facts, now)
        return ident

    def leave_client(self, ident: int) -> None:
        """Forget a client: queued jobs are dropped, running ones will be discarded when done."""
        client = self._clients.pop(ident, None)
        if client is None:
            return
        client.gone = True
        self.cancelled += client.queued
        self._note_unqueued(client, client.queued)
        client.queue.clear()
        client.open.clear()
        client.events.clear()
        client.result_pins.clear()

    def leave_worker(self, ident: int) -> None:
        """A worker says goodbye: what it still holds is queued again and charged to nobody."""
        worker = self._workers.pop(ident, None)
        if worker is not None:
            self._drop_offers_of(worker)
            for job in reversed(list(worker.held.values())):
                self._requeue(job)

    def lose_worker(self, ident: int, cause: str) -> Set[int]:
        """A worker vanished: all its jobs go to others. Returns the clients that have new events.

        Jobs that were running there remember the loss, and only a job that loses
        `MAX_WORKER_LOSSES` workers is given up.
        """
        worker = self._workers.pop(ident, None)
        touched: Set[int] = set()
        if worker is None:
            return touched
        self._drop_offers_of(worker)
        # With no more jobs than slots none waited behind another, so all had started.
        slots = worker.facts.get("slots")
        all_started = isinstance(slots, int) and len(worker.held) <= slots
        for job in reversed(list(worker.held.values())):
            if job.state == STARTED or all_started:
                self._lose(worker, job, f"its whole worker was lost ({cause})", touched)
            else:
                self._requeue(job)
        return touched

    def _lose(self, worker: WorkerRecord, job: Optional[JobRecord], cause: str, touched: Set[int]) -> None:
        """An attempt came to nothing without its doing: queue it again, unless that happens too often."""
        if job is None:
            self.stale += 1
            return
        job.losses = job.losses or []
        job.losses.append({**place(worker, job), "cause": cause})
        if len(job.losses) >= defaults.MAX_WORKER_LOSSES:
            self._give_up(job, touched)
        else:
            self._requeue(job)

    def expire(self, now: float) -> List[int]:
        """The workers that have been silent for longer than `SILENT_S`."""
        limit = now - defaults.SILENT_S
        return [worker.ident for worker in self._workers.values() if worker.heard < limit]

    def heard(self, ident: int, now: float, facts: Optional[Dict[str, Any]] = None) -> None:
        """A sign of life from a worker, perhaps with news of itself. Raises UnknownMember."""
        self._worker(ident).hear(now, facts)

    def drain(self, ident: int) -> bool:
        """A worker is to get no more jobs; False if it is not here."""
        worker = self._workers.get(ident)
        if worker is not None:
            worker.draining = True
        return worker is not None

    # --- jobs --------------------------------------------------------------------------------

    def submit(self, ident: int, jobs: Iterable[Job]) -> bool:
        """Queue jobs behind the others of the same client; returns whether it has new events.

        A number that is open already is left as it is. Raises UnknownMember.
        """
        client = self._client(ident)
        append, opened = client.queue.append, client.open
        function = client.last_function  # equal functions stay one object in memory
        added = 0
        eventful = False
        offers = self._offers
        try:
            for number, new_function, call in jobs:
                if number in opened:
                    continue
                if type(number) is not int:
                    raise UsageError("a job must be (int, bytes, bytes)")
                if type(call) is not bytes or type(new_function) is not bytes:
                    large = self._large_job(client, number, new_function, call)
                    if large is None:
                        eventful = True
                        continue
                    job = opened[number] = large
                else:
                    if new_function != function:
                        function = client.last_function = new_function
                    job = opened[number] = JobRecord(client, number, function, call)
                if offers and self._is_offered(job):
                    eventful = eventful or number not in opened
                    continue
                append(job)
                added += 1
        except MemoryError:
            if not client.queue or client.queue[-1].number != number:
                opened.pop(number, None)  # it comes again, with the rest
            raise
        finally:
            self._note_queued(client, added)
        client.requests += 1  # last: what was not taken as a whole comes again
        return eventful

    def _large_job(self, client: ClientRecord, number: int, function: Any, call: Any) -> Optional[JobRecord]:
        """The record of a job that refers to blobs; None, and an event, if one of them is not here."""
        pins = self.blobs.pin(_refs(function) + _refs(call))
        if pins is None:
            self.failed += 1
            text = "a large argument of this job, or its function, never arrived at the master"
            client.events.append((number, VANISHED, text))
            return None
        return LargeJobRecord(client, number, function, call, pins)

    def cancel(self, ident: int, numbers: Iterable[int]) -> List[int]:
        """Withdraw those of `numbers` that are still queued; returns them. Raises UnknownMember."""
        client = self._client(ident)
        client.requests += 1
        withdrawn = []
        for number in [checked(number, int) for number in numbers]:
            job = client.open.get(number)
            if job is None or job.state != QUEUED:
                continue
            del client.open[number]
            job.state = WITHDRAWN
            job.clear()
            withdrawn.append(number)
        self._note_unqueued(client, len(withdrawn))
        self.cancelled += len(withdrawn)
        if len(client.queue) > 2 * client.queued + 64 or not client.queued:
            client.queue = deque(job for job in client.queue if job.state == QUEUED)
        return withdrawn

    def take(self, ident: int, room: int) -> List[Lease]:
        """Lease up to `room` jobs to a worker, the clients taking turns. Raises UnknownMember.

        Stops early once the leases add up to `MAX_BATCH_BYTES`.
        """
        worker = self._worker(ident)
        leases: List[Lease] = []
        bytes_left = defaults.MAX_BATCH_BYTES
        while room > 0 and bytes_left > 0 and self._ready:
            share = max(1, room // len(self._ready))  # for each client of this round of turns
            so_far = len(leases)
            for _ in range(len(self._ready)):
                if room <= 0 or bytes_left <= 0:
                    break
                client = self._ready.popleft()
                before = len(leases)
                bytes_left = self._lease(worker, client, min(share, client.queued), bytes_left, leases)
                room -= len(leases) - before
                if client.queued:
                    self._ready.append(client)
            if len(leases) == so_far:
                break  # it has no time for any of what is left
        return leases

    def _lease(
        self, worker: WorkerRecord, client: ClientRecord, share: int, bytes_left: int, leases: List[Lease]
    ) -> int:
        """Move up to `share` jobs from a client's queue to a worker; returns the bytes still free."""
        if worker.unfit:
            share = client.bring_forward(share, worker.unfit)
        pop, held, tickets = client.queue.popleft, worker.held, self._tickets
        moved = 0
        while moved < share and bytes_left > 0:
            job = pop()
            if job.state is not QUEUED:
                continue
            moved += 1
            job.state = LEASED
            job.attempt += 1
            ticket = next(tickets)
            held[ticket] = job
            leases.append((ticket, job.attempt, job.function, job.call))
            bytes_left -= len(job.call)
        client.queued -= moved
        self.queued -= moved
        return bytes_left

    def finish(self, ident: int, outcomes: Iterable[Outcome]) -> Set[int]:
        """Record how attempts ended; returns the clients that have new events.

        A ticket that the worker does not hold is an old attempt's: counted and dropped.
        Raises UnknownMember.
        """
        worker = self._worker(ident)
        held = worker.held
        touched: Set[int] = set()
        for ticket, kind, data in outcomes:
            pins = None
            if kind != RESULT and kind != ERROR:  # a client would wait for the end of this job for ever
                raise UsageError(f"no job ends with an outcome of kind {kind!r}")
            if type(data) is not bytes:
                pins = self.blobs.bring_result(ident, _refs(data))
                if pins is None:
                    self._lose(worker, held.pop(ticket, None), "a large result of it did not arrive", touched)
                    continue
            job = held.pop(ticket, None)
            if job is not None:
                if self._conclude(job, kind, data, pins):
                    touched.add(job.client.ident)
            elif not (worker.offered and self._keep_outcome(worker, ticket, (kind, data, pins))):
                self.stale += 1
        return touched

    def running(self, ident: int, tickets: Iterable[int]) -> Set[int]:
        """These attempts have started; returns the clients that have new events."""
        held = self._worker(ident).held
        touched: Set[int] = set()
        for ticket in [checked(ticket, int) for ticket in tickets]:
            job = held.get(ticket)
            if job is not None and job.state is LEASED:
                job.state = STARTED
                if not job.client.gone:
                    job.client.events.append((job.number, RUNNING, None))
                    touched.add(job.client.ident)
        return touched

    def died(self, ident: int, ticket: int, cause: Dict[str, Any]) -> Set[int]:
        """The slot that ran this attempt died: charge the job, and queue it again or give it up."""
        worker = self._worker(ident)
        touched: Set[int] = set()
        details = cause_of_death(cause)
        job = worker.held.pop(checked(ticket, int), None)
        if job is None:
            self._drop_offer(worker, ticket)
            self.stale += 1
            return touched
        job.deaths = [*(job.deaths or ()), {**place(worker, job), **details}]
        if len(job.deaths) >= (job.client.max_attempts or self.max_attempts):
            self._give_up(job, touched)
        else:
            self._requeue(job)
        return touched

    def give_back(self, ident: int, tickets: Iterable[int]) -> None:
        """A worker returns leases that it will not run; they go first in line, uncharged."""
        worker = self._worker(ident)
        held = worker.held
        wanted = [checked(ticket, int) for ticket in tickets]
        jobs = [held.pop(ticket) for ticket in wanted if ticket in held]
        for ticket in wanted if worker.offered else ():
            self._drop_offer(worker, ticket)
        for job in reversed(jobs):
            self._requeue(job)

    def decline(self, ident: int, tickets: Iterable[int]) -> None:
        """As `give_back`, and the worker gets no more jobs of these functions: it has no time for them."""
        worker = self._worker(ident)
        declined = [ticket for ticket in tickets if ticket in worker.held]
        worker.unfit |= {worker.held[ticket].function for ticket in declined}
        self.give_back(ident, declined)

    def collect(self, ident: int, after: int) -> Tuple[int, List[Event]]:
        """The events of a client that follow number `after`, oldest first, and the last one's number.

        They can be asked for again until they are acknowledged. One answer holds at most
        `MAX_BATCH_JOBS` events and stops growing at `MAX_BATCH_BYTES`.
        Raises UnknownMember.
        """
        client = self._client(ident)
        skip = min(max(0, after - client.acknowledged), len(client.events))
        events: List[Event] = []
        size = 0
        for event in client.events[skip : skip + defaults.MAX_BATCH_JOBS]:
            events.append(event)
            size += len(event[2] or b"")
            if size > defaults.MAX_BATCH_BYTES:
                break
        return client.acknowledged + skip + len(events), events

    def acknowledge(self, ident: int, upto: int) -> None:
        """A client has received its events up to this number: forget them. Raises UnknownMember."""
        client = self._client(ident)
        if upto > client.acknowledged:
            dropped = min(upto - client.acknowledged, len(client.events))
            del client.events[:dropped]
            client.acknowledged += dropped
            while client.result_pins and client.result_pins[0][0] <= client.acknowledged:
                client.result_pins.popleft()

    def notify(self, ident: int, event: Event) -> bool:
        """Give a client an event that is no job's; False if it is gone."""
        client = self._clients.get(ident)
        if client is not None:
            client.events.append(event)
        return client is not None

    def has_events(self, ident: int, after: int) -> bool:
        """Whether `collect(ident, after)` has anything to give. Raises UnknownMember."""
        client = self._client(ident)
        return client.acknowledged + len(client.events) > after

    def _give_up(self, job: JobRecord, touched: Set[int]) -> None:
        """End a job that took too many processes with it."""
        self.failed += 1
        client = job.client
        if not client.gone:
            del client.open[job.number]
            history = sorted((job.deaths or []) + (job.losses or []), key=lambda a: a["attempt"])
            client.events.append((job.number, LOST, history))
            touched.add(client.ident)


def _refs(packed: Any) -> Tuple[Any, ...]:
    """The blobs that a packed value refers to. Raises UsageError."""
    if type(packed) is bytes:
        return ()
    if type(packed) is tuple and len(packed) == 2 and type(packed[0]) is bytes and type(packed[1]) is tuple:
        return packed[1]
    raise UsageError("a message holds something else where a packed value belongs")
