"""Finding the master and the key: by file, by environment, by default; and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from cwmp import defaults, home, rendezvous
from cwmp.errors import ConnectError, KeyFileError, UsageError
from cwmp.rendezvous import Cluster

KEY = b"k" * 16


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CWMP_HOME of the test's own, and no other setting from outside."""
    for name in ("CWMP_MASTER", "CWMP_NAME", "CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CWMP_HOME", str(tmp_path / "cwmp"))
    return tmp_path / "cwmp"


def cluster(name: str = "default", **changes: Any) -> Cluster:
    """An entry as a master in this very process would publish it."""
    entry = Cluster.of_this_process(name, "0.0.0.0", 6000, KEY)
    return dataclasses.replace(entry, **changes)


def published(name: str = "default", **changes: Any) -> Cluster:
    entry = cluster(name, **changes)
    rendezvous.publish(entry)
    return entry


def dead_process() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --- home -----------------------------------------------------------------------------------


def test_home_is_made_for_its_owner_alone(own_home: Path) -> None:
    assert rendezvous.home() == own_home
    assert stat.S_IMODE(own_home.stat().st_mode) == 0o700


def test_home_defaults_to_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CWMP_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rendezvous.home() == tmp_path / ".cwmp"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_home_that_others_can_write_is_refused(own_home: Path, mode: int) -> None:
    own_home.mkdir()
    own_home.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 700 {own_home}"):
        rendezvous.home()


def test_home_of_another_user_is_refused(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_home.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: own_home.stat().st_uid + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        rendezvous.home()


def test_home_that_is_a_file_is_refused(own_home: Path) -> None:
    own_home.write_text("")
    with pytest.raises(UsageError, match="set CWMP_HOME"):
        rendezvous.home()


# --- publish, read, withdraw ----------------------------------------------------------------


def test_what_is_published_is_read_back_by_name(own_home: Path) -> None:
    entry = published("night")
    path = own_home / "clusters" / "night.json"
    assert rendezvous.read("night") == entry
    assert rendezvous.clusters() == [entry]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["night.json"]  # nothing aside is left


def test_the_key_is_not_shown() -> None:
    assert "kkk" not in repr(cluster())


def test_withdraw_removes_the_file(own_home: Path) -> None:
    rendezvous.withdraw(published())
    assert rendezvous.read("default") is None
    assert list((own_home / "clusters").iterdir()) == []


def test_withdraw_leaves_what_a_later_master_wrote() -> None:
    first = published(pid=dead_process())
    second = published()
    rendezvous.withdraw(first)
    assert rendezvous.read("default") == second


def test_a_living_master_keeps_its_name() -> None:
    entry = published()
    with pytest.raises(UsageError, match=r"'default' already runs .*pid"):
        published()
    assert rendezvous.read("default") == entry


def test_a_dead_masters_file_is_swept_when_another_publishes() -> None:
    published("old", pid=dead_process())
    published("new")
    assert [entry.name for entry in rendezvous.clusters()] == ["new"]


def test_a_process_that_got_a_dead_masters_pid_is_not_that_master() -> None:
    published(birth=1.0)
    assert rendezvous.find_cluster() is None
    published()


def test_a_master_on_another_node_keeps_its_name_while_it_answers() -> None:
    there = published(node="node9")
    with pytest.raises(UsageError, match="already runs on node9"):
        published()
    with pytest.raises(UsageError, match="already runs on node9"):
        rendezvous.publish(cluster(), lambda other: other == there)
    here = cluster()
    rendezvous.publish(here, lambda other: False)
    assert rendezvous.read("default") == here


def test_a_master_whose_slurm_job_was_started_anew_takes_its_place() -> None:
    published(node="node9", slurm_job="17")
    with pytest.raises(UsageError, match="already runs on node9"):
        published()
    with pytest.raises(UsageError, match="already runs on node9"):
        published(slurm_job="18")
    anew = published(slurm_job="17")
    assert rendezvous.read("default") == anew


def test_a_master_tells_the_slurm_job_that_it_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert cluster().slurm_job == "17"


@pytest.mark.parametrize("name", ["", ".", "..", "-n", "a/b", "a b", "ä", "x" * 65, "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="bad cluster name"):
        rendezvous.cluster_name(name)


@pytest.mark.parametrize("name", ["a", "night-run.2", "9_", "x" * 64])
def test_good_names(name: str) -> None:
    assert rendezvous.cluster_name(name) == name


def damage(path: Path, how: str) -> None:
    record = json.loads(path.read_text())
    if how == "no json":
        path.write_text("{")
    elif how == "a list":
        path.write_text("[1]")
    elif how == "no port":
        del record["port"]
        path.write_text(json.dumps(record))
    elif how == "port is text":
        path.write_text(json.dumps({**record, "port": "6000"}))
    elif how == "key is not hex":
        path.write_text(json.dumps({**record, "authkey": "xyz"}))
    elif how == "of another name":
        path.write_text(json.dumps({**record, "name": "other"}))
    elif how == "addresses is 5":
        path.write_text(json.dumps({**record, "addresses": 5}))


@pytest.mark.parametrize(
    "how",
    ["no json", "a list", "no port", "port is text", "key is not hex", "of another name", "addresses is 5"],
)
def test_a_damaged_file_is_named_and_left_out_of_lists(own_home: Path, how: str) -> None:
    published()
    path = own_home / "clusters" / "default.json"
    damage(path, how)
    with pytest.raises(UsageError, match=f"{path} is not a cwmp rendezvous file"):
        rendezvous.read("default")
    assert rendezvous.clusters() == []


def test_a_file_that_others_can_read_is_refused(own_home: Path) -> None:
    published()
    path = own_home / "clusters" / "default.json"
    path.chmod(0o640)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        rendezvous.read("default")


def test_a_symbolic_link_is_refused(own_home: Path) -> None:
    published("real")
    (own_home / "clusters" / "default.json").symlink_to("real.json")
    with pytest.raises(UsageError, match="symbolic link"):
        rendezvous.read("default")


def test_publishing_does_not_follow_a_link(own_home: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (own_home / "clusters").mkdir(parents=True)
    own_home.chmod(0o700)
    (own_home / "clusters" / "default.json").symlink_to(target)
    with pytest.raises(UsageError):
        published()
    assert target.read_text() == "precious"


def test_process_birth_tells_the_living_from_the_dead() -> None:
    assert rendezvous.process_birth(os.getpid()) == rendezvous.process_birth(os.getpid())
    assert rendezvous.process_birth(dead_process()) is None


def test_a_process_that_is_not_reaped_yet_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert rendezvous.process_birth(process.pid) is None


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node7", "node7", None),
        ("node7:80", "node7", 80),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]:5494", "::1", 5494),
        ("[fe80::1]", "fe80::1", None),
        ("fe80::1", "fe80::1", None),
    ],
)
def test_addresses(text: str, host: str, port: Any) -> None:
    assert rendezvous.parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":", ":80", "a:", "a:b", "a:0", "a:65536", "a:-1", "a:1:2", "a b", "[::1", "[]:1", "a:８０"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UsageError, match=r"bad (port|address)") as caught:
        rendezvous.find_master(text)
    assert "\n" not in str(caught.value)


def test_an_address_prints_as_it_is_read() -> None:
    assert rendezvous.format_address("::1", 80) == "[::1]:80"
    assert rendezvous.format_address("node7", 80) == "node7:80"


def test_find_master_prefers_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendezvous.find_master() == ("127.0.0.1", defaults.PORT)
    published()
    assert rendezvous.find_master() == ("127.0.0.1", 6000)
    monkeypatch.setenv("CWMP_MASTER", "node8:7000")
    assert rendezvous.find_master() == ("node8", 7000)
    assert rendezvous.find_master("node7") == ("node7", defaults.PORT)
    assert rendezvous.find_master("node7", 7001) == ("node7", 7001)
    assert rendezvous.find_master("localhost:7001", 7001) == ("127.0.0.1", 7001)


def test_find_master_by_port_alone() -> None:
    assert rendezvous.find_master(port=7000) == ("127.0.0.1", 7000)


def test_find_master_refuses_two_ports() -> None:
    with pytest.raises(UsageError, match="two ports"):
        rendezvous.find_master("node7:80", 81)


def test_find_master_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    published("night", port=6001)
    assert rendezvous.find_master(name="night") == ("127.0.0.1", 6001)
    monkeypatch.setenv("CWMP_NAME", "night")
    assert rendezvous.find_master() == ("127.0.0.1", 6001)


def test_a_named_cluster_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectError, match="no cluster named 'night'"):
        rendezvous.find_master(name="night")
    monkeypatch.setenv("CWMP_NAME", "night")
    with pytest.raises(ConnectError, match="no cluster named 'night'"):
        rendezvous.find_master()


def test_a_dead_master_is_not_found() -> None:
    published(pid=dead_process())
    assert rendezvous.find_master() == ("127.0.0.1", defaults.PORT)


@pytest.mark.parametrize(
    ("host", "node", "found"),
    [
        ("0.0.0.0", platform.node(), "127.0.0.1"),
        ("", platform.node(), "127.0.0.1"),
        ("127.0.0.1", platform.node(), "127.0.0.1"),
        ("::1", platform.node(), "::1"),
        ("0.0.0.0", "elsewhere", "elsewhere"),
        ("10.1.2.3", "elsewhere", "10.1.2.3"),
        ("10.1.2.3", platform.node(), "10.1.2.3"),
    ],
)
def test_where_a_published_master_is_reached(host: str, node: str, found: str) -> None:
    assert cluster(host=host, node=node).address() == (found, 6000)


def test_a_master_on_every_interface_is_looked_for_at_each() -> None:
    entry = cluster(host="0.0.0.0", node="elsewhere", addresses=("10.0.0.7", "10.9.0.7"))
    assert entry.hosts() == ("10.0.0.7", "10.9.0.7", "elsewhere")
    published(host="0.0.0.0", node="elsewhere", addresses=("10.0.0.7",))
    found = rendezvous.find()
    assert (found.hosts, found.name) == (("10.0.0.7", "elsewhere"), "default")
    assert found.nonce == rendezvous.clusters()[0].nonce


def test_a_master_on_this_node_needs_no_proof() -> None:
    published()
    assert rendezvous.find() == rendezvous.Destination(("127.0.0.1",), 6000, KEY, "default")
    assert rendezvous.find("node7").name is None


def test_a_master_for_its_own_node_only_is_not_reached_from_here() -> None:
    with pytest.raises(UsageError, match="that node only"):
        cluster(host="127.0.0.1", node="elsewhere").address()


# --- keys -----------------------------------------------------------------------------------


def key_file(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\r\n\n", b"secret"),
        (b" se cret \n", b" se cret "),
        (b"x" * 31 + b"\n", b"x" * 31 + b"\n"),  # 32 bytes are random ones, taken as they are
        (b"x" * 32 + b"\n", b"x" * 32),
    ],
)
def test_key_files(tmp_path: Path, data: bytes, key: bytes) -> None:
    assert rendezvous.read_key_file(key_file(tmp_path / "key", data)) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_open_to_others_is_refused_with_what_to_type(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path / "my key", b"secret", mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 '{path}'$"):
        rendezvous.read_key_file(path)


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n"])
def test_an_empty_key_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(KeyFileError, match="is empty"):
        rendezvous.read_key_file(key_file(tmp_path / "key", data))


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=f"{tmp_path}/none: No such file"):
        rendezvous.read_key_file(tmp_path / "none")


def test_a_directory_is_no_key_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(KeyFileError):
        rendezvous.read_key_file(tmp_path)


def test_a_key_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path / "key", b"secret")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(KeyFileError, match="another user"):
        rendezvous.read_key_file(path)


@pytest.fixture
def stdin_pipe() -> Iterator[io.FileIO]:
    """A pipe whose reading end is descriptor 0; what is written to it is our standard input."""
    keep = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    try:
        with io.FileIO(writing, "w") as pipe:
            yield pipe
    finally:
        os.dup2(keep, 0)
        os.close(keep)


def test_a_key_from_standard_input_leaves_what_follows(stdin_pipe: io.FileIO) -> None:
    stdin_pipe.write(b"secret\nand more")
    assert rendezvous.read_key_file("-") == b"secret"
    assert os.read(0, 100) == b"and more"


def test_no_key_on_standard_input(stdin_pipe: io.FileIO) -> None:
    stdin_pipe.close()
    with pytest.raises(KeyFileError, match="no key came"):
        rendezvous.read_key_file("-")


def test_the_key_at_home_is_made_once(own_home: Path) -> None:
    key = rendezvous.home_key()
    assert len(key) == 32
    assert rendezvous.home_key() == key
    assert stat.S_IMODE((own_home / "authkey").stat().st_mode) == 0o600
    assert [path.name for path in own_home.iterdir()] == ["authkey"]


def make_home_key(start: Any, answers: Any) -> None:
    start.wait()
    answers.put(rendezvous.home_key())


def test_processes_that_make_the_key_at_once_get_the_same() -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=make_home_key, args=(start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(10)
    assert len({answers.get() for _ in processes}) == 1


def test_a_key_at_home_that_others_can_read_is_refused(own_home: Path) -> None:
    rendezvous.home_key()
    (own_home / "authkey").chmod(0o644)
    with pytest.raises(KeyFileError, match=f"chmod 600 {own_home}/authkey"):
        rendezvous.find_key()


def test_order_of_the_places_that_hold_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendezvous.find_key() == rendezvous.home_key()
    published(authkey=b"published")
    assert rendezvous.find_key() == b"published"
    monkeypatch.setenv("CWMP_AUTHKEY_FILE", str(key_file(tmp_path / "key", b"environment's file")))
    assert rendezvous.find_key() == b"environment's file"
    monkeypatch.setenv("CWMP_AUTHKEY", "environment")
    assert rendezvous.find_key() == b"environment"
    file = str(key_file(tmp_path / "other", b"file"))
    assert rendezvous.find_key(None, file) == b"file"
    assert rendezvous.find_key("ä", file) == "ä".encode()
    assert rendezvous.find_key(b"\0", file) == b"\0"


def test_the_key_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    published("here", port=6001, authkey=b"here")
    published("there", port=6001, node="node7.example.org", authkey=b"there")
    published("bound", port=6001, node="node8", host="10.0.0.8", authkey=b"bound")
    for host in ("localhost", "127.0.0.1", platform.node()):
        assert rendezvous.find_key(host=host, port=6001) == b"here"
        assert rendezvous.find_key(host=f"{host}:6001") == b"here"
    for host in ("node7", "node7.example.org"):
        assert rendezvous.find_key(host=host, port=6001) == b"there"
    assert rendezvous.find_key(host="10.0.0.8:6001") == b"bound"
    assert rendezvous.find_key(host="node8.example.org:6001") == b"bound"
    assert rendezvous.find_key(port=6001) == b"here"
    assert rendezvous.find_key(host="node7:6002") == home.home_key()
    monkeypatch.setenv("CWMP_MASTER", "node7:6001")
    assert rendezvous.find_key() == b"there"


def test_the_key_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    published("night", authkey=b"night")
    assert rendezvous.find_key(name="night") == b"night"
    monkeypatch.setenv("CWMP_NAME", "night")
    assert rendezvous.find_key() == b"night"


def test_the_key_of_a_dead_master_is_not_used() -> None:
    published(pid=dead_process(), authkey=b"old")
    assert rendezvous.find_key() == home.home_key()


@pytest.mark.parametrize("key", ["", b""])
def test_an_empty_key_is_refused(key: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        rendezvous.find_key(key)


def test_an_empty_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_AUTHKEY", "")
    with pytest.raises(UsageError, match="empty"):
        rendezvous.find_key()
