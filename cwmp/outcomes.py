"""From the events of a session to what a user gets: a value, or the exception to raise."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any, Optional, Tuple

from . import payload
from .errors import BlobLost, CwmpError, MasterLost, PayloadError, WorkerLost
from .link import CANCELLED, MASTER_LOST
from .messages import ERROR, LOST, RESULT, VANISHED


def settle(kind: int, data: Any) -> Tuple[Any, Optional[BaseException]]:
    """(value, None) or (None, exception) for an event that ends a job. Never raises."""
    try:
        if kind == RESULT:
            return payload.load_value(data), None
        if kind == ERROR:
            return None, payload.load_error(data)
    except BaseException as error:  # loading runs user code, which may raise anything
        return None, unreadable(error)
    if kind == VANISHED:
        return None, BlobLost(data)
    if kind == LOST:
        return None, WorkerLost(data)
    if kind == MASTER_LOST:
        return None, MasterLost(data)
    if kind == CANCELLED:
        return None, CancelledError(data)
    return None, CwmpError(f"an event of kind {kind!r}, which this cwmp does not know")


def unreadable(cause: BaseException) -> CwmpError:
    """The error of a job whose result cannot be loaded in this process."""
    if isinstance(cause, BlobLost):
        return cause
    error = PayloadError(f"the result of this job can't be loaded here: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
