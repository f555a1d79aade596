"""The event loop and its channels: nothing lost, nobody held up, closed once."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from cwmp.frames import FrameReader, header
from cwmp.loop import Channel, Loop
from tests.waiting import wait_until

pytestmark = pytest.mark.core


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Ends:
    """A channel, the other end of its socket, and what the channel has told."""

    def __init__(self, loop: Loop, already: Any = None) -> None:
        self.loop = loop
        ours, self.peer = socket.socketpair()
        self.frames: List[bytes] = []
        self.reasons: List[str] = []
        self.channel = Channel(loop, ours, self.frames.extend, self.reasons.append, already)

    def run_until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"frames {len(self.frames)}, reasons {self.reasons}"
            self.loop.poll(0.05)

    def close(self) -> None:
        self.channel.close()
        self.peer.close()


@pytest.fixture
def ends(loop: Loop) -> Iterator[Ends]:
    ends = Ends(loop)
    yield ends
    ends.close()


def sent(body: bytes) -> bytes:
    return header(len(body)) + body


# --- the loop -------------------------------------------------------------------------------


def test_poll_ends_after_its_time(loop: Loop) -> None:
    begin = time.monotonic()
    loop.poll(0.02)
    assert time.monotonic() - begin >= 0.015


def test_posted_calls_run_in_order_in_the_loops_thread(loop: Loop) -> None:
    seen: List[Tuple[int, int]] = []
    for n in range(3):
        loop.post(lambda n=n: seen.append((n, threading.get_ident())))  # type: ignore[misc]
    assert seen == []
    loop.poll(10)
    assert seen == [(n, threading.get_ident()) for n in range(3)]


def test_a_post_from_another_thread_ends_a_poll(loop: Loop) -> None:
    seen: List[int] = []
    thread = threading.Thread(target=lambda: loop.post(lambda: seen.append(1)))
    thread.start()
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        loop.poll(10)
    thread.join()
    assert seen == [1]


def test_no_post_is_lost_when_very_many_come(loop: Loop) -> None:
    """More than the wake-up socket holds."""
    seen: List[int] = []
    for n in range(20_000):
        loop.post(lambda n=n: seen.append(n))  # type: ignore[misc]
    while len(seen) < 20_000:
        loop.poll(0)
    assert seen == list(range(20_000))
    begin = time.monotonic()
    loop.poll(0.02)
    assert time.monotonic() - begin >= 0.015, "a stale wake-up was left over"


def test_a_signal_ends_a_poll(loop: Loop) -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    fd = loop.wake_on_signals()
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        begin = time.monotonic()
        loop.poll(10)
        assert time.monotonic() - begin < 8
        timer.join()
    finally:
        signal.set_wakeup_fd(fd)
        signal.signal(signal.SIGUSR1, before)


def test_posting_to_a_closed_loop_is_harmless() -> None:
    loop = Loop()
    loop.close()
    loop.post(lambda: None)
    loop.wake()


def test_a_forgotten_descriptor_is_not_looked_at(loop: Loop) -> None:
    reading, writing = os.pipe()
    seen: List[int] = []
    loop.watch(reading, lambda: seen.append(1))
    os.write(writing, b"x")
    loop.poll(1)
    assert seen == [1]
    loop.forget(reading)
    loop.forget(reading)
    loop.poll(0)
    assert seen == [1]
    os.close(reading)
    os.close(writing)
    loop.forget(reading)


def test_posted_calls_go_on_behind_one_that_raised(loop: Loop) -> None:
    seen: List[int] = []
    loop.post(lambda: seen.append(1 // 0))
    loop.post(lambda: seen.append(2))
    with pytest.raises(ZeroDivisionError):
        loop.poll(1)
    loop.wake()
    loop.poll(1)
    assert seen == [2]


# --- channels -------------------------------------------------------------------------------


def test_frames_arrive(ends: Ends) -> None:
    ends.peer.sendall(sent(b"one") + sent(b"") + sent(b"three")[:5])
    ends.run_until(lambda: len(ends.frames) == 2)
    ends.peer.sendall(sent(b"three")[5:])
    ends.run_until(lambda: len(ends.frames) == 3)
    assert ends.frames == [b"one", b"", b"three"]


def test_what_came_before_is_not_lost(loop: Loop) -> None:
    """A blocking reader has read ahead: two frames, and half of a third."""
    reader = FrameReader()
    early = reader.feed(sent(b"one") + sent(b"two") + sent(b"three")[:6])
    ends = Ends(loop, already=(reader, early))
    ends.peer.sendall(sent(b"three")[6:])
    ends.run_until(lambda: len(ends.frames) == 3)
    assert ends.frames == [b"one", b"two", b"three"]
    ends.close()


def read_all(peer: socket.socket, count: int) -> List[bytes]:
    reader = FrameReader()
    got: List[bytes] = []
    peer.settimeout(10)
    while len(got) < count:
        got += reader.feed(peer.recv(1 << 16))
    return got


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (64 << 10) + 1, 5 << 20])
def test_frames_are_sent_whole(ends: Ends, size: int) -> None:
    """Also those that are larger than the socket's buffer."""
    bodies = [os.urandom(size), b"after", os.urandom(size // 2)]
    got: List[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(read_all(ends.peer, 3)))
    for body in bodies:
        ends.channel.send(body)
    thread.start()
    ends.run_until(lambda: len(got) == 3)
    thread.join()
    assert got == bodies
    assert not ends.channel.congested


def test_many_frames_to_a_slow_reader_keep_their_order(ends: Ends) -> None:
    bodies = [b"%06d" % n + bytes(n % 3000) for n in range(3000)]
    for body in bodies:
        ends.channel.send(body)
    assert ends.channel.congested, "this test needs a full socket"
    got: List[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(read_all(ends.peer, len(bodies))))
    thread.start()
    ends.run_until(lambda: len(got) == len(bodies))
    thread.join()
    assert got == bodies


def test_a_full_socket_does_not_hold_the_loop_up(loop: Loop, ends: Ends) -> None:
    other = Ends(loop)
    ends.channel.send(bytes(20 << 20))  # nobody reads it
    other.peer.sendall(sent(b"hello"))
    other.run_until(lambda: other.frames)
    other.channel.send(b"answer")
    assert read_all(other.peer, 1) == [b"answer"]
    other.close()


def test_an_idle_channel_does_not_spin(ends: Ends) -> None:
    """Once everything is written it must not wait for room any more."""
    ends.channel.send(bytes(5 << 20))
    thread = threading.Thread(target=lambda: read_all(ends.peer, 1))
    thread.start()
    ends.run_until(lambda: not ends.channel.congested)
    thread.join()
    ends.loop.poll(0)
    begin = time.monotonic()
    ends.loop.poll(0.05)
    assert time.monotonic() - begin >= 0.04


def test_the_peers_end_is_told_once(ends: Ends) -> None:
    ends.peer.sendall(sent(b"last words"))
    ends.peer.close()
    ends.run_until(lambda: ends.reasons)
    for _ in range(3):
        ends.loop.poll(0)
        ends.channel.send(b"too late")
    assert ends.frames == [b"last words"]
    assert ends.reasons == ["closed by the other side"]
    assert not ends.channel.open


def test_our_own_end_is_not_told(ends: Ends) -> None:
    ends.channel.send(b"bye")
    ends.channel.close()
    ends.channel.close()
    ends.channel.send(b"too late")
    ends.loop.poll(0)
    assert ends.reasons == []
    assert read_all(ends.peer, 1) == [b"bye"]
    assert ends.peer.recv(10) == b""


def test_a_broken_connection_is_found_when_sending(ends: Ends) -> None:
    ends.peer.close()
    for _ in range(3):
        ends.channel.send(bytes(100_000))
    assert ends.reasons == [], "whoever sends is not disturbed"
    assert not ends.channel.congested
    ends.run_until(lambda: ends.reasons)
    assert ends.reasons == [os.strerror(errno.EPIPE)]
    assert not ends.channel.open


@pytest.mark.parametrize("size", [10, 100_000])
def test_what_the_peer_said_before_it_hung_up_is_heard(ends: Ends, size: int) -> None:
    ends.peer.sendall(sent(b"last") + sent(b"words"))
    ends.peer.close()
    ends.channel.send(bytes(size))
    ends.run_until(lambda: ends.reasons)
    assert ends.frames == [b"last", b"words"]
    assert ends.reasons == [os.strerror(errno.EPIPE)]


def test_a_channel_that_cannot_send_is_closed_when_what_it_heard_makes_trouble(loop: Loop) -> None:
    def on_frames(frames: List[bytes]) -> None:
        raise MemoryError

    ours, theirs = socket.socketpair()
    reasons: List[str] = []
    channel = Channel(loop, ours, on_frames, reasons.append)
    theirs.sendall(sent(b"too much"))
    theirs.close()
    channel.send(b"x")
    loop.forget(ours)  # or it might be read from before
    with pytest.raises(MemoryError):
        loop.poll(10)
    assert len(reasons) == 1


def test_hearing_out_takes_no_waiting(ends: Ends) -> None:
    ends.channel.hear_out()
    ends.peer.sendall(sent(b"one") + sent(b"two")[:-1])
    ends.channel.hear_out()
    assert (ends.frames, ends.channel.open) == ([b"one"], True)
    ends.peer.sendall(b"o")
    ends.channel.hear_out()
    assert ends.frames == [b"one", b"two"]
    ends.channel.close()
    ends.channel.hear_out()


def test_garbage_ends_the_connection(ends: Ends) -> None:
    ends.peer.sendall(sent(b"good") + b"\xff\xff\xff\x00garbage")
    ends.run_until(lambda: ends.reasons)
    assert len(ends.reasons) == 1 and "frame" in ends.reasons[0]
    assert not ends.channel.open


def test_closing_inside_on_frames_is_allowed(loop: Loop) -> None:
    ours, peer = socket.socketpair()
    seen: List[List[bytes]] = []
    reasons: List[str] = []

    def on_frames(frames: List[bytes]) -> None:
        seen.append(frames)
        channel.close()

    channel = Channel(loop, ours, on_frames, reasons.append)
    peer.sendall(sent(b"one") + sent(b"two"))
    loop.poll(1)
    peer.close()
    loop.poll(0)
    assert seen == [[b"one", b"two"]]
    assert reasons == []


def test_one_callback_may_close_what_another_waits_for(loop: Loop) -> None:
    """Both have something to read in the same round: the second must not be touched any more."""
    pair = [Ends(loop), Ends(loop)]
    for mine, other in (pair, reversed(pair)):
        mine.channel._on_frames = lambda frames, other=other: other.channel.close()  # type: ignore[misc,assignment]
    for end in pair:
        end.peer.sendall(sent(b"hello"))
    wait_until(lambda: loop.poll(0.01) or not all(end.channel.open for end in pair), timeout_s=5)
    loop.poll(0)
    assert sum(end.channel.open for end in pair) == 1
    for end in pair:
        end.close()


def test_a_reply_sent_from_a_callback_arrives(loop: Loop) -> None:
    ours, peer = socket.socketpair()

    def answer(frames: List[bytes]) -> None:
        for frame in frames:
            channel.send(frame * 2)

    channel = Channel(loop, ours, answer, print)
    peer.sendall(sent(b"ab") + sent(b"cd"))
    loop.poll(1)
    assert read_all(peer, 2) == [b"abab", b"cdcd"]
    channel.close()
    peer.close()
