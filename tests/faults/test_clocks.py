"""The wall clock of every process of a cluster is set by hours, forth and back, and nothing changes.

What Python's modules tell is moved (see tests/clock): nobody but root could set the clock itself, and
libfaketime cannot move it without the clock that `time.sleep` goes by from Python 3.11 on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import processes as see

pytestmark = pytest.mark.core

PROGRAM = """
import concurrent.futures, os, signal, sys, time
from cwmp import ClientThread, LocalCluster, WorkerLost
from tests.faults import jobs
from tests.faults import processes as see

clock = os.environ["CWMP_TEST_CLOCK"]
began, wall = time.monotonic(), time.time()

def tell_time():
    return time.time()

def jump(hours):
    with open(clock + ".new", "w") as file:
        file.write(f"{hours * 3600:+d}")
    os.rename(clock + ".new", clock)
    assert abs(time.time() - wall - hours * 3600) < 60, "the clock was not set"

with LocalCluster(2) as cluster, cluster.executor() as executor:
    assert executor.submit(tell_time).result(30) - wall < 60
    workers = see.status(cluster)["workers"]
    for hours in (5, -7, 12, 0):
        running = [executor.submit(jobs.nap, 1.0, n) for n in range(2)]
        queued = executor.map(jobs.add, range(200))
        large = executor.submit(len, bytes(1 << 20))
        wait = executor.submit(jobs.nap, 0.1)
        jump(hours)
        assert abs(executor.submit(tell_time).result(30) - wall - hours * 3600) < 60, "not for the jobs"
        assert [future.result(30) for future in running] == [0, 1]
        assert sum(queued) == sum(range(1, 201))
        assert large.result(30) == 1 << 20
        killed = executor.submit(jobs.raise_signal, signal.SIGKILL).exception(30)
        assert isinstance(killed, WorkerLost) and len(killed.attempts) == 3
        done = []
        with cluster.client(lambda jobid, result: done.append(result)) as client:
            for n in range(100):
                client.submit(n, jobs.add, n)
        assert sorted(done) == list(range(1, 101))
        slow = executor.submit(jobs.nap, 2.0)
        try:
            slow.result(0.5)
            raise AssertionError("too late")
        except concurrent.futures.TimeoutError:
            pass
        slow.result(30)
    time.sleep(3)  # a few beats and sweeps
    now = see.status(cluster)
    assert [known["id"] for known in now["workers"]] == [known["id"] for known in workers], "none was lost"
    assert now["workers"][0]["silent_s"] < 10 and 0 <= now["workers"][0]["idle_s"] < 60
print("took", time.monotonic() - began)
"""


def test_a_clock_that_jumps_by_hours_changes_nothing(tmp_path: Path) -> None:
    clock, program = tmp_path / "clock", tmp_path / "program.py"
    clock.write_text("+0")
    program.write_text(PROGRAM)
    environment = {
        **os.environ,
        "CWMP_TEST_CLOCK": str(clock),
        "PYTHONPATH": f"{see.ROOT / 'tests' / 'clock'}{os.pathsep}{see.ROOT}",
    }
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split()[1]) < 60
