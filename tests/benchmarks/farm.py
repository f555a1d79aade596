"""The textbook manager farm: a plain `BaseManager`, two queues, one proxied put and get a job."""

from __future__ import annotations

import multiprocessing
import queue
from multiprocessing.managers import BaseManager
from typing import Any, Callable, List, Tuple

_jobs: queue.Queue = queue.Queue()  # used in the manager's process only
_results: queue.Queue = queue.Queue()


def _get_jobs() -> queue.Queue:
    return _jobs


def _get_results() -> queue.Queue:
    return _results


class FarmManager(BaseManager):
    """Serves the two queues."""


FarmManager.register("jobs", callable=_get_jobs)
FarmManager.register("results", callable=_get_results)


class Farm:
    """A context manager: `put` a call, `get` a result, in whatever order results come."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._manager = FarmManager(("127.0.0.1", 0))  # TCP, as a farm over several nodes needs
        self._processes: List[multiprocessing.Process] = []

    def __enter__(self) -> Farm:
        self._manager.start()
        self._jobs = self._manager.jobs()  # type: ignore[attr-defined]
        self._results = self._manager.results()  # type: ignore[attr-defined]
        for _ in range(self._slots):
            args = (self._manager.address, bytes(multiprocessing.current_process().authkey))
            process = multiprocessing.Process(target=run_slot, args=args, daemon=True)
            process.start()
            self._processes.append(process)
        return self

    def put(self, func: Callable[..., Any], *args: Any) -> None:
        """Queue one call: one request to the manager and its reply."""
        self._jobs.put((func, args))

    def get(self) -> Any:
        """Wait for one result: another request and reply."""
        return self._results.get()

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._manager.shutdown()


def run_slot(address: Tuple[str, int], authkey: bytes) -> None:
    """One slot process: get, call, put, until it is killed or the manager is gone."""
    multiprocessing.current_process().authkey = authkey
    manager = FarmManager(address, authkey=authkey)
    manager.connect()
    jobs = manager.jobs()  # type: ignore[attr-defined]
    results = manager.results()  # type: ignore[attr-defined]
    try:
        while True:
            func, args = jobs.get()
            results.put(func(*args))
    except (EOFError, OSError):
        return
