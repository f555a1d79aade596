"""What the programs let the workers do. Every slot imports this."""

from __future__ import annotations

import os
import platform
import random
import time
import zlib
from typing import Tuple


def append(path: str, line: str) -> None:
    """Add a line to a file in one piece, whoever else is writing and whatever kills us then."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def filler(job: str, size: int) -> bytes:
    """Bytes that belong to that job and to no other."""
    return random.Random(job).randbytes(size)


def work(runs: str, job: str, seconds: float, argument: bytes, result_size: int) -> Tuple[str, int, bytes]:
    """Note that this job runs, take that long; returns its name, its argument's sum and bytes of its own."""
    append(runs, f"{job} {platform.node()}")
    time.sleep(seconds)
    return job, zlib.crc32(argument), filler(f"result of {job}", result_size)
