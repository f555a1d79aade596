"""Resources run out: descriptors, processes, threads, disk, memory. Who hits it says so, the others go on."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import psutil
import pytest

from cwmp import ClusterExecutor, ConnectError, LocalCluster, MasterLost, WorkerLost
from cwmp.loop import Loop
from cwmp.server import Server
from cwmp.transport import connect
from tests.faults import jobs
from tests.faults import processes as see
from tests.faults.short_of_memory import JOBS, sixty_thousand_bytes
from tests.waiting import wait_until

WAIT_S = 60.0
KEY = "a key for the tests"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's own limits")


class Part:
    """A master or worker with limits of its own; `shell` is what is done before it starts."""

    def __init__(
        self, *arguments: str, shell: str = "", within: Sequence[str] = (), **environment: str
    ) -> None:
        command = shlex.join([sys.executable, "-m", "cwmp", *arguments])
        self.process = subprocess.Popen(
            [*within, "sh", "-ec", f"{shell}\nexec {command}"],
            env={**os.environ, "CWMP_AUTHKEY": KEY, "PYTHONPATH": str(see.ROOT), **environment},
            cwd=see.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: List[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until a line has come that matches."""

        def found() -> Optional[re.Match[str]]:
            return re.search(pattern, self.text)

        return wait_until(found, timeout_s=see.SOON_S, describe=lambda: self.text)  # type: ignore[no-any-return]

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Master(Part):
    """A master on 127.0.0.1 that publishes nothing."""

    def __init__(self, *arguments: str, **settings: Any) -> None:
        super().__init__("master", "--host", "127.0.0.1", "--port", "0", "--unlisted", *arguments, **settings)

    def __enter__(self) -> Master:
        try:
            self.address = self.wait_for(r"listening on (\S+)")[1]
        except BaseException:
            self.__exit__()
            raise
        self.port = int(self.address.rpartition(":")[2])
        return self

    def worker(self, *arguments: str, procs: int = 1, **settings: Any) -> Part:
        return Part("worker", self.address, "--procs", str(procs), *arguments, **settings)

    def executor(self) -> ClusterExecutor:
        return ClusterExecutor(self.address, authkey=KEY.encode())


# --- descriptors ----------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def crowd(port: int, count: int) -> Iterator[List[socket.socket]]:
    """So many connections that have proven the key, as far as they are let in; the rest wait to be."""
    found: List[Any] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                found.append(connect("127.0.0.1", port, KEY.encode(), timeout_s=1.0).sock)
                continue
            sock = socket.socket()
            found.append(sock)
            sock.connect(("127.0.0.1", port))
        yield found
    finally:
        for sock in found:
            sock.close()


def test_a_master_says_how_many_workers_its_descriptors_allow() -> None:
    with Master(shell="ulimit -n 200") as master:
        master.wait_for(r"the limit of 200 descriptors allows 68 workers and clients\n")
    with Master(shell="ulimit -Sn 100") as master:
        assert "the limit of 100 descriptors" not in master.text, "it takes what the system gives"


def test_a_master_that_is_out_of_descriptors_serves_who_is_there() -> None:
    with Master(shell="ulimit -n 40") as master, master.worker() as worker, master.executor() as executor:
        worker.wait_for("connected to ")
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
        with crowd(master.port, 40):
            master.wait_for("cannot accept connections: .*Too many open files")
            before = cpu_s(master.process.pid)
            pause = threading.Event()
            pause.wait(2.0)
            assert cpu_s(master.process.pid) - before < 1.0, "it spins"
            assert list(executor.map(jobs.add, range(500))) == list(range(1, 501))
            with pytest.raises(ConnectError):
                connect("127.0.0.1", master.port, KEY.encode(), timeout_s=2.0)
        with master.executor() as newcomer:
            assert newcomer.submit(jobs.add, 5).result(WAIT_S) == 6
        assert master.text.count("cannot accept connections") == 1, "it is said once"
        master.wait_for("accepting connections again")


def starve_descriptors(pid: int) -> None:
    """From now on that process can open no more than it has."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def test_a_worker_that_is_out_of_descriptors_refills_its_slot_later() -> None:
    with Master() as master, master.worker(procs=2) as worker, master.executor() as executor:
        worker.wait_for("connected to ")
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
        _, most = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
        starve_descriptors(worker.process.pid)
        killed = executor.submit(jobs.raise_signal, signal.SIGKILL)
        worker.wait_for("cannot start slot [01]: Too many open files; trying every 1 s")
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (most, most))
        worker.wait_for("slot [01] could be started again")
        assert isinstance(killed.exception(WAIT_S), WorkerLost)
        assert list(executor.map(jobs.add, range(100))) == list(range(1, 101))
        assert worker.text.count("cannot start slot") <= 2


def test_a_slot_has_the_limit_of_descriptors_that_its_worker_was_given() -> None:
    with Master() as master, master.worker(shell="ulimit -Sn 500") as worker, master.executor() as executor:
        worker.wait_for("connected to ")
        limits = executor.submit(resource.getrlimit, resource.RLIMIT_NOFILE).result(WAIT_S)
        assert limits[0] == 500
        assert resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)[0] == limits[1]


# --- processes and threads ------------------------------------------------------------------


AS_ANOTHER = [
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups",
    # It may read all files, since Python may be in somebody's home. Root's processes have no limit.
    "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override",
]  # fmt: skip


@pytest.fixture
def another(tmp_path: Path) -> Dict[str, Any]:
    """How to run a part as a user who may have only so many processes."""
    try:
        done = subprocess.run([*AS_ANOTHER, sys.executable, "-c", ""], capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot become another user: {error}")
    if done.returncode:
        pytest.skip(f"cannot become another user: {done.stderr.strip()}")
    home = tmp_path / "home-of-another"
    home.mkdir()
    os.chown(home, 54_321, 54_321)
    return {"within": AS_ANOTHER, "CWMP_HOME": str(home)}


def set_most_processes(pid: int, most: int) -> None:
    """How many processes and threads that user may have for it to start another one."""
    limits = f"({most}, prlimit({pid}, RLIMIT_NPROC)[1])"
    code = f"from resource import *; prlimit({pid}, RLIMIT_NPROC, {limits})"
    subprocess.run([*AS_ANOTHER, sys.executable, "-c", code], check=True)  # root might not be allowed to


def test_a_worker_that_can_start_no_process_refills_its_slot_later(another: Dict[str, Any]) -> None:
    with Master() as master, master.worker(**another) as worker, master.executor() as executor:
        worker.wait_for("connected to ")
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
        set_most_processes(worker.process.pid, 1)
        slot = see.slots_of(worker.process.pid)[0]
        os.kill(slot, signal.SIGKILL)
        worker.wait_for("cannot start slot 0: Resource temporarily unavailable")
        waiting = executor.submit(jobs.add, 2)
        set_most_processes(worker.process.pid, 10_000)
        assert waiting.result(WAIT_S) == 3
        assert worker.text.count("cannot start slot") == 1


def test_a_master_that_can_start_no_thread_serves_who_is_there(another: Dict[str, Any]) -> None:
    with Master(**another) as master, master.worker() as worker, master.executor() as executor:
        worker.wait_for("connected to ")
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
        set_most_processes(master.process.pid, 1)
        for _ in range(3):
            with pytest.raises(OSError):
                connect("127.0.0.1", master.port, KEY.encode(), timeout_s=1.0)
        assert master.text.count("cannot accept connections: can't start new thread") == 1
        assert list(executor.map(jobs.add, range(500))) == list(range(1, 501))
        assert executor.submit(len, bytes(1 << 20)).result(WAIT_S) == 1 << 20
        set_most_processes(master.process.pid, 10_000)
        with master.executor() as newcomer:
            assert newcomer.submit(jobs.add, 5).result(WAIT_S) == 6


def test_a_handshake_that_gets_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where nobody can limit threads: the connection is closed, the next one is let in later."""
    loop = Loop()
    server = Server(("127.0.0.1", 0), KEY.encode(), loop)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        with monkeypatch.context() as patched, socket.socket() as sock:
            sock.connect(server.address)
            patched.setattr(threading.Thread, "start", fail)
            wait_until(lambda: loop.poll(0.01) or server._in_trouble)
            assert not server._half_open
            sock.settimeout(5)
            assert sock.recv(1) == b""
        server.tend(0.0)
        with socket.socket() as sock:
            sock.connect(server.address)
            wait_until(lambda: loop.poll(0.01) or server._half_open)
            assert not server._in_trouble
    finally:
        server.close()
        loop.close()


# --- disk -----------------------------------------------------------------------------------

IN_A_SMALL_DISK = ["unshare", "--mount", "--propagation", "private"]


def mounted(directory: Path, size: str) -> str:
    """What a shell says to have a file system of that size there, for itself and its children only."""
    return f"mount -t tmpfs -o size={size},mode=700 cwmp-test {shlex.quote(str(directory))}"


def needs_mounts() -> None:
    command = [*IN_A_SMALL_DISK, "sh", "-c", "mount -t tmpfs -o size=64k cwmp-test /mnt"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot make a small file system: {error}")
    if done.returncode:
        pytest.skip(f"cannot make a small file system: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    needs_mounts()
    path = tmp_path / "disk"
    path.mkdir()
    return path


def fill(directory: Path) -> str:
    """What a shell says to leave no room there."""
    return f"dd if=/dev/zero of={shlex.quote(str(directory))}/full bs=4k 2>/dev/null || true"


def test_a_master_that_cannot_publish_itself_says_so(disk: Path, tmp_path: Path) -> None:
    shelves = tmp_path / "shelves"
    shelves.mkdir()
    prepare = f"{mounted(disk, '64k')}; mkdir {disk}/clusters; chmod 700 {disk}/clusters; {fill(disk)}"
    arguments = ("master", "--host", "127.0.0.1", "--port", "0", "--blob-dir", str(shelves))
    with Part(*arguments, shell=prepare, within=IN_A_SMALL_DISK, CWMP_HOME=str(disk)) as master:
        assert master.process.wait(30) == 1
    [line] = [line for line in master.lines if "large values" not in line and "descriptors" not in line]
    assert line.startswith("cwmp-master: ")
    assert str(disk) in line
    assert "No space left on device" in line
    assert os.listdir(shelves) == []


def test_a_key_that_cannot_be_written_is_said(disk: Path) -> None:
    prepare = f"{mounted(disk, '64k')}; {fill(disk)}; unset CWMP_AUTHKEY"
    with Part("master", "--port", "0", shell=prepare, within=IN_A_SMALL_DISK, CWMP_HOME=str(disk)) as master:
        assert master.process.wait(30) == 1
    assert master.text == f"cwmp-master: {disk}/authkey: No space left on device\n"


def test_a_full_directory_for_large_values_is_said_at_the_start(disk: Path) -> None:
    prepare = f"{mounted(disk, '64k')}; {fill(disk)}"
    arguments = ("master", "--host", "127.0.0.1", "--port", "0", "--unlisted", "--blob-dir", str(disk))
    with Part(*arguments, shell=prepare, within=IN_A_SMALL_DISK) as master:
        assert master.process.wait(30) == 2
    assert master.text == f"cwmp-master: cannot keep large values in {disk}: No space left on device\n"


CLIENT_OF_A_FULL_DISK = """
import os, subprocess, sys
from cwmp import ClusterExecutor, BlobLost, PayloadError
from tests.faults import jobs

address, disk, remote = sys.argv[1:]
if remote == "remote":
    from cwmp import shelf
    shelf.reachable = lambda facts: None  # as on another machine
with ClusterExecutor(address, authkey=b"a key for the tests") as executor:
    assert executor.submit(len, bytes(1 << 20)).result(60) == 1 << 20, "before"
    with open(os.path.join(disk, "full"), "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            print("full:", error.strerror)
    small = executor.map(jobs.add, range(100))
    try:
        print("argument:", executor.submit(len, b"y" * (3 << 20)).result(60))
    except Exception as error:
        print("argument:", type(error).__name__, error)
    try:
        print("result:", executor.submit(jobs.text_of, 3 << 20).result(60))
    except Exception as error:
        print("result:", type(error).__name__, error)
    assert list(small) == list(range(1, 101))
    os.unlink(os.path.join(disk, "full"))
    assert executor.submit(len, b"z" * (3 << 20)).result(60) == 3 << 20, "after"
    assert len(executor.submit(jobs.text_of, 3 << 20).result(60)) == 3 << 20, "after"
    print("all right")
"""


@pytest.mark.parametrize("where", ["here", "remote"])
def test_a_full_disk_fails_the_jobs_that_need_it_and_no_others(
    disk: Path, tmp_path: Path, where: str
) -> None:
    """Master, worker and client share the disk, which one of them fills and empties again."""
    program = tmp_path / "client.py"
    program.write_text(CLIENT_OF_A_FULL_DISK)
    worker = "worker - --procs 2" if where == "here" else f"worker - --procs 2 --blob-dir {disk}"
    python = shlex.quote(sys.executable)
    shell = f"""
    {mounted(disk, "32m")}
    {python} -m cwmp master --host 127.0.0.1 --port 0 --unlisted --blob-dir {disk} --blob-limit 99M \\
        >{tmp_path}/line &
    master=$!
    trap 'kill $master $worker; wait $master $worker || true' EXIT
    until grep -q listening {tmp_path}/line; do sleep 0.05; done
    address=$(sed 's/.*listening on //; s/ .*//' {tmp_path}/line)
    echo $address | {python} -m cwmp {worker} &
    worker=$!
    {python} {program} $address {disk} {where}
    """
    done = subprocess.run(
        [*IN_A_SMALL_DISK, "sh", "-ec", shell],
        env={**os.environ, "CWMP_AUTHKEY": KEY, "PYTHONPATH": str(see.ROOT)},
        cwd=see.ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    full, argument, result, end = [line for line in done.stdout.splitlines() if not line.startswith("cwmp")]
    assert "No space left" in full
    assert argument.startswith("argument: PayloadError a large value ")
    assert result.startswith("result: PayloadError the result of this job: ")
    for line in (argument, result):
        assert "cannot be written to" in line
        assert "No space left on device" in line
    assert end == "all right"


# --- memory ---------------------------------------------------------------------------------


def take_too_much_memory() -> int:
    """More than this process may have."""
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    try:
        return len(bytearray(1 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_job_that_gets_no_memory_has_an_error_of_its_own() -> None:
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        slot = executor.submit(os.getpid).result(WAIT_S)
        assert isinstance(executor.submit(take_too_much_memory).exception(WAIT_S), MemoryError)
        assert executor.submit(os.getpid).result(WAIT_S) == slot


def test_a_master_without_memory_gives_up_who_takes_most_of_it() -> None:
    with Master() as master, master.executor() as modest:
        pid = master.process.pid
        few = [modest.submit(abs, -n) for n in range(100)]
        used = psutil.Process(pid).memory_info().vms
        resource.prlimit(pid, resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        with master.executor() as greedy:
            many = []
            with pytest.raises(MasterLost, match="gave this client up: it ran out of memory"):
                while len(many) < 10_000:
                    many.append(greedy.submit(len, os.urandom(60_000)))
                many[-1].result(WAIT_S)
            assert {type(future.exception(WAIT_S)) for future in many} == {MasterLost}
        with master.worker():
            assert [future.result(WAIT_S) for future in few] == list(range(100))
            with master.executor() as another:
                assert list(another.map(abs, range(100))) == list(range(100))
        assert len(re.findall("out of memory: gave up client", master.text)) == 1
        assert "Traceback" not in master.text


def test_a_worker_without_memory_leaves_its_jobs_to_others() -> None:
    with Master() as master, master.executor() as executor, master.worker() as short:
        assert executor.submit(abs, -1).result(WAIT_S) == 1
        pid = short.process.pid
        used = psutil.Process(pid).memory_info().vms
        resource.prlimit(pid, resource.RLIMIT_AS, (used + (256 << 10), resource.RLIM_INFINITY))
        futures = [executor.submit(sixty_thousand_bytes, number) for number in range(1000)]
        short.wait_for("cwmp-worker: out of memory: this worker ends, and what it had runs on others\n$")
        assert short.process.wait(WAIT_S) == 1
        assert "Traceback" not in short.text
        with master.worker():
            assert {len(future.result(WAIT_S)) for future in futures} == {60_000}


def test_a_program_without_memory_for_its_results_is_told_and_the_cluster_goes_on() -> None:
    with Master() as master, master.executor() as another, master.worker():
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.short_of_memory", master.address],
            env={**os.environ, "CWMP_AUTHKEY": KEY},
            cwd=see.ROOT,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ends = dict(reversed(line.split(" ", 1)) for line in done.stdout.splitlines())
        assert sum(map(int, ends.values())) == JOBS
        reason = "was left: this program has no memory for what its jobs return"
        lost = f"MasterLost: the master at {master.address} {reason}"
        assert {"a result", lost} <= ends.keys()
        assert list(another.map(abs, range(100))) == list(range(100))
