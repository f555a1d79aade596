"""Interrupts (as of Ctrl-C) exactly where a test wants them."""

from __future__ import annotations

import contextlib
import dis
import os
import sys
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Dict, Sequence

import cwmp

_UNSEEN = ("SETUP_FINALLY", "SETUP_WITH", "BEFORE_ASYNC_WITH", "YIELD_FROM")
"""Before these, Python 3.9 does not look; otherwise it looks everywhere."""


class Interrupted(BaseException):
    """What is raised."""


class InterruptAt:
    """While it is in force, raises once: at the `number`th place in cwmp where Python looks for signals.

    That is behind a call, at the begin of a function, and where a loop begins again; in Python 3.9 nearly
    everywhere. `files` are those to be interrupted, by default all of cwmp.
    """

    def __init__(self, number: int, files: Sequence[str] = ()) -> None:
        self._left = number
        self._files = files
        self._last: Dict[int, str] = {}  # by frame: what it has just done
        self.reached = ""
        """Where it was raised."""

    def __enter__(self) -> InterruptAt:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: Any, event: str, _arg: Any) -> Any:
        if not self._concerns(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.reached:
            last = self._last.get(id(frame), "")
            self._last[id(frame)] = coming = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if _looks_between(last, coming):
                self._left -= 1
                if not self._left:
                    self.reached = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                    raise Interrupted
        return self._trace

    def _concerns(self, file: str) -> bool:
        return file in self._files if self._files else file.startswith(os.path.dirname(cwmp.__file__))


def _looks_between(last: str, coming: str) -> bool:
    """Whether Python looks for signals between these instructions."""
    if sys.version_info < (3, 10):
        return coming not in _UNSEEN
    return last.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE"))


def interrupt_submit_everywhere(executor: cwmp.ClusterExecutor) -> int:
    """Interrupt `submit` at place after place; returns at how many. Each time the next job must run."""
    for number in range(1, 10_000):
        interrupt = InterruptAt(number)
        with contextlib.suppress(Interrupted), interrupt:
            executor.submit(os.getpid)
        try:
            assert executor.submit(pow, 2, 3).result(30) == 8
        except FutureTimeout:
            raise AssertionError(f"nothing runs after an interrupt in {interrupt.reached}") from None
        if not interrupt.reached:
            break
    executor.shutdown()
    assert executor._session.open_jobs() == 0
    return number - 1
