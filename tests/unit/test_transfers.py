"""Large values on connections of their own: what arrives is what was sent, or an error."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from cwmp import shelf, transfers
from cwmp.errors import BlobLost, ConnectError, UsageError
from cwmp.transfers import Damaged, Transfer
from tests.waiting import wait_until

pytestmark = pytest.mark.core

DATA = os.urandom(3 << 20)
NAME = shelf.digest_of(DATA)


class Line:
    """A member's connection to a server of `directory`, without a master around it."""

    def __init__(self, directory: Path) -> None:
        self.server = transfers.Server(str(directory))
        self.transfer = Transfer(("nowhere", 0), b"", {"member": 1})
        self.ours, theirs = socket.socketpair()
        self.server.serve(theirs, "c1.")
        assert transfers._receive_frame(self.ours) == (transfers.RETURN, None)
        self.transfer._sock = self.ours

    def get(self, name: str, size: int) -> bytes:
        data: List[bytes] = []
        self.transfer.get((name, size), lambda piece: data.append(bytes(piece)))
        return b"".join(data)

    def close(self) -> None:
        self.transfer.close()
        self.server.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "cwmp-transfer"])


def test_there_and_back(line: Line, tmp_path: Path) -> None:
    assert line.transfer.put("c1.1", [DATA[:1000], memoryview(DATA)[1000:]]) == NAME
    assert (tmp_path / "c1.1").read_bytes() == DATA
    assert (tmp_path / "c1.1").stat().st_mode & 0o777 == 0o600
    assert line.get("c1.1", len(DATA)) == DATA
    os.rename(tmp_path / "c1.1", tmp_path / NAME)
    assert line.get(NAME, len(DATA)) == DATA


def test_what_is_not_there(line: Line, tmp_path: Path) -> None:
    with pytest.raises(BlobLost, match="gone from the master: it is not here any more"):
        line.get(NAME, 10)
    (tmp_path / NAME).write_bytes(DATA[:1000])
    with pytest.raises(BlobLost, match="it has 1000 bytes here"):
        line.get(NAME, len(DATA))
    (tmp_path / NAME).write_bytes(DATA)
    assert line.get(NAME, len(DATA)) == DATA, "the connection goes on"


def test_what_is_not_what_its_name_says(line: Line, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(Damaged):
        line.get(NAME, len(DATA))


def send_put(sock: socket.socket, name: str, size: int, data: bytes, digest: str) -> None:
    transfers._send_frame(sock, ("put", name, size))
    sock.sendall(data)
    transfers._send_frame(sock, digest)


def test_what_arrives_damaged_at_the_master_is_refused(line: Line, tmp_path: Path) -> None:
    send_put(line.ours, "c1.1", 1000, DATA[:1000], NAME)
    kind, text = transfers._receive_frame(line.ours)
    assert (kind, text) == (transfers.FAILURE, "it arrived damaged")
    assert os.listdir(tmp_path) == []
    line.transfer.put("c1.1", [DATA])
    assert os.listdir(tmp_path) == ["c1.1"]


def test_what_was_put_and_not_acknowledged_can_be_put_again(line: Line, tmp_path: Path) -> None:
    for _ in range(2):
        line.transfer.put("c1.1", [DATA])
    assert os.listdir(tmp_path) == ["c1.1"]


def test_a_member_that_goes_in_the_middle_leaves_nothing(line: Line, tmp_path: Path) -> None:
    transfers._send_frame(line.ours, ("put", "c1.1", len(DATA)))
    line.ours.sendall(DATA[: 1 << 20])
    wait_until(lambda: os.listdir(tmp_path) == ["c1.1.in1"])
    line.transfer.close()
    wait_until(lambda: os.listdir(tmp_path) == [])


@pytest.mark.parametrize(
    "request_",
    [
        ("put", "c2.1", 10),
        ("put", "w1.1", 10),
        ("get", "../secret", 10),
        ("get", "owner", 10),
        ("drop", "c1.1", 10),
        "nonsense",
        (),
        None,
    ],
    ids=str,
)
def test_what_nobody_may_ask_for_ends_the_connection(line: Line, tmp_path: Path, request_: Any) -> None:
    transfers._send_frame(line.ours, request_)
    assert line.ours.recv(1) == b""
    assert os.listdir(tmp_path) == []


def test_garbage_ends_the_connection(line: Line) -> None:
    line.ours.sendall(b"\xff" * 100)
    try:
        assert line.ours.recv(1) == b""
    except ConnectionResetError:
        pass  # some of the garbage had not been read


def test_an_interrupt_in_the_middle_ends_the_connection(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still on its way would be taken for the next answer, and a request for a piece."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / NAME).write_bytes(DATA)
    with pytest.raises(KeyboardInterrupt):
        line.transfer.get((NAME, len(DATA)), interrupted)
    assert line.transfer._sock is None
    ours, theirs = socket.socketpair()
    with theirs:
        line.transfer._sock = ours
        monkeypatch.setattr(transfers, "_receive_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            line.transfer.put("c1.1", [DATA[:1000]])
    assert line.transfer._sock is None


def test_a_master_that_goes_in_the_middle(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    transfer = Transfer(("127.0.0.1", 1), b"", {"member": 1})
    transfer._sock = ours
    transfers._send_frame(theirs, (transfers.RETURN, len(DATA)))
    theirs.sendall(DATA[:1000])
    theirs.close()
    with pytest.raises(ConnectError, match="broke"):
        transfer.get((NAME, len(DATA)), lambda piece: None)
    with pytest.raises(ConnectError):
        transfer.get((NAME, len(DATA)), lambda piece: None)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "owner", "A", "x" * 81, 5, None, b"a"])
def test_names_that_no_blob_can_have(name: Any) -> None:
    with pytest.raises(UsageError):
        shelf.check_name(name)
