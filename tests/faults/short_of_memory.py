"""A program that has no memory for what its jobs return: `python -m tests.faults.short_of_memory ADDRESS`."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from typing import Counter as Counts

import psutil

from cwmp import ClusterExecutor

JOBS = 3000
ROOM = 20 << 20
WAIT_S = 60.0


def sixty_thousand_bytes(_: int) -> bytes:
    """Too little to travel as a large value."""
    return os.urandom(60_000)


def main(address: str) -> None:
    """Keep all results, and print how many jobs ended how."""
    with ClusterExecutor(address) as executor:
        executor.submit(abs, -1).result()
        used = psutil.Process().memory_info().vms
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, most))
        futures = [executor.submit(sixty_thousand_bytes, number) for number in range(JOBS)]
        deadline = time.monotonic() + WAIT_S
        while executor._session.lost is None and time.monotonic() < deadline:
            time.sleep(0.1)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # or there would be none for this thread as well
        ends: Counts[str] = Counter()
        for future in futures:
            error = future.exception(timeout=WAIT_S)
            ends[f"{type(error).__name__}: {error}" if error else "a result"] += 1
    for end, count in sorted(ends.items()):
        print(count, end)


if __name__ == "__main__":
    main(sys.argv[1])
