"""One thread that serves many descriptors: what master and worker agent run on.

`Loop` waits and calls; `Channel` moves frames over a non-blocking socket. With one thread there is
no lock to hold, no hand-off between threads to pay for, and no peer that can hold anybody else up.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple, Union

from . import defaults
from .frames import FrameError, FrameReader, header

_WRITE_AT_ONCE_BYTES = 64 << 10


class Loop:
    """Waits for descriptors, and runs what other threads and signal handlers post."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: Deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.watch(self._wake_in, self._run_posted)

    def watch(self, fileobj: Any, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read."""
        self._selector.register(fileobj, selectors.EVENT_READ, (on_readable, None))

    def watch_both(
        self, fileobj: Any, on_readable: Callable[[], None], on_writable: Callable[[], None]
    ) -> None:
        """From now on call `on_writable` as well whenever there is room to write."""
        events = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(fileobj, events, (on_readable, on_writable))

    def watch_reads_only(self, fileobj: Any, on_readable: Callable[[], None]) -> None:
        """Undo `watch_both`."""
        self._selector.modify(fileobj, selectors.EVENT_READ, (on_readable, None))

    def forget(self, fileobj: Any) -> None:
        """Watch no longer; must come before the descriptor is closed."""
        try:
            self._selector.unregister(fileobj)
        except (KeyError, ValueError):
            pass  # was not watched, or is closed already

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
        for key, events in self._selector.select(timeout_s):
            on_readable, on_writable = key.data
            if events & selectors.EVENT_WRITE and on_writable is not None:
                on_writable()
            if events & selectors.EVENT_READ:
                on_readable()

    def wake_on_signals(self) -> int:
        """Let arriving signals end a `poll`; returns the descriptor to restore (signal.set_wakeup_fd)."""
        return signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Give the loop's own descriptors back."""
        self._selector.close()
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


class Channel:
    """Frames over a non-blocking socket that a loop watches.

    `on_frames(bodies)` is called with what has arrived complete, `on_close(reason)` once, unless
    `close` came first. `already` continues where a blocking reader left off: its FrameReader and the
    frames that it has not looked at.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
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
        loop.watch(sock, self._readable)
        if frames:
            loop.post(lambda: self._on_frames(frames))

    @property
    def congested(self) -> bool:
        """Whether the peer has not yet taken what was sent."""
        return bool(self._unsent)

    def send(self, *bodies: bytes) -> None:
        """Send frames, now as far as the peer takes them and later for the rest."""
        if not self.open:
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
                self._loop.watch_both(self.sock, self._readable, self._writable)

    def close(self) -> None:
        """End the connection; `on_close` is not called."""
        if self.open:
            self.open = False
            self._unsent.clear()
            self._loop.forget(self.sock)
            self.sock.close()

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
            self._lost(os.strerror(error.errno) if error.errno else str(error))
        else:
            if not data:
                self._lost("closed by the other side")
            elif frames:
                self._on_frames(frames)

    def _writable(self) -> None:
        self._flush()
        if self.open and not self._unsent:
            self._loop.watch_reads_only(self.sock, self._readable)
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
            self._lost(os.strerror(error.errno) if error.errno else str(error))

    def _lost(self, reason: str) -> None:
        if self.open:
            self.close()
            self._on_close(reason)
