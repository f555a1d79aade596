"""Reading what the master says of a client's jobs: by the dispatcher's thread, or by who waits.

Who submits a job, waits for its result and does so again would have each result read by the
dispatcher and then be woken by it. So when no job is open any more and somebody had to wait, the dispatcher
*stands aside* for a moment, and a thread that waits for the next job reads the result itself, which saves
it one change of threads of a round trip's few. Everything but that simple case is left to the dispatcher.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Any, Callable, List, Optional

from . import defaults
from .cpus import usable_cpus
from .messages import RESULT_QUEUE
from .transport import Wire

_SPIN_S = 0.0005
"""How long a visitor looks for its result before it sleeps. Longer: processor time for jobs that take that
long anyhow. Shorter than a round trip: it sleeps always, and to be woken costs a third of one."""

_MISSES = 3  # in vain so often in a row, it sleeps at once the next times:
_PAUSE = 30

_ASIDE_S = 0.004  # how long the dispatcher waits for another visitor; what nobody waits for may be that late


class Spin:
    """Whether looking for a result without sleeping pays: as long as results come while one looks.

    >>> spin = Spin()
    >>> [spin.pays(), *(spin.note(found=False) for _ in range(3)), spin.pays()]
    [True, None, None, None, False]
    """

    def __init__(self) -> None:
        self._misses = 0
        self._pause = 0

    def pays(self) -> bool:
        """Whether to look now; counts the times when that is not so."""
        if not self._pause:
            return True
        self._pause -= 1
        return False

    def note(self, found: bool) -> None:
        """Whether a result came while one looked."""
        self._misses = 0 if found else self._misses + 1
        if self._misses >= _MISSES:
            self._misses, self._pause = 0, _PAUSE


class Collector:
    """One client's standing `collect`, read in turns."""

    def __init__(self, wire: Wire, ident: int) -> None:
        self._wire = wire
        self._ident = ident
        self._turn = threading.Lock()  # held by the thread that reads
        self._acknowledged = self._seen = 0  # numbers of events
        self._when = 0.0  # of the last acknowledgement
        self._visits = 0
        self._visitor_came = False  # while the dispatcher was reading
        self._recalled = threading.Lock()  # released to end the dispatcher's standing aside
        self._recalled.acquire()
        self._broken: Optional[OSError] = None  # what a visitor found of the connection
        self._spin = Spin() if usable_cpus().count > 1 else None  # else it would keep the others from working
        self._arrivals = select.poll()
        self._arrivals.register(wire.sock, select.POLLIN)
        self.aside = False
        """Whether the dispatcher stands aside."""

    # --- the dispatcher ----------------------------------------------------------------------

    def start(self) -> None:
        """Ask for events. Raises OSError."""
        self._when = time.monotonic()
        self._wire.request(RESULT_QUEUE, "collect", self._ident, 0)

    def go_on(self, wire: Wire, ident: int, anew: bool) -> None:
        """Read from another connection; `anew`: its master counts from the beginning. Raises OSError."""
        with self._turn:
            self._wire, self._ident, self._broken = wire, ident, None
            self._seen = 0 if anew else self._seen
            self._acknowledged = self._seen
            self._arrivals = select.poll()
            self._arrivals.register(wire.sock, select.POLLIN)
        self._when = time.monotonic()
        wire.request(RESULT_QUEUE, "collect", ident, self._seen)

    def read(self, pass_on: Callable[[List[Any]], bool]) -> None:
        """Wait for the next events and pass them on. Raises EOFError, OSError or a CwmpError.

        `pass_on` returns whether the master keeps something large for the sake of these events.
        """
        with self._turn:
            if self._broken is not None:
                raise self._broken
            seen, events = self._wire.reply()
            large = pass_on(events)
            self._seen = seen
        del events  # or they would live until the next ones come
        self._acknowledge(large or self._wire.last_size > defaults.MAX_BATCH_BYTES // 4)

    def stand_aside(self) -> None:
        """No job is open: leave reading to those who wait, as long as they keep coming."""
        if not self._visitor_came or self._wire.encrypted:  # of which a visitor could not `peek`
            return
        self._visitor_came = False
        visits = -1
        self.aside = True
        while self.aside and visits != self._visits:
            visits = self._visits
            self._recalled.acquire(timeout=_ASIDE_S)
            self._acknowledge()
        self.aside = False

    def _acknowledge(self, large: bool = False) -> None:
        """Tell the master from time to time what it need not keep any longer."""
        now, seen = time.monotonic(), self._seen
        many = seen - self._acknowledged > defaults.MAX_BATCH_JOBS
        if (large or many or now - self._when > defaults.BEAT_S) and seen != self._acknowledged:
            self._wire.request(RESULT_QUEUE, "collect", self._ident, seen)
            self._acknowledged, self._when = seen, now

    # --- everybody else ----------------------------------------------------------------------

    def visit(self, take: Callable[[List[Any]], bool]) -> None:
        """In a thread that waits for a job: if the dispatcher stands aside, read the next events.

        May return without. `take(events)` returns False for what the dispatcher must see to. Events
        leave the connection after they were taken, so that an interrupt anywhere in here loses none.
        """
        if not self.aside:
            self._visitor_came = True
            return
        with self._turn:
            self._visits += 1
            if self._read_as_visitor(take):
                return
        self.recall()

    def _read_as_visitor(self, take: Callable[[List[Any]], bool]) -> bool:
        """Wait for what comes next, which may be for somebody else: then the dispatcher goes on."""
        if self._spin is not None and self._spin.pays():
            self._spin.note(self._comes_soon())
        try:
            peeked = self._wire.peek()
        except OSError as error:
            self._broken = error
            return False
        if peeked is None:
            return False
        size, (seen, events) = peeked
        if not take(events):
            return False
        self._wire.skip(size)
        self._seen = seen
        return True

    def _comes_soon(self) -> bool:
        """Look for what comes next without sleeping; False if there was nothing for `_SPIN_S`."""
        end = time.perf_counter() + _SPIN_S
        while not self._arrivals.poll(0):
            if time.perf_counter() > end:
                return False
            os.sched_yield()  # whoever has something to do on this processor does it first
        return True

    def recall(self) -> None:
        """Have the dispatcher go on reading."""
        self.aside = False
        try:
            self._recalled.release()
        except RuntimeError:
            pass  # it was recalled before
