"""A user's program, in both forms: it names no host, and says what is delivered to it.

    python -m tests.slurm.program callbacks|futures RUNS JOBS SECONDS

Submits so many jobs, or with 0 goes on until there is a file RUNS.stop, with some always waiting. Prints
`result NUMBER` or `error NUMBER KIND` for each job as it ends, and at the end `submitted JOBS`.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, wait
from functools import partial
from typing import Iterator, List

from cwmp import ClientThread, ClusterExecutor
from tests.slurm.jobs import noted

WAITING = 16
"""Jobs that an endless program has submitted and not got back: more than any test's cluster has slots."""

_lock = threading.Lock()
_room = threading.Semaphore(WAITING)


def say(line: str) -> None:
    """One whole line, whichever thread it comes from."""
    with _lock:
        print(line, flush=True)


def ended(number: int, result: int) -> None:
    """A job has returned that."""
    say(f"result {number}" if result == number else f"error {number} wrong")
    _room.release()


def failed(number: int, error: BaseException) -> None:
    """A job has none."""
    say(f"error {number} {type(error).__name__}")
    _room.release()


def numbers(runs: str, jobs: int) -> Iterator[int]:
    """The jobs to submit, each when its time has come."""
    number = 0
    while number < jobs or (jobs == 0 and not os.path.exists(f"{runs}.stop")):
        if jobs == 0:
            _room.acquire()
        yield number
        number += 1
    say(f"submitted {number}")


def by_callbacks(runs: str, jobs: int, seconds: float) -> None:
    """Each job's end as the callback of a ClientThread gets it."""
    with ClientThread(ended, on_error=failed) as client:
        for number in numbers(runs, jobs):
            client.submit(number, noted, runs, number, seconds)


def by_futures(runs: str, jobs: int, seconds: float) -> None:
    """Each job's end as its future tells it."""

    def done(number: int, future: Future[int]) -> None:
        error = future.exception()
        if error is None:
            ended(number, future.result())
        else:
            failed(number, error)

    with ClusterExecutor() as executor:
        futures: List[Future[int]] = []
        for number in numbers(runs, jobs):
            futures.append(executor.submit(noted, runs, number, seconds))
            futures[-1].add_done_callback(partial(done, number))
        wait(futures)


if __name__ == "__main__":
    form, runs_file, job_count, job_s = sys.argv[1:]
    {"callbacks": by_callbacks, "futures": by_futures}[form](runs_file, int(job_count), float(job_s))
