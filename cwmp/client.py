"""`ClientThread`: submit jobs, have a callback called with each result."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, Callable, Hashable, List, Optional, Set, Type, Union

from .errors import DuplicateJob, UsageError
from .link import Event
from .membership import membership_of
from .messages import RUNNING
from .outcomes import settle
from .session import Session
from .shared import Shared

log = logging.getLogger("cwmp")

Callback = Callable[[Any, Any], None]
OnError = Callable[[Any, BaseException], None]


class ClientThread(threading.Thread):
    """Submits jobs to a cluster and calls `callback(jobid, result)` for each one that succeeds.

    Callbacks run in this thread, one after the other, once a job. A job that fails calls
    `on_error(jobid, exception)` where that is given; otherwise the first failure is raised by
    `wait()` after all jobs have ended. A callback that raises is reported through `on_error`, or
    logged.

    `host` is "node", "node:port" or None, which finds the cluster: CWMP_MASTER, the rendezvous of
    this user, then localhost. Any hashable is a job id, and many threads may submit. With `max_pending`
    `submit` waits while so many jobs are open, so a program of endless jobs needs no more memory.

    A job whose slot dies is run again until it has had `max_attempts` (3). When the master is gone, this
    waits `master_timeout` seconds ($CWMP_MASTER_TIMEOUT, else 300) for it to come back, before open jobs end
    as MasterLost.

    >>> def done(jobid, result):                          # doctest: +SKIP
    ...     print(jobid, result)
    >>> with ClientThread(done) as client:                # doctest: +SKIP
    ...     for n in range(10):
    ...         client.submit(n, pow, n, 2)
    """

    def __init__(
        self,
        callback: Callback,
        host: Optional[str] = None,
        port: Optional[int] = None,
        *,
        authkey: Union[bytes, str, None] = None,
        on_error: Optional[OnError] = None,
        max_pending: Optional[int] = None,
        max_attempts: Optional[int] = None,
        master_timeout: Optional[float] = None,
    ) -> None:
        if max_pending is not None and (type(max_pending) is not int or max_pending < 1):
            raise UsageError(f"max_pending must be a whole number from 1 up, or None, not {max_pending!r}")
        super().__init__(name="cwmp-client", daemon=True)
        self._max_pending = max_pending
        self._callback = callback
        self._on_error = on_error
        self._membership = membership_of(host, port, authkey, max_attempts, master_timeout)
        self._session: Optional[Session] = None
        lock = threading.RLock()  # guards `_open` and `_unfinished`
        self._ended = threading.Condition(lock)  # notified when no job is unfinished
        self._room = threading.Condition(lock)  # notified when fewer than `max_pending` are
        self._open: Set[Hashable] = set()  # ids of jobs without an outcome
        self._unfinished = 0  # jobs without an outcome, or whose callback has yet to return
        self._first_failure: Optional[BaseException] = None

    def start(self) -> None:
        """Connect and begin. Raises ConnectError, WrongKey or VersionMismatch."""
        if self._session is None:
            self._session = Session(self._membership, self._on_events)
        super().start()

    def submit(self, jobid: Hashable, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Have the cluster call `func(*args, **kwargs)`.

        Waits while `max_pending` jobs are open, except in a callback, which would wait for itself.
        Raises DuplicateJob while a job of this id is open, PayloadError for what can't be pickled,
        MasterLost when the master is gone, RuntimeError before `start()` and after `stop()`.
        """
        session = self._joined()
        with self._ended:
            if self._max_pending is not None and threading.current_thread() is not self:
                self._room.wait_for(self._has_room)
            if jobid in self._open:
                raise DuplicateJob(f"job {jobid!r} is still open: wait for it, or give this one another id")
            self._open.add(jobid)
            self._unfinished += 1
        try:
            session.submit((jobid,), func, args, kwargs)
        except BaseException:
            with self._ended:
                self._open.discard(jobid)
            self._note_ended()
            raise

    def share(self, value: Any) -> Shared:
        """A handle that becomes `value` in each job that has it in its arguments: `ClusterExecutor.share`."""
        return self._joined().share(value)

    def wait(self, timeout: Optional[float] = None) -> None:
        """Wait until every job has ended and its callback has returned.

        Raises the first failure where no `on_error` was given, and TimeoutError after `timeout` seconds.
        """
        if threading.current_thread() is self:
            raise RuntimeError("wait() inside a callback would wait for itself")
        self._joined()
        with self._ended:
            if not self._ended.wait_for(lambda: not self._unfinished, timeout):
                count = self._unfinished
                raise TimeoutError(f"{count} job{'s' * (count != 1)} still open after {timeout:g} s")
            failure, self._first_failure = self._first_failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Leave the cluster. Jobs that are still open are cancelled: `on_error` gets a CancelledError."""
        if self._session is None:
            return
        self._session.close()
        if threading.current_thread() is not self and self.is_alive():
            self.join()

    def __enter__(self) -> ClientThread:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.stop()

    def run(self) -> None:
        """The thread's own work: dispatch events until stopped."""
        self._joined().dispatch()

    def _joined(self) -> Session:
        if self._session is None:
            raise RuntimeError("start() this client first, or use it in a `with` statement")
        return self._session

    def _on_events(self, events: List[Event]) -> None:
        """In the dispatcher thread: what became of these jobs."""
        events.reverse()  # so that each can be dropped before the next is worked on
        while events:
            (jobid,), kind, data = events.pop()
            if kind == RUNNING:
                continue
            value, error = settle(kind, data)
            with self._ended:
                self._open.discard(jobid)  # so that its id can be used again, by a callback too
            if error is None:
                self._call_back(jobid, value)
            else:
                self._fail(jobid, error)
            value = error = data = None
            self._note_ended()

    def _call_back(self, jobid: Any, value: Any) -> None:
        try:
            self._callback(jobid, value)
        except BaseException as error:
            if self._on_error is not None:
                self._fail(jobid, error)
            else:
                log.exception("the callback for job %r raised", jobid)

    def _fail(self, jobid: Any, error: BaseException) -> None:
        """Report a failure to whom it concerns."""
        if self._on_error is not None:
            try:
                self._on_error(jobid, error)
            except BaseException:
                log.exception("on_error for job %r raised", jobid)
        elif self._first_failure is None:
            self._first_failure = error

    def _note_ended(self) -> None:
        """A job is over, its callback included."""
        with self._ended:
            self._unfinished -= 1
            if not self._unfinished:
                self._ended.notify_all()
            if self._max_pending is not None and self._has_room():
                self._room.notify()

    def _has_room(self) -> bool:
        return self._max_pending is None or self._unfinished < self._max_pending
