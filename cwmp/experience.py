"""How long the functions of jobs have taken lately: for a worker whose time is limited."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Deque

_FUNCTIONS = 1000  # remembered at most
_RUNS = 15  # of each


class Experience:
    """The last runs of each function that was seen here.

    >>> experience = Experience()
    >>> for took_s in (1.0, 50.0, 60.0):
    ...     experience.note(b"f", took_s)
    >>> experience.is_unlikely(b"f", left_s=40.0), experience.is_unlikely(b"f", left_s=55.0)
    (True, False)
    >>> experience.is_unlikely(b"never seen", left_s=0.1)
    False
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[int, Deque[float]] = OrderedDict()  # by hash: functions may be large

    def note(self, function: Any, took_s: float) -> None:
        """A job of this function has ended after so many seconds."""
        key = hash(function)
        runs = self._runs.get(key)
        if runs is None:
            runs = self._runs[key] = deque(maxlen=_RUNS)
            if len(self._runs) > _FUNCTIONS:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end(key)
        runs.append(took_s)

    def is_unlikely(self, function: Any, left_s: float) -> bool:
        """Whether most of the last runs of this function took longer than `left_s`."""
        runs = self._runs.get(hash(function), ())
        return 2 * sum([took_s > left_s for took_s in runs]) > len(runs)
