"""A worker's account with its master: what it has to report, and what of that was not acknowledged.

From it the worker knows what to say again to a master that it gets back to, and what to say of its leases to
one that does not know them. Pure. Reports are acknowledged in the order in which they were sent.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Tuple

from . import defaults
from .messages import Held, Lease, Origin, Outcome, Report


class Account:
    """What one worker owes its master.

    >>> account = Account()
    >>> account.begun(7, attempt=1)
    >>> account.sent(account.next_report(), due=15.0)
    >>> account.acknowledged([(3, 44)])
    >>> account.outcomes.append((7, 0, b"x"))
    >>> account.sent(account.next_report(), due=16.0)
    >>> account.holding(leases=[], waiting=[8])
    [(7, (3, 44), 1), (8, None, 0)]
    >>> account.goes_on(taken=1)
    [{'outcomes': [(7, 0, b'x')]}]
    """

    def __init__(self) -> None:
        # What the next report will carry:
        self.outcomes: List[Outcome] = []
        self.running: List[int] = []
        self.died: List[Tuple[int, Dict[str, Any]]] = []
        self.returned: List[int] = []
        self.unfit: List[int] = []  # leases that there is no time for
        self._unacknowledged: Deque[Tuple[float, Report]] = deque()  # when a receipt is due, oldest first
        self._count = 0  # reports sent to this master
        self._begun: Dict[int, int] = {}  # attempt by ticket: jobs that were announced as running
        self._origins: Dict[int, Origin] = {}  # by ticket, of those

    def __len__(self) -> int:
        """How many reports are not acknowledged."""
        return len(self._unacknowledged)

    @property
    def has_news(self) -> bool:
        """Whether there is something to report."""
        return bool(self.outcomes or self.running or self.died or self.returned or self.unfit)

    def next_report(self) -> Report:
        """What there is to say, up to one batch of outcomes."""
        report: Report = {}
        if self.outcomes:
            report["outcomes"] = self._batch()
        if self.running:
            report["running"], self.running = self.running, []
        if self.died:
            report["died"], self.died = self.died, []
        if self.returned:
            report["returned"], self.returned = self.returned, []
        if self.unfit:
            report["unfit"], self.unfit = self.unfit, []
        return report

    def _batch(self) -> List[Outcome]:
        """The outcomes for one report: the oldest, as many as fit."""
        outcomes = self.outcomes
        count = size = 0
        for count, outcome in enumerate(outcomes, 1):
            size += len(outcome[2])
            if count >= defaults.MAX_BATCH_JOBS or size >= defaults.MAX_BATCH_BYTES:
                break
        self.outcomes = outcomes[count:]
        return outcomes[:count]

    def begun(self, ticket: int, attempt: int) -> None:
        """A job runs for long enough to be announced."""
        self.running.append(ticket)
        self._begun[ticket] = attempt

    def sent(self, report: Report, due: float) -> None:
        """A report is on its way; its receipt should be here at `due`."""
        self._unacknowledged.append((due, report))
        self._count += 1

    def acknowledged(self, origins: Any) -> None:
        """The oldest report has been taken; `origins` are those of the jobs that it announced."""
        _, report = self._unacknowledged.popleft()
        if not self._begun:
            return
        if origins:
            for ticket, origin in zip(report.get("running", ()), origins):
                if origin and ticket in self._begun:
                    self._origins[ticket] = origin
        for ticket in _ended(report):
            self._begun.pop(ticket, None)
            self._origins.pop(ticket, None)

    def is_overdue(self, now: float) -> bool:
        """Whether a receipt should have come by now."""
        return bool(self._unacknowledged) and now > self._unacknowledged[0][0]

    # --- after the connection broke ----------------------------------------------------------

    def holding(self, leases: Iterable[Lease], waiting: Iterable[int]) -> List[Held]:
        """All that the master may believe we have: `leases`, what is `waiting`, and what was reported."""
        tickets = [ticket for _, report in self._unacknowledged for ticket in _ended(report)]
        tickets += _ended({"outcomes": self.outcomes, "died": self.died})
        tickets += [*self.returned, *self.unfit, *waiting, *(lease[0] for lease in leases)]
        return [(t, self._origins.get(t), self._begun.get(t, 0)) for t in dict.fromkeys(tickets)]

    def goes_on(self, taken: int) -> List[Report]:
        """The master still knows us, and had taken so many reports: returns those to send again, in order."""
        first = self._count - len(self._unacknowledged)
        for _ in range(min(len(self._unacknowledged), max(0, taken - first))):
            self.acknowledged(None)
        again = [report for _, report in self._unacknowledged]
        self._unacknowledged.clear()
        self._count -= len(again)
        for report in again:
            report.pop("limit", None)  # it was meant for the `take` that ended with the connection
        return again

    def begins_anew(self) -> None:
        """The master is another one, or has given us up: only outcomes are still of interest."""
        unheard = [outcome for _, report in self._unacknowledged for outcome in report.get("outcomes", ())]
        self.outcomes = unheard + self.outcomes
        self.running, self.died, self.returned, self.unfit = [], [], [], []
        self._unacknowledged.clear()
        self._count = 0


def given_up(report: Report) -> List[int]:
    """The tickets of a report that came to nothing."""
    died = [ticket for ticket, _ in report.get("died", ())]
    return [*died, *report.get("returned", ()), *report.get("unfit", ())]


def _ended(report: Report) -> List[int]:
    """The tickets that are ours no longer once this report was taken."""
    return [outcome[0] for outcome in report.get("outcomes", ())] + given_up(report)
