"""The commands as users type them: real processes, their lines, exit statuses, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import psutil
import pytest

from cwmp import ClusterExecutor, addresses, background, rendezvous
from cwmp.encryption import Encryption

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 15.0  # every step takes a fraction of a second on an idle machine


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CWMP_HOME of the test's own, and no other setting from outside."""
    for name in ("CWMP_MASTER", "CWMP_NAME", "CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CWMP_HOME", str(tmp_path / "cwmp"))
    return tmp_path / "cwmp"


def square(x: int) -> int:
    return x * x


class Running:
    """A command that runs, with pipes for its three standard streams."""

    def __init__(self, command: str, *arguments: str, env: Optional[Dict[str, str]] = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / command), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            start_new_session=True,  # so that its whole group can be signalled, and this one is not
        )
        self.pid = self.process.pid

    def line(self, stream: str = "stdout") -> str:
        """The next line of that stream, without its end."""
        file: Any = getattr(self.process, stream)
        data = b""
        deadline = time.monotonic() + SOON_S
        with selectors.DefaultSelector() as selector:
            selector.register(file, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                assert selector.select(deadline - time.monotonic()), f"no line in {SOON_S} s, only {data!r}"
                byte = file.read(1)
                assert byte, f"it ended after {data!r}"
                data += byte
        return data.decode().rstrip("\n")

    def ends(self, *, status: int) -> str:
        """Wait for its end with that status; returns what it still wrote to standard error."""
        assert self.process.stderr is not None
        self.process.wait(SOON_S)
        errors: str = self.process.stderr.read().decode()
        assert self.process.returncode == status, errors
        return errors

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert file is not None
            file.close()
        self.process.wait()


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Start a command: `run("cwmp-master", "--port", "0")`; it has ended when the test has."""
    with contextlib.ExitStack() as cleanup:

        def start(command: str, *arguments: str, **options: Any) -> Running:
            running = Running(command, *arguments, **options)
            cleanup.callback(running.close)
            return running

        yield start


def done(command: str, *arguments: str, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that has run to its end with that exit status."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "bin" / command), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )
    assert result.returncode == status, result
    return result


def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {SOON_S} s: {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return rendezvous.process_birth(pid) is None


def port_in(line: str) -> int:
    """The port in a line such as "… HOST:PORT (cluster …"."""
    match = re.search(r":(\d+) \(cluster ", line)
    assert match, line
    return int(match[1])


def files_in(home: Path) -> List[str]:
    """The files under it, but for the key and the (empty) locks, which stay."""
    paths = (path.relative_to(home) for path in home.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.name != "authkey" and path.suffix != ".lock")


# --- cwmp-master ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_master_says_where_it_listens_and_stops_when_told(
    run: Callable[..., Running], own_home: Path, number: signal.Signals
) -> None:
    master = run("cwmp-master", "--port", "0", "--name", "night")
    line = master.line()
    port = port_in(line)
    assert line == f"cwmp-master: listening on {platform.node()}:{port} (cluster night, pid {master.pid})"
    socket.create_connection(("127.0.0.1", port), timeout=SOON_S).close()
    assert files_in(own_home) == ["clusters/night.json"]
    master.process.send_signal(number)
    kept = r"cwmp-master: keeping up to \d+\.\d GiB of large values in \S+\n"
    caution = Encryption().caution("0.0.0.0")  # with an older Python
    told = f"cwmp-master: {re.escape(caution)}\n" if caution else ""
    allowed = r"cwmp-master: the limit of [\d,]+ descriptors allows [\d,]+ workers and clients\n"
    assert re.fullmatch(told + kept + allowed, master.ends(status=0))
    assert files_in(own_home) == []


def test_master_on_one_address_says_that(run: Callable[..., Running]) -> None:
    assert "listening on 127.0.0.1:" in run("cwmp-master", "--host", "127.0.0.1", "--port", "0").line()


def test_master_on_one_interface(run: Callable[..., Running]) -> None:
    [loopback] = [name for name, listed in addresses.interfaces().items() if "127.0.0.1" in listed]
    assert "listening on 127.0.0.1:" in run("cwmp-master", "--interface", loopback, "--port", "0").line()
    result = done("cwmp-master", "--interface", "none0", "--port", "0", status=2)
    assert "no interface 'none0' with an address here" in result.stderr
    assert f"{loopback} (127.0.0.1)" in result.stderr


def test_master_on_every_interface_publishes_their_addresses(run: Callable[..., Running]) -> None:
    start_master(run)
    [cluster] = rendezvous.clusters()
    assert cluster.addresses == addresses.reachable("", addresses.interfaces())


def test_unlisted_master_publishes_nothing(run: Callable[..., Running], own_home: Path) -> None:
    master = run("cwmp-master", "--port", "0", "--unlisted", "--authkey", "secret")
    master.line()
    assert not own_home.exists()


def test_two_masters_cannot_have_one_name(run: Callable[..., Running]) -> None:
    first = run("cwmp-master", "--port", "0")
    first.line()
    result = done("cwmp-master", "--port", "0", status=1)
    assert result.stdout == ""
    assert result.stderr.startswith("cwmp-master: cluster 'default' already runs on ")
    assert f"pid {first.pid}" in result.stderr
    assert result.stderr.count("\n") == 1
    run("cwmp-master", "--port", "0", "--name", "other").line()


def test_a_killed_master_does_not_keep_its_name(run: Callable[..., Running], own_home: Path) -> None:
    for name in ("default", "other"):
        first = run("cwmp-master", "--port", "0", "--name", name)
        first.line()
        first.process.kill()
        first.process.wait()
    run("cwmp-master", "--port", "0").line()
    assert files_in(own_home) == ["clusters/default.json"]  # that of `other` is swept as well


def test_a_port_in_use_is_told_in_one_line(own_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = done("cwmp-master", "--host", "127.0.0.1", "--port", port, status=1)
    assert result.stderr.startswith(f"cwmp-master: cannot listen on 127.0.0.1:{port}: ")
    assert result.stderr.count("cannot listen") == 1
    assert "in use" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files_in(own_home) == []


def test_an_address_of_another_machine_is_told_in_one_line() -> None:
    result = done("cwmp-master", "--host", "192.0.2.1", "--port", "0", status=1)
    assert result.stderr.count("\n") == 1


def test_master_on_a_leash_ends_with_standard_input(run: Callable[..., Running], own_home: Path) -> None:
    master = run("cwmp-master", "--host", "127.0.0.1", "--port", "0", "--leash", "--authkey-file", "-")
    master.process.stdin.write(b"secret\n")
    port = port_in(master.line())
    done("cwmp-status", f"127.0.0.1:{port}", "--authkey", "secret")
    master.process.stdin.close()
    assert master.ends(status=0) == ""
    assert files_in(own_home) == []


# --- cwmp-worker ----------------------------------------------------------------------------


def start_master(run: Callable[..., Running], *arguments: str) -> Running:
    master = run("cwmp-master", "--port", "0", *arguments)
    master.port = port_in(master.line())
    return master


def test_worker_finds_the_cluster_runs_jobs_and_drains(run: Callable[..., Running]) -> None:
    master = start_master(run)
    worker = run("cwmp-worker", "--procs", "2")
    assert worker.line() == f"cwmp-worker: connected to 127.0.0.1:{master.port} (cluster default), 2 slots"
    with ClusterExecutor() as executor:
        assert list(executor.map(square, range(4))) == [0, 1, 4, 9]
    worker.process.terminate()
    assert worker.ends(status=0) == ""


def test_worker_tells_how_many_slots_and_why(run: Callable[..., Running]) -> None:
    start_master(run)
    worker = run("cwmp-worker", env={**os.environ, "SLURM_CPUS_PER_TASK": "1"})
    assert re.fullmatch(r"cwmp-worker: --procs auto: .*SLURM_CPUS_PER_TASK 1 -> 1", worker.line("stderr"))
    assert worker.line().endswith("(cluster default), 1 slot")


def test_worker_waits_for_a_master_that_is_not_published_yet(run: Callable[..., Running]) -> None:
    worker = run("cwmp-worker", "--procs", "1", "--name", "night", "--wait", "30")
    line = worker.line("stderr")
    assert line.startswith("cwmp-worker: waiting up to 30 s for a master of cluster 'night': no cluster ")
    start_master(run, "--name", "night")
    assert "(cluster night)" in worker.line()


def test_worker_waits_for_a_master_at_an_address(run: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = run("cwmp-worker", f"127.0.0.1:{port}", "--procs", "1", "--authkey", "secret")
    assert f"127.0.0.1:{port}" in worker.line("stderr")
    run("cwmp-master", "--host", "127.0.0.1", "--port", str(port), "--authkey", "secret").line()
    assert worker.line().startswith("cwmp-worker: connected to ")


@pytest.mark.parametrize("place", [["127.0.0.1:1"], ["--name", "night"]])
def test_worker_gives_up_when_no_master_comes(place: List[str]) -> None:
    result = done("cwmp-worker", *place, "--procs", "1", "--wait", "0.3", status=1)
    waiting, reason = result.stderr.splitlines()
    assert "waiting up to" in waiting
    assert reason.startswith("cwmp-worker: ")


def test_worker_told_to_stop_while_it_waits(run: Callable[..., Running]) -> None:
    worker = run("cwmp-worker", "127.0.0.1:1", "--procs", "1")
    worker.line("stderr")
    worker.process.terminate()
    worker.ends(status=0)


def test_worker_with_another_key_is_refused_and_shows_none(run: Callable[..., Running]) -> None:
    master = start_master(run)
    arguments = ("cwmp-worker", f"127.0.0.1:{master.port}", "--procs", "1", "--authkey", "wrong-secret")
    result = done(*arguments, status=1)
    assert "key" in result.stderr
    assert "wrong-secret" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_worker_tells_when_its_master_is_gone(run: Callable[..., Running]) -> None:
    master = start_master(run)
    worker = run("cwmp-worker", f"127.0.0.1:{master.port}", "--procs", "1", "--master-timeout", "1")
    worker.line()
    slots = [process.pid for process in psutil.Process(worker.pid).children(recursive=True)]
    master.process.kill()
    assert "is gone" in worker.ends(status=1)
    eventually(lambda: all(map(is_gone, slots)), "slots end")


def test_worker_that_knows_its_master_by_name_waits_for_the_next(run: Callable[..., Running]) -> None:
    master = start_master(run, "--name", "night")
    worker = run("cwmp-worker", "--name", "night", "--procs", "1", "--master-timeout", "1")
    worker.line()
    slots = [process.pid for process in psutil.Process(worker.pid).children(recursive=True)]
    master.process.kill()
    assert f"the master at 127.0.0.1:{master.port} is gone: " in worker.line("stderr")
    assert "waiting up to 1 s for a master of cluster 'night'" in worker.line("stderr")
    reason = worker.ends(status=1)
    assert f"the master at 127.0.0.1:{master.port} is gone: " in reason
    assert "no cluster named 'night' is running" in reason
    eventually(lambda: all(map(is_gone, slots)), "slots end")


def test_worker_follows_a_master_that_is_started_anew(run: Callable[..., Running]) -> None:
    first = start_master(run, "--name", "night")
    worker = run("cwmp-worker", "--name", "night", "--procs", "2")
    worker.line()
    first.process.kill()
    first.process.wait()
    second = start_master(run, "--name", "night", "--authkey", "another key this time")
    expected = f"cwmp-worker: connected to 127.0.0.1:{second.port} (cluster night), 2 slots"
    assert worker.line() == expected
    with ClusterExecutor(f"127.0.0.1:{second.port}") as executor:
        assert list(executor.map(square, range(4))) == [0, 1, 4, 9]
    worker.process.terminate()
    worker.ends(status=0)


def test_worker_told_to_stop_while_it_looks_for_the_next_master(run: Callable[..., Running]) -> None:
    master = start_master(run)
    worker = run("cwmp-worker", "--procs", "1")
    worker.line()
    master.process.kill()
    worker.line("stderr")
    worker.process.terminate()
    worker.ends(status=0)


def test_worker_on_a_leash_takes_address_and_key_from_standard_input(run: Callable[..., Running]) -> None:
    master = start_master(run, "--unlisted", "--authkey", "secret")
    worker = run("cwmp-worker", "-", "--procs", "1", "--leash", "--authkey-file", "-")
    worker.process.stdin.write(f"127.0.0.1:{master.port}\nsecret\n".encode())
    worker.line()
    worker.process.stdin.close()
    worker.ends(status=0)


# --- cwmp-status ----------------------------------------------------------------------------


def test_status_for_people_and_for_programs(run: Callable[..., Running]) -> None:
    master = start_master(run)
    worker = run("cwmp-worker", "--procs", "2")
    worker.line()
    text = done("cwmp-status").stdout
    assert text.startswith("cluster  default on ")
    assert "workers  1 with 2 slots, 0 busy" in text
    status = json.loads(done("cwmp-status", f"localhost:{master.port}", "--json").stdout)
    assert (status["pid"], status["port"]) == (master.pid, master.port)
    assert [entry["pid"] for entry in status["workers"]] == [worker.pid]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_status_into_a_pipe_that_nobody_reads(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    start_master(run)
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        command = [sys.executable, str(ROOT / "bin/cwmp-status")]
        result = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (1, b"")


def test_status_onto_a_full_disk(run: Callable[..., Running]) -> None:
    start_master(run)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, str(ROOT / "bin/cwmp-status")]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (1, b"cwmp-status: No space left on device\n")


# --- cwmp-local start, stop, status ---------------------------------------------------------


@pytest.fixture
def stopped() -> Iterator[List[str]]:
    """Names of clusters in the background that are stopped after the test, whatever it did."""
    names = ["default"]
    yield names
    for name in names:
        subprocess.run(
            [sys.executable, str(ROOT / "bin/cwmp-local"), "stop", "--name", name],
            capture_output=True,
            timeout=60,
        )


def recorded_pids(home: Path, name: str = "default") -> List[int]:
    """Master and worker as `start` recorded them, and what the worker started."""
    record = json.loads((home / "local" / f"{name}.json").read_text())
    pids = [pid for _, pid, _ in record["processes"]]
    return pids + [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]


def test_local_start_use_stop(own_home: Path, stopped: List[str]) -> None:
    started = done("cwmp-local", "-n", "2")
    assert re.fullmatch(
        r"cwmp-local: cluster default is ready on 127.0.0.1:\d+ with 2 slots .*\n", started.stdout
    )
    pids = recorded_pids(own_home)
    with ClusterExecutor() as executor:
        assert list(executor.map(square, range(4))) == [0, 1, 4, 9]
    assert "1 with 2 slots" in done("cwmp-local", "status").stdout
    assert json.loads(done("cwmp-local", "status", "--json").stdout)["name"] == "default"
    for path in own_home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    stopping = done("cwmp-local", "stop").stdout
    assert stopping.count(" stopped\n") == 2
    assert all(map(is_gone, pids))
    assert files_in(own_home) == []


def test_local_start_of_what_runs_already(own_home: Path, stopped: List[str]) -> None:
    done("cwmp-local", "start", "-n", "1")
    pids = recorded_pids(own_home)
    result = done("cwmp-local", "-n", "1", status=1)
    assert f"runs already (master pid {pids[0]}, worker pid {pids[1]})" in result.stderr
    assert result.stderr.count("\n") == 1
    assert recorded_pids(own_home) == pids


def test_local_leaves_a_master_alone_that_it_did_not_start(run: Callable[..., Running]) -> None:
    master = start_master(run)
    assert f"pid {master.pid}" in done("cwmp-local", "start", "-n", "1", status=1).stderr
    assert "was not started by cwmp-local" in done("cwmp-local", "stop", status=1).stderr
    assert not is_gone(master.pid)


def test_local_clusters_side_by_side(own_home: Path, stopped: List[str]) -> None:
    stopped += ["a", "b"]
    for name in ("a", "b"):
        done("cwmp-local", "--name", name, "-n", "1")
    a, b = recorded_pids(own_home, "a"), recorded_pids(own_home, "b")
    done("cwmp-local", "stop", "--name", "a")
    assert all(map(is_gone, a))
    assert not any(map(is_gone, b))
    done("cwmp-local", "stop", env={**os.environ, "CWMP_NAME": "b"})
    assert all(map(is_gone, b))


@pytest.mark.parametrize("victim", [0, 1])
def test_local_stop_after_a_part_was_killed(own_home: Path, stopped: List[str], victim: int) -> None:
    done("cwmp-local", "-n", "1")
    pids = recorded_pids(own_home)
    os.kill(pids[victim], signal.SIGKILL)
    eventually(lambda: is_gone(pids[victim]), "the victim ends")
    said = done("cwmp-local", "stop").stdout
    assert "had ended already" in said
    assert "the logs are kept" in said
    eventually(lambda: all(map(is_gone, pids)), "all end")
    assert files_in(own_home) == ["logs/default-master.log", "logs/default-worker.log"]
    done("cwmp-local", "-n", "1")


def test_local_stop_kills_what_does_not_react(
    own_home: Path, stopped: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done("cwmp-local", "-n", "1")
    pids = recorded_pids(own_home)
    for pid in pids[:2]:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(background, "GRACE_S", 0.1)
    monkeypatch.setattr(background, "STOP_S", 0.1)
    worker, master = background.stop("default")
    assert worker.startswith(f"worker (pid {pids[1]}) killed")
    assert master.startswith(f"master (pid {pids[0]}) killed")
    eventually(lambda: all(map(is_gone, pids)), "slots end")
    assert files_in(own_home) == []


def test_local_stop_spares_a_process_that_has_a_recorded_pid_by_chance(own_home: Path) -> None:
    record = {"node": platform.node(), "processes": [["worker", os.getpid(), 1.0]]}
    (own_home / "local").mkdir(parents=True)
    own_home.chmod(0o700)
    path = own_home / "local" / "default.json"
    path.write_text(json.dumps(record))
    path.chmod(0o600)
    assert "had ended already" in done("cwmp-local", "stop").stdout


def test_local_stop_and_status_of_what_does_not_run() -> None:
    for action in ("stop", "status"):
        assert done("cwmp-local", action, status=1).stderr == "cwmp-local: cluster 'default' is not running\n"


def test_local_start_that_fails_leaves_nothing(own_home: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    result = done("cwmp-local", status=1, env={**os.environ, "CWMP_AUTHKEY_FILE": str(key)})
    assert f"did not start: cwmp-master: key file {key} is open to others: chmod 600 {key}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files_in(own_home) == []


def test_local_start_that_fails_shows_the_end_of_the_log(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "cloudpickle.py").write_text("raise RuntimeError('broken installation')")
    result = done("cwmp-local", status=1, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "did not start: the worker ended with status 1" in result.stderr
    assert "| RuntimeError: broken installation" in result.stderr
    assert files_in(own_home) == []


@pytest.mark.parametrize("where", ["CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE"])
def test_local_start_uses_the_key_that_clients_will_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: List[str], where: str
) -> None:
    key = tmp_path / "key"
    key.write_text("a secret\n")
    key.chmod(0o600)
    monkeypatch.setenv(where, str(key) if where.endswith("FILE") else "a secret")
    done("cwmp-local", "-n", "1")
    done("cwmp-status")
    with ClusterExecutor() as executor:
        assert executor.submit(square, 3).result(SOON_S) == 9
    cluster = rendezvous.find_cluster()
    assert cluster is not None
    assert cluster.authkey == b"a secret"
    assert "a secret" not in " ".join(psutil.Process(cluster.pid).environ().values())


# --- cwmp-local run -------------------------------------------------------------------------

SCRIPT = """
import os, sys, cwmp

def double(x):
    return 2 * x

if __name__ == "__main__":
    with cwmp.ClusterExecutor() as executor:
        print(sum(executor.map(double, range(4))), *sys.argv[1:])
    sys.exit(7)
"""

SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(0.3)  # a second signal would be seen here
    sys.exit(6)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Write a script; returns its path."""

    def write(source: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(source)
        return str(path)

    return write


def private_pids(own_home: Path) -> List[int]:
    """The one private cluster that runs: its master, and the processes that hang on it."""
    [path] = (own_home / "clusters").glob("run-*.json")
    master = psutil.Process(json.loads(path.read_text())["pid"])
    launcher = master.parent()
    assert launcher is not None
    family = launcher.children(recursive=True)
    return [process.pid for process in family if "__main__.py" in " ".join(process.cmdline())]


def test_run_gives_the_script_a_cluster_and_its_exit_status(
    own_home: Path, script: Callable[[str], str]
) -> None:
    result = done("cwmp-local", "run", "-n", "2", script(SCRIPT), "-n", "5", "--name", "x", status=7)
    assert (result.stdout, result.stderr) == ("12 -n 5 --name x\n", "")
    assert files_in(own_home) == []


def test_run_takes_any_command(own_home: Path, script: Callable[[str], str]) -> None:
    command = f"{sys.executable} {script(SCRIPT)} x; echo status $?; kill -9 $$"
    result = done("cwmp-local", "-n", "1", "run", "sh", "-c", command, status=128 + 9)
    assert result.stdout == "12 x\nstatus 7\n"
    assert files_in(own_home) == []


def test_run_does_not_show_the_key_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_AUTHKEY", "of another cluster")
    result = done("cwmp-local", "-n", "1", "run", "env")
    assert re.search(r"^CWMP_MASTER=127.0.0.1:\d+$", result.stdout, re.MULTILINE)
    assert re.search(r"^CWMP_NAME=run-[0-9a-f]+$", result.stdout, re.MULTILINE)
    assert "AUTHKEY" not in result.stdout


def test_run_of_something_that_cannot_be_executed(own_home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    result = done("cwmp-local", "-n", "1", "run", str(broken), status=1)
    assert result.stderr.startswith("cwmp-local: ")
    assert result.stderr.count("\n") == 1
    assert files_in(own_home) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 5), (signal.SIGINT, 6), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("to_group", [False, True])
def test_run_forwards_signals_once(
    run: Callable[..., Running],
    own_home: Path,
    script: Callable[[str], str],
    number: signal.Signals,
    status: int,
    to_group: bool,
) -> None:
    launcher = run("cwmp-local", "-n", "1", "run", script(SLEEPER))
    program = int(launcher.line())
    pids = private_pids(own_home)
    if to_group:
        os.killpg(launcher.pid, number)
    else:
        launcher.process.send_signal(number)
    if number == signal.SIGINT:
        assert launcher.line() == "interrupted"
    assert launcher.ends(status=status) == ""
    assert all(map(is_gone, [program, *pids]))
    assert files_in(own_home) == []


def test_nothing_of_a_private_cluster_outlives_a_killed_launcher(
    run: Callable[..., Running], own_home: Path, script: Callable[[str], str]
) -> None:
    launcher = run("cwmp-local", "-n", "1", "run", script(SLEEPER))
    program = int(launcher.line())
    pids = private_pids(own_home)
    assert len(pids) >= 3
    launcher.process.kill()
    try:
        eventually(lambda: all(map(is_gone, pids)), "master, worker and slots end")
        eventually(lambda: files_in(own_home) == [], "the rendezvous is withdrawn")
    finally:
        os.kill(program, signal.SIGKILL)


# --- from where they are started ------------------------------------------------------------


def test_module_form_and_links_do_the_same(tmp_path: Path) -> None:
    link = tmp_path / "cwmp-status"
    link.symlink_to(ROOT / "bin/cwmp-status")
    # A launcher runs with the first python3 on PATH: here the one that runs the tests.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in ([str(link)], [sys.executable, "-m", "cwmp", "status"]):
        result = subprocess.run(
            [*command, "127.0.0.1:1"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 1
        assert result.stderr.startswith("cwmp-status: cannot connect to a master at 127.0.0.1:1")


@pytest.mark.parametrize("command", ["cwmp-master", "cwmp-worker", "cwmp-status", "cwmp-local"])
def test_an_interpreter_without_the_dependencies_says_so_in_one_line(command: str) -> None:
    launcher = [sys.executable, "-S", str(ROOT / "bin" / command)]  # -S: no site-packages
    result = subprocess.run(launcher, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{command}: {sys.executable} lacks cloudpickle and psutil: ")
    assert result.stderr.count("\n") == 1


TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def test_ctrl_c_in_a_terminal_reaches_the_program_once(own_home: Path, script: Callable[[str], str]) -> None:
    launcher = [sys.executable, str(ROOT / "bin/cwmp-local"), "-n", "1", "run", script(SLEEPER)]
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *launcher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    ) as terminal:
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        try:
            assert re.fullmatch(rb"\d+\r\n", terminal.stdout.readline())
            terminal.stdin.write(b"\x03")
            assert b"interrupted" in terminal.stdout.readline()
            assert terminal.wait(SOON_S) == 6
        finally:
            terminal.kill()  # or a failure would wait for the program
    assert files_in(own_home) == []
