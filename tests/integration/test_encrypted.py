"""Clusters that encrypt: what programs notice (nothing), what others on the network see, who is refused."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import selectors
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

import cwmp
from cwmp import ClusterExecutor, ConnectError, LocalCluster, WrongKey, defaults, shortcut
from cwmp.encryption import Encryption, psk_is_possible
from cwmp.errors import UsageError
from cwmp.tls import TlsSocket, context
from cwmp.transport import connect
from tests.faults import processes as see
from tests.faults import shelves
from tests.integration.test_lone_jobs import INTERRUPTED
from tests.interrupts import interrupt_submit_everywhere
from tests.tls_files import certificates, needs_openssl, needs_psk, variables
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0
MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
NO_FILES = {"CWMP_TLS_CERT": "", "CWMP_TLS_KEY": "", "CWMP_TLS_CA": ""}
KNOWN = "an argument that everybody would recognise"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    return certificates(tmp_path_factory.mktemp("tls"))


WAYS = [pytest.param("psk", marks=needs_psk), pytest.param("cert", marks=needs_openssl)]


@pytest.fixture(scope="module", params=WAYS)
def setting(request: pytest.FixtureRequest) -> Encryption:
    """Each way to encrypt, also through loopback."""
    if request.param == "psk":
        return Encryption("always")
    return Encryption("always", **request.getfixturevalue("files"))


@contextlib.contextmanager
def environment(setting: Encryption) -> Iterator[None]:
    """What is said by the environment, to this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(setting).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster(setting: Encryption) -> Iterator[LocalCluster]:
    """A cluster that encrypts everything."""
    with environment(setting), LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def as_the_cluster(setting: Encryption, cwmp_home: Path) -> Iterator[None]:
    """Every test with the setting of the cluster, unless it says otherwise."""
    with environment(setting):
        yield


@pytest.fixture
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


def port_of(cluster: LocalCluster) -> int:
    return int(cluster.address.rpartition(":")[2])


def repeated(text: str) -> str:
    return text + text


def size_and_content(size: int) -> bytes:
    return b"r" * size


# --- programs notice nothing -----------------------------------------------------------------


def test_jobs_and_their_errors_come_back(executor: ClusterExecutor) -> None:
    assert executor.submit(repeated, "é").result(WAIT_S) == "éé"
    assert list(executor.map(pow, range(100), range(100))) == [n**n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result(WAIT_S)


def test_one_at_a_time(executor: ClusterExecutor) -> None:
    """Nobody looks at what comes before it is taken: the dispatcher reads it all."""
    assert [executor.submit(abs, -number).result(WAIT_S) for number in range(300)] == list(range(300))


def test_a_hundred_thousand_small_jobs(executor: ClusterExecutor) -> None:
    futures = [executor.submit(abs, -number) for number in range(100_000)]
    assert [future.result(WAIT_S) for future in futures] == list(range(100_000))


def test_callbacks(cluster: LocalCluster) -> None:
    results: List[int] = []
    with cluster.client(lambda jobid, result: results.append(result)) as client:
        for number in range(1000):
            client.submit(number, abs, number)
        client.wait()
    assert sorted(results) == list(range(1000))


def test_large_values_travel_to_a_worker_elsewhere_and_back(cluster: LocalCluster, tmp_path: Path) -> None:
    """Worker and client both as on other machines than the master."""
    with pytest.MonkeyPatch.context() as patch, shelves.worker_away(cluster, tmp_path / "shelf"):
        patch.setattr(cwmp.carriers.shelf, "reachable", lambda facts: None)
        with cluster.executor() as executor:
            values = [os.urandom(3 * MB + number) for number in range(8)]
            futures = [executor.submit(repeated, value) for value in values]
            assert [future.result(WAIT_S) for future in futures] == [value + value for value in values]
            shared = executor.share(values[0])
            assert list(executor.map(len, [shared] * 20)) == [len(values[0])] * 20
            assert executor.submit(size_and_content, 40 * MB).result(WAIT_S) == b"r" * (40 * MB)


def test_wherever_an_interrupt_comes_in_submit(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        assert interrupt_submit_everywhere(executor) > 20


@pytest.mark.parametrize("what", ["wait", "submit"])
def test_interrupts_leave_the_executor_in_order(cluster: LocalCluster, what: str) -> None:
    told = {"CWMP_MASTER": cluster.address, "CWMP_AUTHKEY": cluster.authkey.decode()}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, what],
        env={**os.environ, **told},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 20, done.stdout


def test_the_master_tells_how(cluster: LocalCluster, setting: Encryption) -> None:
    assert see.status(cluster)["encryption"] == {"mode": "always", "way": setting.way}


def test_a_forked_program_leaves_the_connections_alone(cluster: LocalCluster) -> None:
    with cluster.executor() as executor:
        assert executor.submit(abs, -1).result(WAIT_S) == 1
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert executor.submit(abs, -2).result(WAIT_S) == 2


# --- what others see -------------------------------------------------------------------------


class Relay:
    """Somebody on the network: passes on what goes to and from a port, and keeps it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.seen = bytearray()
        self._others: Dict[socket.socket, socket.socket] = {}
        self._ends, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._ends, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    sock: Any = key.fileobj
                    if sock is self._ends:
                        return
                    if sock is self._listening:
                        ours, _ = sock.accept()
                        theirs = socket.create_connection(("127.0.0.1", self._target))
                        for one, other in ((ours, theirs), (theirs, ours)):
                            self._others[one] = other
                            selector.register(one, selectors.EVENT_READ)
                        continue
                    with contextlib.suppress(OSError):
                        data = sock.recv(1 << 16)
                        self.seen += data
                        if data:
                            self._others[sock].sendall(data)
                            continue
                    selector.unregister(sock)
                    with contextlib.suppress(OSError):
                        self._others[sock].shutdown(socket.SHUT_WR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send(b"!")
        self._thread.join(WAIT_S)
        for sock in (self._listening, self._ends, self._end, *self._others):
            sock.close()


def seen_on_the_way(cluster: LocalCluster) -> bytes:
    """What a relay sees of a program with one job, and of a large value."""
    with pytest.MonkeyPatch.context() as patch, Relay(port_of(cluster)) as relay:
        patch.setattr(cwmp.carriers.shelf, "reachable", lambda facts: None)
        with ClusterExecutor(f"127.0.0.1:{relay.port}", authkey=cluster.authkey) as executor:
            assert executor.submit(repeated, KNOWN).result(WAIT_S) == KNOWN + KNOWN
            large = KNOWN * (MB // len(KNOWN))
            assert executor.submit(len, large).result(WAIT_S) == len(large)
        return bytes(relay.seen)


def test_others_see_neither_functions_nor_arguments(cluster: LocalCluster) -> None:
    seen = seen_on_the_way(cluster)
    assert len(seen) > MB
    for secret in (KNOWN, "repeated", "JobQueue", "#CHALLENGE#", cluster.authkey.decode()):
        assert secret.encode() not in seen, secret


def test_without_encryption_they_would() -> None:
    with environment(Encryption("never")), LocalCluster(1) as cluster:
        seen = seen_on_the_way(cluster)
        cluster_key = cluster.authkey.decode()
    for visible in (KNOWN, "repeated", "JobQueue", "#CHALLENGE#"):
        assert visible.encode() in seen, visible
    assert cluster_key.encode() not in seen, "the key is proven, and not sent"


def test_there_is_no_way_past_it(cluster: LocalCluster) -> None:
    assert shortcut.connect("127.0.0.1", port_of(cluster), 5.0) is None


# --- who does not fit ------------------------------------------------------------------------


def test_another_key(cluster: LocalCluster) -> None:
    with pytest.raises(WrongKey, match="holds another key"):
        connect("127.0.0.1", port_of(cluster), b"another", timeout_s=WAIT_S)
    assert see.status(cluster)["name"] == "default"


def test_who_speaks_in_clear_to_one_who_encrypts(cluster: LocalCluster) -> None:
    with pytest.raises(ConnectError, match="did not answer within 0.5 s: .* set CWMP_ENCRYPT=always here"):
        connect("127.0.0.1", port_of(cluster), cluster.authkey, Encryption("never"), timeout_s=0.5)


def test_who_encrypts_to_one_who_speaks_in_clear(setting: Encryption) -> None:
    with environment(Encryption("never")), LocalCluster(1) as cluster:
        port, key = port_of(cluster), cluster.authkey
        with pytest.raises(ConnectError, match=f":{port} does not encrypt .* CWMP_ENCRYPT=never here"):
            connect("127.0.0.1", port, key, setting, timeout_s=WAIT_S)


def test_what_is_no_master_at_all(setting: Encryption) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.sendall(b"SSH-2.0-OpenSSH\r\n")
                sock.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectError, match="is not a cwmp master"):
            connect("127.0.0.1", port, b"k", setting, timeout_s=WAIT_S)
        thread.join(WAIT_S)


@needs_psk
@needs_openssl
def test_a_key_on_one_side_and_certificates_on_the_other(
    cluster: LocalCluster, setting: Encryption, files: Dict[str, str]
) -> None:
    other = Encryption("always") if setting.way == "cert" else Encryption("always", **files)
    with pytest.raises(ConnectError, match="CWMP_TLS_CERT"):
        connect("127.0.0.1", port_of(cluster), cluster.authkey, other, timeout_s=WAIT_S)


@needs_openssl
def test_certificates_of_another_ca(cluster: LocalCluster, setting: Encryption, tmp_path: Path) -> None:
    if setting.way == "psk":
        pytest.skip("the master has none")
    strangers = Encryption("always", **certificates(tmp_path / "strangers"))
    with pytest.raises(ConnectError, match="not signed by the CA of this side"):
        connect("127.0.0.1", port_of(cluster), cluster.authkey, strangers, timeout_s=WAIT_S)


def test_silent_connections_keep_nobody_out(cluster: LocalCluster) -> None:
    silent = [
        socket.create_connection(("127.0.0.1", port_of(cluster))) for _ in range(2 * defaults.MAX_HALF_OPEN)
    ]
    try:
        with cluster.executor() as executor:
            assert executor.submit(abs, -1).result(WAIT_S) == 1
    finally:
        for sock in silent:
            sock.close()


def test_what_nobody_meant_stops_nobody(cluster: LocalCluster, setting: Encryption) -> None:
    """Beginnings of handshakes, cut off, altered, or followed by nonsense."""
    chance = random.Random(3)
    hello = first_words(setting)
    for _ in range(200):
        words = bytearray(hello)
        for _altered in range(chance.randrange(4)):
            words[chance.randrange(len(words))] = chance.randrange(256)
        words = words[: chance.choice([1, 5, len(words) // 2, len(words)])]
        with socket.create_connection(("127.0.0.1", port_of(cluster))) as sock:
            sock.sendall(words + chance.choice([b"", os.urandom(20_000)]))
    with cluster.executor() as executor:
        assert executor.submit(abs, -1).result(WAIT_S) == 1


def first_words(setting: Encryption) -> bytes:
    """What a client of ours begins with."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            TlsSocket(ours, context(setting, b"k", server_side=False), server_side=False).shake_hands()
        return theirs.recv(1 << 16)


# --- the commands ----------------------------------------------------------------------------


@contextlib.contextmanager
def master(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A published `cwmp-master` on loopback that listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cwmp", "master", "--port", "0", "--host", "127.0.0.1", *arguments],
        env={**os.environ, **variables},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        process.first = process.stdout.readline()  # type: ignore[attr-defined]
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)


def typed(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """One of our commands, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cwmp", *words],
        env={**os.environ, **changed},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_commands_and_programs_follow_a_master_that_is_published(
    setting: Encryption, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told nothing but, with certificates, where theirs are."""
    monkeypatch.delenv("CWMP_ENCRYPT")
    with master("--encrypt", "always") as running:
        assert "listening on 127.0.0.1:" in running.first  # type: ignore[attr-defined]
        done = typed("status")
        assert "network  everything is encrypted (TLS" in done.stdout, done.stderr
        worker = subprocess.Popen(
            [sys.executable, "-m", "cwmp", "worker", "--procs", "1"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            with ClusterExecutor() as executor:
                assert executor.submit(abs, -1).result(WAIT_S) == 1
        finally:
            worker.terminate()
            worker.wait(WAIT_S)


def test_the_key_is_on_no_command_line(cluster: LocalCluster) -> None:
    pids = [cluster.pids["master"], *cluster.pids["workers"]]
    for pid in pids if platform.system() == "Linux" else ():
        for file in ("cmdline", "environ"):
            assert cluster.authkey not in Path(f"/proc/{pid}/{file}").read_bytes()


def test_a_master_without_means_is_refused_in_one_line(tmp_path: Path) -> None:
    paths = [f"--tls-{name}={tmp_path / name}" for name in ("cert", "key", "ca")]
    done = typed("master", "--host", "127.0.0.1", "--port", "0", "--encrypt", "always", *paths)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"cannot read {tmp_path / 'key'}" in done.stderr
    if not psk_is_possible():
        done = typed("master", "--port", "0", "--encrypt", "always", **NO_FILES)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "use Python 3.13 or newer on all sides" in done.stderr


def test_half_of_a_setting_is_refused() -> None:
    with environment(Encryption()):
        done = typed("status", "--tls-cert", "x", **NO_FILES)
    assert done.returncode == 2
    assert "--tls-key and --tls-ca is missing" in done.stderr


def test_who_wants_all_of_it_encrypted_does_not_follow_one_in_clear() -> None:
    with master("--encrypt", "never", **NO_FILES):
        with pytest.raises(UsageError, match="the master encrypts nothing"):
            ClusterExecutor()


def test_it_is_gone_when_its_master_is(setting: Encryption) -> None:
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        assert executor.submit(abs, -1).result(WAIT_S) == 1
        os.kill(cluster.pids["master"], 9)
        wait_until(lambda: executor._session.lost is not None, timeout_s=WAIT_S)
