"""Who is compared: one context manager each, yielding the two ways in which it is driven.

What a contender needs is imported when it starts, because that is part of a cold start.
"""

from __future__ import annotations

import contextlib
import os
import queue
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, Iterator, List

from .jobs import noop

SLOTS = 2

JobFunction = Callable[[int], int]


@dataclass
class Contender:
    """How to drive one contender; jobs are numbered and answer with their number."""

    run_all: Callable[[int], List[int]]
    """Submit this many jobs one by one, then wait for all; the answers, in any order."""

    run_one: Callable[[int], int]
    """Submit one job and wait for its answer."""


@contextlib.contextmanager
def cluster_executor(func: JobFunction) -> Iterator[Contender]:
    """cwmp: `LocalCluster` and `ClusterExecutor`."""
    import cwmp

    with cwmp.LocalCluster(n=SLOTS) as cluster, cluster.executor() as executor:
        yield _by_futures(executor.submit, func)


@contextlib.contextmanager
def encrypted_executor(func: JobFunction) -> Iterator[Contender]:
    """The same as between machines: TLS with the key, and TCP instead of the shortcut on one machine."""
    os.environ["CWMP_ENCRYPT"] = "always"
    with cluster_executor(func) as contender:
        yield contender


@contextlib.contextmanager
def client_thread(func: JobFunction) -> Iterator[Contender]:
    """cwmp: `LocalCluster` and `ClientThread`, whose callback hands results to the main thread."""
    import cwmp

    results: queue.SimpleQueue = queue.SimpleQueue()

    def done(_jobid: Any, result: int) -> None:
        results.put(result)

    with cwmp.LocalCluster(n=SLOTS) as cluster, cluster.client(done) as client:

        def run_all(jobs: int) -> List[int]:
            for number in range(jobs):
                client.submit(number, func, number)
            client.wait()
            return [results.get() for _ in range(jobs)]

        def run_one(number: int) -> int:
            client.submit(number, func, number)
            return results.get()

        yield Contender(run_all, run_one)


@contextlib.contextmanager
def process_pool(func: JobFunction) -> Iterator[Contender]:
    """The standard library's `ProcessPoolExecutor`, as it comes."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(SLOTS) as executor:
        yield _by_futures(executor.submit, func)


@contextlib.contextmanager
def manager_farm(func: JobFunction) -> Iterator[Contender]:
    """The farm of the textbooks."""
    from .farm import Farm

    with Farm(SLOTS) as farm:

        def run_all(jobs: int) -> List[int]:
            for number in range(jobs):
                farm.put(func, number)
            return [farm.get() for _ in range(jobs)]

        def run_one(number: int) -> int:
            farm.put(func, number)
            return farm.get()

        yield Contender(run_all, run_one)


@contextlib.contextmanager
def bare_floor(func: JobFunction) -> Iterator[Contender]:
    """The bare pipeline."""
    from .floor import Floor

    with Floor(SLOTS) as floor:
        yield _by_futures(floor.submit, func)


def _by_futures(submit: Callable[..., Any], func: JobFunction) -> Contender:
    """Drive anything that has an executor's `submit`."""

    def run_all(jobs: int) -> List[int]:
        futures = [submit(func, number) for number in range(jobs)]
        return [future.result() for future in futures]

    def run_one(number: int) -> int:
        return submit(func, number).result()

    return Contender(run_all, run_one)


def contenders(
    main_function: JobFunction, with_classes: JobFunction, closure: JobFunction
) -> Dict[str, ContextManager[Contender]]:
    """Every contender by name; the functions given here are the ones that travel by value."""
    return {
        "cwmp": cluster_executor(noop),
        "cwmp-main": cluster_executor(main_function),
        "cwmp-class": cluster_executor(with_classes),
        "cwmp-closure": cluster_executor(closure),
        "cwmp-encrypted": encrypted_executor(noop),
        "cwmp-client": client_thread(noop),
        "pool": process_pool(noop),
        "farm": manager_farm(noop),
        "floor": bare_floor(noop),
    }
