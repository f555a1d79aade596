"""A `multiprocessing.managers` server on one event loop.

The standard server keeps a thread for each connection and no deadline on its handshake. This one
speaks the same protocol, so that `BaseManager.connect()` works against it, but serves every
connection from one thread; only a handshake has a thread, for at most `HANDSHAKE_S`, and at most
`MAX_HALF_OPEN` of them exist. It unpickles plain values only, and only from peers that have
proven the key.

A method of a served object is called with the `Peer` first. It returns its answer; or `RECEIPT`, which
is answered with None at leisure; or `STANDING` after keeping the peer, and then calls
`peer.answer(value)` whenever there is something to say.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from functools import partial
from multiprocessing import AuthenticationError
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, List, Optional, Set, Tuple

from . import defaults, descriptors, shortcut
from .addresses import format_address
from .encryption import DEFAULT, Encryption
from .entrance import Entrance
from .errors import CwmpError
from .loop import Channel, Loop
from .transport import FAILURE, RETURN, Wire, dump_message, failure, load_message

if TYPE_CHECKING:
    from .tls import AnySocket

log = logging.getLogger("cwmp.master")

STANDING = object()
"""What a method returns when its answers will come through `peer.answer`."""

RECEIPT = object()
"""What a method returns when the peer only wants to know, some time, that it was heard."""

_CROWDED_S = 0.5  # a handshake may be this old before a newcomer can push it out

_RECEIPT_BYTES = dump_message((RETURN, None))

Method = Callable[..., Any]


class Peer:
    """One connection of an authenticated client, worker or plain `BaseManager`."""

    def __init__(self, server: Server, wire: Wire, name: str) -> None:
        self.name = name
        self.member: Optional[Tuple[str, int]] = None
        """(role, id) once it has joined: whoever closes its connection has left."""
        self.former: List[Tuple[str, int]] = []
        """What it joined as before that."""
        self._server = server
        self._held: List[bytes] = []  # replies in the order of the requests, to be sent by `settle`
        self._serving = False  # accept_connection was called
        self.channel = Channel(server.loop, wire.sock, self._on_frames, self._on_close, wire.release())

    def answer(self, value: Any) -> None:
        """Send something for a standing request; what is held for others goes first."""
        reply = dump_message((RETURN, value))
        if self._held:
            self._held.append(reply)
            self.settle()
        else:
            self.channel.send(reply)

    def detach(self) -> AnySocket:
        """Give the connection, which has said nothing beyond this request, to a thread that serves it."""
        self._server.forget(self)
        sock = self.channel.detach()
        sock.setblocking(True)
        return sock

    def fail(self, error: CwmpError) -> None:
        """Send an error for a standing request."""
        self.channel.send(dump_message((FAILURE, failure(error))))

    def hear_out(self) -> None:
        """Take what has come over this connection, which is about to be closed for another's sake."""
        self.channel.hear_out()

    def close(self) -> None:
        """End the connection; nobody is told."""
        self._server.forget(self)
        self.channel.close()

    def settle(self) -> None:
        """Send the replies that are held."""
        held, self._held = self._held, []
        self.channel.send(*held)

    def _on_frames(self, frames: List[bytes]) -> None:
        for frame in frames:
            if self.channel.open:
                self._on_request(frame)

    def _on_request(self, frame: bytes) -> None:
        try:
            target, method, args, kwargs = load_message(frame)
        except MemoryError:
            raise  # ours is the problem: see `shortage`
        except Exception as error:  # whatever a confused peer sends, it is only that peer's problem
            self._drop(f"sent something that is not a request ({type(error).__name__}: {error})")
            return
        try:
            if self._serving:
                value = self._server.method(target, method)(self, *args, **kwargs)
            else:
                value = self._greet(method, args)
        except MemoryError:
            raise
        except CwmpError as error:
            self._reply(FAILURE, failure(error))
        except Exception as error:
            log.warning("%s: %s failed: %s", self.name, _name_of(method), failure(error))
            self._reply(FAILURE, failure(error))
        else:
            if value is RECEIPT:
                self._held.append(_RECEIPT_BYTES)
                self._server.owes(self)
            elif value is not STANDING:
                self._reply(RETURN, value)

    def _greet(self, method: Any, args: Tuple[Any, ...]) -> Any:
        """The calls to the server itself, before any object of it is used."""
        self._serving = method == "accept_connection"
        if self._serving or method in ("incref", "decref", "dummy"):
            return None  # nothing to count: our objects live as long as the server
        if method == "create":
            return self._server.create(*args[:1])
        if method == "get_methods":
            return list(self._server.exposed(args[0][1] if isinstance(args[0], tuple) else args[0]))
        raise CwmpError(f"the server has no method {_name_of(method)}")

    def _reply(self, kind: str, value: Any) -> None:
        self._held.append(dump_message((kind, value)))
        if self._serving:
            self._server.answers(self)
        else:
            self.settle()
            self.channel.close()  # calls before `accept_connection` are one a connection
            self._on_close("has been served")

    def _drop(self, why: str) -> None:
        log.warning("%s %s; connection closed", self.name, why)
        self.channel.close()
        self._on_close(why)

    def _on_close(self, reason: str) -> None:
        self._server.gone(self, reason)


class Server:
    """Listens, lets the key's owners in, and calls the methods of the served objects."""

    def __init__(
        self, address: Tuple[str, int], authkey: bytes, loop: Loop, encrypt: Encryption = DEFAULT
    ) -> None:
        self.loop = loop
        self.on_gone: Callable[[Peer, str], None] = lambda peer, reason: None
        self._authkey = authkey
        self._methods: Dict[Tuple[str, str], Method] = {}
        self._exposed: Dict[str, List[str]] = {}
        self._half_open: Deque[Tuple[float, Wire, threading.Thread]] = deque()  # oldest first
        self._peers: Set[Peer] = set()
        self._answering: Set[Peer] = set()  # peers that wait for an answer at the end of this round
        self._owing: Set[Peer] = set()  # peers that get their receipts some time
        self._closed = False
        self._room_comes: Optional[threading.Timer] = None  # ends a pause in which all seats were taken
        main = _listen(address)
        self.address: Tuple[str, int] = main.getsockname()[:2]
        try:
            self._entrance = Entrance(self.address[0], authkey, encrypt)
        except BaseException:
            main.close()
            raise
        beside = None
        if self._entrance.has_shortcut:
            beside = shortcut.listen(self.address[0], self.address[1], defaults.BACKLOG)
        self._sockets = [main] if beside is None else [main, beside]
        descriptors.raise_limit()
        self._in_trouble = False  # we cannot take in who comes, and have said so
        self._listening = False
        self._listen_on()

    # --- what is served ----------------------------------------------------------------------

    def serve(self, name: str, obj: Any, methods: Iterable[str]) -> None:
        """Offer `obj` under `name`, with exactly these methods."""
        self._exposed[name] = list(methods)
        for method in self._exposed[name]:
            self._methods[name, method] = getattr(obj, method)

    def method(self, name: Any, method: Any) -> Method:
        """The callable behind a request. Raises CwmpError."""
        try:
            return self._methods[name, method]
        except (KeyError, TypeError):
            raise CwmpError(f"there is no method {_name_of(method)} of {_name_of(name)} here") from None

    def exposed(self, name: Any) -> List[str]:
        """The methods that `name` offers. Raises CwmpError."""
        if not isinstance(name, str) or name not in self._exposed:
            raise CwmpError(f"there is no object {_name_of(name)} here")
        return self._exposed[name]

    def create(self, name: str) -> Tuple[str, Tuple[str, ...]]:
        """What `BaseManager` asks for before it makes a proxy: an id and the methods."""
        return name, tuple(self.exposed(name))

    def answers(self, peer: Peer) -> None:
        """This peer gets what is held for it with `flush`: who waits for work or events comes first."""
        self._answering.add(peer)

    def flush(self) -> None:
        """Send the answers of this round; to be called after each `Loop.poll`."""
        while self._answering:
            self._answering.pop().settle()

    def owes(self, peer: Peer) -> None:
        """This peer gets its receipts with its next answer, or from `tend`."""
        self._owing.add(peer)

    # --- connections -------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Send receipts, drop overdue handshakes, go on accepting; to be called about once a second."""
        while self._owing:
            self._owing.pop().settle()
        while self._half_open and now - self._half_open[0][0] > defaults.HANDSHAKE_S:
            self._half_open.popleft()[1].hang_up()
        if not self._listening:
            self._listen_on()

    def close(self) -> None:
        """Close every connection and stop listening."""
        self._closed = True
        self._pause()
        if self._room_comes is not None:
            self._room_comes.cancel()
        for sock in self._sockets:
            sock.close()
        for _, wire, thread in self._half_open:
            wire.hang_up()
            thread.join(_CROWDED_S)
            wire.close()
        for peer in list(self._peers):
            peer.channel.close()
        self._peers.clear()

    def gone(self, peer: Peer, reason: str) -> None:
        """A peer's connection has ended."""
        self.forget(peer)
        self.on_gone(peer, reason)

    def forget(self, peer: Peer) -> None:
        """A peer's connection is no longer ours."""
        self._peers.discard(peer)
        self._owing.discard(peer)
        self._answering.discard(peer)

    def _listen_on(self) -> None:
        self._listening = True
        for sock in self._sockets:
            self.loop.watch(sock, partial(self._accept, sock))

    def _accept(self, listener: socket.socket) -> None:
        """Take one connection in, and start its handshake."""
        now = time.monotonic()
        if len(self._half_open) >= defaults.MAX_HALF_OPEN:
            young_s = self._half_open[0][0] + _CROWDED_S - now
            if young_s > 0:
                self._pause()  # the kernel holds the others
                self._go_on_in(young_s)
                return
            self._half_open.popleft()[1].hang_up()
        try:
            sock, address = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._rest(error)
            return
        if sock.family == socket.AF_UNIX and shortcut.peer(sock)[1] != os.geteuid():
            sock.close()  # our own clients take this way as the same user only
            return
        wire = self._entrance.admit(sock, address[0] if address else "")
        if wire is None:
            return
        name = f"{address[0]}:{address[1]}" if address else f"pid {shortcut.peer(sock)[0]}"
        thread = threading.Thread(target=self._handshake, args=(wire, name), name="handshake", daemon=True)
        self._half_open.append((now, wire, thread))
        try:
            thread.start()
        except RuntimeError as error:  # no threads left
            self._half_open.pop()
            wire.close()
            self._rest(error)
            return
        if self._in_trouble:
            self._in_trouble = False
            log.warning("accepting connections again")

    def _rest(self, error: Exception) -> None:
        """Accept nobody until the next `tend`: what is lacking now may be there again then."""
        if not self._in_trouble:
            self._in_trouble = True
            log.error("cannot accept connections: %s; trying again every %g s", error, defaults.SWEEP_S)
        self._pause()

    def _go_on_in(self, seconds: float) -> None:
        """Go on accepting when the oldest handshake may be pushed out: `tend` comes too seldom."""
        if self._room_comes is None:
            self._room_comes = threading.Timer(seconds, lambda: self.loop.post(self._go_on))
            self._room_comes.daemon = True
            try:
                self._room_comes.start()
            except RuntimeError:  # no threads left: then `tend` does it
                self._room_comes = None

    def _go_on(self) -> None:
        self._room_comes = None
        if not self._listening and not self._closed:
            self._listen_on()

    def _pause(self) -> None:
        self._listening = False
        for sock in self._sockets:
            self.loop.forget(sock)

    def _handshake(self, wire: Wire, name: str) -> None:
        """In a thread of its own: TLS if need be and the mutual challenge, which ends or is hung up upon."""
        proven = False
        try:
            wire.shake_hands()
            wire.prove_key(self._authkey, as_master=True)
            proven = True
        except AuthenticationError:
            log.warning("%s holds another key; connection closed", name)
        except Exception as error:  # silence, garbage, a port scanner
            log.debug("%s did not finish the handshake: %s", name, error)
        if not proven:
            wire.close()  # the loop may end before it gets to that
        if not self._closed:
            self.loop.post(lambda: self._handshake_over(wire, name, proven))

    def _handshake_over(self, wire: Wire, name: str, proven: bool) -> None:
        for entry in self._half_open:
            if entry[1] is wire:
                self._half_open.remove(entry)
                break
        else:
            proven = False  # it took too long and was hung up upon
        if not proven:
            wire.close()
        else:
            self._peers.add(Peer(self, wire, name))
        if not self._listening:
            self.tend(time.monotonic())


def _name_of(part: Any) -> str:
    """What a peer wants to call, as far as that can be said: it may have sent anything."""
    return repr(part[:60]) if isinstance(part, str) else f"(a {type(part).__name__})"


def _listen(address: Tuple[str, int]) -> socket.socket:
    """A listening, non-blocking socket. Raises OSError naming the address."""
    host, port = address
    try:
        info = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family = info[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(info[0][4])
            sock.listen(defaults.BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        place = format_address(host or "*", port)
        raise type(error)(error.errno, f"cannot listen on {place}: {reason.lower()}") from error
    sock.setblocking(False)
    return sock
