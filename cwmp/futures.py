"""`ClusterFuture`: a `concurrent.futures.Future` that costs little while nobody waits for it.

Half of what a stock future costs is its Condition. Most futures of a large run end before anybody
waits for them, so here the Condition is made by the first who needs it: a waiter, a callback, a
cancel. `_creation` guards that moment, and the end of a future that has none yet.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, List, Optional

if TYPE_CHECKING:
    from .session import Session

log = logging.getLogger("cwmp")
_creation = threading.Lock()


class _ConditionOnDemand:
    """A non-data descriptor: the Condition that it makes takes its place in the instance."""

    def __get__(self, future: Any, owner: Any = None) -> Any:
        if future is None:
            return self
        with _creation:
            return future.__dict__.setdefault("_condition", threading.Condition())


class ClusterFuture(Future):  # type: ignore[type-arg]
    """The future of one job. `cancel()` takes a queued job back from the master."""

    _condition = _ConditionOnDemand()

    def __init__(self, session: Session) -> None:
        # As Future.__init__, but for the Condition.
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters: List[Any] = []
        self._done_callbacks: List[Any] = []
        self._session = session
        self._number = 0

    def result(self, timeout: Optional[float] = None) -> Any:
        """The job's return value, or the exception that it raised; see `concurrent.futures.Future`."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancel the job unless it was handed out already; blocks for one round trip to the master."""
        if self.done() or self.running() or not self._session.withdraw([self._number]):
            return self.cancelled()
        self.end_cancelled()
        return True

    def settle(self, value: Any, error: Optional[BaseException]) -> None:
        """The job has ended with `value`, or with `error` unless that is None."""
        if error is None:
            with _creation:
                if "_condition" not in self.__dict__ and self._state in (PENDING, RUNNING):
                    self._result = value
                    self._state = FINISHED
                    return
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass  # it was cancelled a moment ago

    def note_running(self) -> None:
        """A slot has begun the job."""
        if self._state == PENDING:
            self.set_running_or_notify_cancel()

    def end_cancelled(self) -> None:
        """The job will not run (again): end as a cancelled future, and tell those who wait."""
        with self._condition:
            if self._state == RUNNING:  # on a worker that was lost; it has been queued again since
                self._state = PENDING
        if super().cancel():
            self.set_running_or_notify_cancel()

    def _invoke_callbacks(self) -> None:
        """As in Future, but a callback that raises SystemExit, say, does not end the dispatcher either."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:
                log.exception("a done-callback of %r raised", self)
