"""`ClusterExecutor`: a complete `concurrent.futures.Executor` on a cluster."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import Executor
from functools import partial
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple, Type, Union

from . import defaults
from .futures import ClusterFuture
from .link import CANCELLED, Event
from .membership import membership_of
from .messages import RESULT, RUNNING
from .outcomes import settle, unreadable
from .payload import load_value
from .session import Session
from .shared import Shared
from .streams import Args, Submit, as_they_come, call_each, check_sizes, chunked, each_of, in_order, withdraw


class ClusterExecutor(Executor):
    """Runs calls on a cluster and returns a `Future` for each.

    `host` is "node", "node:port" or None, which finds the cluster: CWMP_MASTER, the rendezvous of
    this user, then localhost. Raises ConnectError, WrongKey or VersionMismatch.

    A job whose slot dies is run again until it has had `max_attempts` (3). When the master is gone, this
    waits `master_timeout` seconds ($CWMP_MASTER_TIMEOUT, else 300) for it to come back, before open jobs end
    as MasterLost.

    Leaving a `with` block waits for all jobs, unless an interrupt ends it: Ctrl-C cancels them.

    >>> with ClusterExecutor() as executor:                 # doctest: +SKIP
    ...     print(sum(executor.map(pow, range(10), range(10))))
    """

    def __init__(
        self,
        host: Optional[str] = None,
        port: Optional[int] = None,
        *,
        authkey: Union[bytes, str, None] = None,
        max_attempts: Optional[int] = None,
        master_timeout: Optional[float] = None,
    ) -> None:
        membership = membership_of(host, port, authkey, max_attempts, master_timeout)
        self._session = Session(membership, _on_events)
        self._dispatcher = threading.Thread(
            target=self._session.dispatch, name="cwmp-dispatcher", daemon=True
        )
        self._dispatcher.start()
        # Jobs of an executor that nobody holds any more still end, and then its threads do.
        self._finalizer = weakref.finalize(self, self._session.close_when_idle)
        self._finalizer.atexit = False
        self._shut_down = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ClusterFuture:
        """Have the cluster call `fn(*args, **kwargs)`.

        Raises PayloadError for what can't be pickled, MasterLost when the master is gone, RuntimeError
        after `shutdown()`.
        """
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = ClusterFuture(self._session)
        future._number = self._session.submit(future, fn, args, kwargs)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[Any]:
        """Like the built-in `map`, in parallel: an iterator over the results, in order.

        `timeout` is in seconds from this call; TimeoutError is raised by the iterator. `chunksize` calls
        travel as one job. With `buffersize` at most so many jobs (of `chunksize` calls) are submitted ahead
        of the results taken, so the iterables may be endless; without it all are submitted at once.
        Abandoning the iterator cancels what has not started. Raises ValueError for sizes below 1.
        """
        check_sizes(chunksize, buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        submit, calls = self._packed(fn, zip(*iterables), chunksize)
        results = in_order(self._session, submit, calls, buffersize, deadline)
        return results if chunksize == 1 else each_of(results)

    def map_unordered(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[Any]:
        """Like `map`, but results come as jobs end, the first to end first.

        `buffersize` is `BUFFER_JOBS` (10,000) unless given, so endless iterables need no more memory.

        >>> with ClusterExecutor() as executor:             # doctest: +SKIP
        ...     for value in executor.map_unordered(pow, range(10**9), range(10**9)):
        ...         print(value)
        """
        check_sizes(chunksize, buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        submit, calls = self._packed(fn, zip(*iterables), chunksize)
        ahead = defaults.BUFFER_JOBS if buffersize is None else buffersize
        results = as_they_come(self._session, submit, calls, ahead, deadline)
        return results if chunksize == 1 else each_of(results)

    def _packed(
        self, fn: Callable[..., Any], calls: Iterator[Args], chunksize: int
    ) -> Tuple[Submit, Iterator[Args]]:
        """How to submit the jobs of a stream, and what they are called with."""
        if chunksize == 1:
            return partial(self._submit, fn), calls
        return partial(self._submit, call_each), chunked(calls, fn, chunksize)

    def _submit(self, fn: Callable[..., Any], token: Any, call: Args) -> int:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._session.submit(token, fn, call, {})

    def share(self, value: Any) -> Shared:
        """A handle that becomes `value` in every job that has it anywhere in its arguments.

        The value is sent once, and loaded once in each slot; large arrays in it are read-only there. It is
        freed when the handle is dropped (or closed) and no job needs it. Raises PayloadError, MasterLost.

        >>> with ClusterExecutor() as executor:             # doctest: +SKIP
        ...     words = executor.share({"some": 1, "words": 2})
        ...     print(list(executor.map(dict.get, [words, words], ["some", "words"])))
        [1, 2]
        """
        return self._session.share(value)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no further call; with `wait`, return when all have ended.

        `cancel_futures` cancels those that have not been handed out.
        """
        self._shut_down = True
        if cancel_futures:
            withdraw(self._session, self._session.tokens())
        self._session.close_when_idle()
        if wait and threading.current_thread() is not self._dispatcher:
            self._dispatcher.join()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> Optional[bool]:
        if kind is not None and not issubclass(kind, Exception):
            self._shut_down = True
            self._session.close()  # an interrupt: nobody waits for the results any more
        self.shutdown(wait=True)
        return None


def _on_events(events: List[Event]) -> None:
    """In the dispatcher thread: what became of these jobs."""
    events.reverse()  # so that each can be dropped before the next is worked on
    while events:
        future, kind, data = events.pop()
        if kind == RESULT:
            try:
                value, error = load_value(data), None
            except BaseException as broken:  # loading runs user code, which may raise anything
                value, error = None, unreadable(broken)
            future.settle(value, error)
        elif kind == RUNNING:
            future.note_running()
        elif kind == CANCELLED:
            future.end_cancelled()
        else:
            future.settle(*settle(kind, data))
