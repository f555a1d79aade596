"""`ClusterFuture`: a `concurrent.futures.Future` that costs little while nobody waits for it.

Most of what a stock future costs is its Condition and its two lists, for the processor and for the
garbage collector. Most futures of a large run end before anybody waits for them, so here these are
made by the first who needs them: `wait`, a callback, a cancel. Who only asks for the result waits at
a gate, a plain lock. `_making` guards the making of all these, and the end of a future without them.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, Callable, Optional

from .messages import RESULT
from .payload import load_value

if TYPE_CHECKING:
    from .session import Session

log = logging.getLogger("cwmp")
_LOOK_AGAIN_S = 1.0  # an interrupt may keep one who was let through the gate from letting through the next
_making = threading.RLock()  # re-entrant: a finalizer may run, and look at a future, while it is held


class _OnDemand:
    """A non-data descriptor: what it makes on first use takes its place in the instance."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: Any, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: Any = None) -> Any:
        if future is None:
            return self
        with _making:
            if self._name not in future.__dict__:
                future._wanted = True
                future._session.attend()
                setattr(future, self._name, self._make())
            return future.__dict__[self._name]


class ClusterFuture(Future):  # type: ignore[type-arg]
    """The future of one job. `cancel()` takes a queued job back from the master."""

    _condition = _OnDemand(threading.Condition)
    _waiters = _OnDemand(list)
    _done_callbacks = _OnDemand(list)
    _wanted = False  # one of these has been made
    _gate: Optional[threading.Lock] = None  # released by the end, for one after the other who waits
    _state = PENDING
    _result = None
    _exception = None

    def __init__(self, session: Session) -> None:
        # Not Future.__init__, which would make all of the above at once.
        self._session = session
        self._number = 0

    def result(self, timeout: Optional[float] = None) -> Any:
        """The job's return value, or the exception that it raised; see `concurrent.futures.Future`."""
        if self._state != FINISHED:
            self._await_end(timeout)
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(0)  # raises

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """The exception that the job raised, or None; see `concurrent.futures.Future`."""
        if self._state != FINISHED:
            self._await_end(timeout)
        return super().exception(0)

    def _await_end(self, timeout: Optional[float]) -> None:
        """Wait for the job's end, whatever it is, or for `timeout` seconds."""
        if timeout is None:  # the short way may take some milliseconds longer than asked
            self._session.read_for(self._number, self._settle_here)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with _making:
                if self._state not in (PENDING, RUNNING):
                    return
                gate = self._gate
                if gate is None:
                    gate = threading.Lock()
                    gate.acquire()
                    self._gate = gate
            left_s = _LOOK_AGAIN_S if end is None else min(_LOOK_AGAIN_S, end - time.monotonic())
            if left_s <= 0:
                return
            if gate.acquire(timeout=left_s):
                gate.release()  # for the next who waits

    def _settle_here(self, kind: int, data: Any) -> bool:
        """In a thread that waits for this job: take in a plain result, if nothing else hangs on it."""
        if kind != RESULT or self._wanted:
            return False
        try:
            value = load_value(data)
        except Exception:
            return False  # the dispatcher knows what to do with that
        self.settle(value, None)
        return True

    def cancel(self) -> bool:
        """Cancel the job unless it was handed out already; blocks for one round trip to the master."""
        with self._session.cancelling:  # who comes second must see what the first has done
            if self.done() or self.running() or not self._session.withdraw([self._number]):
                return self.cancelled()
            self.end_cancelled()
            return True

    def settle(self, value: Any, error: Optional[BaseException]) -> None:
        """The job has ended with `value`, or with `error` unless that is None."""
        with _making:
            quiet = not self._wanted and self._state in (PENDING, RUNNING)
            if quiet:
                self._result = value
                self._exception = error
                self._state = FINISHED
        if not quiet:
            try:
                if error is None:
                    self.set_result(value)
                else:
                    self.set_exception(error)
            except InvalidStateError:
                pass  # it was cancelled a moment ago
        if self._gate is not None:
            self._open_gate()

    def note_running(self) -> None:
        """A slot has begun the job."""
        with _making:
            if not self._wanted and self._state == PENDING:
                self._state = RUNNING
        if self._state == PENDING:
            self.set_running_or_notify_cancel()

    def end_cancelled(self) -> None:
        """The job will not run (again): end as a cancelled future, and tell those who wait."""
        with self._condition:
            if self._state == RUNNING:  # on a worker that was lost; it has been queued again since
                self._state = PENDING
        if super().cancel():
            self.set_running_or_notify_cancel()
        self._open_gate()

    def _open_gate(self) -> None:
        """Let through who waits for the result; once, for they open it for each other."""
        with _making:
            gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()

    def _invoke_callbacks(self) -> None:
        """As in Future, but a callback that raises SystemExit, say, does not end the dispatcher either."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:
                log.exception("a done-callback of %r raised", self)
