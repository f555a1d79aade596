"""One job at a time, asked for in every way: whoever reads the results, each arrives once and promptly."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from typing import Any, Iterator, List

import pytest

import cwmp
from cwmp import ClusterExecutor
from tests.interrupts import interrupt_submit_everywhere
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    raise ValueError(number)


class Unloadable:
    """Something that arrives, and can't be loaded."""

    def __reduce__(self) -> Any:
        return fail, (1,)


def unloadable() -> Unloadable:
    return Unloadable()


@pytest.fixture(scope="module")
def cluster() -> Iterator[cwmp.LocalCluster]:
    with cwmp.LocalCluster(n=2) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster: cwmp.LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


def by_result(executor: ClusterExecutor, number: int) -> int:
    return int(executor.submit(double, number).result())


def by_timed_result(executor: ClusterExecutor, number: int) -> int:
    return int(executor.submit(double, number).result(WAIT_S))


def by_callback(executor: ClusterExecutor, number: int) -> int:
    done: List[int] = []
    told = threading.Event()
    future = executor.submit(double, number)
    future.add_done_callback(lambda future: (done.append(future.result()), told.set()))  # type: ignore[func-returns-value]
    assert told.wait(WAIT_S)
    return done[0]


def by_wait(executor: ClusterExecutor, number: int) -> int:
    done, _ = wait([executor.submit(double, number)], WAIT_S, FIRST_COMPLETED)
    return int(done.pop().result())


def by_as_completed(executor: ClusterExecutor, number: int) -> int:
    return int(next(as_completed([executor.submit(double, number)], WAIT_S)).result())


def by_polling(executor: ClusterExecutor, number: int) -> int:
    future = executor.submit(double, number)
    wait_until(future.done, timeout_s=WAIT_S)
    return int(future.result())


def by_two_at_once(executor: ClusterExecutor, number: int) -> int:
    first, second = executor.submit(double, 0), executor.submit(double, number)
    return int(second.result()) + int(first.result())


def by_another_thread(executor: ClusterExecutor, number: int) -> int:
    with ThreadPoolExecutor(1) as pool:
        return int(pool.submit(executor.submit(double, number).result).result(WAIT_S))


def by_a_failure(executor: ClusterExecutor, number: int) -> int:
    with pytest.raises(ValueError) as raised:
        executor.submit(fail, number).result()
    return 2 * int(raised.value.args[0])


WAYS = [
    by_result, by_timed_result, by_callback, by_wait, by_as_completed, by_polling, by_two_at_once,
    by_another_thread, by_a_failure,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_way_between_plain_results(executor: ClusterExecutor, way: Any) -> None:
    for number in range(30):
        assert by_result(executor, number) == 2 * number
        assert way(executor, number) == 2 * number


def test_all_ways_in_any_order(executor: ClusterExecutor) -> None:
    chance = random.Random(5)
    for number in range(300):
        way = chance.choice(WAYS)
        assert way(executor, number) == 2 * number, way


def test_many_threads_with_a_job_each(executor: ClusterExecutor) -> None:
    def work(begin: int) -> List[int]:
        return [by_result(executor, number) for number in range(begin, begin + 100)]

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(0, 800, 100)))
    assert [number for part in done for number in part] == [2 * number for number in range(800)]


def test_a_result_that_cannot_be_loaded_is_that_jobs_error(executor: ClusterExecutor) -> None:
    for _ in range(5):
        assert by_result(executor, 1) == 2
        with pytest.raises(cwmp.PayloadError):
            executor.submit(unloadable).result()


# In a process of its own: interrupts that come so often also hit what only warns of them.
INTERRUPTED = """
import os, random, signal, sys, threading, time
import cwmp

sys.unraisablehook = lambda unraisable: None  # an interrupt in the middle of a weak reference's callback
main = threading.main_thread().ident
ended = threading.Event()

def interrupt():
    chance = random.Random(7)
    while not ended.wait(chance.uniform(0.0002, 0.002)):
        signal.pthread_kill(main, signal.SIGUSR1)

armed = False

def on_signal(number, frame):
    global armed
    if armed:
        armed = False  # until it has been dealt with
        raise KeyboardInterrupt

def use(executor):
    # A function, because at the end of a loop's round newer Pythons raise outside of the `try` around it.
    while time.monotonic() < deadline:
        future = executor.submit(os.getpid)
        futures.append(future)
        if sys.argv[1] == "wait":
            future.result()

with cwmp.ClusterExecutor() as executor:
    futures = []
    interrupts = 0
    signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=interrupt)
    deadline = time.monotonic() + 2
    thread.start()
    while not ended.is_set():
        try:
            armed = True
            use(executor)
            armed = False
            ended.set()
        except KeyboardInterrupt:
            interrupts += 1
    thread.join()
    assert all(isinstance(future.result(20), int) for future in futures)
    assert executor.submit(pow, 2, 3).result(20) == 8
    executor.shutdown()  # would wait for a job that never left
    assert executor._session.open_jobs() == 0
    print("interrupts", interrupts, "jobs", len(futures))
"""


def test_wherever_an_interrupt_comes_in_submit(cluster: cwmp.LocalCluster) -> None:
    with cluster.executor() as executor:
        assert interrupt_submit_everywhere(executor) > 20


@pytest.mark.parametrize("what", ["wait", "submit"])
def test_interrupts_leave_the_executor_in_order(cluster: cwmp.LocalCluster, what: str) -> None:
    environment = {**os.environ, "CWMP_MASTER": cluster.address, "CWMP_AUTHKEY": cluster.authkey.decode()}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, what], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 20, done.stdout
