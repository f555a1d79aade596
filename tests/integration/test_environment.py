"""Where a job finds itself: working directory, module path, environment, output, and `__main__`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Iterator

import pytest

from cwmp import ClusterExecutor, LocalCluster
from cwmp.defaults import THREAD_VARIABLES
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        wait_until(lambda: see.slots_of(cluster.pids["workers"][0]), timeout_s=WAIT_S)
        yield cluster


@pytest.fixture
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


# --- directory and module path --------------------------------------------------------------


def test_a_job_stands_in_the_clients_directory(
    executor: ClusterExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = executor.submit(jobs.surroundings)
    monkeypatch.chdir(tmp_path)
    second = executor.submit(jobs.surroundings)
    monkeypatch.undo()
    third = executor.submit(jobs.surroundings)
    directories = [future.result(WAIT_S)[0] for future in (first, second, third)]
    assert directories == [os.getcwd(), os.path.realpath(tmp_path), os.getcwd()]


def test_a_job_sees_the_clients_module_path_and_no_other_does(
    executor: ClusterExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = executor.submit(jobs.surroundings).result(WAIT_S)[1]
    assert set(sys.path) - {""} <= set(before)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_here.py").write_text("answer = 42\n")
    assert executor.submit(jobs.surroundings).result(WAIT_S)[1][0] == str(tmp_path)
    assert executor.submit(lambda: __import__("only_here").answer).result(WAIT_S) == 42
    monkeypatch.undo()
    assert executor.submit(jobs.surroundings).result(WAIT_S)[1] == before


def test_what_a_job_moves_is_put_back(executor: ClusterExecutor, tmp_path: Path) -> None:
    before = executor.submit(jobs.surroundings).result(WAIT_S)
    limit = executor.submit(jobs.recursion_limit).result(WAIT_S)
    executor.submit(jobs.change_surroundings, str(tmp_path)).result(WAIT_S)
    assert executor.submit(jobs.surroundings).result(WAIT_S) == before
    assert executor.submit(jobs.recursion_limit).result(WAIT_S) == limit


def test_a_job_that_stands_in_a_directory_that_is_gone(executor: ClusterExecutor, tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    doomed.mkdir()

    def vanish() -> None:
        os.chdir(doomed)
        os.rmdir(doomed)

    executor.submit(vanish).result(WAIT_S)
    assert executor.submit(jobs.surroundings).result(WAIT_S)[0] == os.getcwd()


def test_a_client_the_directory_of_which_is_gone(
    executor: ClusterExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    monkeypatch.chdir(doomed)
    doomed.rmdir()
    assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    assert os.path.isdir(executor.submit(jobs.surroundings).result(WAIT_S)[0])


def test_two_clients_do_not_mix(cluster: LocalCluster, tmp_path: Path) -> None:
    """Programs in two directories, each with a module beside it, take turns in one slot."""
    source = """
import os, sys
from cwmp import ClusterExecutor
import {module}

def look():
    return {module}.NAME, os.getcwd(), [entry for entry in sys.path if "program" in entry]

with ClusterExecutor() as executor:
    for _ in range(3):
        name, directory, path = executor.submit(look).result()
        assert name == "{module}" and directory == os.getcwd(), (name, directory)
        assert path == [os.getcwd()], path
    print("fine")
"""
    programs = []
    try:
        for module in ("first", "second"):
            directory = tmp_path / f"program_{module}"
            directory.mkdir()
            (directory / f"{module}.py").write_text(f"NAME = {module!r}\n")
            programs.append(see.Script(cluster, directory / "main.py", source.format(module=module)))
        assert [program.end().succeeded() for program in programs] == ["fine\n"] * 2
    finally:
        for program in programs:
            program.__exit__()


# --- environment variables ------------------------------------------------------------------


def test_numerical_libraries_get_one_thread_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with LocalCluster(1) as own, own.executor() as executor:
        values = dict(zip(THREAD_VARIABLES, executor.map(jobs.environment_variable, THREAD_VARIABLES)))
    assert values == {**dict.fromkeys(THREAD_VARIABLES, "1"), "OMP_NUM_THREADS": "3"}
    assert "MKL_NUM_THREADS" in values
    assert "MKL_NUM_THREADS" not in os.environ


def test_each_slot_sees_its_share_of_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    with LocalCluster(2) as cluster, see.Gate(cluster, tmp_path) as gate, cluster.executor() as executor:
        arguments = (*gate.paths, "CUDA_VISIBLE_DEVICES")
        seen = [executor.submit(jobs.variable_after, *arguments) for _ in range(2)]
        gate.wait_for(2)
        gate.open()
        assert sorted(str(future.result(WAIT_S)) for future in seen) == ["3", "7"]


def test_the_key_is_not_in_the_environment_of_jobs(executor: ClusterExecutor, cluster: LocalCluster) -> None:
    environment = executor.submit(lambda: dict(os.environ)).result(WAIT_S)
    assert cluster.authkey.decode() not in "".join(environment.values())


# --- output ---------------------------------------------------------------------------------

PRINTS = """
import os, sys, subprocess
from cwmp import LocalCluster

def talk(n):
    print("out", n)
    print("err", n, file=sys.stderr)
    os.write(1, b"raw %d\\n" % n)
    subprocess.run(["echo", "child", str(n)])

def unfinished():
    print("no newline", end="")

if __name__ == "__main__":
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        list(executor.map(talk, range(50)))
        executor.submit(unfinished).result()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_jobs_print_is_on_standard_error_of_the_program(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with see.Script(cluster, tmp_path / "prints.py", PRINTS) as script:
        ended = script.end()
    assert ended.succeeded() == ""
    for word in ("out", "err", "raw", "child"):
        assert [ended.stderr.count(f"{word} {n}\n") for n in range(50)] == [1] * 50
    assert ended.stderr.count("no newline") == 1


def test_standard_input_of_a_job_is_empty(executor: ClusterExecutor) -> None:
    assert executor.submit(lambda: sys.stdin.read()).result(WAIT_S) == ""


# --- __main__ -------------------------------------------------------------------------------


def test_a_script(cluster: LocalCluster, tmp_path: Path) -> None:
    source = """
from __future__ import annotations
import dataclasses, enum, sys
from collections import namedtuple
from cwmp import ClusterExecutor

FACTOR = 2
Pair = namedtuple("Pair", "left right")

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int
    colour: Colour = Colour.RED
    def moved(self, by: int) -> "Point":
        return Point(self.x + by * FACTOR, self.colour)

class Odd(Exception):
    def __init__(self, n):
        super().__init__(n)
        self.n = n

def helper(n):
    return n * FACTOR

def work(n):
    if n % 2:
        raise Odd(n)
    return helper(n)

def main():
    return "the script's own main"

executor = ClusterExecutor()  # no `if __name__`: slots do not run the script again
assert executor.submit(work, 4).result() == 8
FACTOR = 3
assert executor.submit(work, 4).result() == 12
assert executor.submit(main).result() == main()
error = executor.submit(work, 5).exception()
assert type(error) is Odd and error.n == 5, error
try:
    executor.submit(work, 7).result()
except Odd as caught:
    assert "in work" in str(caught.__cause__)
point = executor.submit(Point(1).moved, 2).result()
assert isinstance(point, Point) and point == Point(7) and point.colour is Colour.RED, point
pair = executor.submit(Pair, 1, right=point).result()
assert isinstance(pair, Pair) and isinstance(pair.right, Point), pair
assert executor.submit(isinstance, Point(1), Point).result()
assert executor.submit(lambda p: isinstance(p, Point), Point(1)).result()
assert executor.submit(lambda: Colour.RED).result() is Colour.RED
assert list(executor.map(lambda p: p.moved(1), [Point(n) for n in range(3)], chunksize=2)) == [
    Point(3), Point(4), Point(5)]
executor.shutdown()
print("fine", flush=True)
"""
    assert see.run_script(cluster, tmp_path / "program.py", source) == "fine\n"


def test_a_script_the_globals_of_which_jobs_change(cluster: LocalCluster, tmp_path: Path) -> None:
    source = """
from cwmp import ClusterExecutor
count, values = 0, []

def grow():
    global count
    count += 1
    values.append(count)
    return count, len(values)

with ClusterExecutor() as executor:
    results = [executor.submit(grow).result() for _ in range(3)]
assert results == [(1, 1)] * 3, results
assert (count, values) == (0, [])
print("fine")
"""
    assert see.run_script(cluster, tmp_path / "program.py", source) == "fine\n"


def test_a_redefined_class_and_function(cluster: LocalCluster, tmp_path: Path) -> None:
    """What happens all the time in a notebook."""
    source = """
from cwmp import ClusterExecutor
executor = ClusterExecutor()
for value in (1, 2):
    exec(f'''
class Thing:
    def value(self): return {value}
def function(thing): return thing.value() * 10 + {value}
''')
    assert executor.submit(function, Thing()).result() == value * 11
    result = executor.submit(Thing).result()
    assert isinstance(result, Thing) and result.value() == value
Thing.value = lambda self: 3
assert executor.submit(lambda: Thing().value()).result() == 3
executor.shutdown()
print("fine")
"""
    assert see.run_script(cluster, tmp_path / "program.py", source) == "fine\n"


@pytest.mark.parametrize("how", ["-c", "-"])
def test_code_that_is_in_no_file(cluster: LocalCluster, tmp_path: Path, how: str) -> None:
    code = (
        "from cwmp import ClusterExecutor as E\nwith E() as e: print(e.submit(lambda n: n + 1, 1).result())"
    )
    runner = f"""
import subprocess, sys
arguments, text = (["-c", {code!r}], None) if {how!r} == "-c" else (["-"], {code!r})
program = [sys.executable, *arguments]
print(subprocess.run(program, input=text, capture_output=True, text=True, check=True).stdout)
"""
    assert see.run_script(cluster, tmp_path / "runner.py", runner) == "2\n\n"
