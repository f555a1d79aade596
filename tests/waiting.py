"""Waiting for a condition, with a deadline and a last look at what was seen instead."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Optional


def wait_until(
    condition: Callable[[], Any],
    *,
    timeout_s: float = 20.0,
    describe: Optional[Callable[[], str]] = None,
    pause_s: float = 0.02,
) -> Any:
    """Return what `condition()` returns once that is true; fail with `describe()` after `timeout_s`.

    `pause_s` passes between two looks.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()  # nobody sets it
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            seen = describe() if describe else f"last seen: {value!r}"
            raise AssertionError(f"not within {timeout_s:g} s: {seen}")
        pause.wait(pause_s)
