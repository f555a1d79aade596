"""TLS around a connection: contexts that both ends make alike, and what stands in for the socket.

With a pre-shared key it is TLS 1.3 only, where each connection gets keys of its own by an exchange that
nobody can repeat later (forward secrecy). With certificates both sides show one, and in TLS 1.2 only ciphers
with such an exchange are taken. OpenSSL works in memory here, and the socket is an ordinary one: so we count
what is read of a stranger, and nobody holds a lock while he waits for the network.
"""

from __future__ import annotations

import hmac
import os
import shlex
import socket
import ssl
import threading
from multiprocessing import AuthenticationError
from typing import Any, List, Tuple, Union

from . import defaults
from .encryption import CERT, Encryption
from .errors import KeyFileError, UsageError
from .interrupts import let_go

HANDSHAKE_BYTES = 8 << 10
"""Bytes read of one who is still shaking hands. Fewer: long chains of certificates do not fit."""

PIECE_BYTES = 64 << 10
"""Bytes encrypted at a time. Larger: from 128 KiB the C library maps and unmaps memory for every piece, which
costs more than the calls that it saves. Smaller: more calls."""

_RECORD_BYTES = 17 << 10  # a little more than OpenSSL may hold of what has not arrived completely
_LEAST_READ_BYTES = 4 << 10
_LABEL = b"cwmp: pre-shared key of TLS 1.3"
_IDENTITY = "cwmp"
_RECORD_TYPES = (20, 21, 22, 23)  # the first byte of whatever speaks TLS
_FORWARD_SECRET = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2; TLS 1.3 has no others
_WRONG_KEY = (  # what the two sides say, in several versions of OpenSSL
    "BINDER_DOES_NOT_VERIFY",
    "ALERT_ILLEGAL_PARAMETER",
    "ALERT_DECRYPT_ERROR",
    "UNKNOWN_PSK_IDENTITY",
)


class TlsError(OSError):
    """What OpenSSL objects to, in words; also where what comes is not TLS."""


class NotTls(TlsError):
    """The other side does not speak TLS; `heard` is how it began."""

    def __init__(self, heard: bytes) -> None:
        super().__init__("it does not speak TLS")
        self.heard = heard


class ForeignCertificate(TlsError):
    """The certificate of the other side is not signed as it must be; without a CA of ours, none is."""


# --- contexts -------------------------------------------------------------------------------


def context(encryption: Encryption, authkey: bytes, *, server_side: bool) -> ssl.SSLContext:
    """What every connection of a master, or of one who goes to it, is made with. Raises UsageError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # nodes have many addresses, and whom we reach is proven otherwise
    if server_side:
        made.num_tickets = 0  # nobody resumes
    if encryption.way == CERT:
        _use_certificates(made, encryption)
    else:
        _use_key(made, authkey, server_side)
    return made


def _use_key(made: Any, authkey: bytes, server_side: bool) -> None:
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    secret = hmac.digest(authkey, _LABEL, "sha256")  # never the key itself, which proves itself elsewhere
    if server_side:
        made.set_psk_server_callback(lambda identity: secret if identity == _IDENTITY else b"")
    else:
        # A server may ignore the key and show a certificate. As we have no CA, none is good enough.
        made.verify_mode = ssl.CERT_REQUIRED
        made.set_psk_client_callback(lambda hint: (_IDENTITY, secret))


def _use_certificates(made: ssl.SSLContext, encryption: Encryption) -> None:
    assert encryption.cert and encryption.key and encryption.ca
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(_FORWARD_SECRET)
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        if os.stat(encryption.key).st_mode & 0o077:
            raise KeyFileError(
                f"key file {encryption.key} is open to others: chmod 600 {shlex.quote(encryption.key)}"
            )
        for path in (encryption.cert, encryption.key, encryption.ca):
            with open(path, "rb"):
                pass  # OpenSSL would not say which of them it cannot read
        made.load_cert_chain(encryption.cert, encryption.key, password="")  # or it would ask for one
        made.load_verify_locations(encryption.ca)
    except ssl.SSLError as error:
        raise UsageError(
            f"--tls-cert {encryption.cert}, --tls-key {encryption.key} and --tls-ca {encryption.ca} cannot "
            f"be used: {_in_words(error)}"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None


def _in_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return (error.reason or str(error)).lower().replace("_", " ")


def _refusal(error: ssl.SSLError) -> Exception:
    """Why hands cannot be shaken."""
    if any(reason in (error.reason or "") for reason in _WRONG_KEY):
        return AuthenticationError("the other side holds another key")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ForeignCertificate(_in_words(error))
    return TlsError(_in_words(error))


# --- connections ----------------------------------------------------------------------------


class TlsSocket:
    """A socket with TLS around it, as far as cwmp uses sockets. One thread may send while another receives.

    Blocking, time-outs and descriptor are those of the socket. Nobody says goodbye in TLS: a connection that
    is cut in the middle of something is found out by what reads it.
    """

    def __init__(self, sock: socket.socket, made: ssl.SSLContext, *, server_side: bool) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = made.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._lock = threading.RLock()  # guards the three above: OpenSSL takes one thread at a time
        self._moving: Tuple[List[bytes], List[int]] = ([], [])  # on its way out, and what of it has gone
        self._accepted = 0  # bytes that were encrypted for a `send` which has yet to say so

    def shake_hands(self) -> None:
        """Agree on keys. Raises AuthenticationError, TlsError, EOFError, or what the socket raises."""
        left = HANDSHAKE_BYTES
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                if not left:
                    raise TlsError(f"{HANDSHAKE_BYTES} bytes came, and no end of the handshake") from None
            except ssl.SSLError as error:
                try:
                    self.flush()  # so that the other side knows, too
                except OSError:
                    pass
                raise _refusal(error) from None
            heard = self._sock.recv(left)
            if not heard:
                raise EOFError("the other side closed the connection")
            if left == HANDSHAKE_BYTES and heard[0] not in _RECORD_TYPES:
                raise NotTls(heard)
            self._incoming.write(heard)
            left -= len(heard)
        self.flush()

    def agreed(self) -> Tuple[str, str]:
        """Version and cipher that the two sides have agreed on."""
        cipher = self._tls.cipher()
        return self._tls.version() or "", cipher[0] if cipher else ""

    # --- sending -----------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether something is encrypted that has yet to leave."""
        return bool(self._outgoing.pending or self._moving[0])

    def encrypt(self, data: Union[bytes, memoryview]) -> None:
        """Take in what is to be sent, wholly or not at all; `flush` lets it go.

        Where nothing was held before, `holds` tells which, also after an interrupt.
        """
        try:
            with self._lock:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None

    def flush(self) -> None:
        """Send what is held. Wherever an interrupt comes or the socket raises, the next call goes on."""
        while True:
            chunks, gone = self._moving
            if not chunks:
                with self._lock:
                    if not self._outgoing.pending:
                        return
                    # One step for the interpreter: an interrupt comes before it or after it. So below.
                    chunks.extend(map(self._outgoing.read, (-1,)))
            left = memoryview(chunks[0])[sum(gone) :]
            if left:
                gone.extend(map(self._sock.send, (left,)))
            else:
                self._moving = ([], [])

    def go_on_after(self, error: BaseException) -> None:
        """`encrypt` or `flush` raised this, which may be an interrupt."""
        let_go(self._lock, error)

    def send(self, data: Union[bytes, memoryview]) -> int:
        """Send the beginning of `data`, and say how much; after BlockingIOError ask for the same again."""
        if not self._accepted:
            piece = memoryview(data)[:PIECE_BYTES]
            self.encrypt(piece)
            self._accepted = len(piece)
        self.flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def sendall(self, data: Union[bytes, memoryview]) -> None:
        """Send all of it."""
        view = memoryview(data)
        for at in range(0, len(view), PIECE_BYTES):
            self.encrypt(view[at : at + PIECE_BYTES])
            self.flush()

    def sendfile(self, file: Any, offset: int, count: int) -> None:
        """Send `count` bytes of a file, or as many as it has."""
        file.seek(offset)
        while count:
            piece = file.read(min(count, PIECE_BYTES))
            if not piece:
                break
            self.sendall(piece)
            count -= len(piece)

    # --- receiving ---------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """What has come, up to `size` bytes; b"" at the end.

        With `defaults.READ_BYTES` nothing that has come completely stays here, of which no poll would tell.
        """
        while True:
            data = self._decrypted(size)
            if data:
                return data
            heard = self._sock.recv(max(_LEAST_READ_BYTES, min(size, PIECE_BYTES) - _RECORD_BYTES))
            if not heard:
                return b""
            with self._lock:
                self._incoming.write(heard)

    def recv_into(self, buffer: memoryview) -> int:
        """The same into a buffer; how many bytes that were."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> bytes:
        """What has arrived here already and was not asked for yet."""
        parts = []
        while True:
            parts.append(self._decrypted(defaults.READ_BYTES))
            if not parts[-1]:
                return b"".join(parts)

    def _decrypted(self, size: int) -> bytes:
        """Up to `size` bytes of what has arrived here; b"" if a part is missing, or nothing is here."""
        parts: List[bytes] = []
        with self._lock:
            try:
                while size and (self._incoming.pending or self._tls.pending()):
                    parts.append(self._tls.read(size))
                    if not parts[-1]:
                        break  # a goodbye of TLS: the connection ends as well
                    size -= len(parts[-1])
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                if not parts:
                    raise TlsError(_in_words(error)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # --- the socket's own --------------------------------------------------------------------

    def fileno(self) -> int:
        """Its descriptor."""
        return self._sock.fileno()

    def settimeout(self, seconds: Union[float, None]) -> None:
        """How long a call may wait for the network."""
        self._sock.settimeout(seconds)

    def setblocking(self, flag: bool) -> None:
        """Whether a call may wait for the network."""
        self._sock.setblocking(flag)

    def shutdown(self, how: int) -> None:
        """End the connection for both sides."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Give the descriptor back."""
        self._sock.close()


AnySocket = Union[socket.socket, TlsSocket]
"""What carries a connection."""
