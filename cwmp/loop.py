"""One thread that serves many descriptors: what master and worker agent run on.

`Loop` waits and calls; `Channel` moves frames over a non-blocking socket. With one thread there is
no lock to hold, no hand-off between threads to pay for, and no peer that can hold anybody else up.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Tuple, Union

from . import defaults
from .frames import FrameError, FrameReader, header

if TYPE_CHECKING:
    from .tls import AnySocket

_WRITE_AT_ONCE_BYTES = 64 << 10
_LAST_READS = 100  # of a connection that is about to be closed


class _Selector:
    """`selectors` where there is no epoll; the same three calls as `_Epoll`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, events)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout_s: Optional[float]) -> List[Tuple[int, int]]:
        return [(key.fd, events) for key, events in self._selector.select(timeout_s)]

    def fileno(self) -> int:
        return self._selector.fileno()

    def close(self) -> None:
        self._selector.close()


# epoll without `selectors` around it: that layer costs as much as a wake-up's other bookkeeping.
READ = getattr(select, "EPOLLIN", selectors.EVENT_READ)
WRITE = getattr(select, "EPOLLOUT", selectors.EVENT_WRITE)
Poller: Any = getattr(select, "epoll", _Selector)


class Loop:
    """Waits for descriptors, and runs what other threads and signal handlers post."""

    def __init__(self) -> None:
        self._poller = Poller()
        self._readers: Dict[int, Callable[[], None]] = {}
        self._writers: Dict[int, Callable[[], None]] = {}
        self._posted: Deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.watch(self._wake_in, self._run_posted)

    def watch(self, fileobj: Any, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read."""
        fd = _fd_of(fileobj)
        self._poller.register(fd, READ)
        self._readers[fd] = on_readable

    def watch_writes(self, fileobj: Any, on_writable: Callable[[], None]) -> None:
        """From now on call `on_writable` as well whenever there is room to write."""
        fd = _fd_of(fileobj)
        self._poller.modify(fd, READ | WRITE)
        self._writers[fd] = on_writable

    def forget_writes(self, fileobj: Any) -> None:
        """Undo `watch_writes`."""
        fd = _fd_of(fileobj)
        self._poller.modify(fd, READ)
        self._writers.pop(fd, None)

    def watch_room(self, fileobj: Any, on_room: Callable[[], None]) -> None:
        """Call `on_room` whenever there is room to write, or nobody reads any more."""
        fd = _fd_of(fileobj)
        self._poller.register(fd, WRITE)
        self._readers[fd] = self._writers[fd] = on_room

    def forget(self, fileobj: Any) -> None:
        """Watch no longer; must come before the descriptor is closed."""
        fd = _fd_of(fileobj)
        if self._readers.pop(fd, None) is not None:
            self._writers.pop(fd, None)
            self._poller.unregister(fd)

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop's thread run `call` soon. Safe from other threads and signal handlers."""
        self._posted.append(call)
        self.wake()

    def wake(self) -> None:
        """Make `poll` return soon."""
        try:
            self._wake_out.send(b"!")
        except (BlockingIOError, OSError):
            pass  # full: it will wake anyway

    def poll(self, timeout_s: Optional[float]) -> None:
        """Wait up to `timeout_s` (None: for ever) and call what is due, once."""
        readers = self._readers
        for fd, events in self._poller.poll(timeout_s):
            if events & WRITE and fd in self._writers:
                self._writers[fd]()
            if events & ~WRITE and fd in readers:  # a hang-up or an error is found out by reading
                readers[fd]()

    def wake_on_signals(self) -> int:
        """Let arriving signals end a `poll`; returns the descriptor to restore (signal.set_wakeup_fd)."""
        return signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Give the loop's own descriptors back."""
        self._poller.close()
        self._wake_in.close()
        self._wake_out.close()

    def _run_posted(self) -> None:
        try:
            while len(self._wake_in.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        while self._posted:
            self._posted.popleft()()


def _fd_of(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


class Channel:
    """Frames over a non-blocking socket that a loop watches.

    `on_frames(bodies)` is called with what has arrived complete, `on_close(reason)` once, unless
    `close` came first. `already` continues where a blocking reader left off: its FrameReader and the
    frames that it has not looked at.
    """

    def __init__(
        self,
        loop: Loop,
        sock: AnySocket,
        on_frames: Callable[[List[bytes]], None],
        on_close: Callable[[str], None],
        already: Optional[Tuple[FrameReader, List[bytes]]] = None,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.open = True
        self.on_drained: Callable[[], None] = lambda: None
        """Called when a peer that was slow has taken all that was sent."""
        self._loop = loop
        self._on_frames = on_frames
        self._on_close = on_close
        self._reader, frames = already or (FrameReader(), [])
        self._unsent: Deque[Union[bytes, memoryview]] = deque()
        self._can_send = True
        self._trouble = ""  # why it can't
        loop.watch(sock, self._readable)
        if frames:
            loop.post(lambda: self._on_frames(frames))

    @property
    def congested(self) -> bool:
        """Whether the peer has not yet taken what was sent."""
        return bool(self._unsent)

    def send(self, *bodies: bytes) -> None:
        """Send frames, now as far as the peer takes them and later for the rest."""
        if not self._can_send:
            return
        if len(bodies) == 1 and len(bodies[0]) <= _WRITE_AT_ONCE_BYTES and not self._unsent:
            self._send_at_once(header(len(bodies[0])) + bodies[0])
            return
        waiting = bool(self._unsent)  # then the loop is looking out for room already
        small: List[bytes] = []
        for body in bodies:
            small.append(header(len(body)))
            if len(body) <= _WRITE_AT_ONCE_BYTES:
                small.append(body)
            else:
                self._unsent.append(b"".join(small))
                self._unsent.append(memoryview(body))
                small = []
        if small:
            self._unsent.append(b"".join(small))
        if not waiting:
            self._flush()
            if self._unsent and self.open:
                self._loop.watch_writes(self.sock, self._writable)

    def _send_at_once(self, data: bytes) -> None:
        """The common case, which with one job at a time everybody waits for: one small frame."""
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._give_up_sending(_said_by(error))
            return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._loop.watch_writes(self.sock, self._writable)

    def detach(self) -> AnySocket:
        """Let go of the connection without ending it."""
        self.open = self._can_send = False
        self._unsent.clear()
        self._loop.forget(self.sock)
        return self.sock

    def close(self) -> None:
        """End the connection; `on_close` is not called."""
        if self.open:
            self.open = self._can_send = False
            self._unsent.clear()
            self._loop.forget(self.sock)
            self.sock.close()

    def hear_out(self) -> None:
        """Pass on what the peer has said so far; to be called when the connection is about to be closed."""
        frames: List[bytes] = []
        with contextlib.suppress(OSError, FrameError):
            for _ in range(_LAST_READS if self.open else 0):
                data = self.sock.recv(defaults.READ_BYTES)
                if not data:
                    break
                frames += self._reader.feed(data)
        if frames:
            self._on_frames(frames)

    def _readable(self) -> None:
        if not self.open:
            return
        try:
            data = self.sock.recv(defaults.READ_BYTES)
            frames = self._reader.feed(data) if data else []
        except (BlockingIOError, InterruptedError):
            return
        except FrameError as error:
            self._lost(str(error))
        except OSError as error:
            self._lost(_said_by(error))
        else:
            if not data:
                self._lost("closed by the other side")
            elif frames:
                self._on_frames(frames)

    def _writable(self) -> None:
        self._flush()
        if self.open and not self._unsent:
            self._loop.forget_writes(self.sock)
            self.on_drained()

    def _flush(self) -> None:
        """Write until done or until the peer takes no more."""
        unsent = self._unsent
        try:
            while unsent:
                first = unsent[0]
                sent = self.sock.send(first)
                if sent == len(first):
                    unsent.popleft()
                else:
                    unsent[0] = memoryview(first)[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._give_up_sending(_said_by(error))

    def _give_up_sending(self, reason: str) -> None:
        """The connection is broken. That is dealt with by the loop, not in the middle of whatever sends."""
        self._can_send, self._trouble = False, reason
        self._unsent.clear()
        self._loop.post(self._end)

    def _end(self) -> None:
        try:
            self.hear_out()
        finally:
            self._lost(self._trouble)

    def _lost(self, reason: str) -> None:
        if self.open:
            self.close()
            self._on_close(self._trouble or reason)


def _said_by(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
