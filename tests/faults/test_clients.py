"""What becomes of a cluster and of a program when the program is killed, interrupted, forked or done."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Iterator

import pytest

from cwmp import LocalCluster
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0
INTERRUPT_S = 5.0  # stated: 2 s; the rest is for a busy machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        wait_until(lambda: len(see.slots_of(cluster.pids["workers"][0])) == 2, timeout_s=WAIT_S)
        yield cluster


@pytest.fixture
def gate(cluster: LocalCluster, tmp_path: Path) -> Iterator[see.Gate]:
    """What ends the jobs that tests leave running."""
    with see.Gate(cluster, tmp_path) as gate:
        yield gate


@pytest.fixture(autouse=True)
def unharmed(cluster: LocalCluster) -> Iterator[None]:
    """After each test the cluster has the same processes, no client, no job, and works."""
    before = see.family(cluster)
    yield
    see.wait_for_clients(cluster, 0)
    wait_until(
        lambda: (see.jobs(cluster)["queued"], see.jobs(cluster)["running"]) == (0, 0),
        timeout_s=WAIT_S,
        describe=lambda: str(see.jobs(cluster)),
    )
    with cluster.executor() as executor:
        assert list(executor.map(jobs.add, range(50))) == list(range(1, 51))
    assert see.family(cluster) == before


HELD = """
import os, sys, time
from cwmp import ClientThread, ClusterExecutor
from tests.faults import jobs

begun, opened, never = sys.argv[1:]

def submit_all(submit):
    for n in range(2):
        submit(("held", n), jobs.begin_and_wait, begun, opened)
    while not (os.path.exists(begun) and len(open(begun).readlines()) == 2):
        time.sleep(0.01)
    for n in range(100):
        submit(n, jobs.note, never, "ran")
    print("submitted", flush=True)
"""

EXECUTOR = """
executor = ClusterExecutor()
submit_all(lambda jobid, *call: executor.submit(*call))
"""

ENDINGS = {
    "executor": EXECUTOR + "time.sleep(600)",
    "executor in a block": """
with ClusterExecutor() as executor:
    submit_all(lambda jobid, *call: executor.submit(*call))
    time.sleep(600)
""",
    "executor at the end of its block": """
with ClusterExecutor() as executor:
    submit_all(lambda jobid, *call: executor.submit(*call))
""",
    "executor at the end of the program": EXECUTOR,
    "executor waiting for a result": EXECUTOR + "executor.submit(jobs.nothing).result()",
    "executor in map": """
with ClusterExecutor() as executor:
    submit_all(lambda jobid, *call: executor.submit(*call))
    list(executor.map(jobs.add, range(1000)))
""",
    "client in a block": """
with ClientThread(print) as client:
    submit_all(client.submit)
    time.sleep(600)
""",
    "client at the end of its block": """
with ClientThread(print) as client:
    submit_all(client.submit)
""",
    "client in wait": """
client = ClientThread(print)
client.start()
submit_all(client.submit)
client.wait()
""",
    "client with on_error": """
with ClientThread(print, on_error=lambda jobid, error: None) as client:
    submit_all(client.submit)
""",
}


def start(cluster: LocalCluster, tmp_path: Path, gate: see.Gate, ending: str) -> see.Script:
    """A program, once both slots run jobs of it and 100 others wait at the master."""
    script = see.Script(cluster, tmp_path / "program.py", HELD + ending, *gate.paths, str(tmp_path / "never"))
    try:
        assert script.line() == "submitted", script.end().stderr
        wait_until(
            lambda: see.jobs(cluster)["queued"] >= 100,
            timeout_s=WAIT_S,
            describe=lambda: str(see.status(cluster)),
        )
    except BaseException:
        script.__exit__()
        raise
    return script


@pytest.mark.parametrize("ending", ["executor", "client in wait"])
def test_a_killed_client(cluster: LocalCluster, tmp_path: Path, gate: see.Gate, ending: str) -> None:
    with start(cluster, tmp_path, gate, ENDINGS[ending]) as script:
        script.process.kill()
        see.wait_for_clients(cluster, 0)
        assert see.jobs(cluster)["queued"] == 0
        assert see.jobs(cluster)["running"] == 2, "what runs may end"
    with cluster.executor() as executor:
        future = executor.submit(jobs.add, 1)
        gate.open()
        assert future.result(WAIT_S) == 2
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c(cluster: LocalCluster, tmp_path: Path, gate: see.Gate, ending: str) -> None:
    with start(cluster, tmp_path, gate, ENDINGS[ending]) as script:
        if ending == "executor at the end of the program":
            assert script.process.stderr is not None
            assert "cwmp: waiting for 102 open jobs" in script.process.stderr.readline()
        begun = time.monotonic()
        script.process.send_signal(signal.SIGINT)
        ended = script.end(INTERRUPT_S)
        assert time.monotonic() - begun < INTERRUPT_S
    if ending != "executor at the end of the program":
        assert ended.status == -signal.SIGINT, ended.stderr
        assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    see.wait_for_clients(cluster, 0)
    assert see.jobs(cluster)["queued"] == 0
    gate.open()
    assert not (tmp_path / "never").exists()


def test_ctrl_c_that_the_program_catches(cluster: LocalCluster, tmp_path: Path, gate: see.Gate) -> None:
    ending = """
try:
    with ClusterExecutor() as executor:
        submit_all(lambda jobid, *call: executor.submit(*call))
        time.sleep(600)
except KeyboardInterrupt:
    print("caught", flush=True)
with ClusterExecutor() as other:
    print(other.submit(jobs.add, 1).result())
"""
    with start(cluster, tmp_path, gate, ending) as script:
        script.process.send_signal(signal.SIGINT)
        assert script.line() == "caught"
        gate.open()
        assert script.end().succeeded() == "2\n"


# --- the end of a program -------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from concurrent.futures import wait
from cwmp import ClientThread, ClusterExecutor
from tests.faults import jobs

executor = ClusterExecutor()
"""


def ends(cluster: LocalCluster, tmp_path: Path, source: str) -> str:
    """What a program prints that must end by itself."""
    return see.run_script(cluster, tmp_path / "program.py", PROGRAM + source)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "executor.submit(jobs.nothing).result()",
        "executor.submit(jobs.nothing)",
        "future = executor.submit(jobs.nap, 0.3)",
        "futures = [executor.submit(jobs.nothing) for _ in range(2000)]",
        "executor.shutdown(wait=False)",
        "executor.submit(jobs.nap, 0.3); executor.shutdown(wait=False)",
        "executor.submit(jobs.nap, 0.3); del executor",
        "results = executor.map(jobs.add, range(10)); next(results)",
        "cycle = [executor]; cycle.append(cycle); del executor",
        "executor.submit(jobs.raise_value_error)",
        "client = ClientThread(print); client.start()",
        "client = ClientThread(lambda *_: None); client.start(); client.submit(1, jobs.nap, 0.3)",
        "sys.modules['__main__'].__dict__.clear()",
        "others = [ClusterExecutor() for _ in range(5)]",
        "import threading; threading.Thread(target=lambda: executor.submit(jobs.nap, 0.3).result()).start()",
        "import atexit; atexit.register(lambda: executor.shutdown())",
    ],
)
def test_a_program_ends(cluster: LocalCluster, tmp_path: Path, source: str) -> None:
    assert ends(cluster, tmp_path, source) == ""


def test_open_jobs_are_waited_for_and_call_back(cluster: LocalCluster, tmp_path: Path) -> None:
    source = """
def slow(future):
    time.sleep(0.3)
    print("called back with", future.result(), flush=True)

executor.submit(jobs.nap, 0.3, "a value").add_done_callback(slow)
"""
    assert ends(cluster, tmp_path, source) == "called back with a value\n"


def test_a_program_that_fails_drops_its_jobs(cluster: LocalCluster, tmp_path: Path, gate: see.Gate) -> None:
    source = HELD + EXECUTOR + "raise ValueError('wrong')"
    with see.Script(cluster, tmp_path / "program.py", source, *gate.paths, str(tmp_path / "never")) as script:
        assert script.line() == "submitted"
        ended = script.end(INTERRUPT_S)
    assert ended.status == 1
    assert ended.stderr.rstrip().endswith("ValueError: wrong")
    see.wait_for_clients(cluster, 0)
    gate.open()
    assert not (tmp_path / "never").exists()


# --- programs that fork ---------------------------------------------------------------------


def test_a_forked_copy_that_ends_leaves_the_original_alone(cluster: LocalCluster, tmp_path: Path) -> None:
    source = """
future = executor.submit(jobs.nap, 0.5, "of the original")
copy = os.fork()
if copy == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))
print(future.result(), executor.submit(jobs.add, 1).result())
"""
    assert ends(cluster, tmp_path, source) == "7\nof the original 2\n"


def test_processes_of_the_multiprocessing_module_leave_it_alone(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    source = """
import multiprocessing
client = ClientThread(lambda jobid, result: print(jobid, result, flush=True))
client.start()
context = multiprocessing.get_context("fork")
for n in range(3):
    process = context.Process(target=abs, args=(n,))
    process.start()
    process.join()
    client.submit(n, jobs.add, n)
    client.wait()
client.stop()
"""
    assert ends(cluster, tmp_path, source) == "0 1\n1 2\n2 3\n"


def test_a_killed_client_with_a_copy_that_lives_on(
    cluster: LocalCluster, tmp_path: Path, gate: see.Gate
) -> None:
    """The copy holds the connections open; the master cannot tell, until it ends too."""
    ending = (
        EXECUTOR
        + """
copy = os.fork()
if copy:
    print(copy, flush=True)
time.sleep(600)
"""
    )
    with start(cluster, tmp_path, gate, ending) as script:
        copy = int(script.line())
        try:
            script.process.kill()
            script.process.wait()
            assert not see.is_gone(copy)
        finally:
            os.kill(copy, signal.SIGKILL)
        see.wait_for_clients(cluster, 0)
