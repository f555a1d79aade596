"""The managers-protocol server, in this process on loopback: who gets in, and who can do what."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import socket
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from multiprocessing.managers import BaseManager, RemoteError
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from cwmp import defaults, errors, server, shortcut
from cwmp.frames import header
from cwmp.line import Line
from cwmp.loop import Loop
from cwmp.master import Master
from cwmp.messages import JOB_QUEUE, LOST, RESULT, RESULT_QUEUE, RUNNING, this_side
from cwmp.server import RECEIPT, STANDING, Peer, Server
from cwmp.transport import FAILURE, RETURN, Wire, connect, dump_message, greet, introduce, load_message
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]

KEY = b"k" * 32


class Echo:
    """A served object."""

    def __init__(self) -> None:
        self.parked: List[Peer] = []
        self.calls: List[Any] = []

    def echo(self, peer: Peer, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return args, kwargs

    def park(self, peer: Peer) -> Any:
        """A standing request: answered whenever the test says so."""
        self.parked.append(peer)
        return STANDING

    def note(self, peer: Peer, value: Any) -> Any:
        """Acknowledged at leisure."""
        self.calls.append(value)
        return RECEIPT

    def fail(self, peer: Peer, kind: str) -> None:
        known = {"usage": errors.UsageError("use it well"), "key": KeyError("k"), "zero": ZeroDivisionError()}
        raise known[kind]

    def secret(self, peer: Peer) -> str:
        return "not for everybody"


class Running:
    """A server with its loop in a thread."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.server = Server(("127.0.0.1", 0), KEY, self.loop)
        self.echo = Echo()
        self.server.serve("Echo", self.echo, ("echo", "park", "note", "fail"))
        self.gone: List[Tuple[str, str]] = []
        self.server.on_gone = lambda peer, reason: self.gone.append((peer.name, reason))
        self.port = self.server.address[1]
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="server under test")
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self.loop.poll(0.2)
            self.server.flush()
            self.server.tend(time.monotonic())

    def call(self, function: Callable[[], Any]) -> Any:
        """Have the server's thread call `function`, and wait for what it returns."""
        done = threading.Event()
        answer: List[Any] = []
        self.loop.post(lambda: (answer.append(function()), done.set()))  # type: ignore[func-returns-value]
        assert done.wait(10)
        return answer[0]

    def wire(self) -> Wire:
        return wire_to(self.port)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.loop.wake()
        self._thread.join(10)
        self.server.close()
        self.loop.close()
        wait_until(lambda: not handshakes(), timeout_s=10)


def handshakes() -> List[str]:
    """The threads of connections that are proving their key."""
    return [thread.name for thread in threading.enumerate() if thread.name == "handshake"]


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a master that looks at its clock often."""
    monkeypatch.setattr(defaults, "SWEEP_S", 0.05)
    monkeypatch.setattr(defaults, "POLL_S", 0.1)


@pytest.fixture(autouse=True)
def no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose connection breaks is given up with the next sweep."""
    monkeypatch.setattr(defaults, "CLIENT_AWAY_S", 0.0)
    monkeypatch.setattr(defaults, "WORKER_AWAY_S", 0.0)


@pytest.fixture
def master() -> Iterator[Master]:
    master = Master("127.0.0.1", 0, KEY, name="tested")
    thread = threading.Thread(target=master.serve, name="master under test")
    thread.start()
    yield master
    alive = thread.is_alive()
    master.stop()
    thread.join(10)
    assert alive, "the master has ended by itself"


_opened: List[Wire] = []


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Close what a test has opened, even if it failed half-way."""
    yield
    while _opened:
        _opened.pop().close()


def wire_to(to: Any) -> Wire:
    """An authenticated connection to a master, or to a port."""
    wire = connect("127.0.0.1", to if isinstance(to, int) else to.address[1], KEY, timeout_s=10)
    _opened.append(wire)
    return wire


def manager_for(port: int, *names: str, key: bytes = KEY) -> BaseManager:
    """What somebody would write who knows nothing but the standard library."""

    class Manager(BaseManager):
        pass

    for name in names:
        Manager.register(name)
    return Manager(("127.0.0.1", port), key)


# --- a plain BaseManager --------------------------------------------------------------------


def test_a_plain_manager_can_ask_for_the_status(master: Master) -> None:
    manager = manager_for(master.address[1], "JobQueue", "ResultQueue")
    manager.connect()
    queue = manager.JobQueue()  # type: ignore[attr-defined]
    for _ in range(2):
        status = queue.status()
        assert status["name"] == "tested"
        assert status["pid"] == os.getpid()
        assert status["port"] == master.address[1]
        assert status["jobs"] == {"queued": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0}
    assert not [name for name in ("broker", "_master", "serve", "join_client") if hasattr(queue, name)]


def test_a_plain_manager_can_run_a_job_by_hand(master: Master) -> None:
    manager = manager_for(master.address[1], "JobQueue", "ResultQueue")
    manager.connect()
    jobs, results = manager.JobQueue(), manager.ResultQueue()  # type: ignore[attr-defined]
    client = jobs.join(this_side("client"))["member"]
    worker = jobs.join(this_side("worker", slots=1))["member"]
    jobs.put(client, [(1, b"f", b"c")])
    [(ticket, attempt, function, call)] = jobs.take(worker, 1)
    assert (attempt, function, call) == (1, b"f", b"c")
    results.report(worker, {"outcomes": [(ticket, RESULT, b"r")]})
    assert results.collect(client, 0) == (1, [(1, RESULT, b"r")])


def test_a_plain_manager_sees_errors(running: Running) -> None:
    manager = manager_for(running.port, "Echo", "Nothing")
    manager.connect()
    with pytest.raises(RemoteError, match="use it well"):
        manager.Echo().fail("usage")  # type: ignore[attr-defined]
    with pytest.raises(RemoteError, match="no object 'Nothing'"):
        manager.Nothing()  # type: ignore[attr-defined]


def test_a_plain_manager_leaves_nothing_in_the_server(running: Running) -> None:
    manager = manager_for(running.port, "Echo")
    manager.connect()
    echo = manager.Echo()  # type: ignore[attr-defined]
    assert echo.echo(1, a=2) == ((1,), {"a": 2})
    del echo, manager
    gc.collect()
    wait_until(lambda: not running.server._peers, describe=lambda: f"{len(running.server._peers)} peers left")


def test_a_plain_manager_with_another_key_is_refused(running: Running) -> None:
    manager = manager_for(running.port, "Echo", key=b"wrong")
    with pytest.raises(AuthenticationError):
        manager.connect()
    assert running.call(lambda: running.server._peers) == set()


# --- the key --------------------------------------------------------------------------------


def test_our_client_with_another_key_is_refused(running: Running) -> None:
    with pytest.raises(errors.WrongKey, match=f"127.0.0.1:{running.port} holds another key"):
        connect("127.0.0.1", running.port, b"wrong", timeout_s=10)
    with pytest.raises(errors.WrongKey):
        connect("127.0.0.1", running.port, b"", timeout_s=10)


def test_our_client_refuses_a_server_with_another_key() -> None:
    """The challenge is mutual: who only pretends to be a master gets no request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        heard: List[bytes] = []

        def pretend() -> None:
            sock, _ = listening.accept()
            with sock:
                wire = Wire(sock)
                wire.send_bytes(b"#CHALLENGE#" + b"{sha256}" + bytes(40))
                wire.recv_bytes()
                wire.send_bytes(b"#WELCOME#")
                wire.recv_bytes()  # its challenge
                wire.send_bytes(b"{sha256}" + bytes(32))
                try:
                    while True:
                        heard.append(wire.recv_bytes())
                except (EOFError, OSError):
                    pass

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(errors.ConnectError):
            connect("127.0.0.1", listening.getsockname()[1], KEY, timeout_s=10)
        thread.join()
    assert [frame for frame in heard if frame != b"#FAILURE#"] == []


def test_requests_before_the_key_are_not_served(running: Running) -> None:
    with running.raw() as sock:
        for body in (
            dump_message((None, "accept_connection", (), {})),
            dump_message(("Echo", "echo", (1,), {})),
        ):
            sock.sendall(header(len(body)) + body)
        sock.settimeout(10)
        data = b"x"
        while data:
            try:
                data = sock.recv(1 << 16)
            except ConnectionError:
                break
    assert running.echo.calls == []


def test_answering_a_challenge_wrongly_ends_the_connection(running: Running) -> None:
    with running.raw() as sock:
        wire = Wire(sock)
        assert wire.recv_bytes().startswith(b"#CHALLENGE#")
        wire.send_bytes(b"{sha256}" + bytes(32))
        assert wire.recv_bytes() == b"#FAILURE#"
        with pytest.raises((EOFError, ConnectionError)):
            wire.recv_bytes()


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 100,
    bytes(100),
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x01\x01" + bytes(257),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_before_the_key_ends_the_connection(running: Running, garbage: bytes) -> None:
    with running.raw() as sock:
        sock.sendall(garbage)
        wait_until(lambda: hung_up(sock), timeout_s=5)
    wire = running.wire()
    assert wire.call("Echo", "echo", 1) == ((1,), {})
    wire.close()


def hung_up(sock: socket.socket) -> bool:
    """Whether the server has ended this connection."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1 << 16) == b""
    except socket.timeout:
        return False
    except ConnectionError:
        return True


def test_closing_before_the_key_is_no_news(running: Running) -> None:
    for _ in range(20):
        running.raw().close()
    wire = running.wire()
    assert wire.call("Echo", "echo") == ((), {})
    wait_until(lambda: not handshakes())
    assert running.gone == []
    wire.close()


def test_a_silent_connection_is_hung_up_upon(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "HANDSHAKE_S", 0.1)
    with running.raw() as sock:
        wait_until(lambda: hung_up(sock), timeout_s=5)
        wait_until(lambda: not handshakes(), timeout_s=5)


def test_silent_connections_hold_few_threads_and_keep_nobody_out(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_HALF_OPEN", 5)
    monkeypatch.setattr(server, "_CROWDED_S", 0.1)
    silent = [running.raw() for _ in range(20)]
    try:
        wait_until(lambda: len(handshakes()) >= 5, timeout_s=5)
        assert len(handshakes()) <= 6
        wire = running.wire()  # the oldest silent ones make room, one for each newcomer
        assert wire.call("Echo", "echo") == ((), {})
        assert len(handshakes()) <= 6
        wire.close()
    finally:
        for sock in silent:
            sock.close()


def test_newcomers_wait_no_longer_than_a_handshake_may_last(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `tend` comes seldom: the crowd is pushed out by the newcomers themselves."""
    monkeypatch.setattr(defaults, "MAX_HALF_OPEN", 2)
    monkeypatch.setattr(server, "_CROWDED_S", 0.1)
    monkeypatch.setattr(running.server, "tend", lambda now: None)
    silent = [running.raw() for _ in range(10)]
    try:
        greet(running.raw(), "the server", KEY, 10.0).close()
    finally:
        for sock in silent:
            sock.close()


def test_little_is_read_of_who_has_not_proven_the_key() -> None:
    ours, theirs = socket.socketpair()
    with theirs, ours:
        theirs.settimeout(10)
        theirs.sendall(header(256) + bytes(1000))
        with pytest.raises(ValueError, match="256 bytes came"):
            Wire(ours).prove_key(KEY, as_master=True)
        ours.settimeout(0.2)
        assert len(ours.recv(2000)) == 4 + 1000 - 256  # left where it was


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the shortcut needs Linux")
def test_another_user_is_not_listened_to_on_the_shortcut(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcut, "peer", lambda sock: (1, os.geteuid() + 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(shortcut._name(running.port))
        assert sock.recv(100) == b"", "it was challenged for the key"


def test_closing_the_server_ends_silent_connections() -> None:
    running = Running()
    with running.raw() as sock:
        wait_until(handshakes)
        running.stop()
        wait_until(lambda: hung_up(sock), timeout_s=5)


def test_a_master_that_stops_leaves_no_socket_open(recwarn: pytest.WarningsRecorder) -> None:
    """With a silent connection, and with one that has proven its key."""
    master = Master("127.0.0.1", 0, KEY)
    thread = threading.Thread(target=master.serve)
    thread.start()
    with socket.create_connection(master.address, timeout=10):
        wire = wire_to(master)
        wait_until(handshakes)
        master.stop()
        thread.join(10)
        assert not thread.is_alive()
        wait_until(lambda: not handshakes())
        del master, thread
        gc.collect()
    with pytest.raises((EOFError, ConnectionError)):
        wire.call(JOB_QUEUE, "status")
    wire.close()
    assert [str(warning.message) for warning in recwarn if "unclosed" in str(warning.message)] == []


# --- requests -------------------------------------------------------------------------------


def test_values_go_there_and_back(running: Running) -> None:
    wire = running.wire()
    for value in (None, [1, (2, b"3")], {"a": "é"}, bytes(3 << 20)):
        assert wire.call("Echo", "echo", value) == ((value,), {})
    wire.close()


UNKNOWN: List[Tuple[Any, Any]] = [
    ("Echo", "nothing"), ("Nothing", "echo"), ("Echo", "secret"), ("Echo", "__class__"), ("Echo", "calls"),
    (None, "shutdown"), (None, "echo"), (5, "echo"), (["Echo"], "echo"), ("Echo", ["echo"]), ("Echo", None),
]  # fmt: skip


@pytest.mark.parametrize(("target", "method"), UNKNOWN, ids=repr)
def test_unknown_methods_are_answered_with_an_error(running: Running, target: Any, method: Any) -> None:
    wire = running.wire()
    with pytest.raises(errors.CwmpError, match="no method"):
        wire.call(target, method)
    assert wire.call("Echo", "echo", 1) == ((1,), {}), "the connection stands"
    wire.close()


@pytest.mark.parametrize(
    "method",
    ["shutdown", "get_methods", "create", "debug_info", "number_of_objects", "__init__", None, 7, ["x"]],
)
def test_the_server_itself_has_few_methods(running: Running, method: Any) -> None:
    """Unlike the standard one, which anybody can shut down."""
    with running.raw() as sock:
        wire = Wire(sock)
        wire.prove_key(KEY, as_master=False)
        wire.request(None, method)
        with pytest.raises(errors.CwmpError):
            wire.reply()
    assert running._thread.is_alive()


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [("usage", errors.UsageError, "use it well"), ("key", errors.CwmpError, "KeyError: 'k'"),
     ("zero", errors.CwmpError, "ZeroDivisionError"), ("unheard of", errors.CwmpError, "KeyError")],
)  # fmt: skip
def test_what_a_method_raises_is_answered(running: Running, kind: str, error: type, text: str) -> None:
    wire = running.wire()
    with pytest.raises(errors.CwmpError, match=text) as caught:
        wire.call("Echo", "fail", kind)
    assert type(caught.value) is error
    assert wire.call("Echo", "echo", 1) == ((1,), {})
    wire.close()


def test_wrong_arguments_are_answered(running: Running) -> None:
    wire = running.wire()
    with pytest.raises(errors.CwmpError, match="TypeError"):
        wire.call("Echo", "park", 1, 2, 3)
    wire.close()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def sends(running: Running, body: bytes) -> None:
    """An authenticated peer sends this, and is dropped for it."""
    wire = running.wire()
    wire.send_bytes(body)
    with pytest.raises((EOFError, ConnectionError)):
        wire.reply()
    wire.close()
    other = running.wire()
    assert other.call("Echo", "echo", 1) == ((1,), {}), "the server goes on"
    other.close()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_code_of_a_peer_runs(running: Running, protocol: int, tmp_path: Any, caplog: Any) -> None:
    trap = tmp_path / "trap"
    request = ("Echo", "echo", (Evil(str(trap)),), {})
    assert pickle.loads(pickle.dumps(("Echo", 1), protocol))
    with caplog.at_level(logging.WARNING, "cwmp.master"):
        sends(running, pickle.dumps(request, protocol))
    assert not trap.exists()
    assert running.echo.calls == [(1,)]
    assert "system has no place in a message" in caplog.text


CONFUSED = [b"", b"garbage", b"\x80\x04.", dump_message("four")[:-1]]
CONFUSED += [dump_message(m) for m in (5, (), [], ("Echo", "echo"), ("Echo", "echo", (), {}, 5))]


@pytest.mark.parametrize("body", CONFUSED, ids=range(len(CONFUSED)))
def test_what_is_no_request_ends_the_connection(running: Running, body: bytes) -> None:
    sends(running, body)


@pytest.mark.parametrize(
    ("args", "kwargs"), [(5, {}), ((), 5), ((), {5: 5}), (None, None), ("ab", {})], ids=repr
)
def test_strange_arguments_harm_nobody(running: Running, args: Any, kwargs: Any) -> None:
    wire = running.wire()
    wire.send_bytes(dump_message(("Echo", "park", args, kwargs)))
    with pytest.raises((errors.CwmpError, EOFError)):
        wire.reply()
    wire.close()
    assert running._thread.is_alive()


def test_a_deeply_nested_request_harms_nobody(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cwmp.master"), "disabled", True)  # pytest's handler is deep, too
    deep = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    wire = running.wire()
    wire.send_bytes(b"\x80\x04(" + deep[2:-1] + b"\x8c\x04echo)}t.")
    with pytest.raises((errors.CwmpError, EOFError)):
        wire.reply()
    wire.close()
    other = running.wire()
    assert other.call("Echo", "echo", 1) == ((1,), {})
    other.close()


def test_an_impossible_frame_ends_the_connection(running: Running) -> None:
    wire = running.wire()
    wire.sock.sendall(b"\xff\xff\xff\x00" + bytes(100))
    with pytest.raises((EOFError, ConnectionError)):
        wire.reply()
    wire.close()
    assert wait_until(lambda: running.gone)[0][1].startswith("a frame of")


def test_many_requests_in_one_piece_are_answered_in_order(running: Running) -> None:
    wire = running.wire()
    bodies = [dump_message(("Echo", "echo", (n,), {})) for n in range(50)]
    wire.sock.sendall(b"".join(header(len(body)) + body for body in bodies))
    assert [wire.reply() for _ in range(50)] == [((n,), {}) for n in range(50)]
    wire.close()


def in_one_piece(wire: Wire, *requests: Tuple[str, Tuple[Any, ...]]) -> None:
    """Send several requests so that the server sees them in the same round."""
    bodies = [dump_message(("Echo", method, args, {})) for method, args in requests]
    wire.sock.sendall(b"".join(header(len(body)) + body for body in bodies))


def test_good_and_bad_requests_in_one_piece_are_answered_in_order(running: Running) -> None:
    wire = running.wire()
    in_one_piece(wire, ("echo", (1,)), ("fail", ("usage",)), ("echo", (2,)), ("fail", ("zero",)))
    kinds = [load_message(wire.recv_bytes())[0] for _ in range(4)]
    assert kinds == [RETURN, FAILURE, RETURN, FAILURE]
    wire.close()


@pytest.mark.parametrize("last", [("echo", (2,)), ("note", (2,)), ("fail", ("usage",))], ids=lambda r: r[0])
def test_receipts_keep_their_place_among_the_answers(
    running: Running, last: Tuple[str, Tuple[Any, ...]]
) -> None:
    """The client knows a reply by its place only: who cancels must not get another one's receipt."""
    wire = running.wire()
    in_one_piece(wire, ("note", (1,)), ("echo", (1,)), ("note", (2,)), ("note", (3,)), ("echo", (3,)), last)
    assert [wire.reply() for _ in range(5)] == [None, ((1,), {}), None, None, ((3,), {})]
    if last[0] == "fail":
        with pytest.raises(errors.UsageError):
            wire.reply()
    else:
        assert wire.reply() == {"echo": ((2,), {}), "note": None}[last[0]]
    wire.close()


def test_a_receipt_comes_at_leisure_but_comes(running: Running) -> None:
    wire = running.wire()
    in_one_piece(wire, ("note", (1,)), ("note", (2,)))
    assert [wire.reply(), wire.reply()] == [None, None]
    assert running.echo.calls == [1, 2]
    wire.close()


def test_a_standing_answer_comes_behind_what_is_owed(running: Running) -> None:
    wire = running.wire()
    in_one_piece(wire, ("park", ()), ("note", (1,)))
    peer = wait_until(lambda: running.echo.calls and running.echo.parked)[0]
    running.call(lambda: peer.answer("standing"))
    assert sorted(map(str, (wire.reply(), wire.reply()))) == ["None", "standing"]
    wire.close()


# --- standing requests ----------------------------------------------------------------------


def test_a_standing_request_is_answered_whenever_there_is_something(running: Running) -> None:
    wire = running.wire()
    wire.request("Echo", "park")
    peer = wait_until(lambda: running.echo.parked)[0]
    other = running.wire()
    assert other.call("Echo", "echo", 1) == ((1,), {}), "nobody waits behind it"
    for n in range(3):
        running.call(lambda n=n: peer.answer(n))
        assert wire.reply() == n
    assert wire.call("Echo", "echo", 2) == ((2,), {}), "and the connection can be used besides"
    wire.close()
    other.close()


def test_an_answer_to_a_peer_that_has_gone_harms_nobody(running: Running) -> None:
    wire = running.wire()
    wire.request("Echo", "park")
    peer = wait_until(lambda: running.echo.parked)[0]
    wire.close()
    wait_until(lambda: running.gone)
    running.call(lambda: peer.answer("too late"))
    assert len(running.gone) == 1


# --- leaving --------------------------------------------------------------------------------


def test_on_gone_is_called_once_for_each_connection(running: Running) -> None:
    wires = [running.wire() for _ in range(5)]
    for wire in wires:
        wire.call("Echo", "echo")
    peers = set(running.server._peers)
    for wire in wires:
        wire.close()
    wait_until(lambda: len(running.gone) >= 5)
    running.call(lambda: None)
    assert sorted(name for name, _ in running.gone) == sorted(peer.name for peer in peers)
    assert {reason for _, reason in running.gone} == {"closed by the other side"}
    assert running.server._peers == set()


def test_on_gone_is_called_once_where_the_server_drops_the_peer(running: Running) -> None:
    wire = running.wire()
    wire.send_bytes(b"garbage")
    with pytest.raises((EOFError, ConnectionError)):
        wire.reply()
    wire.close()
    wait_until(lambda: running.gone)
    running.call(lambda: None)
    assert len(running.gone) == 1


def test_on_gone_is_called_once_when_an_answer_finds_nobody(running: Running) -> None:
    wire = running.wire()
    wire.request("Echo", "park")
    peer = wait_until(lambda: running.echo.parked)[0]
    wire.close()
    for _ in range(3):
        running.call(lambda: peer.answer(bytes(1 << 20)))
    wait_until(lambda: running.gone)
    running.call(lambda: None)
    assert len(running.gone) == 1


# --- listening ------------------------------------------------------------------------------


def test_a_taken_port_is_an_error_that_names_it(running: Running) -> None:
    loop = Loop()
    with pytest.raises(OSError, match=f"127.0.0.1:{running.port}: address already in use"):
        Server(("127.0.0.1", running.port), KEY, loop)
    loop.close()


def test_a_host_that_is_not_ours_is_an_error_that_names_it() -> None:
    loop = Loop()
    with pytest.raises(OSError, match="cannot listen on 192.0.2.1:0"):
        Server(("192.0.2.1", 0), KEY, loop)
    loop.close()


# --- the client's side ----------------------------------------------------------------------


def test_the_client_runs_no_code_of_a_master(tmp_path: Any) -> None:
    """Whoever holds the key and listens may answer anything."""
    trap = tmp_path / "trap"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            sock, _ = listening.accept()
            with sock:
                wire = Wire(sock)
                wire.prove_key(KEY, as_master=True)
                wire.recv_bytes()
                wire.send_bytes(dump_message((RETURN, None)))
                wire.recv_bytes()
                wire.send_bytes(pickle.dumps((RETURN, Evil(str(trap)))))

        thread = threading.Thread(target=answer)
        thread.start()
        wire = connect("127.0.0.1", listening.getsockname()[1], KEY, timeout_s=10)
        with pytest.raises(pickle.UnpicklingError, match="has no place in a message"):
            wire.call(JOB_QUEUE, "status")
        thread.join()
        wire.close()
    assert not trap.exists()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(errors.ConnectError, match=f"127.0.0.1:{port}: connection refused"):
        connect("127.0.0.1", port, KEY, timeout_s=5)


def test_who_listens_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(errors.ConnectError, match="did not answer within"):
            connect("127.0.0.1", sock.getsockname()[1], KEY, timeout_s=0.1)


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", header(5) + b"hello", b"\x00"])
def test_who_listens_is_no_master(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.sendall(words)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(errors.ConnectError, match="127.0.0.1"):
            connect("127.0.0.1", listening.getsockname()[1], KEY, timeout_s=5)
        thread.join()


def test_the_standard_client_gets_in_too(running: Running) -> None:
    """multiprocessing's own connection: framing and challenge are the standard ones."""
    with Client(("127.0.0.1", running.port), authkey=KEY) as connection:
        connection.send((None, "accept_connection", (), {}))
        assert connection.recv() == (RETURN, None)
        connection.send(("Echo", "echo", (bytes(100_000),), {}))
        assert connection.recv() == (RETURN, ((bytes(100_000),), {}))


# --- the master and peers that mean no good --------------------------------------------------


def member(wire: Wire, role: str, **facts: Any) -> int:
    ident: int = introduce(wire, this_side(role, **facts))["member"]
    return ident


HELLOS: List[Any] = [
    {}, 5, None, [], {"role": "worker"}, {"protocol": 99},
    {**this_side("worker", slots=1), "protocol": "1"}, {**this_side("worker", slots=1), "python": "2.7"},
    this_side("banana"), this_side("worker"), this_side("worker", slots=0), this_side("worker", slots="many"),
    this_side("client", member=[1]), this_side("client", member="1"), this_side("worker", slots=1, member={}),
    {**this_side("client"), "role": ["client"]},
]  # fmt: skip


@pytest.mark.parametrize("hello", HELLOS, ids=range(len(HELLOS)))
def test_a_strange_hello_is_refused_and_harms_nobody(master: Master, hello: Any) -> None:
    good = wire_to(master)
    client = member(good, "client")
    wire = wire_to(master)
    with pytest.raises(errors.CwmpError):
        wire.call(JOB_QUEUE, "join", hello)
    wire.close()
    status = good.call(JOB_QUEUE, "status")
    assert [c["id"] for c in status["clients"]] == [client]
    assert status["workers"] == []
    good.close()


def test_versions_are_compared(master: Master) -> None:
    wire = wire_to(master)
    with pytest.raises(errors.VersionMismatch, match=r"Python 2\.7"):
        introduce(wire, {**this_side("client"), "python": "2.7"})
    with pytest.raises(errors.VersionMismatch, match="protocol 99"):
        introduce(wire, {**this_side("client"), "protocol": 99})
    wire.close()


Attack = Callable[[int, int, int], Tuple[Any, ...]]

ATTACKS: Dict[str, Attack] = {
    "limit": lambda client, worker, ticket: (JOB_QUEUE, "take", worker, "x"),
    "no limit": lambda client, worker, ticket: (JOB_QUEUE, "take", worker, None),
    "negative limit": lambda client, worker, ticket: (JOB_QUEUE, "take", worker, -5),
    "huge limit": lambda client, worker, ticket: (JOB_QUEUE, "take", worker, 10**30),
    "endless limit": lambda client, worker, ticket: (JOB_QUEUE, "take", worker, float("inf")),
    "no worker": lambda client, worker, ticket: (JOB_QUEUE, "take", [worker], 1),
    "jobs": lambda client, worker, ticket: (JOB_QUEUE, "put", client, [(77, b"f", None)]),
    "function": lambda client, worker, ticket: (JOB_QUEUE, "put", client, [(77, 5, b"c")]),
    "number": lambda client, worker, ticket: (JOB_QUEUE, "put", client, [([], b"f", b"c")]),
    "cancel": lambda client, worker, ticket: (JOB_QUEUE, "cancel", client, [2, [3]]),
    "data": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"outcomes": [(ticket, 0, 5)]}),
    "kind": lambda client, worker, ticket: (
        RESULT_QUEUE,
        "report",
        worker,
        {"outcomes": [(ticket, [], b"")]},
    ),
    "no end": lambda client, worker, ticket: (
        RESULT_QUEUE,
        "report",
        worker,
        {"outcomes": [(ticket, RUNNING, b"")]},
    ),
    "history": lambda client, worker, ticket: (
        RESULT_QUEUE,
        "report",
        worker,
        {"died": [(ticket, {"attempt": []})]},
    ),
    "outcome": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"outcomes": [5]}),
    "report": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, 5),
    "died": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"died": [(ticket, 5)]}),
    "returned": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"returned": [ticket, []]}),
    "running": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"running": [[]]}),
    "facts": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"facts": {"slots": "many"}}),
    "no facts": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"facts": 5}),
    "new limit": lambda client, worker, ticket: (RESULT_QUEUE, "report", worker, {"limit": "x"}),
    "after": lambda client, worker, ticket: (RESULT_QUEUE, "collect", client, 0.5),
    "far after": lambda client, worker, ticket: (RESULT_QUEUE, "collect", client, 10**30),
    "negative after": lambda client, worker, ticket: (RESULT_QUEUE, "collect", client, -3),
    "collect": lambda client, worker, ticket: (RESULT_QUEUE, "collect", [client], 0),
    "stranger": lambda client, worker, ticket: (JOB_QUEUE, "put", 999, [(1, b"", b"")]),
    "leave": lambda client, worker, ticket: (RESULT_QUEUE, "leave", ("client", [1], 3)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_malformed_message_stops_nobody(master: Master, attack: Attack) -> None:
    """Whatever one peer sends, another one's jobs go on."""
    bad = [wire_to(master) for _ in range(3)]
    client, worker = member(bad[0], "client"), member(bad[1], "worker", slots=1)
    bad[0].call(JOB_QUEUE, "put", client, [(1, b"f", b"1"), (2, b"f", b"2")])
    [(ticket, *_)] = bad[1].call(JOB_QUEUE, "take", worker, 1)
    bad[2].request(*attack(client, worker, ticket))
    bad[2].request(JOB_QUEUE, "status")  # so that the master has looked at it when this is answered
    try:
        while "jobs" not in (bad[2].reply() or ()):
            pass
    except (errors.CwmpError, EOFError, ConnectionError):
        pass
    for wire in bad:
        wire.close()

    good = [wire_to(master) for _ in range(3)]
    mine, theirs = member(good[0], "client"), member(good[1], "worker", slots=1)
    good[0].request(RESULT_QUEUE, "collect", mine, 0)
    good[2].call(JOB_QUEUE, "put", mine, [(1, b"f", b"good")])
    good[1].request(JOB_QUEUE, "take", theirs, 1000)
    leases: List[Any] = []
    while b"good" not in [call for *_, call in leases]:
        leases = good[1].reply()
        done = {"outcomes": [(t, RESULT, call) for t, _, _, call in leases]}
        assert good[2].call(RESULT_QUEUE, "report", theirs, done) is None
    assert good[0].reply() == (1, [(1, RESULT, b"good")])
    master.broker.check_invariants()
    for wire in good:
        wire.close()


def test_a_waiting_worker_gets_work_as_soon_as_there_is_some(master: Master) -> None:
    client, worker = wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(worker, "worker", slots=1)
    worker.request(JOB_QUEUE, "take", theirs, 2)
    for n in range(2):
        client.call(JOB_QUEUE, "put", mine, [(n, b"f", b"%d" % n)])
        assert [call for *_, call in worker.reply()] == [b"%d" % n]
    client.close()
    worker.close()


def test_a_worker_gets_no_more_than_its_limit_until_it_is_raised(master: Master) -> None:
    client, worker, report = wire_to(master), wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(worker, "worker", slots=1)
    client.call(JOB_QUEUE, "put", mine, [(n, b"f", b"%d" % n) for n in range(10)])
    worker.request(JOB_QUEUE, "take", theirs, 3)
    assert [call for *_, call in worker.reply()] == [b"0", b"1", b"2"]
    assert client.call(JOB_QUEUE, "status")["jobs"]["queued"] == 7
    report.call(RESULT_QUEUE, "report", theirs, {"limit": 5})
    assert [call for *_, call in worker.reply()] == [b"3", b"4"]
    report.call(RESULT_QUEUE, "report", theirs, {"limit": 4})
    assert client.call(JOB_QUEUE, "status")["jobs"]["queued"] == 5
    for wire in (client, worker, report):
        wire.close()


def test_waiting_workers_share_what_there_is(master: Master) -> None:
    client, workers = wire_to(master), [wire_to(master) for _ in range(3)]
    mine = member(client, "client")
    for wire in workers:
        wire.request(JOB_QUEUE, "take", member(wire, "worker", slots=1), 100)
    client.call(JOB_QUEUE, "put", mine, [(n, b"f", b"") for n in range(30)])
    assert [len(wire.reply()) for wire in workers] == [10, 10, 10]
    for wire in (client, *workers):
        wire.close()


def test_a_client_that_asks_again_elsewhere_gets_what_it_has_not_acknowledged(master: Master) -> None:
    client, worker, again = wire_to(master), wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(worker, "worker", slots=1)
    client.call(JOB_QUEUE, "put", mine, [(1, b"f", b"a"), (2, b"f", b"b")])
    leases = worker.call(JOB_QUEUE, "take", theirs, 2)
    worker.call(RESULT_QUEUE, "report", theirs, {"outcomes": [(t, RESULT, c) for t, _, _, c in leases]})
    both = [(1, RESULT, b"a"), (2, RESULT, b"b")]
    assert client.call(RESULT_QUEUE, "collect", mine, 0) == (2, both)
    assert again.call(RESULT_QUEUE, "collect", mine, 0) == (2, both)
    for wire in (client, worker, again):
        wire.close()


def test_a_quiet_client_gets_a_sign_of_life(impatience: None, master: Master) -> None:
    client = wire_to(master)
    client.request(RESULT_QUEUE, "collect", member(client, "client"), 0)
    assert [client.reply() for _ in range(2)] == [(0, [])] * 2
    client.close()


def test_a_withdrawal_is_answered_before_what_was_put_behind_it(master: Master) -> None:
    """A client whose cancel got the receipt of a put would wait for that job for ever."""
    wire = wire_to(master)
    mine = member(wire, "client")
    wire.call(JOB_QUEUE, "put", mine, [(1, b"f", b"")])
    requests = [("cancel", (mine, [1])), ("put", (mine, [(2, b"f", b"")], False)), ("cancel", (mine, [2]))]
    bodies = [dump_message((JOB_QUEUE, method, args, {})) for method, args in requests]
    wire.sock.sendall(b"".join(header(len(body)) + body for body in bodies))
    assert [wire.reply() for _ in requests] == [[1], None, [2]]
    wire.close()


def test_a_closed_connection_is_a_goodbye(master: Master) -> None:
    client, worker, watcher = wire_to(master), wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(worker, "worker", slots=1)
    client.call(JOB_QUEUE, "put", mine, [(1, b"f", b"c"), (2, b"f", b"c")])
    worker.call(JOB_QUEUE, "take", theirs, 1)
    worker.close()

    def jobs() -> Dict[str, int]:
        found: Dict[str, int] = watcher.call(JOB_QUEUE, "status")["jobs"]
        return found

    wait_until(lambda: jobs()["queued"] == 2)
    client.close()
    wait_until(lambda: jobs()["queued"] == 0)
    status = watcher.call(JOB_QUEUE, "status")
    assert status["clients"] == status["workers"] == []
    watcher.close()


def test_an_error_of_the_masters_own_does_not_end_it(master: Master, caplog: Any) -> None:
    wire = wire_to(master)
    with caplog.at_level(logging.ERROR, "cwmp.master"):
        master._loop.post(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
        assert wire.call(JOB_QUEUE, "status")["name"] == "tested"
    assert "ZeroDivisionError" in caplog.text
    wire.close()


def test_a_worker_that_is_let_go_is_told_and_gets_no_more(master: Master) -> None:
    client, take, report = wire_to(master), wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(take, "worker", slots=1)
    take.request(JOB_QUEUE, "take", theirs, 5)
    client.call(JOB_QUEUE, "put", mine, [(1, b"f", b"1")])
    [(ticket, *_)] = take.reply()
    assert client.call(JOB_QUEUE, "drain", [999, theirs]) == [theirs]
    assert take.reply() is None
    client.call(JOB_QUEUE, "put", mine, [(2, b"f", b"2")])
    report.call(RESULT_QUEUE, "report", theirs, {"outcomes": [(ticket, RESULT, b"")], "limit": 50})
    status = client.call(JOB_QUEUE, "status")
    assert status["workers"][0]["draining"]
    assert status["jobs"]["queued"] == 1
    take.deadline(0.1)
    with pytest.raises(socket.timeout):
        take.reply()
    for wire in (client, take, report):
        wire.close()


def test_a_worker_may_be_let_go_before_it_asks_for_work(master: Master) -> None:
    other, take = wire_to(master), wire_to(master)
    worker = member(take, "worker", slots=1)
    assert other.call(JOB_QUEUE, "drain", [worker]) == [worker]
    assert take.call(JOB_QUEUE, "take", worker, 5) is None
    other.close()
    take.close()


@pytest.mark.parametrize("workers", [["x"], 5, [None], [1.5]])
def test_nonsense_drains_nobody(master: Master, workers: Any) -> None:
    wire, take = wire_to(master), wire_to(master)
    member(take, "worker", slots=1)
    with pytest.raises(errors.CwmpError):
        wire.call(JOB_QUEUE, "drain", workers)
    assert not wire.call(JOB_QUEUE, "status")["workers"][0]["draining"]
    wire.close()
    take.close()


def test_a_worker_tells_its_place(master: Master) -> None:
    wires = [wire_to(master) for _ in range(3)]
    member(wires[0], "worker", slots=1)
    member(wires[1], "worker", slots=1, place={"slurm_job": "123_4", "restarts": 1, "more": 2}, ends_in_s=9.0)
    member(wires[2], "worker", slots=1, place={"slurm_job": 5, "slots": "two"}, ends_in_s="soon")
    none, good, bad = wires[0].call(JOB_QUEUE, "status")["workers"]
    assert (none["slurm_job"], none["ends_in_s"]) == (None, None)
    assert (good["slurm_job"], good["restarts"]) == ("123_4", 1)
    assert 0 < good["ends_in_s"] <= 9.0
    assert "more" not in good
    assert (bad["slurm_job"], bad["ends_in_s"], bad["slots"]) == (None, None, 1)
    for wire in wires:
        wire.close()


def test_a_worker_without_time_for_a_job_leaves_it_to_others(master: Master, impatience: None) -> None:
    wires = [wire_to(master) for _ in range(4)]
    mine = member(wires[0], "client")
    late, early = member(wires[1], "worker", slots=1), member(wires[2], "worker", slots=1)
    wires[1].request(JOB_QUEUE, "take", late, 1)
    wires[0].call(JOB_QUEUE, "put", mine, [(1, b"long", b"1")])
    [(ticket, *_)] = wires[1].reply()
    wires[3].call(RESULT_QUEUE, "report", late, {"unfit": [ticket], "limit": 2})
    assert wires[0].call(JOB_QUEUE, "status")["jobs"]["queued"] == 1
    wires[2].request(JOB_QUEUE, "take", early, 1)
    assert [call for *_, call in wires[2].reply()] == [b"1"]
    wires[0].call(JOB_QUEUE, "put", mine, [(2, b"short", b"2"), (3, b"long", b"3")])
    assert [call for *_, call in wires[1].reply()] == [b"2"]
    for wire in wires:
        wire.close()


@pytest.mark.parametrize("unfit", [5, ["x"], [[]], None])
def test_nonsense_is_not_declined(master: Master, unfit: Any) -> None:
    client, take, report = wire_to(master), wire_to(master), wire_to(master)
    mine, theirs = member(client, "client"), member(take, "worker", slots=1)
    take.request(JOB_QUEUE, "take", theirs, 1)
    client.call(JOB_QUEUE, "put", mine, [(1, b"f", b"1")])
    take.reply()
    with pytest.raises(errors.CwmpError):
        report.call(RESULT_QUEUE, "report", theirs, {"unfit": unfit})
    assert client.call(JOB_QUEUE, "status")["jobs"]["running"] == 1
    for wire in (client, take, report):
        wire.close()


# --- peers that have the key, and lost their mind -------------------------------------------


def test_who_joins_often_is_forgotten_as_a_whole(master: Master) -> None:
    wire, other = wire_to(master), wire_to(master)
    for role in ("client", "client", "worker", "worker", "client"):
        member(wire, role, **({"slots": 1} if role == "worker" else {}))
    assert len(other.call(JOB_QUEUE, "status")["clients"]) == 3
    wire.close()
    wait_until(lambda: not other.call(JOB_QUEUE, "status")["clients"], timeout_s=5)
    assert other.call(JOB_QUEUE, "status")["workers"] == []
    other.close()


@pytest.mark.parametrize("kind", [RUNNING, LOST, -1, 99, None, "0", [], {}])
def test_no_job_ends_without_an_outcome(master: Master, kind: Any) -> None:
    """A client that is told of a kind that ends nothing would wait for that job for ever."""
    submit, collect, work, report = (wire_to(master) for _ in range(4))
    client, worker = member(submit, "client"), member(work, "worker", slots=2)
    submit.call(JOB_QUEUE, "put", client, [(1, b"f", b"1"), (2, b"f", b"2")])
    leases = work.call(JOB_QUEUE, "take", worker, 2)
    collect.request(RESULT_QUEUE, "collect", client, 0)
    with pytest.raises(errors.UsageError):
        outcomes = [(leases[0][0], RESULT, b"y"), (leases[1][0], kind, b"")]
        report.call(RESULT_QUEUE, "report", worker, {"outcomes": outcomes})
    assert collect.reply() == (1, [(1, RESULT, b"y")])  # what was right is told all the same
    work.close()  # and the other job is handed out again
    wait_until(lambda: submit.call(JOB_QUEUE, "status")["jobs"]["queued"] == 1)
    for wire in (submit, collect, report):
        wire.close()


@pytest.mark.parametrize("deaths", [1, 3])
def test_what_a_worker_says_of_a_death_cannot_break_its_history(master: Master, deaths: int) -> None:
    wire = wire_to(master)
    client = member(wire, "client")
    wire.call(JOB_QUEUE, "put", client, [(1, b"f", b"1")])
    for _ in range(deaths):
        work, report = wire_to(master), wire_to(master)
        worker = member(work, "worker", slots=1)
        [(ticket, *_)] = work.call(JOB_QUEUE, "take", worker, 1)
        report.call(RESULT_QUEUE, "report", worker, {"died": [(ticket, {"attempt": "x", 5: []})]})
        work.close()
        report.close()
    jobs = wire.call(JOB_QUEUE, "status")["jobs"]
    assert (jobs["queued"], jobs["failed"]) == ((1, 0) if deaths < defaults.MAX_ATTEMPTS else (0, 1))
    wire.close()


NO_REPLIES = [b"", b"garbage", dump_message(5), dump_message((1, 2, 3)), pickle.dumps((RETURN, Loop))]


@pytest.mark.parametrize("body", NO_REPLIES, ids=range(len(NO_REPLIES)))
def test_a_worker_leaves_a_master_that_talks_nonsense(body: bytes) -> None:
    loop, (ours, theirs) = Loop(), socket.socketpair()
    replies: List[Any] = []
    lost: List[str] = []
    line = Line(loop, Wire(ours), replies.append, lost.append)
    theirs.sendall(header(len(body)) + body)
    loop.poll(10)
    assert (replies, len(lost)) == ([], 1)
    line.close()
    theirs.close()
    loop.close()


@pytest.mark.parametrize("body", NO_REPLIES, ids=range(len(NO_REPLIES)))
def test_a_waiting_thread_leaves_nonsense_to_the_dispatcher(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(header(len(body)) + body)
        assert Wire(ours).peek() is None
