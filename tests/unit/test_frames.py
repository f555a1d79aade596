"""Frames: what multiprocessing writes is read, in whatever pieces it arrives."""

from __future__ import annotations

import os
import random
import socket
import struct
from multiprocessing.connection import Connection
from typing import List

import pytest

from cwmp.frames import FrameError, FrameReader, header

pytestmark = pytest.mark.core


def framed(*bodies: bytes) -> bytes:
    """The bodies as a stream."""
    return b"".join(header(len(body)) + body for body in bodies)


def long_header(length: int) -> bytes:
    """The header that multiprocessing writes for a body over 2 GiB."""
    return struct.pack("!iQ", -1, length)


def test_one_piece() -> None:
    assert FrameReader().feed(framed(b"a", b"", b"ccc")) == [b"a", b"", b"ccc"]


def test_byte_by_byte() -> None:
    reader = FrameReader()
    got: List[bytes] = []
    for byte in framed(b"a", b"", b"ccc", b"d" * 300):
        got += reader.feed(bytes([byte]))
    assert got == [b"a", b"", b"ccc", b"d" * 300]


def test_every_way_to_cut_in_two() -> None:
    stream = framed(b"ab", b"", b"cde") + long_header(3) + b"fgh"
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == [b"ab", b"", b"cde", b"fgh"], cut


@pytest.mark.parametrize("seed", range(8))
def test_random_pieces(seed: int) -> None:
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice((0, 1, 3, 50, 5000))) for _ in range(60)]
    stream = b"".join(
        (long_header(len(b)) if rng.random() < 0.2 else header(len(b))) + b for b in bodies
    )  # fmt: skip
    reader = FrameReader()
    got: List[bytes] = []
    while stream:
        cut = rng.choice((1, 2, 4, 5, 13, 100, 4000))
        got += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert got == bodies, f"seed {seed}"


def test_feeding_nothing_changes_nothing() -> None:
    reader = FrameReader()
    assert reader.feed(b"") == []
    assert reader.feed(framed(b"x")[:3]) == []
    assert reader.feed(b"") == []
    assert reader.feed(framed(b"x")[3:]) == [b"x"]


def test_big_frame_in_small_pieces_is_joined_once() -> None:
    """The pieces are kept apart until all are there: else it would copy 32 MB 512 times."""
    body = os.urandom(1 << 16) * 512
    reader = FrameReader()
    stream = memoryview(framed(body))
    got: List[bytes] = []
    for at in range(0, len(stream), 1 << 16):
        got += reader.feed(bytes(stream[at : at + (1 << 16)]))
    assert got == [body]


@pytest.mark.parametrize("length", [-2, -(2**31), 101, 2**31 - 1])
def test_impossible_length_is_an_error(length: int) -> None:
    with pytest.raises(FrameError, match=str(length)):
        FrameReader(max_frame=100).feed(struct.pack("!i", length))


def test_impossible_long_length_is_an_error() -> None:
    reader = FrameReader(max_frame=100)
    assert reader.feed(long_header(2**63)[:11]) == []
    with pytest.raises(FrameError):
        reader.feed(long_header(2**63)[11:])


def test_length_is_judged_before_the_body_arrives() -> None:
    reader = FrameReader(max_frame=100)
    assert reader.feed(framed(b"x" * 100)) == [b"x" * 100]
    with pytest.raises(FrameError):
        reader.feed(header(101))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x\r\n"])
def test_other_protocols_are_recognised_as_garbage(garbage: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader(256).feed(garbage)


def test_limit_can_be_raised_in_mid_stream() -> None:
    reader = FrameReader(10)
    assert reader.feed(framed(b"short")) == [b"short"]
    reader.limit(1000)
    assert reader.feed(framed(b"x" * 1000)) == [b"x" * 1000]


def test_header_of_a_body_over_2_gib() -> None:
    assert header(2**31 - 1) == struct.pack("!i", 2**31 - 1)
    assert header(2**31) == long_header(2**31)


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 100_000])
def test_what_multiprocessing_writes_is_read(size: int) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    body = os.urandom(size)
    connection = Connection(theirs.detach())
    reader = FrameReader()
    got: List[bytes] = []
    connection.send_bytes(body)
    connection.close()
    with ours:
        while data := ours.recv(5000):
            got += reader.feed(data)
    assert got == [body]


@pytest.mark.parametrize("size", [0, 1, 16384, 100_000])
def test_what_we_write_is_read_by_multiprocessing(size: int) -> None:
    ours, theirs = socket.socketpair()
    body = os.urandom(size)
    connection = Connection(theirs.detach())
    with ours:
        ours.sendall(framed(body, b"next"))
        assert connection.recv_bytes() == body
        assert connection.recv_bytes() == b"next"
    connection.close()
