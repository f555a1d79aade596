"""`map` and its kin: many calls of one function, submitted as far ahead as their caller allows.

A *stream* takes its calls from iterators that may be endless, keeps at most `ahead` jobs open, and
submits the next one when the result of an earlier one is passed on. Who abandons a stream cancels
what has not started.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Callable, Deque, Iterable, Iterator, List, Optional, Set, Tuple

from .futures import ClusterFuture
from .messages import ERROR, RESULT
from .outcomes import settle
from .payload import dump_error, dump_value
from .references import at_hand

if TYPE_CHECKING:
    from .session import Session

Args = Tuple[Any, ...]
Outcome = Tuple[Any, Optional[BaseException]]
Chunk = Tuple[List[Tuple[bool, bytes]], List[type]]
"""What the job of a chunk returns: whether each call succeeded, and its pickled result or error; and the
classes that these name, which must not go before they are loaded."""


Submit = Callable[[Any, Args], int]
"""How a stream submits one call, whose end the token is told; returns the job's number."""


def check_sizes(chunksize: int, buffersize: Optional[int]) -> None:
    """Raise ValueError or TypeError for sizes that no stream can have."""
    if chunksize < 1:
        raise ValueError(f"chunksize must be at least 1, not {chunksize}")
    if buffersize is not None and type(buffersize) is not int:
        raise TypeError(f"buffersize must be a whole number or None, not {buffersize!r}")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize must be at least 1 or None, not {buffersize}")


def withdraw(session: Session, jobs: Iterable[Any]) -> None:
    """Cancel those of `jobs`, tokens of the session's, that have not been handed out."""
    by_number = {job._number: job for job in jobs if not job.running()}
    for number in session.withdraw(by_number):
        by_number[number].end_cancelled()


# --- in order -------------------------------------------------------------------------------


def in_order(
    session: Session,
    submit: Submit,
    calls: Iterator[Args],
    ahead: Optional[int],
    deadline: Optional[float],
) -> Iterator[Any]:
    """The results of `calls` in their order; submits `ahead` of them at once, or all.

    The iterator raises the error of a call in its place, and TimeoutError after `deadline`.
    """

    def begin(call: Args) -> ClusterFuture:
        future = ClusterFuture(session)
        future._number = submit(future, call)
        return future

    futures: Deque[ClusterFuture] = deque()
    try:
        futures.extend(map(begin, islice(calls, ahead)))
    except BaseException:
        withdraw(session, futures)  # nobody can ask for their results
        raise
    return _results(session, begin, futures, calls, deadline)


def _results(
    session: Session,
    begin: Callable[[Args], ClusterFuture],
    futures: Deque[ClusterFuture],
    calls: Iterator[Args],
    deadline: Optional[float],
) -> Iterator[Any]:
    """Each future's result, dropping the future and beginning the next call as it is passed on."""
    try:
        while futures:
            value = futures[0].result(None if deadline is None else deadline - time.monotonic())
            futures.popleft()
            futures.extend(map(begin, islice(calls, 1)))
            yield value
            del value
    finally:
        if futures:
            withdraw(session, [future for future in futures if not future.done()])


# --- as they come ---------------------------------------------------------------------------


class _Call:
    """One call of a stream without order: its outcome goes into the stream's queue."""

    __slots__ = ("_number", "_put", "_started")

    def __init__(self, put: Callable[[Tuple[_Call, Outcome]], None]) -> None:
        self._put = put
        self._number = 0
        self._started = False

    def running(self) -> bool:
        """Whether a slot has begun it."""
        return self._started

    def note_running(self) -> None:
        """A slot has begun it."""
        self._started = True

    def settle(self, value: Any, error: Optional[BaseException]) -> None:
        """It has ended with `value`, or with `error` unless that is None."""
        self._put((self, (value, error)))

    def end_cancelled(self) -> None:
        """It will not run."""
        self._put((self, (None, CancelledError())))


def as_they_come(
    session: Session,
    submit: Submit,
    calls: Iterator[Args],
    ahead: int,
    deadline: Optional[float],
) -> Iterator[Any]:
    """The results of `calls`, the first to end first; submits `ahead` of them at once.

    The iterator raises the error of a call when that comes, and TimeoutError after `deadline`.
    """
    ended: SimpleQueue[Tuple[_Call, Outcome]] = SimpleQueue()
    opened: Set[_Call] = set()

    def begin(call: Args) -> _Call:
        job = _Call(ended.put)
        job._number = submit(job, call)
        return job

    try:
        opened.update(map(begin, islice(calls, ahead)))
    except BaseException:
        withdraw(session, opened)
        raise
    return _arrivals(session, begin, opened, ended, calls, deadline)


def _arrivals(
    session: Session,
    begin: Callable[[Args], _Call],
    opened: Set[_Call],
    ended: SimpleQueue[Tuple[_Call, Outcome]],
    calls: Iterator[Args],
    deadline: Optional[float],
) -> Iterator[Any]:
    """Each result that arrives, beginning the next call as it is passed on."""
    try:
        while opened:
            try:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                job, (value, error) = ended.get(timeout=left_s)
            except Empty:
                raise FutureTimeout() from None
            opened.discard(job)
            if error is not None:
                raise error
            opened.update(map(begin, islice(calls, 1)))
            yield value
            del value, job
    finally:
        if opened:
            withdraw(session, opened)


# --- chunks ---------------------------------------------------------------------------------


def chunked(calls: Iterator[Args], fn: Callable[..., Any], size: int) -> Iterator[Args]:
    """Calls of `call_each` that stand for `size` calls of `fn` each."""
    return iter(lambda: (fn, list(islice(calls, size))), (fn, []))


def call_each(fn: Callable[..., Any], chunk: List[Args]) -> Chunk:
    """In a slot: the calls of one chunk, each with an outcome of its own."""
    return [_call(fn, args) for args in chunk], list(at_hand.classes.values())


def _call(fn: Callable[..., Any], args: Args) -> Tuple[bool, bytes]:
    try:
        return True, dump_value(fn(*args), at_hand.classes)
    except BaseException as error:  # what ends one call is no business of the others
        return False, dump_error(error)


def each_of(chunks: Iterator[Chunk]) -> Iterator[Any]:
    """The results of the calls in each chunk; raises the error of a call in its place."""
    for chunk, _classes in chunks:
        for succeeded, data in chunk:
            value, error = settle(RESULT if succeeded else ERROR, data)
            if error is not None:
                raise error
            yield value
