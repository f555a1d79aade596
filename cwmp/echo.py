"""What slots write to standard error: passed on to that of their worker, and the last of it kept.

The standard error of each slot is a pipe that its worker reads in its loop, a piece a round. The worker
never waits for whoever reads its own standard error: while there is no room it reads no more, so that in
the end the job waits that prints too much. What a dead slot has written is still in its pipe, so its last
words are never lost. A slot that prints nothing costs nothing.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from typing import Callable, Dict, List, Optional, Tuple

from . import defaults
from .loop import Loop

_KEPT_BYTES = 16 << 10  # of each slot: enough for the traceback of a crash
_LEFT_BYTES = 1 << 20  # that a dead slot can have left in its pipe; also how much waits for room at most
_REOPENED = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY


class Outlet:
    """This process's own standard error, as something that can be written to without waiting."""

    def __init__(self) -> None:
        self.fd = -1  # it is closed: nobody wants to know
        self._socket: Optional[socket.socket] = None
        self._careful = False
        try:
            kind = os.fstat(2).st_mode
        except OSError:
            return
        self.fd = 2  # a file always takes what it gets
        try:
            if stat.S_ISSOCK(kind):
                self._socket = socket.socket(fileno=os.dup(2))
                self.fd = self._socket.fileno()
            elif stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                # Not a copy of our descriptor: others would find theirs non-blocking, too.
                self.fd = os.open("/proc/self/fd/2", _REOPENED)
        except OSError:  # it cannot be opened, or there are no descriptors left
            self._careful = True

    def write(self, data: bytes) -> int:
        """Write as much as there is room for; returns how many bytes that are."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._careful:
                if not self.wait(0.0):
                    return 0
                data = data[: select.PIPE_BUF]
            return os.write(self.fd, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(data)  # nobody can read it, or the disk is full: no reason to stop the job

    def wait(self, seconds: float) -> bool:
        """Wait until there is room, for so long at most; returns whether there is."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Let go of it; standard error itself stays open."""
        if self._socket is not None:
            self._socket.close()
        elif self.fd > 2:
            os.close(self.fd)
        self.fd = -1


def say_without_waiting(line: str) -> None:
    """Print a line to standard error; it is lost where nobody reads what was printed before."""
    outlet = Outlet()
    if outlet.fd >= 0:
        outlet.write(f"{line}\n".encode(errors="replace"))
    outlet.close()


class _Tail:
    """The last that a slot wrote, as far as it may be of the job that runs in it now."""

    def __init__(self) -> None:
        self.old = b""  # of that job or of earlier ones
        self.new = b""  # read when an answer was waiting: may be of a later one

    def add(self, data: bytes, answered: bool) -> None:
        if self.new or answered:
            self.new = (self.new + data)[-_KEPT_BYTES:]
        else:
            self.old = (self.old + data)[-_KEPT_BYTES:]

    def job_ended(self) -> None:
        self.old, self.new = self.new, b""


class Echo:
    """The pipes of all slots of a worker. They stay when a slot is replaced.

    `answered(slot)` tells whether an answer of that slot is waiting to be read.
    """

    def __init__(self, size: int, loop: Loop, answered: Callable[[int], bool]) -> None:
        self._loop = loop
        self._answered = answered
        self._outlet = Outlet()
        self._pipes: List[Tuple[int, int]] = []
        self._tails: Dict[int, _Tail] = {}  # of slots that have printed something
        self._waiting: Dict[int, bytes] = {}  # what has been read and found no room, by slot
        for index in range(size):
            self._pipes.append(os.pipe())
            os.set_blocking(self._pipes[index][0], False)
            self._watch(index)

    def become_stderr(self, index: int) -> None:
        """In a new slot: from now on its standard error is the pipe."""
        os.dup2(self._pipes[index][1], 2)

    def job_ended(self, index: int) -> None:
        """An answer of this slot was read, the last that there was."""
        if index in self._tails:
            self._tails[index].job_ended()

    def last_words(self, index: int) -> bytes:
        """The end of what this slot, which is dead, wrote; it is forgotten here."""
        taken = 0
        while taken < _LEFT_BYTES:  # children of its jobs may live and go on writing
            data = self._read(index)
            if not data:
                break
            taken += len(data)
        tail = self._tails.pop(index, None)
        return b"" if tail is None else tail.old + tail.new

    def pass_on(self) -> None:
        """Pass on what there is, for when the loop is not running."""
        self._on_room()
        for index in range(len(self._pipes)):
            if index not in self._waiting:
                self._read(index)

    def close(self, patience_s: float) -> None:
        """Pass on what is left, as far as somebody takes it within that time, and end."""
        deadline = time.monotonic() + patience_s
        self.pass_on()
        while self._waiting and self._outlet.wait(max(0.0, deadline - time.monotonic())):
            self.pass_on()
        self._loop.forget(self._outlet.fd)
        for reading, writing in self._pipes:
            self._loop.forget(reading)
            os.close(reading)
            os.close(writing)
        self._outlet.close()

    def _watch(self, index: int) -> None:
        self._loop.watch(self._pipes[index][0], lambda: self._on_readable(index))

    def _on_readable(self, index: int) -> None:
        self._read(index)

    def _read(self, index: int) -> bytes:
        """Take one piece out of a pipe, keep the end of it and pass it on."""
        try:
            data = os.read(self._pipes[index][0], defaults.READ_BYTES)
        except BlockingIOError:
            return b""
        self._tails.setdefault(index, _Tail()).add(data, self._answered(index))
        if index in self._waiting:  # it has died: nothing else is read meanwhile
            self._waiting[index] = (self._waiting[index] + data)[:_LEFT_BYTES]
        else:
            left = data[self._outlet.write(data) if self._outlet.fd >= 0 else len(data) :]
            if left:
                self._wait_for_room(index, left)
        return data

    def _wait_for_room(self, index: int, data: bytes) -> None:
        """Read no more from this slot until that is written."""
        if not self._waiting:
            self._loop.watch_room(self._outlet.fd, self._on_room)
        self._waiting[index] = data
        self._loop.forget(self._pipes[index][0])

    def _on_room(self) -> None:
        """Write what waits; each slot of which all is written can go on."""
        for index, data in list(self._waiting.items()):
            written = self._outlet.write(data)
            if written < len(data):
                self._waiting[index] = data[written:]
                return
            del self._waiting[index]
            self._watch(index)
        self._loop.forget(self._outlet.fd)
