"""What slots write to standard error: passed on in order, without waiting, and the last of it kept."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

from cwmp.echo import Echo, say_without_waiting
from cwmp.loop import Loop
from tests.waiting import wait_until

pytestmark = pytest.mark.core

PIPE_BYTES = 64 << 10


@contextlib.contextmanager
def standard_error(fd: int) -> Iterator[None]:
    """Our descriptor 2 is that one for a while; -1: it is closed."""
    before = os.dup(2)
    try:
        if fd < 0:
            os.close(2)
        else:
            os.dup2(fd, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


class Bench:
    """Two slots without processes: what they write, and what comes of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.answered: Dict[int, bool] = {}
        self.echo = Echo(2, self.loop, lambda index: self.answered.get(index, False))

    def write(self, index: int, data: bytes) -> None:
        os.write(self.echo._pipes[index][1], data)

    def turn(self, until: Callable[[], object] = lambda: True) -> None:
        """Let the loop run, never for long."""

        def once() -> object:
            before = time.monotonic()
            self.loop.poll(0.01)
            assert time.monotonic() - before < 0.5, "it waited for its reader"
            return until()

        wait_until(once)

    def close(self) -> None:
        self.echo.close(0.0)
        self.loop.close()


@pytest.fixture
def pipe() -> Iterator[int]:
    """The reading end of what stands for the worker's standard error."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with standard_error(writing):
        yield reading
    os.close(reading)
    os.close(writing)


@pytest.fixture
def bench(pipe: int) -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def available(fd: int) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = os.read(fd, 1 << 20)
            if not piece:
                break
            data += piece
    return data


def test_what_is_printed_comes_out(bench: Bench, pipe: int) -> None:
    bench.write(0, b"one\n")
    bench.turn()
    bench.write(1, b"two\n")
    bench.turn()
    assert available(pipe) == b"one\ntwo\n"


def test_the_last_words_of_a_dead_slot(bench: Bench, pipe: int) -> None:
    bench.write(0, b"early\n")
    bench.turn()
    bench.write(0, b"late\n")
    bench.write(1, b"another's\n")
    assert bench.echo.last_words(0) == b"early\nlate\n"
    assert available(pipe) == b"early\nlate\n"
    assert bench.echo.last_words(0) == b""


def test_much_is_passed_on_whole_and_only_the_end_is_kept(bench: Bench, pipe: int) -> None:
    sent = b"".join(b"%07d\n" % n for n in range(40_000))
    writer = threading.Thread(target=bench.write, args=(0, sent))
    writer.start()
    seen = b""

    def all_there() -> bool:
        nonlocal seen
        seen += available(pipe)
        return len(seen) == len(sent)

    bench.turn(all_there)
    writer.join()
    assert seen == sent
    kept = bench.echo.last_words(0)
    assert len(kept) <= 16 << 10
    assert sent.endswith(kept)


def test_nobody_who_reads_holds_nobody_but_who_prints(bench: Bench, pipe: int) -> None:
    """The reader has stopped: the job that goes on printing waits, the loop does not, memory stays flat."""
    stop = threading.Event()
    written = 0
    os.set_blocking(bench.echo._pipes[0][1], False)

    def flood() -> None:
        nonlocal written
        while not stop.is_set():
            with contextlib.suppress(BlockingIOError):
                written += os.write(bench.echo._pipes[0][1], b"x" * 4096)
                continue
            stop.wait(0.001)

    writer = threading.Thread(target=flood)
    writer.start()
    try:
        bench.turn(lambda: bench.echo._waiting)
        began = time.process_time()
        deadline = time.monotonic() + 0.3
        bench.turn(lambda: time.monotonic() > deadline)
        assert time.process_time() - began < 0.25, "it looks again and again"
        assert written <= 5 * PIPE_BYTES
        assert len(available(pipe)) >= PIPE_BYTES // 2  # somebody reads again
        before = written
        bench.turn(lambda: available(pipe) and written > before + PIPE_BYTES)
    finally:
        stop.set()
        writer.join()


def test_slots_that_die_while_nobody_reads_leave_no_more_than_so_much(bench: Bench, pipe: int) -> None:
    for _ in range(40):
        bench.write(0, b"y" * PIPE_BYTES)
        assert bench.echo.last_words(0) == b"y" * (16 << 10)
    assert len(bench.echo._waiting[0]) <= 1 << 20


def test_our_own_descriptor_stays_blocking(bench: Bench, pipe: int) -> None:
    assert os.get_blocking(2)


def test_who_reads_has_gone(bench: Bench, pipe: int) -> None:
    bench.write(0, b"z" * PIPE_BYTES)
    bench.turn()
    bench.write(0, b"z" * PIPE_BYTES)
    bench.turn(lambda: bench.echo._waiting)
    os.dup2(os.open(os.devnull, os.O_RDONLY), pipe)  # closes the last reading end
    bench.turn(lambda: not bench.echo._waiting)
    bench.write(0, b"still kept\n")
    bench.turn()
    assert bench.echo.last_words(0).endswith(b"still kept\n")


def test_what_is_left_at_the_end_comes_out() -> None:
    reading, writing = os.pipe()
    with standard_error(writing):
        bench = Bench()
    os.close(writing)
    bench.write(0, b"a" * PIPE_BYTES)
    bench.turn()
    bench.write(0, b"b" * 1000)
    seen = bytearray()

    def read() -> None:
        with open(reading, "rb") as file:
            seen.extend(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    bench.echo.close(10.0)
    reader.join()
    bench.loop.close()
    assert seen == b"a" * PIPE_BYTES + b"b" * 1000


# --- whose words they are -------------------------------------------------------------------


def test_words_of_jobs_that_have_ended_are_not_blamed_on_the_next(bench: Bench) -> None:
    bench.write(0, b"of the first\n")
    bench.turn()
    bench.echo.job_ended(0)
    bench.write(0, b"of the second\n")
    assert bench.echo.last_words(0) == b"of the second\n"


def test_words_read_while_an_answer_waits_may_be_of_the_next_job(bench: Bench) -> None:
    bench.answered[0] = True
    bench.write(0, b"of the first or the second\n")
    bench.turn()
    bench.answered[0] = False
    bench.echo.job_ended(0)  # the first
    bench.write(0, b"of the second\n")
    bench.turn()
    assert bench.echo._tails[0].old == b"of the first or the second\nof the second\n"
    bench.echo.job_ended(0)
    assert bench.echo.last_words(0) == b""


# --- other kinds of standard error ----------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab") as log, standard_error(log.fileno()):
        log.write(b"before\n")
        log.flush()
        bench = Bench()
        bench.write(0, b"one\n")
        bench.turn()
        os.write(2, b"two\n")
        bench.close()
    assert (tmp_path / "log").read_bytes() == b"before\none\ntwo\n"


def test_a_file_that_is_not_appended_to(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log, standard_error(log.fileno()):
        os.write(2, b"before\n")
        bench = Bench()
        bench.write(0, b"one\n")
        bench.turn()
        os.write(2, b"two\n")
        bench.close()
    assert (tmp_path / "log").read_bytes() == b"before\none\ntwo\n"


def test_a_socket_whose_peer_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with standard_error(ours.fileno()):
            bench = Bench()
            while not bench.echo._waiting:
                bench.write(0, b"x" * 4096)
                bench.turn()
            theirs.settimeout(5)
            while bench.echo._waiting:
                assert theirs.recv(1 << 16)
                bench.turn()
            bench.close()


def test_a_terminal_that_is_held() -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    try:
        with standard_error(theirs):
            bench = Bench()
            bench.write(0, b"shown\n")
            bench.turn()
            assert os.read(ours, 100) == b"shown\r\n"
            termios.tcflow(theirs, termios.TCOOFF)  # Ctrl-S
            bench.write(0, b"held\n")
            bench.turn(lambda: bench.echo._waiting)
            os.write(ours, b"typed meanwhile\n")
            bench.turn()
            termios.tcflow(theirs, termios.TCOON)
            bench.turn(lambda: not bench.echo._waiting)
            assert b"held" in os.read(ours, 100)
            bench.close()
    finally:
        os.close(ours)
        os.close(theirs)


def test_none() -> None:
    with standard_error(-1):
        bench = Bench()
        bench.write(0, b"kept all the same\n")
        bench.turn()
        assert bench.echo.last_words(0) == b"kept all the same\n"
        bench.close()
    os.fstat(2)


def test_what_cannot_be_opened_anew_is_written_to_with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without /proc, or without descriptors left."""
    reading, writing = os.pipe()
    try:
        with standard_error(writing), monkeypatch.context() as patched:
            patched.setattr("cwmp.echo.os.open", no_descriptors)
            say_without_waiting("said")
            bench = Bench()
            bench.write(0, b"x" * PIPE_BYTES)
            bench.turn(lambda: bench.echo._waiting)
            while bench.echo._waiting:
                os.read(reading, 4096)
                bench.turn()
            say_without_waiting("said again")
            bench.close()
        os.fstat(writing)
        os.set_blocking(reading, False)
        assert available(reading).endswith(b"said again\n")
    finally:
        os.close(reading)
        os.close(writing)


def no_descriptors(*_: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")
