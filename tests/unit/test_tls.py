"""TLS around a connection, between two threads of this process: what is agreed on, and what is kept to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from cwmp import tls, transport
from cwmp.encryption import Encryption
from cwmp.errors import UsageError
from cwmp.frames import header
from cwmp.loop import Channel, Loop
from cwmp.tls import TlsSocket
from cwmp.transport import TlsWire, Wire, dump_message
from tests.interrupts import InterruptAt, Interrupted
from tests.tls_files import certificates, needs_openssl, needs_psk
from tests.waiting import wait_until

pytestmark = pytest.mark.core

KEY = b"k" * 32
WAIT_S = 30.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[pytest.param("psk", marks=needs_psk), pytest.param("cert", marks=needs_openssl)])
def setting(request: pytest.FixtureRequest) -> Encryption:
    """Each way to encrypt."""
    if request.param == "psk":
        return Encryption("always")
    return Encryption("always", **request.getfixturevalue("files"))


def server_context(setting: Encryption, key: bytes = KEY) -> ssl.SSLContext:
    return tls.context(setting, key, server_side=True)


def client_context(setting: Encryption, key: bytes = KEY) -> ssl.SSLContext:
    return tls.context(setting, key, server_side=False)


class Side(threading.Thread):
    """One end, doing something in a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._answer: Any = None
        self._error: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What came of it."""
        self.join(WAIT_S)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._answer


@pytest.fixture
def pair() -> Iterator[Tuple[socket.socket, socket.socket]]:
    """The sockets of a master and of one who comes to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.settimeout(WAIT_S)
        yield ours, theirs


Pair = Tuple[socket.socket, socket.socket]


def shaken(pair: Pair, master: ssl.SSLContext, client: ssl.SSLContext) -> Tuple[TlsSocket, TlsSocket]:
    """Both ends after their handshake."""
    ours = TlsSocket(pair[0], master, server_side=True)
    theirs = TlsSocket(pair[1], client, server_side=False)
    side = Side(ours.shake_hands)
    theirs.shake_hands()
    side.result()
    return ours, theirs


def wires(pair: Pair, setting: Encryption) -> Tuple[TlsWire, TlsWire]:
    """The same as what cwmp uses, with the key proven."""
    ours = TlsWire(pair[0], server_context(setting), server_side=True)
    theirs = TlsWire(pair[1], client_context(setting), server_side=False)

    def serve() -> None:
        ours.shake_hands()
        ours.prove_key(KEY, as_master=True)

    side = Side(serve)
    theirs.shake_hands()
    theirs.prove_key(KEY, as_master=False)
    side.result()
    return ours, theirs


# --- what is agreed on -----------------------------------------------------------------------


def server_hello_extensions(heard: bytes) -> List[int]:
    """The numbers of the extensions in the first record of a server."""
    kind, _, length = struct.unpack_from("!BHH", heard)
    assert (kind, heard[5]) == (22, 2), "a ServerHello"
    at = 5 + 4 + 2 + 32
    at += 1 + heard[at]  # session id
    at += 3 + 2  # cipher, compression, length of what follows
    found = []
    while at < 5 + length:
        number, size = struct.unpack_from("!HH", heard, at)
        found.append(number)
        at += 4 + size
    return found


class Recording:
    """A socket that keeps what it received."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.heard = b""

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(size)
        self.heard += data
        return data

    def send(self, data: Any) -> int:
        return self._sock.send(data)


@needs_psk
def test_with_a_key_it_is_tls_1_3_and_each_connection_has_keys_of_its_own(pair: Pair) -> None:
    ours = TlsSocket(pair[0], server_context(Encryption()), server_side=True)
    recording = Recording(pair[1])
    theirs = TlsSocket(recording, client_context(Encryption()), server_side=False)  # type: ignore[arg-type]
    side = Side(ours.shake_hands)
    theirs.shake_hands()
    side.result()
    assert ours.agreed() == theirs.agreed()
    assert ours.agreed()[0] == "TLSv1.3"
    pre_shared_key, key_share = 41, 51  # without the second there would be no forward secrecy
    assert {pre_shared_key, key_share} <= set(server_hello_extensions(recording.heard))


@needs_openssl
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_with_certificates_every_cipher_is_forward_secret(
    pair: Pair, files: Dict[str, str], version: str
) -> None:
    setting = Encryption("always", **files)
    client = client_context(setting)
    client.maximum_version = ssl.TLSVersion[version]
    agreed = shaken(pair, server_context(setting), client)[0].agreed()
    assert agreed[0] == version.replace("_", ".")
    assert agreed[1].startswith(("TLS_", "ECDHE-")), agreed
    assert all(
        cipher["name"].startswith(("TLS_", "ECDHE-")) for cipher in server_context(setting).get_ciphers()
    )


@needs_openssl
def test_older_tls_is_not_spoken(pair: Pair, files: Dict[str, str]) -> None:
    assert server_context(Encryption("always", **files)).minimum_version == ssl.TLSVersion.TLSv1_2


@needs_psk
def test_another_key_is_found_out_by_both(pair: Pair) -> None:
    ours = TlsSocket(pair[0], server_context(Encryption()), server_side=True)
    theirs = TlsSocket(pair[1], client_context(Encryption(), b"another"), server_side=False)
    side = Side(ours.shake_hands)
    with pytest.raises(AuthenticationError):
        theirs.shake_hands()
    with pytest.raises(AuthenticationError):
        side.result()


@needs_psk
@needs_openssl
def test_a_certificate_does_not_stand_in_for_the_key(pair: Pair, files: Dict[str, str]) -> None:
    """A stranger between the two would show one, and could then pass the challenge on."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.load_cert_chain(files["cert"], files["key"])
    ours = TlsSocket(pair[0], stranger, server_side=True)
    side = Side(ours.shake_hands)
    with pytest.raises(tls.ForeignCertificate):
        TlsSocket(pair[1], client_context(Encryption()), server_side=False).shake_hands()
    with pytest.raises(OSError):
        side.result()


@needs_psk
def test_a_client_without_the_key_gets_no_further(pair: Pair) -> None:
    curious = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    curious.check_hostname, curious.verify_mode = False, ssl.CERT_NONE
    side = Side(TlsSocket(pair[0], server_context(Encryption()), server_side=True).shake_hands)
    with pytest.raises(OSError):
        TlsSocket(pair[1], curious, server_side=False).shake_hands()
    with pytest.raises(tls.TlsError):
        side.result()


@needs_openssl
@pytest.mark.parametrize("shown", ["none", "foreign"])
def test_a_client_must_show_a_certificate_of_our_ca(
    pair: Pair, files: Dict[str, str], tmp_path: Path, shown: str
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(files["ca"])
    if shown == "foreign":
        others = certificates(tmp_path / "others")
        client.load_cert_chain(others["cert"], others["key"])
    master = server_context(Encryption("always", **files))
    side = Side(TlsSocket(pair[0], master, server_side=True).shake_hands)
    theirs = TlsSocket(pair[1], client, server_side=False)
    with pytest.raises(OSError):
        theirs.shake_hands()
        theirs.recv(1)  # in TLS 1.3 it comes as late as this
    with pytest.raises((tls.TlsError, tls.ForeignCertificate)):
        side.result()


@needs_openssl
def test_certificates_that_cannot_be_used_are_named(files: Dict[str, str], tmp_path: Path) -> None:
    def complaint(**changed: str) -> str:
        with pytest.raises(UsageError) as caught:
            server_context(Encryption("always", **{**files, **changed}))
        return str(caught.value)

    nothing = str(tmp_path / "nothing.pem")
    assert complaint(ca=nothing) == f"cannot read {nothing}: No such file or directory"
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nonsense")
    assert f"--tls-ca {garbage} cannot be used" in complaint(ca=str(garbage))
    others = certificates(tmp_path / "others")
    assert "key values mismatch" in complaint(key=others["key"])
    os.chmod(others["key"], 0o640)
    assert complaint(key=others["key"]).endswith(f"is open to others: chmod 600 {others['key']}")


def test_the_key_of_the_cluster_is_in_no_text(setting: Encryption, pair: Pair) -> None:
    secret = b"a very secret key"
    made = server_context(setting, secret)
    sock = TlsSocket(pair[0], made, server_side=True)
    assert not any("secret" in repr(thing) for thing in (setting, made, sock, vars(sock)))


# --- who has proven nothing ------------------------------------------------------------------


def test_little_is_read_of_who_does_not_finish_the_handshake(setting: Encryption, pair: Pair) -> None:
    ours, theirs = pair
    side = Side(TlsSocket(ours, server_context(setting), server_side=True).shake_hands)
    record = struct.pack("!BHH", 22, 0x301, 16_000) + b"\x01\x00\xff\xff" + bytes(16_000)
    theirs.sendall(record)
    with pytest.raises(tls.TlsError, match="8192 bytes came, and no end of the handshake"):
        side.result()
    ours.settimeout(0.2)
    assert len(ours.recv(20_000)) == len(record) - tls.HANDSHAKE_BYTES, "left where it was"


def test_what_follows_a_handshake_at_once_does_not_count(setting: Encryption, pair: Pair) -> None:
    data = os.urandom(3 * tls.HANDSHAKE_BYTES)
    ours = TlsSocket(pair[0], server_context(setting), server_side=True)
    theirs = TlsSocket(pair[1], client_context(setting), server_side=False)
    side = Side(lambda: (theirs.shake_hands(), theirs.sendall(data)))
    ours.shake_hands()
    got = b""
    while len(got) < len(data):
        got += ours.recv(len(data))
    assert got == data
    side.result()


def test_what_is_no_tls_is_found_out_at_once(setting: Encryption, pair: Pair) -> None:
    side = Side(TlsSocket(pair[0], server_context(setting), server_side=True).shake_hands)
    pair[1].sendall(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(tls.NotTls):
        side.result()


def test_inside_it_the_bound_is_as_small_as_without(setting: Encryption, pair: Pair) -> None:
    ours = TlsWire(pair[0], server_context(setting), server_side=True)
    theirs = TlsSocket(pair[1], client_context(setting), server_side=False)

    def serve() -> None:
        ours.shake_hands()
        ours.prove_key(KEY, as_master=True)

    side = Side(serve)
    theirs.shake_hands()
    theirs.sendall(header(256) + bytes(1000))
    with pytest.raises(ValueError, match="256 bytes came"):
        side.result()


# --- what is carried -------------------------------------------------------------------------


def test_both_directions_at_once(setting: Encryption, pair: Pair) -> None:
    """With one thread that sends and one that receives at each end."""
    count, size = 200, 100_000
    frames = [bytes([number % 256]) * (size + number) for number in range(count)]
    ends = wires(pair, setting)

    def send(wire: Wire) -> None:
        for frame in frames:
            wire.send_bytes(frame)

    def receive(wire: Wire) -> List[bytes]:
        return [wire.recv_bytes() for _ in range(count)]

    senders = [Side(lambda wire=wire: send(wire)) for wire in ends]
    receivers = [Side(lambda wire=wire: receive(wire)) for wire in ends]
    for sender in senders:
        sender.result()
    assert all(receiver.result() == frames for receiver in receivers)


def test_what_came_with_the_proof_is_handed_on(setting: Encryption, pair: Pair) -> None:
    """No poll would tell of it: it has left the kernel already."""
    ours, theirs = wires(pair, setting)
    for number in range(3):
        theirs.send_bytes(bytes([number]) * 50)
    ours._appetite = 100  # as before the proof
    first = ours.recv_bytes()
    reader, frames = ours.release()
    loop = Loop()
    seen = [first, *frames]
    channel = Channel(loop, ours.sock, seen.extend, lambda reason: None, (reader, []))
    assert seen == [bytes([number]) * 50 for number in range(3)]
    channel.close()
    loop.close()


def test_a_slow_reader_holds_nobody_up_and_loses_nothing(setting: Encryption, pair: Pair) -> None:
    ours, theirs = wires(pair, setting)
    loop = Loop()
    drained: List[bool] = []
    channel = Channel(loop, ours.sock, lambda frames: None, lambda reason: None, ours.release())
    channel.on_drained = lambda: drained.append(True)
    frames = [bytes([number]) * (300_000 + number) for number in range(20)] + [b"small"] * 50
    for frame in frames:
        channel.send(frame)
    assert channel.congested
    side = Side(lambda: [theirs.recv_bytes() for _ in frames])
    wait_until(lambda: (loop.poll(0.1), drained)[1], timeout_s=WAIT_S)
    assert side.result() == frames
    channel.close()
    loop.close()


def test_files_and_buffers(setting: Encryption, pair: Pair, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(data)
    ours, theirs = (wire.sock for wire in wires(pair, setting))

    def serve() -> None:
        with open(tmp_path / "file", "rb") as file:
            ours.sendfile(file, 0, len(data))
        ours.sendall(memoryview(data))
        ours.shutdown(socket.SHUT_RDWR)

    side = Side(serve)
    got = bytearray()
    buffer = memoryview(bytearray(300_000))
    while True:
        count = theirs.recv_into(buffer)
        if not count:
            break
        got += buffer[:count]
    side.result()
    assert bytes(got) == data + data


def test_what_somebody_has_altered_is_not_taken(setting: Encryption, pair: Pair) -> None:
    ours, theirs = wires(pair, setting)
    ours.sock.encrypt(b"x" * 100)
    ours.sock._moving[0].append(bytearray(ours.sock._outgoing.read()))  # type: ignore[arg-type]
    ours.sock._moving[0][0][-1] ^= 1  # type: ignore[index]
    ours.sock.flush()
    with pytest.raises(tls.TlsError, match="mac|decryption"):
        theirs.recv_bytes()


# --- interrupts ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 30_000, 300_000])
def test_an_interrupt_finds_a_frame_not_sent_or_sent_wholly(
    setting: Encryption, pair: Pair, size: int
) -> None:
    ours, theirs = wires(pair, setting)
    got: List[bytes] = []  # the numbers of frames that came undamaged
    ended = threading.Event()

    def receive() -> None:
        while not got or got[-1] != b"end!":
            frame = ours.recv_bytes()
            assert frame == frame[:4] * (len(frame) // 4)
            got.append(frame[:4])

    chance = random.Random(size)
    main = threading.main_thread().ident
    assert main is not None
    armed = False

    def on_signal(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False  # until it has been dealt with
            raise Interrupted

    def interrupt() -> None:
        while not ended.wait(chance.uniform(0.00005, 0.0005)):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_signal)
    receiver, interrupter = Side(receive), Side(interrupt)
    sent, interrupts = [], 0
    try:
        deadline = time.monotonic() + WAIT_S
        while interrupts < 100 and time.monotonic() < deadline:
            frame = struct.pack("!I", theirs.sent) * (size // 4)
            count = theirs.sent
            try:
                armed = True
                theirs.send_bytes(frame)
                armed = False
            except Interrupted:
                interrupts += 1
            if theirs.sent != count:
                sent.append(frame[:4])
    finally:
        armed = False
        ended.set()
        interrupter.result()
        signal.signal(signal.SIGUSR1, before)
    theirs.send_bytes(b"end!")
    receiver.result()
    assert interrupts > 20, interrupts
    assert got[:-1] == sent


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("encrypted", [True, False])
def test_wherever_an_interrupt_comes(setting: Encryption, pair: Pair, size: int, encrypted: bool) -> None:
    ends: Tuple[Wire, ...] = wires(pair, setting) if encrypted else tuple(map(Wire, pair))
    for end in ends:
        end.expect_long_frames()
    ours, theirs = ends
    sent: List[bytes] = []
    most = 500 if sys.version_info >= (3, 10) else 2000
    for number in range(1, most):
        frame = struct.pack("!I", number) * (size // 4)
        count = theirs.sent
        interrupt = InterruptAt(number, [tls.__file__, transport.__file__])
        receiver = Side(ours.recv_bytes)
        with contextlib.suppress(Interrupted), interrupt:
            theirs.send_bytes(frame)
        if theirs.sent == count:
            theirs.send_bytes(frame)
        assert receiver.result() == frame, number
        sent.append(frame)
        if not interrupt.reached:
            break
    assert 8 < len(sent) < most - 1, "everywhere, and then nowhere"


def test_one_thread_at_a_time_uses_openssl(setting: Encryption, pair: Pair) -> None:
    ours, theirs = (wire.sock for wire in wires(pair, setting))
    theirs.sendall(b"xy")
    assert ours.recv(1) == b"x"
    for use in (lambda: ours.encrypt(b"y"), ours.flush, lambda: ours.recv(1)):
        with ours._lock:
            side = Side(use)
            side.join(0.1)
            assert side.is_alive()
        side.result()


def test_nothing_can_be_looked_at_before_it_is_taken(setting: Encryption, pair: Pair) -> None:
    ours, theirs = wires(pair, setting)
    ours.send_bytes(dump_message(("#RETURN", 1)))
    assert theirs.peek() is None
    assert theirs.reply() == 1
