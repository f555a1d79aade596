"""Classes of a program, in jobs of a real cluster: a script, cells of a notebook, streams and chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from cwmp import LocalCluster
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        wait_until(lambda: see.slots_of(cluster.pids["workers"][0]), timeout_s=WAIT_S)
        yield cluster


SCRIPT = """
import dataclasses, enum, gc, threading
from cwmp import ClusterExecutor, ClientThread

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    colour: Colour = Colour.RED

class Odd(Exception):
    pass

class Counter:
    total = 0
    seen = []

def make(n):
    return Point(n)

def move(point, by):
    assert isinstance(point, Point) and point.colour is Colour.RED
    return Point(point.x + by)

def odd(n):
    if n % 2:
        raise Odd(n)
    return Point(n)

def count(n):
    Counter.total += n
    Counter.seen.append(n)
    return Counter.total, Counter.seen

with ClusterExecutor() as executor:
    points = list(executor.map(make, range(500)))
    assert all(type(point) is Point and point.colour is Colour.RED for point in points)
    assert points == [Point(n) for n in range(500)]
    for size in (1, 7):
        moved = executor.map(move, points, [1] * 500, chunksize=size)
        assert list(moved) == [Point(n + 1) for n in range(500)]
    made = executor.map_unordered(make, range(50), chunksize=5)
    assert sorted(point.x for point in made) == list(range(50))
    for n in range(4):
        error = executor.submit(odd, n).exception()
        assert type(error) is (Odd if n % 2 else type(None)), error
    assert [executor.submit(count, 3).result() for _ in range(20)] == [(3, [3])] * 20
    Counter.total = 10
    Counter.seen.append(0)
    assert [executor.submit(count, 3).result() for _ in range(20)] == [(13, [0, 3])] * 20
    assert Counter.total == 10 and Counter.seen == [0]
    results = []
    def from_threads():
        results.extend(executor.submit(move, Point(n), 1).result() for n in range(100))
    threads = [threading.Thread(target=from_threads) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(results) == 400 and all(type(point) is Point for point in results)

done = []
client = ClientThread(lambda jobid, result: done.append(result))
with client:
    for n in range(100):
        client.submit(n, move, Point(n), 1)
    client.wait()
assert sorted(point.x for point in done) == list(range(1, 101))
assert all(type(point) is Point for point in done)
print("fine")
"""


def test_a_script_with_classes_of_its_own(cluster: LocalCluster, tmp_path: Path) -> None:
    assert see.run_script(cluster, tmp_path / "program.py", SCRIPT) == "fine\n"


CELLS = """
import gc
from cwmp import ClusterExecutor
executor = ClusterExecutor()
old = []
for version in range(5):
    exec(f'''
import time
class Thing:
    version = {version}
    def value(self): return self.version * 10
class Special(Thing):
    def value(self): return super().value() + helper()
def helper(): return {version}
def work(thing):
    time.sleep(0.05)
    assert isinstance(thing, Thing), type(thing)
    return type(thing)(), thing.value(), helper()
''')
    old.append((version, executor.submit(work, Special())))
    gc.collect()
    result, value, helped = executor.submit(work, Special()).result()
    assert type(result) is Special and (value, helped) == (version * 11, version), (value, helped)
    assert result.value() == version * 11
    Thing.version = 100
    assert executor.submit(work, Special()).result()[1:] == (1000 + version, version)
    Special.value = lambda self: -1
    assert executor.submit(work, Special()).result()[1:] == (-1, version)
    del Special.value
    assert executor.submit(work, Special()).result()[1:] == (1000, version)
for version, future in old:
    result, value, helped = future.result()
    assert (value, helped) == (version * 11, version)
    assert type(result).__name__ == "Special"
    assert (type(result) is Special) == (version == 4)
# What is under way when its class is defined again, and forgotten by everybody else:
futures = []
for version in range(20):
    exec(f'''
class Local:
    number = {version}
def work(): return Local()
''')
    futures.append(executor.submit(work))
del Local, work
gc.collect()
assert [future.result().number for future in futures] == list(range(20))
executor.shutdown()
print("fine")
"""


def test_cells_that_define_classes_again(cluster: LocalCluster, tmp_path: Path) -> None:
    assert see.run_script(cluster, tmp_path / "cells.py", CELLS) == "fine\n"


NESTED = """
import os
from cwmp import ClusterExecutor

WHERE = {name: value for name, value in os.environ.items() if name.startswith("CWMP_")}

class Leaf:
    def __init__(self, n): self.n = n

def leaf(n):
    return Leaf(n)

def branch(n):
    os.environ.update(WHERE)
    with ClusterExecutor() as executor:
        leaves = [executor.submit(leaf, n).result(), executor.submit(lambda x: x, Leaf(n)).result()]
    assert all(type(leaf) is Leaf for leaf in leaves)
    return leaves

with ClusterExecutor() as executor:
    for n in range(3):
        leaves = executor.submit(branch, n).result()
        assert [type(leaf) for leaf in leaves] == [Leaf, Leaf] and leaves[0].n == n
print("fine")
"""


def test_jobs_that_submit_jobs(cluster: LocalCluster, tmp_path: Path) -> None:
    assert see.run_script(cluster, tmp_path / "nested.py", NESTED) == "fine\n"
