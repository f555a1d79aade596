"""The job functions of the benchmark, in a module that slots can import."""

from __future__ import annotations

import time
from typing import Any


def noop(number: int) -> int:
    """Do nothing, and say which job it was, so that answers can be checked."""
    return number


def work(number: int, long_number: int, long_s: float) -> int:
    """Do nothing, except in one job of many: that one sleeps for `long_s` seconds.

    Nothing that a scheduler sees tells the long job from the others beforehand.
    """
    if number == long_number:
        time.sleep(long_s)
    return number


def echo(data: bytes) -> bytes:
    """Send back what came."""
    return data


def look_up(array: Any, position: int) -> float:
    """Use a large array, little: what a job costs is then what its argument costs."""
    return float(array[position])
