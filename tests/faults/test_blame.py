"""What `WorkerLost` tells of each attempt: whether it was the kernel's doing, and the slot's last words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from cwmp import LocalCluster, WorkerLost
from cwmp.oom import find_counter
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

WAIT_S = 60.0
pytestmark = pytest.mark.core


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as running:
        yield running


def lost(cluster: LocalCluster, *call: object) -> WorkerLost:
    """How a job ends that kills its slot each time."""
    with cluster.executor() as executor:
        error = executor.submit(*call).exception(WAIT_S)  # type: ignore[arg-type]
    assert isinstance(error, WorkerLost)
    assert len(error.attempts) == 3
    return error


# --- last words -----------------------------------------------------------------------------


def test_last_lines_of_standard_error(cluster: LocalCluster) -> None:
    error = lost(cluster, jobs.print_and_die, "about to die", signal.SIGABRT)
    for attempt in error.attempts:
        assert attempt["stderr"].startswith("about to die\nraw words")
        assert "killed by SIGABRT" in attempt["cause"]
    assert str(error).count("\n    | about to die\n    | raw words\n") == 3


def test_a_crash_in_a_library_tells_the_calls_that_led_to_it(cluster: LocalCluster) -> None:
    error = lost(cluster, jobs.read_address_zero)
    for attempt in error.attempts:
        assert attempt["signal"] == signal.SIGSEGV
        assert attempt["stderr"].startswith("Fatal Python error: Segmentation fault\n")
        assert "in read_address_zero\n" in attempt["stderr"] + "\n"
        assert "slot.py" not in attempt["stderr"]


def test_a_silent_death_has_no_words_of_the_job_before(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        executor.submit(jobs.print_to_stderr, "of another job").result(WAIT_S)
        executor.submit(jobs.nap, 0.1).result(WAIT_S)
    error = lost(cluster, jobs.raise_signal, signal.SIGKILL)
    assert {attempt["stderr"] for attempt in error.attempts} == {""}
    assert {attempt["oom"] for attempt in error.attempts} <= {False, None}


FLOODS = """
import sys, threading
from cwmp import LocalCluster
from tests.faults import jobs

with LocalCluster(2) as cluster, cluster.executor() as executor:
    flood = executor.submit(jobs.flood_stderr, 64)
    print(sum(executor.map(jobs.add, range(2000))), flush=True)
    print(flood.result(), flush=True)
"""


def test_a_job_that_prints_much_delays_nobody_and_all_of_it_comes_out(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """64 MiB, of which the program's reader takes nothing until the other jobs are done."""
    with see.Script(cluster, tmp_path / "floods.py", FLOODS) as script:
        assert int(script.line()) == sum(range(1, 2001))
        ended = script.end(WAIT_S)
    assert len(ended.stderr) == int(ended.succeeded())
    assert set(ended.stderr.splitlines()) == {"flood " * 170}


STALLS = """
import signal
from cwmp import LocalCluster
from tests.faults import jobs

with LocalCluster(2) as cluster, cluster.executor() as executor:
    flood = executor.submit(jobs.flood_stderr, 1)
    killers = [executor.submit(jobs.raise_signal, signal.SIGKILL) for _ in range(5)]
    print(sum(len(killer.exception().attempts) for killer in killers), flush=True)
    flood.result()
"""


def test_a_worker_whose_standard_error_nobody_reads_works_on(cluster: LocalCluster, tmp_path: Path) -> None:
    """It has something to say of each slot that dies, while a job has filled the pipe."""
    with see.Script(cluster, tmp_path / "stalls.py", STALLS) as script:
        assert int(script.line()) == 15
        script.end(WAIT_S).succeeded()


DAEMON = """
import os, subprocess, sys, time
from cwmp import LocalCluster

def leave_a_writer():
    code = "import os, sys, time; time.sleep(0.3); os.write(2, b'late words'); sys.exit()"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    os._exit(1)

with LocalCluster(1) as cluster, cluster.executor() as executor:
    assert "died" in str(executor.submit(leave_a_writer).exception())
    time.sleep(60)
"""


def test_a_process_that_outlives_its_slot_can_still_print(cluster: LocalCluster, tmp_path: Path) -> None:
    with see.Script(cluster, tmp_path / "daemon.py", DAEMON) as script:
        assert script.process.stderr is not None
        seen = ""
        while "late words" not in seen and len(seen) < 10_000:
            seen += script.process.stderr.read(1)
        assert seen.endswith("late words")


# --- out of memory --------------------------------------------------------------------------


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A cgroup with so much memory; the test is skipped where we cannot make one."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"cwmp-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a memory cgroup: {error}")
    try:
        try:
            limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
            limit.write_text(str(limit_bytes))
            swap = group / ("memory.memsw.limit_in_bytes" if version_1 else "memory.swap.max")
            if swap.exists():
                swap.write_text(str(limit_bytes) if version_1 else "0")
        except OSError as error:
            pytest.skip(f"cannot limit the memory of a cgroup: {error}")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), timeout_s=see.SOON_S)
        group.rmdir()


@contextlib.contextmanager
def worker_within(cluster: LocalCluster, group: Path) -> Iterator[None]:
    """One more worker, of one slot, in that cgroup."""
    command = [sys.executable, "-m", "cwmp", "worker", cluster.address, "--procs", "1"]
    enter = f'echo $$ >{group}/cgroup.procs && exec "$@"'
    worker = subprocess.Popen(
        ["sh", "-c", enter, "sh", *command],
        env={**os.environ, "CWMP_AUTHKEY": cluster.authkey.decode()},
        cwd=see.ROOT,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: worker.pid in [known["pid"] for known in see.status(cluster)["workers"]])
        yield
    finally:
        worker.terminate()
        worker.wait()


def test_a_job_that_takes_more_memory_than_its_cgroup_has(tmp_path: Path) -> None:
    with memory_group(200 << 20) as group, LocalCluster(1) as cluster:
        os.kill(cluster.pids["workers"][0], signal.SIGKILL)
        wait_until(lambda: not see.status(cluster)["workers"])
        with worker_within(cluster, group):
            error = lost(cluster, jobs.fill_memory, 400)
            by_hand = lost(cluster, jobs.raise_signal, signal.SIGKILL)
    for attempt in error.attempts:
        assert attempt["oom"] is True
        assert attempt["cause"] == "killed by SIGKILL, by the kernel's out-of-memory killer"
        assert 100 << 20 < attempt["peak_rss_bytes"] < 250 << 20
    assert [attempt["oom"] for attempt in by_hand.attempts] == [False] * 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has these counters")
def test_this_machine_has_a_counter() -> None:
    assert find_counter(Path("/proc/self/cgroup").read_text()) is not None
