"""LocalCluster for real: it works at once, and nothing of it stays, however its program ends."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import psutil
import pytest

import cwmp
from cwmp import LocalCluster, children, rendezvous
from cwmp.cli.status import ask
from cwmp.encryption import Encryption
from cwmp.errors import CwmpError, UsageError

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 10.0  # a cluster must have ended by then; it takes a few milliseconds on an idle machine


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CWMP_HOME of the test's own, and no other setting from outside."""
    for name in ("CWMP_MASTER", "CWMP_NAME", "CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CWMP_HOME", str(tmp_path / "cwmp"))
    return tmp_path / "cwmp"


def square(x: int) -> int:
    return x * x


def pids_of(cluster: LocalCluster) -> List[int]:
    """Master, workers, and what the workers started: slots and their guardian."""
    workers = cluster.pids["workers"]
    slots = [child.pid for worker in workers for child in psutil.Process(worker).children(recursive=True)]
    return [cluster.pids["master"], *workers, *slots]


def assert_gone(pids: List[int], *, since: float) -> None:
    """All of them end within GONE_S of `since`; otherwise the rest is killed and named."""
    left = pids
    while left and time.monotonic() < since + GONE_S:
        left = [pid for pid in left if rendezvous.process_birth(pid) is not None]
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


# --- what it offers -------------------------------------------------------------------------


def test_it_runs_jobs_and_leaves_nothing(own_home: Path) -> None:
    with LocalCluster(2) as cluster:
        pids = pids_of(cluster)
        assert len(pids) >= 4
        with cluster.executor() as executor:
            assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
        results: Dict[Any, Any] = {}
        with cluster.client(results.__setitem__) as client:
            client.submit("job", square, 7)
        assert results == {"job": 49}
    assert_gone(pids, since=time.monotonic())
    assert not own_home.exists(), "a private cluster writes no file"


def test_address_and_key_are_what_other_programs_need() -> None:
    with LocalCluster(1) as cluster:
        assert isinstance(cluster.authkey, bytes)
        with cwmp.ClusterExecutor(cluster.address, authkey=cluster.authkey) as executor:
            assert executor.submit(square, 3).result(timeout=30) == 9


@pytest.mark.parametrize(("n", "workers", "slots"), [(1, 1, [1]), (3, 2, [1, 2]), (3, 3, [1, 1, 1])])
def test_slots_are_spread_evenly(n: int, workers: int, slots: List[int]) -> None:
    with LocalCluster(n, workers=workers) as cluster:
        host, port = rendezvous.parse_address(cluster.address)
        assert port is not None
        shown = ask(host, port, cluster.authkey, Encryption())["workers"]
        assert sorted(worker["slots"] for worker in shown) == slots
        assert sorted(worker["pid"] for worker in shown) == sorted(cluster.pids["workers"])


@pytest.mark.parametrize(
    ("n", "workers", "reason"),
    [
        (0, 1, "n must be a whole number from 1 up, not 0"),
        (-1, 1, "n must be"),
        (2.0, 1, "n must be"),
        ("2", 1, "n must be"),
        (2, 0, "workers must be"),
        (2, 3, "3 workers cannot share 2 slots"),
    ],
)
def test_bad_numbers(n: Any, workers: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        LocalCluster(n, workers=workers)


def test_it_tells_when_it_does_not_run() -> None:
    cluster = LocalCluster(1)
    for use in (lambda: cluster.address, lambda: cluster.authkey, lambda: cluster.pids, cluster.executor):
        with pytest.raises(UsageError, match="not running"):
            use()
    with cluster, pytest.raises(UsageError, match="running already"):
        cluster.start()
    with pytest.raises(UsageError, match="not running"):
        cluster.executor()


def test_stop_may_be_called_often_and_start_again() -> None:
    cluster = LocalCluster(1)
    cluster.stop()
    first = cluster.start().authkey
    cluster.stop()
    cluster.stop()
    with cluster:
        assert cluster.authkey != first


def test_the_key_is_in_no_command_line_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_AUTHKEY", "another secret")
    with LocalCluster(1) as cluster:
        for pid in pids_of(cluster):
            process = psutil.Process(pid)
            seen = " ".join(process.cmdline()) + " ".join(process.environ().values())
            assert cluster.authkey.decode() not in seen
            assert "another secret" not in seen


def test_modules_in_the_working_directory_are_not_taken_for_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("selectors", "types", "argparse", "json", "cwmp"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not me')")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with LocalCluster(1):
        pass


# --- how it ends ----------------------------------------------------------------------------


def test_it_ends_with_its_last_reference() -> None:
    cluster = LocalCluster(1).start()
    pids = pids_of(cluster)
    del cluster
    gc.collect()
    assert_gone(pids, since=time.monotonic())


def test_a_worker_that_was_stopped_cannot_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "STOP_S", 0.2)
    with LocalCluster(1) as cluster:
        pids = pids_of(cluster)
        os.kill(cluster.pids["workers"][0], signal.SIGSTOP)
    assert_gone(pids, since=time.monotonic())


def test_a_master_that_was_killed_cannot_hold_the_end_up() -> None:
    with LocalCluster(1) as cluster:
        pids = pids_of(cluster)
        os.kill(cluster.pids["master"], signal.SIGKILL)
    assert_gone(pids, since=time.monotonic())


@contextlib.contextmanager
def program(source: str, **options: Any) -> Iterator[Tuple[subprocess.Popen[str], List[int]]]:
    """A program in a process group of its own that has a cluster and printed its pids."""
    code = """\
        import os, signal, sys, time, psutil
        from cwmp import LocalCluster

        def show(cluster):
            [worker] = cluster.pids["workers"]
            slots = [child.pid for child in psutil.Process(worker).children(recursive=True)]
            print(cluster.pids["master"], worker, *slots, flush=True)

        def start():
            cluster = LocalCluster(1).start()
            show(cluster)
            return cluster
        """
    code = textwrap.dedent(code) + textwrap.dedent(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        **options,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


WAIT = """
cluster = start()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("source", "end"),
    [
        pytest.param("cluster = start()", None, id="it just ends"),
        pytest.param("cluster = start(); raise SystemExit(3)", None, id="it exits"),
        pytest.param("cluster = start(); os._exit(3)", None, id="it exits without clean-up"),
        pytest.param(WAIT, signal.SIGKILL, id="it is killed"),
        pytest.param(WAIT, signal.SIGTERM, id="it is terminated"),
        pytest.param(WAIT, signal.SIGINT, id="it is interrupted"),
        pytest.param(
            "pid = os.fork() or time.sleep(60)\n" + WAIT, signal.SIGKILL, id="a fork from before lives on"
        ),
    ],
)
def test_it_ends_with_its_program(source: str, end: Any) -> None:
    with program(source, stderr=subprocess.DEVNULL) as (process, pids):
        assert len(pids) >= 3
        if end is not None:
            process.send_signal(end)
        process.wait(GONE_S)
        assert_gone(pids, since=time.monotonic())


def test_a_fork_of_the_program_does_not_keep_it_alive() -> None:
    source = """
        cluster = start()
        if os.fork() == 0:
            time.sleep(60)
        time.sleep(60)
    """
    with program(source) as (process, pids):
        process.kill()
        process.wait(GONE_S)
        assert_gone(pids, since=time.monotonic())


def test_a_fork_of_the_program_does_not_end_it() -> None:
    source = """
        cluster = start()
        pid = os.fork()
        if pid == 0:
            cluster.stop()
            sys.exit()  # clean-up runs in the copy, too
        os.waitpid(pid, 0)
        print(cluster.executor().submit(abs, -5).result(), flush=True)
        cluster.stop()
    """
    with program(source) as (process, pids):
        assert process.stdout is not None
        assert process.stdout.readline() == "5\n"
        process.wait(GONE_S)
        assert_gone(pids, since=time.monotonic())


def test_ctrl_c_is_for_the_program_alone() -> None:
    source = """
        try:
            cluster = LocalCluster(1).start()
            show(cluster)
            time.sleep(60)
        except KeyboardInterrupt:
            print(cluster.executor().submit(abs, -5).result(), flush=True)
    """
    with program(source) as (process, pids):
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "5\n"
        process.wait(GONE_S)
        assert_gone(pids, since=time.monotonic())


def test_what_jobs_print_is_seen_on_standard_error() -> None:
    source = """
        cluster = start()
        cluster.executor().submit(os.write, 1, b"hello from a job\\n").result()
        cluster.stop()
    """
    with program(source, stderr=subprocess.PIPE) as (process, _):
        assert process.communicate(timeout=GONE_S) == ("", "hello from a job\n")
        assert process.returncode == 0


def test_it_works_with_standard_streams_closed() -> None:
    source = """
        cluster = start()
        os.close(0), os.close(2)
        second = LocalCluster(1).start()
        print(second.executor().submit(abs, -5).result(), flush=True)
        second.stop()
    """
    with program(source) as (process, pids):
        assert process.stdout is not None
        assert process.stdout.readline() == "5\n"
        process.wait(GONE_S)
        assert_gone(pids, since=time.monotonic())


# --- when it does not start -----------------------------------------------------------------


def impostor(path: Path, source: str) -> Path:
    """A program to be started in the place of ours; `say(line)` is its ready line."""
    head = "import os, sys, time\nsay = lambda line: os.write(int(sys.argv[-1]), line.encode())\n"
    path.write_text(head + textwrap.dedent(source))
    return path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("sys.exit(3)", "the master ended with status 3 before it was ready"),
        ("os.kill(os.getpid(), 9)", "the master ended with status -9 before it was ready"),
        ("say('cwmp-master: no room\\n'); sys.exit(1)", "cwmp-master: no room"),
        ("time.sleep(60)", "the master was not ready within 0.5 s"),
        (
            "if sys.argv[1] == 'worker': sys.exit(4)\nsay('listening on 127.0.0.1:1 \\n')\ntime.sleep(60)",
            "the worker ended with status 4 before it was ready",
        ),
    ],
)
def test_a_failed_start_tells_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.setattr(children, "_MAIN", impostor(tmp_path / "impostor.py", source))
    monkeypatch.setattr(children, "START_S", 0.5)
    before = psutil.Process().children()
    with pytest.raises(CwmpError, match=reason):
        LocalCluster(1).start()
    assert psutil.Process().children() == before


def test_an_interrupted_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(children.Child, "wait_ready", interrupted)
    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        LocalCluster(2, workers=2).start()
    assert psutil.Process().children() == before


def test_no_descriptor_is_left() -> None:
    def count() -> int:
        return psutil.Process().num_fds()

    with LocalCluster(1):
        pass
    before = count()
    with LocalCluster(2, workers=2):
        pass
    assert count() == before
