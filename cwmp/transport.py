"""The way to a master: connections that speak the protocol of `multiprocessing.managers`.

A request is the pickle of `(object, method, args, kwargs)`, a reply that of `(kind, value)`, each
in a frame of `multiprocessing.connection`, after the mutual challenge of that module. So a plain
`BaseManager` can talk to a cwmp master. What is ours: socket options, deadlines, and an unpickler
that builds plain values only.
"""

from __future__ import annotations

import io
import logging
import pickle
import select
import socket
import sys
from collections import deque
from multiprocessing.connection import answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Set, Tuple, Union

from . import defaults, encryption, errors, handshakes, shortcut
from .encryption import Encryption
from .frames import FrameError, FrameReader, header
from .messages import JOB_QUEUE

if TYPE_CHECKING:
    from ssl import SSLContext

    from .tls import AnySocket, TlsSocket

log = logging.getLogger("cwmp")

RETURN = "#RETURN"
FAILURE = "#TRACEBACK"  # value: "ErrorClass: message"

_ONE_WRITE_BYTES = 64 << 10  # up to here copying the body behind its header is cheaper than a second call
_HANDSHAKE_BYTES = 256  # the challenge takes 120 of each side; nobody is heard longer without the key


# --- plain values ---------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Builds what needs no import: containers, text, bytes and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a message")


def dump_message(message: Any) -> bytes:
    """A message of plain values to bytes."""
    return pickle.dumps(message, 4)


def load_message(data: bytes) -> Any:
    """The plain values in `data`; raises UnpicklingError, or another Exception, for anything else."""
    return _PlainUnpickler(io.BytesIO(data)).load()


def failure(error: BaseException) -> str:
    """An error as it travels in a reply; `_raise_failure` is its inverse."""
    return f"{type(error).__name__}: {error}"


def _raise_failure(text: Any) -> None:
    """Raise the error that the master reported, as our own class of that name where there is one."""
    name, _, message = str(text).partition(": ")
    kind: Any = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.CwmpError)):
        raise errors.CwmpError(str(text))
    raise kind(message)


# --- sockets --------------------------------------------------------------------------------


def set_options(sock: socket.socket) -> None:
    """What every cwmp connection wants: no Nagle delay, and a vanished peer noticed by the kernel."""
    if sock.family == socket.AF_UNIX:  # has neither; but little room on the way, unless asked
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, defaults.MAX_BATCH_BYTES)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(defaults.SILENT_S * 1000))


class Wire:
    """A blocking connection to a peer. One thread may send while another one receives."""

    def __init__(self, sock: socket.socket) -> None:
        set_options(sock)
        self.sock: AnySocket = sock
        self._bare = sock
        self._reader = FrameReader(_HANDSHAKE_BYTES)
        self._appetite = _HANDSHAKE_BYTES  # bytes to read at most, until the key is proven
        self._frames: Deque[bytes] = deque()
        self.last_size = 0
        """Bytes of the last reply."""
        self.sent = 0
        """Frames sent."""

    encrypted = False
    """Whether there is TLS in it."""

    def shake_hands(self) -> None:
        """Begin TLS, where it is to be spoken; `TlsSocket.shake_hands` tells what it raises."""

    # What multiprocessing's challenge functions ask of a connection:

    def send_bytes(self, body: bytes) -> None:
        """Send one frame. Raises OSError.

        An interrupt (KeyboardInterrupt, or what a signal handler raises) finds the frame not sent at
        all, or sent as a whole; `sent` tells which.
        """
        number = self.sent + 1
        small = len(body) <= _ONE_WRITE_BYTES
        parts = [header(len(body)) + body] if small else [header(len(body)), body]
        gone: List[int] = []
        interrupt: Optional[BaseException] = None
        while self.sent != number:
            try:
                while True:  # in here, because an interrupt may also come where a loop begins again
                    rest = _behind(parts, sum(gone))
                    if not rest:
                        self.sent = number
                        break
                    # One step for the interpreter: an interrupt comes before it or after it.
                    gone.extend(map(self._bare.send, (rest,)))
            except OSError:
                raise
            except BaseException as error:
                if not gone:
                    raise
                interrupt = error
        if interrupt is not None:
            raise interrupt

    @property
    def can_send(self) -> bool:
        """Whether a short frame can be sent without waiting."""
        poll = select.poll()  # select() itself takes no high descriptors
        poll.register(self.sock, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in poll.poll(0))

    def recv_bytes(self, maxlength: int = 0) -> bytes:
        """The next frame. Raises EOFError, FrameError, OSError, or TimeoutError as set."""
        frames = self._frames
        while not frames:
            data = self.sock.recv(self._appetite)
            if not data:
                raise EOFError("the other side closed the connection")
            frames.extend(self._reader.feed(data))
            if self._appetite < defaults.READ_BYTES:  # it may be anybody
                self._appetite -= len(data)
                if not frames and not self._appetite:
                    raise FrameError(f"{_HANDSHAKE_BYTES} bytes came, and no proof of the key")
        return frames.popleft()

    # What cwmp asks of it:

    def prove_key(self, authkey: bytes, *, as_master: bool) -> None:
        """The mutual challenge. Raises AuthenticationError; only then are long frames taken."""
        if as_master:
            deliver_challenge(self, authkey)  # type: ignore[arg-type]
            answer_challenge(self, authkey)  # type: ignore[arg-type]
        else:
            answer_challenge(self, authkey)  # type: ignore[arg-type]
            deliver_challenge(self, authkey)  # type: ignore[arg-type]
        self.expect_long_frames()

    def expect_long_frames(self) -> None:
        """The other side is known to be one of us."""
        self._reader.limit(defaults.MAX_FRAME_BYTES)
        self._appetite = defaults.READ_BYTES

    def request(self, obj: Any, method: str, *args: Any) -> None:
        """Send a request without waiting for its reply."""
        self.send_bytes(dump_message((obj, method, args, {})))

    def reply(self) -> Any:
        """Wait for the next reply; raises what the master reports."""
        frame = self.recv_bytes()
        self.last_size = len(frame)
        kind, value = load_message(frame)
        if kind != RETURN:
            _raise_failure(value)
        return value

    def peek(self) -> Optional[Tuple[int, Any]]:
        """Wait for the next reply: its size and value. It is left where it is, see `skip`.

        None where what comes is not one small and complete reply: `reply` tells what it is. Raises OSError.
        """
        data = self._bare.recv(defaults.READ_BYTES, socket.MSG_PEEK)
        if data[:4] == header(len(data) - 4) and not self._frames and self._reader.at_frame:
            try:
                kind, value = load_message(data[4:])
            except Exception:
                return None
            if kind == RETURN:
                return len(data), value
        return None

    def skip(self, size: int) -> None:
        """Take `size` bytes that were looked at off the connection."""
        self._bare.recv(size)

    def call(self, obj: Any, method: str, *args: Any) -> Any:
        """A request and its reply."""
        self.request(obj, method, *args)
        return self.reply()

    def release(self) -> Tuple[FrameReader, List[bytes]]:
        """Give reading over to somebody else: the reader in mid-stream, and the frames that wait here."""
        frames = list(self._frames)
        self._frames.clear()
        return self._reader, frames

    def deadline(self, seconds: float) -> None:
        """From now on a send or receive that takes longer raises TimeoutError (socket.timeout)."""
        self.sock.settimeout(seconds)

    def hang_up(self) -> None:
        """End the connection for both sides; wakes a thread that is blocked in it."""
        _hang_up(self._bare)

    def close(self) -> None:
        """Hang up and give the descriptor back."""
        self.hang_up()
        self.sock.close()


class TlsWire(Wire):
    """The same through TLS."""

    encrypted = True

    def __init__(self, sock: socket.socket, context: SSLContext, *, server_side: bool) -> None:
        from .tls import TlsSocket

        super().__init__(sock)
        self.sock: TlsSocket = TlsSocket(sock, context, server_side=server_side)

    def shake_hands(self) -> None:
        """Begin TLS."""
        self.sock.shake_hands()

    def send_bytes(self, body: bytes) -> None:
        """Send one frame, with the same promise as without TLS.

        An interrupt that comes inside OpenSSL is raised when that has done its work. So what has been taken
        in is not told by what it returns, but by what it holds.
        """
        sock, number = self.sock, self.sent + 1
        small = len(body) <= _ONE_WRITE_BYTES
        parts = [header(len(body)) + body] if small else [header(len(body)), body]
        progress = (0, 0)  # bytes taken in, and offered behind those: one object, so that both change at once
        interrupt: Optional[BaseException] = None
        while self.sent != number:
            try:
                while True:
                    if progress[1] and sock.holds:
                        progress = (sum(progress), 0)
                    sock.flush()
                    rest = memoryview(_behind(parts, progress[0]))[: defaults.MAX_BATCH_BYTES]
                    if not rest:
                        self.sent = number
                        break
                    progress = (progress[0], len(rest))
                    sock.encrypt(rest)
            except OSError:
                raise
            except BaseException as error:
                sock.go_on_after(error)
                if not progress[0] and not sock.holds:
                    raise
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def peek(self) -> Optional[Tuple[int, Any]]:
        """What is taken off the connection to be decrypted cannot be left where it is."""
        return None

    def release(self) -> Tuple[FrameReader, List[bytes]]:
        """Also what was decrypted and not read yet: nothing would tell the other reader of it."""
        reader, frames = super().release()
        return reader, frames + reader.feed(self.sock.drain())


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed by the other side already


def _behind(parts: List[bytes], sent: int) -> Union[bytes, memoryview]:
    """What is to be sent next when so many bytes have left; empty at the end."""
    for part in parts:
        if not sent:
            return part
        if sent < len(part):
            return memoryview(part)[sent:]
        sent -= len(part)
    return b""


def connect(
    host: str,
    port: int,
    authkey: bytes,
    encrypt: Optional[Encryption] = None,
    *,
    timeout_s: float = defaults.CONNECT_S + defaults.HANDSHAKE_S,
) -> Wire:
    """An authenticated connection to the master at `host`:`port`; `encrypt` is as the environment says.

    Raises ConnectError (not found, refused, no answer in `timeout_s`) or WrongKey, and UsageError where it
    must be encrypted and cannot be.
    """
    encrypt = encrypt or encryption.choose()
    place = f"{host}:{port}"
    try:
        sock = None if encrypt.mode == encryption.ALWAYS else shortcut.connect(host, port, timeout_s)
        if sock is None:
            sock = socket.create_connection((host, port), timeout=timeout_s)
    except socket.timeout:
        raise errors.ConnectError(f"no answer from {place} within {timeout_s:g} s") from None
    except OSError as error:
        reason = handshakes.reason(error)
        raise errors.ConnectError(f"cannot connect to a master at {place}: {reason}") from error
    return greet(sock, place, authkey, timeout_s, encrypt)


def greet(
    sock: socket.socket, place: str, authkey: bytes, timeout_s: float, encrypt: Optional[Encryption] = None
) -> Wire:
    """Make an authenticated connection of one that stands; `connect` tells what it raises."""
    sock.settimeout(timeout_s)
    encrypted = False
    try:
        wire = _wire(sock, place, authkey, encrypt or encryption.choose())
        encrypted = wire.encrypted
        wire.shake_hands()
        wire.prove_key(authkey, as_master=False)
        wire.request(None, "accept_connection")
        wire.reply()
    except BaseException as error:
        _hang_up(sock)
        sock.close()
        if isinstance(error, errors.UsageError):
            raise
        raise handshakes.told(error, place, timeout_s, encrypted) from error
    wire.deadline(defaults.REPLY_S)
    return wire


_in_clear: Set[str] = set()  # places that this process has warned of


def _wire(sock: socket.socket, place: str, authkey: bytes, encrypt: Encryption) -> Wire:
    """With or without TLS, as both ends understand the rule."""
    address = "127.0.0.1" if sock.family == socket.AF_UNIX else str(sock.getpeername()[0])
    if encrypt.covers(address) and sock.family != socket.AF_UNIX:
        from . import tls  # OpenSSL takes 10 ms to load

        encrypt.require(f"the connection to {place}")
        return TlsWire(sock, tls.context(encrypt, authkey, server_side=False), server_side=False)
    if not encryption.is_loopback(address) and place not in _in_clear:
        _in_clear.add(place)
        log.warning("what goes to and from %s is not encrypted, as CWMP_ENCRYPT=never demands", place)
    return Wire(sock)


def introduce(wire: Wire, hello: Dict[str, Any]) -> Dict[str, Any]:
    """Join the cluster; returns the master's welcome. Raises VersionMismatch and other CwmpErrors."""
    welcome: Dict[str, Any] = wire.call(JOB_QUEUE, "join", hello)
    return welcome
