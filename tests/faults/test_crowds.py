"""Thousands of strangers at the master's door: the cluster works on, and is as it was when they have left."""

from __future__ import annotations

import os
import resource
import socket
import statistics
import time
from typing import Any, Dict, Iterator, List

import psutil
import pytest

from cwmp import ClusterExecutor, LocalCluster, defaults, shortcut
from cwmp.messages import JOB_QUEUE
from cwmp.rendezvous import parse_address
from cwmp.transport import greet
from tests.faults import jobs
from tests.waiting import wait_until

pytestmark = pytest.mark.core

CROWD = 2000
TRIPS = 60
WAIT_S = 30.0
GARBAGE = (b"GET / HTTP/1.0\r\n\r\n", b"\x00\x00\x00\x04spam", b"\x7f\xff\xff\xff", os.urandom(300), b"\x00")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """As many as the crowd needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CROWD + 200:
        pytest.skip(f"this system allows {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def burden(master: psutil.Process) -> Dict[str, int]:
    return {"threads": master.num_threads(), "descriptors": master.num_fds()}


def round_trip_s(executor: ClusterExecutor) -> float:
    """The median time of a job that does nothing."""
    times = []
    for _ in range(TRIPS):
        begin = time.perf_counter()
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def crowd(way: str, port: int, words: List[bytes]) -> List[socket.socket]:
    """So many connections, each of which has said its words and says no more."""
    peers = []
    for number in range(CROWD):
        if way == "tcp":
            peer = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        else:
            peer = shortcut.connect("127.0.0.1", port, WAIT_S) or pytest.fail("there is no shortcut")
        peers.append(peer)
        try:
            peer.sendall(words[number % len(words)])
        except OSError:
            pass  # it was thrown out before it could speak
    return peers


def newcomer(way: str, port: int, authkey: bytes) -> None:
    """Who holds the key gets in with the usual patience, past all who stand in the same line."""
    patience_s = defaults.CONNECT_S + defaults.HANDSHAKE_S
    sock = socket.create_connection(("127.0.0.1", port)) if way == "tcp" else None
    if sock is None:
        sock = shortcut.connect("127.0.0.1", port, patience_s) or pytest.fail("there is no shortcut")
    wire = greet(sock, "the master", authkey, patience_s)
    assert wire.call(JOB_QUEUE, "cluster")
    wire.close()


@pytest.mark.parametrize("way", ["tcp", "shortcut"])
@pytest.mark.parametrize("words", [[b""], GARBAGE], ids=["silent", "garbage"])
def test_a_crowd_of_strangers(cluster: LocalCluster, way: str, words: List[bytes]) -> None:
    if way == "shortcut" and not os.path.exists("/proc/net/unix"):
        pytest.skip("the shortcut needs Linux")
    port: Any = parse_address(cluster.address)[1]
    master = psutil.Process(cluster.pids["master"])
    with cluster.executor() as executor:
        round_trip_s(executor)
        usual_s, before, rss = round_trip_s(executor), burden(master), master.memory_info().rss
        peers = crowd(way, port, words)
        try:
            most = burden(master)
            assert round_trip_s(executor) < 0.1  # while garbage is being listened to, for a second or two
            wait_until(lambda: round_trip_s(executor) < 2 * usual_s + 0.001, timeout_s=WAIT_S)
            assert most["threads"] <= before["threads"] + defaults.MAX_HALF_OPEN + 10
            newcomer(way, port, cluster.authkey)
        finally:
            for peer in peers:
                peer.close()
        wait_until(lambda: burden(master) == before, timeout_s=WAIT_S, describe=lambda: str(burden(master)))
        assert master.memory_info().rss < rss + (20 << 20)
        wait_until(lambda: round_trip_s(executor) < 2 * usual_s + 0.001, timeout_s=WAIT_S)
