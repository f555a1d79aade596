"""The floor: futures, pickles and one TCP hop, and nothing else.

What pure Python can do at best with the ingredients that cwmp is made of: a `Future` a job, its
arguments pickled at `submit` and its function once a batch, and natural batches (the submitting
thread writes when nothing is in flight; the thread that reads a reply sends what has gathered),
straight to two slot processes. There is no master, no lease, no key, no fault handling: whoever
adds those pays for them, and this tells how much.
"""

from __future__ import annotations

import pickle
import selectors
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any, Callable, List, Optional, Tuple

Call = Tuple[Callable[..., Any], bytes]
"""(function, pickled arguments)"""

HEADER = struct.Struct("!I")
BUFFER_BYTES = 256 << 10


class Frames:
    """Messages over one TCP connection: a length, then a pickle."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Write one message."""
        data = pickle.dumps(message, 5)
        self.sock.sendall(HEADER.pack(len(data)) + data)

    def receive(self) -> Optional[Any]:
        """Read one message; None at the end of the connection."""
        buffer = self._buffer
        needed = HEADER.size
        while True:
            if len(buffer) >= needed:
                needed = HEADER.size + HEADER.unpack_from(buffer)[0]
                if len(buffer) >= needed:
                    break
            chunk = self.sock.recv(BUFFER_BYTES)
            if not chunk:
                return None
            buffer += chunk
        message = pickle.loads(memoryview(buffer)[HEADER.size : needed])
        self._buffer = buffer[needed:]
        return message


class SlotLine:
    """The client's end of the connection to one slot."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.futures: List[Future] = []  # in flight, in the order sent
        self.pending: List[Tuple[Future, Call]] = []
        self._lock = threading.Lock()  # guards `futures` and `pending`: who empties, sends

    def submit(self, func: Callable[..., Any], args: Tuple[Any, ...]) -> Future:
        """Queue one call, and send it now if nothing is in flight."""
        future: Future = Future()
        call = (func, pickle.dumps(args, 5))
        with self._lock:
            self.pending.append((future, call))
            if self.futures:
                return future
            calls = self._take_pending()
        self.frames.send(calls)
        return future

    def on_reply(self) -> bool:
        """Read the reply that is there, send what gathered, set futures; False at the end."""
        reply = self.frames.receive()
        if reply is None:
            return False
        with self._lock:
            futures, calls = self.futures, self._take_pending()
        if calls:
            self.frames.send(calls)
        for future, (ok, data) in zip(futures, reply):
            value = pickle.loads(data)
            if ok:
                future.set_result(value)
            else:
                future.set_exception(value)
        return True

    def _take_pending(self) -> List[Call]:
        """Turn what has gathered into what is in flight; the lock is held."""
        self.futures = [future for future, _ in self.pending]
        calls = [call for _, call in self.pending]
        self.pending = []
        return calls


class Floor:
    """A context manager with `submit(func, *args) -> Future` over `slots` slot processes."""

    def __init__(self, slots: int) -> None:
        self._processes: List[subprocess.Popen] = []
        self._lines: List[SlotLine] = []
        self._slots = slots
        self._next = 0
        self._reader = threading.Thread(target=self._read, name="floor-reader", daemon=True)

    def __enter__(self) -> Floor:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
            for _ in range(self._slots):
                self._processes.append(subprocess.Popen([sys.executable, "-m", __name__, port]))
            for _ in range(self._slots):
                self._lines.append(SlotLine(Frames(listener.accept()[0])))
        self._reader.start()
        return self

    def submit(self, func: Callable[..., Any], *args: Any) -> Future:
        """Hand one call to the next slot in turn."""
        self._next = (self._next + 1) % self._slots
        return self._lines[self._next].submit(func, args)

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.frames.sock.shutdown(socket.SHUT_RDWR)
        for process in self._processes:
            process.kill()
            process.wait()

    def _read(self) -> None:
        """One thread for all replies: with two, they would only wait for each other's GIL."""
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line.frames.sock, selectors.EVENT_READ, line)
            while True:
                for key, _ in selector.select():
                    if not key.data.on_reply():
                        return


def run_slot(port: int) -> None:
    """One slot process: answer each batch of calls with a batch of results until the end."""
    frames = Frames(socket.create_connection(("127.0.0.1", port)))
    while True:
        calls = frames.receive()
        if calls is None:
            return
        frames.send([_outcome(func, args) for func, args in calls])


def _outcome(func: Callable[..., Any], args: bytes) -> Tuple[bool, bytes]:
    try:
        return True, pickle.dumps(func(*pickle.loads(args)), 5)
    except Exception as error:
        return False, pickle.dumps(error, 5)


if __name__ == "__main__":
    run_slot(int(sys.argv[1]))
