"""The broker's rules for members that went away and came back, and for jobs that outlived their master.

A client whose connection broke is *away*: nothing of it is begun until it returns, or is forgotten. A worker
that returns says what it holds; what it was sent and never got is queued again.

A worker that held jobs of an earlier master *offers* them to the new one. An offer is taken when the job's
client submits that job again: it is then not queued, but held by that worker, or has ended already.

Pure, as the broker is.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from .ledger import Ledger
from .messages import RESULT, Held, Origin
from .records import QUEUED, STARTED, JobRecord, WorkerRecord

_Outcome = Tuple[int, Any, Any]
"""(kind, data, pins)"""


class _Offer:
    """A job that a worker has begun, and whose client has yet to submit it here."""

    __slots__ = ("attempt", "outcome", "ticket", "worker")

    def __init__(self, worker: WorkerRecord, ticket: int, attempt: int) -> None:
        self.worker = worker
        self.ticket = ticket
        self.attempt = attempt
        self.outcome: Optional[_Outcome] = None  # once it has ended


class Returning(Ledger):
    """Who was away, and what is offered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offers: Dict[Origin, _Offer] = {}

    # --- clients -----------------------------------------------------------------------------

    def client_away(self, ident: int) -> None:
        """A client's connection broke, or it has come from an earlier master: begin nothing of it."""
        client = self._clients.get(ident)
        if client is not None and not client.away:
            client.away = True
            self.queued -= client.queued
            if client.queued:
                self._ready.remove(client)

    def client_back(self, ident: int) -> int:
        """A client goes on; returns how many of its requests have been taken. Raises UnknownMember."""
        client = self._client(ident)
        if client.away:
            client.away = False
            self.queued += client.queued
            if client.queued:
                self._ready.append(client)
        return client.requests

    def note_request(self, ident: int) -> None:
        """One more request of a client has been taken. Raises UnknownMember."""
        self._client(ident).requests += 1

    def alive(self, ident: int, numbers: Iterable[int]) -> List[int]:
        """Those of a client's jobs that it will hear of (again). Raises UnknownMember."""
        client = self._client(ident)
        told = {number for number, _, _ in client.events}
        return [number for number in numbers if number in client.open or number in told]

    # --- workers -----------------------------------------------------------------------------

    def worker_back(self, ident: int, holding: Set[int]) -> int:
        """A worker goes on; what it does not hold is queued again, uncharged.

        Returns how many of its reports have been taken. Raises UnknownMember.
        """
        worker = self._worker(ident)
        never_came = [worker.held.pop(ticket) for ticket in list(worker.held) if ticket not in holding]
        for job in reversed(never_came):
            self._requeue(job)
        return worker.reports

    def note_report(self, ident: int) -> None:
        """One more report of a worker has been taken. Raises UnknownMember."""
        self._worker(ident).reports += 1

    def origins(self, ident: int, tickets: Iterable[int]) -> List[Optional[Origin]]:
        """Which jobs these attempts of a worker are of; None: it does not hold it. Raises UnknownMember."""
        held = self._worker(ident).held
        jobs = [held.get(ticket) for ticket in tickets]
        return [None if job is None else (job.client.ident, job.number) for job in jobs]

    def offer(self, ident: int, holding: Iterable[Held], clients_may_come: bool) -> None:
        """A worker that is new here has begun these jobs elsewhere. Raises UnknownMember.

        Those that were submitted here are its own from now on, unless others have them. Those that were not
        wait for that, if any `clients_may_come`: who has just come may have yet to say what it has open.
        """
        worker = self._worker(ident)
        for ticket, origin, attempt in holding:
            if origin is None or origin in self._offers or ticket in worker.held:
                continue
            client = self._clients.get(origin[0])
            job = None if client is None else client.open.get(origin[1])
            if job is not None:
                if job.state == QUEUED:
                    job = job.client.open[origin[1]] = job.taken_out()
                    self._note_unqueued(job.client, 1)
                    self._hold(worker, ticket, job, attempt)
            elif clients_may_come:
                self._offers[origin] = _Offer(worker, ticket, attempt)
                worker.offered[ticket] = origin

    def forget_offers(self) -> None:
        """Whoever has not come by now to submit their jobs again will not come."""
        for offer in self._offers.values():
            offer.worker.offered.pop(offer.ticket, None)
        self._offers.clear()

    def _is_offered(self, job: JobRecord) -> bool:
        """A job is being submitted: if it was offered, it goes to who has it, or ends."""
        offer = self._offers.pop((job.client.ident, job.number), None)
        if offer is None:
            return False
        offer.worker.offered.pop(offer.ticket, None)
        if offer.outcome is not None:
            job.attempt = offer.attempt
            self._conclude(job, *offer.outcome)
        else:
            self._hold(offer.worker, offer.ticket, job, offer.attempt)
        return True

    def _hold(self, worker: WorkerRecord, ticket: int, job: JobRecord, attempt: int) -> None:
        """A worker runs this job."""
        job.state = STARTED
        job.attempt = attempt
        worker.held[ticket] = job

    def _keep_outcome(self, worker: WorkerRecord, ticket: int, outcome: _Outcome) -> bool:
        """An attempt has ended that may have been offered; whether it was."""
        origin = worker.offered.get(ticket)
        if origin is None:
            return False
        self._offers[origin].outcome = outcome
        return True

    def _drop_offer(self, worker: WorkerRecord, ticket: int) -> None:
        """What may have been offered came to nothing: its client will have it run again."""
        origin = worker.offered.pop(ticket, None)
        if origin is not None:
            del self._offers[origin]

    def _drop_offers_of(self, worker: WorkerRecord) -> None:
        """A worker is gone. What has ended there has ended."""
        for ticket, origin in list(worker.offered.items()):
            if self._offers[origin].outcome is None:
                self._drop_offer(worker, ticket)

    # --- both --------------------------------------------------------------------------------

    def _free(self, ident: Optional[int]) -> int:
        """This id, if nobody has it; else a new one."""
        while ident is None or ident in self._clients or ident in self._workers:
            ident = next(self._idents)
        return ident

    def _conclude(self, job: JobRecord, kind: int, data: Any, pins: Any) -> bool:
        """An attempt has ended its job; returns whether its client has a new event."""
        self.done += kind == RESULT
        self.failed += kind != RESULT
        client = job.client
        if client.gone:
            return False
        del client.open[job.number]
        client.events.append((job.number, kind, data))
        if pins is not None:
            client.result_pins.append((client.acknowledged + len(client.events), pins))
        return True
