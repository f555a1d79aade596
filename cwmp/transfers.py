"""Large values on their way between machines: connections of their own, bytes in pieces, digests checked.

A member asks for a connection to carry bytes; from then on a thread of the master serves it, straight
from and to the files of the shelf. Requests and replies are frames, the bytes follow as they are, and
behind them comes a frame with their digest.

    get name size  ->  size, bytes, digest         put name size, bytes, digest  ->  digest
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import struct
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

from . import defaults, shelf
from .encryption import Encryption
from .errors import BlobLost, ConnectError, CwmpError, UnknownMember, UsageError
from .messages import BLOB_STORE, Ref
from .transport import FAILURE, RETURN, connect, dump_message, introduce, load_message

if TYPE_CHECKING:
    from .tls import AnySocket

log = logging.getLogger("cwmp")

_LENGTH = struct.Struct("!I")
_MAX_FRAME = 1 << 16
_PIECE_BYTES = 1 << 20

Buffer = Union[bytes, bytearray, memoryview]


class Damaged(CwmpError):
    """What arrived is not what was sent."""


# --- both sides -----------------------------------------------------------------------------


def _send_frame(sock: AnySocket, message: Any) -> None:
    body = dump_message(message)
    sock.sendall(_LENGTH.pack(len(body)) + body)


def _receive_frame(sock: AnySocket) -> Any:
    """The next message. Raises EOFError at the end, Damaged for nonsense."""
    length = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size))[0]
    if length > _MAX_FRAME:
        raise Damaged(f"a message of {length} bytes was announced where a short one belongs")
    return load_message(_receive_exactly(sock, length))


def _receive_exactly(sock: AnySocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError("the other side closed the connection")
        data += more
    return data


def _receive_bytes(sock: AnySocket, size: int, take: Callable[[memoryview], Any]) -> str:
    """Pass `size` bytes to `take`, piece by piece; returns their digest."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(size, _PIECE_BYTES)))
    left = size
    while left:
        count = sock.recv_into(buffer[: min(left, len(buffer))])
        if not count:
            raise EOFError("the other side closed the connection")
        digest.update(buffer[:count])
        take(buffer[:count])
        left -= count
    return digest.hexdigest()


# --- the master's side ----------------------------------------------------------------------


class Server:
    """Serves the connections that carry bytes to and from one shelf, a thread each."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: Set[AnySocket] = set()
        self._lock = threading.Lock()  # guards `_open`
        self._closed = False
        self._count = count(1)  # of files

    def serve(self, sock: AnySocket, prefix: str) -> None:
        """Serve a member's connection from now on; what it puts must be called `prefix`..."""
        with self._lock:
            self._open.add(sock)
        sock.settimeout(None)  # between two requests; during one see `_work`
        thread = threading.Thread(
            target=self._serve, args=(sock, prefix), name="cwmp-transfer", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no threads left: the member tries again
            log.error("cannot serve a connection for large values: %s", error)
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._closed = True
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has just ended

    def _serve(self, sock: AnySocket, prefix: str) -> None:
        try:
            _send_frame(sock, (RETURN, None))
            while not self._closed:
                kind, name, size = _receive_frame(sock)
                sock.settimeout(defaults.TRANSFER_S)
                self._work(sock, kind, shelf.check_name(name), size, prefix)
                sock.settimeout(None)
        except (EOFError, OSError) as error:
            log.debug("a connection for large values has ended: %s", error)
        except Exception as error:  # whatever a confused peer sends, it is only that peer's problem
            log.warning("a connection for large values was closed: %s: %s", type(error).__name__, error)
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _work(self, sock: AnySocket, kind: str, name: str, size: int, prefix: str) -> None:
        if kind == "get":
            self._send(sock, name, size)
        elif kind == "put" and name.startswith(prefix):
            self._receive(sock, name, size)
        else:
            raise UsageError(f"this member cannot {kind} {name!r}")

    def _send(self, sock: AnySocket, name: str, size: int) -> None:
        try:
            file = open(os.path.join(self._directory, name), "rb", buffering=0)
        except OSError:
            _send_frame(sock, (FAILURE, "it is not here any more"))
            return
        with file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                _send_frame(sock, (FAILURE, f"it has {found} bytes here, not {size}"))
                return
            _send_frame(sock, (RETURN, size))
            sock.sendfile(file, 0, size)
            digest = name if shelf.is_digest(name) else _digest_of_file(file, size)
        _send_frame(sock, digest)

    def _receive(self, sock: AnySocket, name: str, size: int) -> None:
        """Write what comes to a file, which gets its name when that is all of it.

        The same may come once more: who sent it need not have heard that it has arrived.
        """
        aside = os.path.join(self._directory, f"{name}.in{next(self._count)}")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        complete = False
        wrong: List[str] = []  # what is; then the rest is only taken in

        def take(piece: memoryview) -> None:
            try:
                if not wrong:
                    shelf.write_all(fd, piece)
            except OSError as error:
                wrong.append(f"it cannot be written to {self._directory}: {error.strerror}")
                log.error("a large value of %d bytes: %s", size, wrong[0])

        try:
            digest = _receive_bytes(sock, size, take)
            if _receive_frame(sock) != digest:
                wrong.append("it arrived damaged")
            complete = not wrong
        finally:
            os.close(fd)
            if complete:
                os.rename(aside, os.path.join(self._directory, name))
            else:
                os.unlink(aside)
        _send_frame(sock, (RETURN, digest) if complete else (FAILURE, wrong[0]))


def _digest_of_file(file: Any, size: int) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    left = size
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            break  # the receiver will find it too short
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


# --- the member's side ----------------------------------------------------------------------


class Transfer:
    """One member's connection for large values, made when it is first used. One thread at a time.

    `hello` is what the member introduced itself with, with its id as `member`.
    """

    def __init__(
        self,
        address: Tuple[str, int],
        authkey: bytes,
        hello: Dict[str, Any],
        encrypt: Optional[Encryption] = None,
    ) -> None:
        self._address = address
        self._authkey = authkey
        self._encrypt = encrypt
        self._hello = hello
        self._sock: Optional[AnySocket] = None

    @property
    def member(self) -> int:
        """The id of the member."""
        return int(self._hello["member"])

    def another(self) -> Transfer:
        """A further connection of the same member."""
        return Transfer(self._address, self._authkey, self._hello, self._encrypt)

    def go_to(self, other: Transfer) -> None:
        """From the next call on connect as `other` would."""
        if (self._address, self._hello) != (other._address, other._hello):
            self._address, self._authkey, self._hello = other._address, other._authkey, other._hello
            self._encrypt = other._encrypt
            self.close()

    def get(self, ref: Ref, take: Callable[[memoryview], Any]) -> None:
        """Pass the bytes of a blob to `take`, piece by piece.

        Raises Damaged, BlobLost where the master does not have it, ConnectError.
        """
        name, size = ref
        sock = self._connected()
        try:
            _send_frame(sock, ("get", name, size))
            kind, value = _receive_frame(sock)
            if kind != RETURN:
                raise BlobLost(f"a large value of {size} bytes is gone from the master: {value}")
            digest = _receive_bytes(sock, size, take)
            if _receive_frame(sock) != digest or (shelf.is_digest(name) and digest != name):
                raise Damaged(f"a large value of {size} bytes arrived damaged")
        except (EOFError, OSError) as error:
            self.close()
            raise ConnectError(f"the connection to the master broke: {error}") from error
        except CwmpError:
            raise
        except BaseException:  # an interrupt: what is under way would be taken for the next answer
            self.close()
            raise

    def put(self, name: str, pieces: Sequence[Buffer]) -> str:
        """Bring these bytes to the master's shelf; returns their digest. Raises Damaged, ConnectError."""
        size = sum(memoryview(piece).nbytes for piece in pieces)
        digest = hashlib.sha256()
        sock = self._connected()
        try:
            _send_frame(sock, ("put", name, size))
            for piece in pieces:
                view = memoryview(piece).cast("B")
                for at in range(0, len(view), _PIECE_BYTES):
                    part = bytes(view[at : at + _PIECE_BYTES])  # somebody may change the piece meanwhile
                    digest.update(part)
                    sock.sendall(part)
            _send_frame(sock, digest.hexdigest())
            kind, value = _receive_frame(sock)
        except (EOFError, OSError) as error:
            self.close()
            raise ConnectError(f"the connection to the master broke: {error}") from error
        except BaseException:  # an interrupt: the next request would be taken for a piece
            self.close()
            raise
        if kind != RETURN:
            raise Damaged(f"a large value of {size} bytes could not be sent: {value}")
        return str(value)

    def close(self) -> None:
        """Hang up; the next call connects again."""
        sock, self._sock = self._sock, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed by the other side
            sock.close()

    def _connected(self) -> AnySocket:
        if self._sock is None:
            wire = connect(*self._address, self._authkey, self._encrypt)
            try:
                introduce(wire, self._hello)
                wire.request(BLOB_STORE, "transfer")
                _receive_frame(wire.sock)
            except (EOFError, OSError, UnknownMember) as error:  # unknown: we are on our way back
                wire.close()
                raise ConnectError(f"the master takes no large values: {error}") from error
            except BaseException:
                wire.close()
                raise
            wire.sock.settimeout(defaults.TRANSFER_S)
            self._sock = wire.sock
        return self._sock
