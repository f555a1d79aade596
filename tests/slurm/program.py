"""A user's program, in both forms: it names no host, and says what is delivered to it.

    python -m tests.slurm.program callbacks|futures RUNS JOBS SECONDS

Prints `result NUMBER` or `error NUMBER KIND` for each job as it ends.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from cwmp import ClientThread, ClusterExecutor
from tests.slurm.jobs import noted

_lock = threading.Lock()


def say(line: str) -> None:
    """One whole line, whichever thread it comes from."""
    with _lock:
        print(line, flush=True)


def by_callbacks(runs: str, jobs: int, seconds: float) -> None:
    """Each job's end as the callback of a ClientThread gets it."""

    def done(number: int, result: int) -> None:
        say(f"result {number}" if result == number else f"error {number} wrong")

    def failed(number: int, error: BaseException) -> None:
        say(f"error {number} {type(error).__name__}")

    with ClientThread(done, on_error=failed) as client:
        for number in range(jobs):
            client.submit(number, noted, runs, number, seconds)


def by_futures(runs: str, jobs: int, seconds: float) -> None:
    """Each job's end as its future tells it."""

    def done(number: int, future: Future[int]) -> None:
        error = future.exception()
        if error is not None:
            say(f"error {number} {type(error).__name__}")
        else:
            say(f"result {number}" if future.result() == number else f"error {number} wrong")

    with ClusterExecutor() as executor:
        futures: list[Future[Any]] = []
        for number in range(jobs):
            futures.append(executor.submit(noted, runs, number, seconds))
            futures[-1].add_done_callback(partial(done, number))
        wait(futures)


if __name__ == "__main__":
    form, runs_file, job_count, job_s = sys.argv[1:]
    {"callbacks": by_callbacks, "futures": by_futures}[form](runs_file, int(job_count), float(job_s))
