"""A shared login node: what another user of the machine can do to a cluster, which is nothing."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  (nobody may not be able to read the standard library)
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, List

import psutil
import pytest

from cwmp import ClusterExecutor, UsageError, WrongKey, home, rendezvous, shortcut, transport
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.core,
    # The copy of this process that becomes the other user only does what is written here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[rendezvous.Cluster]:
    """In a home that others can look into, as many home directories are."""
    parent = Path(tempfile.mkdtemp(prefix="test-other-users-"))
    parent.chmod(0o755)
    monkeypatch.setenv("CWMP_HOME", str(parent / "home"))
    local = [sys.executable, "-m", "cwmp", "local"]
    before = os.umask(0)
    try:
        subprocess.run([*local, "start", "-n", "1"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found = rendezvous.find_cluster()
        assert found is not None
        with ClusterExecutor() as executor:
            assert executor.submit(len, bytes(4 << 20)).result(SOON_S) == 4 << 20
        (parent / "home").chmod(0o755)  # so that everything in it must protect itself
        yield found
    finally:
        os.umask(before)
        subprocess.run([*local, "stop"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(parent)


def as_nobody(ask: Callable[[], Any]) -> Any:
    """What `ask()` returns in a process of the user nobody."""
    account = pwd.getpwnam("nobody")
    answer_in, answer_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os.write(answer_out, json.dumps(ask()).encode())
        except BaseException as error:
            os.write(answer_out, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(answer_out)
    with open(answer_in, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def allowed(*attempts: Callable[[], Any]) -> int:
    """How many of these were not denied."""
    count = 0
    for attempt in attempts:
        try:
            attempt()
            count += 1
        except OSError:
            pass
    return count


def tried(directories: List[Path], files: List[Path]) -> List[str]:
    """The directories that could be listed or written in, the files that could be read or written."""
    open_ones = []
    for path in directories:  # a neighbour may remove one just now, and nothing must come in its place
        if allowed(lambda: os.listdir(path), lambda: (path / "x").touch()):  # noqa: B023
            open_ones.append(str(path))
    for path in files:
        if allowed(lambda: path.open("rb"), lambda: path.open("ab")):  # noqa: B023
            open_ones.append(str(path))
    return open_ones


def family(cluster: rendezvous.Cluster) -> List[int]:
    """Every process of the cluster."""
    own, pids = str(home.home()), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("CWMP_HOME") == own:
                pids.append(process.pid)
    return pids


def is_directory_of_root(path: Path) -> bool:
    """False also of one that a neighbour has just removed."""
    with contextlib.suppress(FileNotFoundError):
        return path.is_dir() and path.stat().st_uid == 0
    return False


def test_files(cluster: rendezvous.Cluster) -> None:
    within = list(home.home().rglob("*"))
    assert {path.name for path in within} >= {"authkey", "clusters", "default.json", "logs", "local"}
    shelves = [Path(p) for parent in ("/dev/shm", tempfile.gettempdir()) for p in Path(parent).glob("cwmp*")]
    ours = [path for path in shelves if is_directory_of_root(path)]
    directories = [*filter(Path.is_dir, within), *ours]
    files = [path for path in within if path not in directories]
    assert as_nobody(lambda: tried(directories, files)) == []


def test_processes(cluster: rendezvous.Cluster) -> None:
    pids = family(cluster)
    assert cluster.pid in pids and len(pids) >= 3

    def reachable() -> List[int]:
        return [
            pid
            for pid in pids
            if allowed(lambda: os.kill(pid, 0), lambda: open(f"/proc/{pid}/environ").read())  # noqa: B023
        ]

    assert as_nobody(reachable) == []


def test_connections(cluster: rendezvous.Cluster) -> None:
    def guess() -> str:
        try:
            transport.connect("127.0.0.1", cluster.port, b"a guess").close()
        except WrongKey:
            return "wrong key"
        return "in"

    def shortcut_says() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(SOON_S)
            sock.connect(shortcut._name(cluster.port))
            return repr(sock.recv(100))

    assert as_nobody(guess) == "wrong key"
    assert as_nobody(shortcut_says) == "b''"
    wait_until(lambda: cluster.is_live())


def test_a_home_of_another_is_refused(cluster: rendezvous.Cluster) -> None:
    def use() -> str:
        try:
            rendezvous.find()
        except UsageError as error:
            return str(error)
        return "used"

    assert "belongs to another user" in as_nobody(use)


def test_a_directory_that_another_has_put_there_is_refused(cwmp_home: Path) -> None:
    home.home()
    (cwmp_home / "clusters").mkdir()
    os.chown(cwmp_home / "clusters", pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        home.private_directory("clusters")


def test_a_directory_that_was_left_open_is_closed(cwmp_home: Path) -> None:
    home.home()
    (cwmp_home / "clusters").mkdir()
    (cwmp_home / "clusters").chmod(0o777)
    assert home.private_directory("clusters").stat().st_mode & 0o777 == 0o700
