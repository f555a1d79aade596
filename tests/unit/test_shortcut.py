"""The way past TCP: taken between processes of one user, and never instead of a key."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Iterator

import pytest

from cwmp import shortcut
from cwmp.errors import WrongKey
from cwmp.loop import Loop
from cwmp.server import Server
from cwmp.transport import connect

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="abstract socket names exist on Linux only"),
]


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """A TCP socket that listens, whose port nobody else has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_a_connection_goes_past_tcp(tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]
    listener = shortcut.listen("127.0.0.1", port, 5)
    assert listener is not None
    client = shortcut.connect("127.0.0.1", port, 5.0)
    assert client is not None
    with listener, client:
        listener.setblocking(True)
        server, _ = listener.accept()
        with server:
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert shortcut.peer(server) == (os.getpid(), os.geteuid())


def test_where_nobody_listens_there_is_no_shortcut(tcp: socket.socket) -> None:
    assert shortcut.connect("127.0.0.1", tcp.getsockname()[1], 5.0) is None


def test_other_addresses_have_none() -> None:
    assert shortcut.listen("127.0.0.2", 5494, 5) is None
    assert shortcut.connect("127.0.0.2", 5494, 5.0) is None
    assert shortcut.connect("node7", 5494, 5.0) is None


def test_somebody_elses_listener_is_not_used(tcp: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = tcp.getsockname()[1]
    listener = shortcut.listen("127.0.0.1", port, 5)
    assert listener is not None
    with listener:
        monkeypatch.setattr(shortcut, "peer", lambda sock: (1, os.geteuid() + 1))
        assert shortcut.connect("127.0.0.1", port, 5.0) is None


def test_a_name_that_is_taken_leaves_tcp(tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]
    first = shortcut.listen("127.0.0.1", port, 5)
    assert first is not None
    with first:
        assert shortcut.listen("127.0.0.1", port, 5) is None


def test_the_key_is_proven_here_too() -> None:
    loop = Loop()
    server = Server(("127.0.0.1", 0), b"the right key", loop)

    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            loop.poll(0.05)
            server.flush()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(WrongKey):
            connect(*server.address, b"another key")
        wire = connect(*server.address, b"the right key")
        assert wire.sock.family == socket.AF_UNIX
        wire.close()
    finally:
        stop.set()
        thread.join(10)
        server.close()
        loop.close()
