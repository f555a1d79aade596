"""A master with several addresses, most of which lead nowhere, to a stranger, or to another cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
import threading
import time
from typing import Any, Iterator, List

import pytest

from cwmp import ConnectError, WrongKey, defaults, dial, rendezvous
from cwmp.encryption import DEFAULT
from cwmp.joining import Approach, Joined
from cwmp.master import Master
from cwmp.messages import JOB_QUEUE, this_side
from cwmp.rendezvous import Cluster, Destination

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="one loopback address only"),
]

KEY = b"k" * 32
NOBODY, SILENT, OTHER, STRANGER, RIGHT = (f"127.0.0.{n}" for n in range(2, 7))
NO_SUCH_NODE = "no-such-node.invalid"


@contextlib.contextmanager
def serving(host: str, port: int, key: bytes, name: str) -> Iterator[Master]:
    """A master in a thread."""
    master = Master(host, port, key, name=name)
    thread = threading.Thread(target=master.serve, name=f"master of {name}")
    thread.start()
    try:
        yield master
    finally:
        master.stop()
        thread.join(10)


@pytest.fixture
def master() -> Iterator[Master]:
    """The right one, among addresses where others listen on the same port."""
    with contextlib.ExitStack() as stack:
        right = stack.enter_context(serving(RIGHT, 0, KEY, "right"))
        port = right.address[1]
        stack.enter_context(serving(OTHER, port, KEY, "other"))
        stack.enter_context(serving(STRANGER, port, b"another key", "stranger"))
        stack.enter_context(socket.create_server((SILENT, port)))
        yield right


def to(master: Master, *hosts: str, **changes: Any) -> Destination:
    return dataclasses.replace(
        Destination(hosts, master.address[1], KEY, "right", master.nonce), **changes
    )


@pytest.mark.parametrize(
    "hosts",
    [
        [RIGHT],
        [NOBODY, SILENT, OTHER, STRANGER, RIGHT],
        [RIGHT, STRANGER, OTHER, SILENT, NOBODY],
        [RIGHT, NO_SUCH_NODE],
        [OTHER, "localhost", RIGHT],
    ],
)
def test_the_right_one_is_found_whoever_else_answers(master: Master, hosts: List[str]) -> None:
    before = time.monotonic()
    host, wire = dial.reach(to(master, *hosts))
    assert host == RIGHT
    assert wire.call(JOB_QUEUE, "cluster") == {"name": "right", "nonce": master.nonce}
    wire.close()
    assert time.monotonic() - before < 3.0, "nobody waits for the silent one"


def test_names_are_looked_up_when_no_address_answers(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        return lookup(RIGHT if host == "node7" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    host, wire = dial.reach(to(master, NOBODY, OTHER, "node7"))
    wire.close()
    assert host == RIGHT


def test_each_address_is_listed_with_what_came_of_it(master: Master) -> None:
    with pytest.raises(ConnectError) as caught:
        dial.reach(to(master, NOBODY, SILENT, OTHER, STRANGER, NO_SUCH_NODE), timeout_s=0.5)
    text = str(caught.value)
    port = master.address[1]
    assert text.startswith("cannot reach the master of cluster 'right': ")
    for host, outcome in (
        (NOBODY, "refused"),
        (SILENT, "timed out"),
        (OTHER, "wrong cluster"),
        (STRANGER, "wrong key"),
    ):
        assert f"{host}:{port} -> {outcome}" in text
    assert f"{NO_SUCH_NODE}:{port} -> " in text


def test_only_wrong_keys_are_a_wrong_key(master: Master) -> None:
    with pytest.raises(WrongKey, match="authkey-file"):
        dial.reach(to(master, STRANGER, RIGHT, authkey=b"mine"))
    with pytest.raises(ConnectError) as caught:
        dial.reach(to(master, STRANGER, NOBODY))
    assert not isinstance(caught.value, WrongKey)


def test_a_single_address_with_another_cluster(master: Master) -> None:
    with pytest.raises(ConnectError, match="that is cluster 'other' now"):
        dial.reach(to(master, OTHER))


# --- whether a published master lives ------------------------------------------------------


def entry(master: Master, *hosts: str, **changes: Any) -> Cluster:
    """What `master` would have published on another node."""
    cluster = Cluster.of_this_process("right", "0.0.0.0", master.address[1], KEY, master.nonce)
    return dataclasses.replace(cluster, addresses=hosts, node=NO_SUCH_NODE, **changes)


def test_a_master_on_another_node_lives_while_it_answers(master: Master) -> None:
    assert dial.answers(entry(master, NOBODY, RIGHT))
    assert not dial.answers(entry(master, NOBODY, OTHER))
    assert not dial.answers(entry(master, NOBODY, STRANGER))
    assert not dial.answers(entry(master, NOBODY))
    assert dial.answers(entry(master, host="127.0.0.1")), "nobody can tell"


# --- what clients do with a file of another node ---------------------------------------------


def test_a_client_finds_a_published_master(master: Master) -> None:
    rendezvous.publish(entry(master, NOBODY, RIGHT))
    assert dial.locate(lambda: rendezvous.find(name="right")) == (RIGHT, master.address[1], KEY, DEFAULT)


def test_a_client_looks_again_when_the_file_was_old(master: Master) -> None:
    old, new = to(master, NOBODY, STRANGER), to(master, RIGHT, NOBODY)
    seen = [old, old, new]
    assert dial.locate(lambda: seen.pop(0)) == (RIGHT, master.address[1], KEY, DEFAULT)


def test_a_client_does_not_wait_for_ever(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "ATTRIBUTE_CACHE_S", 0.3)
    looks: List[float] = []

    def find() -> Destination:
        looks.append(time.monotonic())
        return to(master, NOBODY, OTHER)

    with pytest.raises(ConnectError, match="refused.*wrong cluster"):
        dial.locate(find)
    assert len(looks) > 1


def test_an_address_that_was_given_is_not_tried_twice() -> None:
    given = Destination(("node7",), 6000, KEY)
    found = dial.locate(lambda: given)
    assert found == ("node7", 6000, KEY, DEFAULT)


# --- many agents -----------------------------------------------------------------------------


def test_more_agents_than_can_prove_their_key_at_once_all_join(master: Master) -> None:
    """Nobody spreads here: who is turned away tries again."""
    where = to(master, NOBODY, RIGHT)
    count = defaults.MAX_HALF_OPEN + 16
    start = threading.Barrier(count)
    joined: List[Joined] = []

    def come() -> None:
        pause = threading.Event()  # nobody sets it
        approach = Approach(lambda: where, "", say=lambda line: None)
        start.wait()
        hello = this_side("worker", slots=1, busy=0, done=0, rss_bytes=0)
        member = approach.join(lambda: hello, 60.0, lambda seconds: not pause.wait(seconds))
        assert member is not None
        joined.append(member)

    threads = [threading.Thread(target=come) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({member.ident for member in joined}) == count
        status = joined[0].report.call(JOB_QUEUE, "status")
        assert {worker["id"] for worker in status["workers"]} == {member.ident for member in joined}
    finally:
        for member in joined:
            member.take.close()
            member.report.close()
