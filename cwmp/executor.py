"""`ClusterExecutor`: a complete `concurrent.futures.Executor` on a cluster."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import Executor
from itertools import islice
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple, Type, Union

from . import rendezvous
from .futures import ClusterFuture
from .messages import ERROR, RESULT, RUNNING
from .outcomes import settle, unreadable
from .payload import dump_error, dump_value, load_value
from .session import CANCELLED, Event, Session


class ClusterExecutor(Executor):
    """Runs calls on a cluster and returns a `Future` for each.

    `host` is "node", "node:port" or None, which finds the cluster: CWMP_MASTER, the rendezvous of
    this user, then localhost. Raises ConnectError, WrongKey or VersionMismatch.

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
    ) -> None:
        address = rendezvous.find_master(host, port)
        key = rendezvous.find_key(authkey, host=host and address[0], port=address[1])
        self._session = Session(*address, key, _on_events)
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
    ) -> Iterator[Any]:
        """Like the built-in `map`, in parallel: an iterator over the results, in order.

        `timeout` is in seconds from this call; TimeoutError is raised by the iterator. `chunksize` calls
        travel as one job. Abandoning the iterator cancels what has not started.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables)
        if chunksize == 1:
            futures = [self.submit(fn, *call) for call in calls]
            return _results(self._session, futures, deadline)
        chunks = iter(lambda: list(islice(calls, chunksize)), [])
        futures = [self.submit(_call_each, fn, chunk) for chunk in chunks]
        return _each_of(_results(self._session, futures, deadline))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no further call; with `wait`, return when all have ended.

        `cancel_futures` cancels those that have not been handed out.
        """
        self._shut_down = True
        if cancel_futures:
            self._cancel_queued()
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

    def _cancel_queued(self) -> None:
        by_number = {future._number: future for future in self._session.tokens() if not future.running()}
        for number in self._session.withdraw(by_number):
            by_number[number].end_cancelled()


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


def _results(session: Session, futures: List[ClusterFuture], deadline: Optional[float]) -> Iterator[Any]:
    """The futures' results in order, dropping each future as it is passed on."""
    try:
        futures.reverse()
        while futures:
            left_s = None if deadline is None else deadline - time.monotonic()
            value = futures[-1].result(left_s)
            futures.pop()
            yield value
            del value
    finally:
        if futures:
            by_number = {future._number: future for future in futures if not future.done()}
            for number in session.withdraw(by_number):
                by_number[number].end_cancelled()


def _call_each(fn: Callable[..., Any], chunk: List[Tuple[Any, ...]]) -> List[Tuple[bool, bytes]]:
    """In a slot: the calls of one chunk, each with an outcome of its own."""
    return [_call(fn, args) for args in chunk]


def _call(fn: Callable[..., Any], args: Tuple[Any, ...]) -> Tuple[bool, bytes]:
    try:
        return True, dump_value(fn(*args))
    except Exception as error:
        return False, dump_error(error)


def _each_of(chunks: Iterator[List[Tuple[bool, bytes]]]) -> Iterator[Any]:
    """The results of the calls in each chunk."""
    for chunk in chunks:
        for succeeded, data in chunk:
            value, error = settle(RESULT if succeeded else ERROR, data)
            if error is not None:
                raise error
            yield value
