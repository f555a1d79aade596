"""The way to a master that is known by several addresses: all are tried at once.

Not every address that a master has can be used from every node, and behind some of them another
machine may answer. The first one wins where the key is proven and the right cluster answers.
"""

from __future__ import annotations

import errno
import os
import queue
import selectors
import socket
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Tuple, Union

from . import defaults
from .addresses import format_address, is_numeric
from .encryption import Encryption
from .errors import ConnectError, UsageError, WrongKey
from .messages import JOB_QUEUE
from .rendezvous import Cluster, Destination
from .transport import Wire, connect, greet

_PROBE_S = 3.0  # how long a master of our name has to answer before we take its name
_LOOK_AGAIN_S = 0.2
_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)


class Reached(NamedTuple):
    """A connection to the right master, and the address that led to it."""

    host: str
    wire: Wire


class Located(NamedTuple):
    """What leads to a master, to be handed to `connect`."""

    host: str
    port: int
    authkey: bytes
    encryption: Encryption

    def __repr__(self) -> str:
        return f"Located({format_address(self.host, self.port)})"  # without the key


def locate(find: Callable[[], Destination]) -> Located:
    """Where the master that `find` tells of answers.

    Another node's file may be older than what that node has written: so when nobody answers, `find` is
    asked again for `ATTRIBUTE_CACHE_S`. An address that was given is returned untried.
    Raises ConnectError, naming each address and what came of it, and WrongKey.
    """
    deadline = time.monotonic() + defaults.ATTRIBUTE_CACHE_S
    while True:
        where = find()
        if where.nonce is None:
            return Located(where.hosts[0], where.port, where.authkey, where.encryption)
        try:
            host, wire = reach(where)
        except ConnectError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)
        else:
            wire.close()
            return Located(host, where.port, where.authkey, where.encryption)


def answers(cluster: Cluster) -> bool:
    """Whether that master lives: by its process on this node, by what it answers on another."""
    if cluster.is_here():
        return cluster.is_live()
    try:
        where = cluster.destination()
        reach(where, _PROBE_S).wire.close()
    except UsageError:
        return True  # it listens on its own loopback only, or encrypts and we cannot: we cannot know
    except ConnectError:
        return False
    return True


def reach(where: Destination, timeout_s: float = defaults.CONNECT_S + defaults.HANDSHAKE_S) -> Reached:
    """Connect to the master at `where`. Raises ConnectError, or WrongKey if no address has another reason.

    UsageError where the connection must be encrypted and cannot be.
    """
    if len(where.hosts) == 1:
        wire = connect(where.hosts[0], where.port, where.authkey, where.encryption, timeout_s=timeout_s)
        return Reached(where.hosts[0], _identified(wire, where, str(where)))
    failures: Dict[str, Exception] = {}
    numeric = [host for host in where.hosts if is_numeric(host)]
    # Names last: to look one up may take long, and most often leads to an address that we have.
    reached = _Race(where, timeout_s, failures).run(numeric)
    if reached is None:
        others = [host for host in _looked_up(where, failures) if host not in failures]
        reached = _Race(where, timeout_s, failures).run(others)
    if reached is not None:
        return reached
    every = "; ".join(
        f"{format_address(host, where.port)} -> {_in_short(error)}" for host, error in failures.items()
    )
    if all(isinstance(error, WrongKey) for error in failures.values()):
        raise WrongKey(
            f"what listens where cluster {where.name!r} is published holds another key ({every}): use the "
            "key that it was started with (--authkey-file, CWMP_AUTHKEY_FILE)"
        )
    raise ConnectError(f"cannot reach the master of cluster {where.name!r}: {every}")


class _WrongCluster(ConnectError):
    """The key is right, the cluster is another one."""


def _identified(wire: Wire, where: Destination, place: str) -> Wire:
    """The wire, if the right cluster is at its end; closes it otherwise."""
    if where.nonce is None:
        return wire
    try:
        other = wire.call(JOB_QUEUE, "cluster")
        if other["nonce"] == where.nonce:
            return wire
        raise _WrongCluster(
            f"cluster {where.name!r} is published to be at {place}, but that is cluster {other['name']!r} "
            "now: has its master ended without removing its file?"
        )
    except (OSError, EOFError) as error:
        wire.close()
        if isinstance(error, ConnectError):
            raise
        raise ConnectError(f"{place} closed the connection ({error})") from error
    except BaseException:
        wire.close()
        raise


def _looked_up(where: Destination, failures: Dict[str, Exception]) -> List[str]:
    """The addresses of those hosts that are names; a name that nobody knows is a failure."""
    found: List[str] = []
    for host in where.hosts:
        if is_numeric(host):
            continue
        try:
            entries = socket.getaddrinfo(host, where.port, type=socket.SOCK_STREAM)
        except OSError as error:
            failures[host] = ConnectError(error.strerror or str(error))
        else:
            found += [str(entry[4][0]) for entry in entries]
    return list(dict.fromkeys(found))


def _in_short(error: Exception) -> str:
    """One address's failure, in the words of a list."""
    cause = error.__cause__
    if isinstance(error, WrongKey):
        return "wrong key"
    if isinstance(error, _WrongCluster):
        return "wrong cluster"
    if isinstance(error, socket.timeout) or isinstance(cause, socket.timeout):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


class _Race:
    """Connections to several addresses at once.

    They are made without blocking; whoever takes one gets a thread that proves the key, which ends when its
    connection is hung up. So nothing is left of the losers when there is a winner.
    """

    def __init__(self, where: Destination, timeout_s: float, failures: Dict[str, Exception]) -> None:
        self._where = where
        self._timeout_s = timeout_s
        self._failures = failures
        self._connecting: Dict[socket.socket, str] = {}
        self._greeting: Dict[str, Tuple[socket.socket, threading.Thread]] = {}
        self._results: queue.SimpleQueue[Tuple[str, Union[Wire, Exception]]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)

    def run(self, hosts: List[str]) -> Union[Reached, None]:
        """The first that passes; None, and `failures` are complete, if none does."""
        deadline = time.monotonic() + self._timeout_s
        try:
            for host in hosts:
                self._begin(host)
            while self._connecting or self._greeting:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                for key, _ in self._selector.select(left_s):
                    if key.fileobj is not self._bell:
                        self._connected(key.fileobj)  # type: ignore[arg-type]
                reached = self._look_at_results()
                if reached is not None:
                    return reached
            for host in (*self._connecting.values(), *self._greeting):
                self._failures[host] = socket.timeout()
            return None
        finally:
            self._close()

    def _begin(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._failures[host] = error
            return
        sock.setblocking(False)
        self._connecting[sock] = host
        code = sock.connect_ex((host, self._where.port))
        if code in _IN_PROGRESS:
            self._selector.register(sock, selectors.EVENT_WRITE)
        else:
            self._failed(sock, code)

    def _failed(self, sock: socket.socket, code: int) -> None:
        self._failures[self._connecting.pop(sock)] = OSError(code, os.strerror(code))
        sock.close()

    def _connected(self, sock: socket.socket) -> None:
        """An attempt has ended: if well, the key comes next."""
        self._selector.unregister(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(sock, code)
            return
        host = self._connecting.pop(sock)
        thread = threading.Thread(target=self._greet, args=(host, sock), name="cwmp-dial", daemon=True)
        self._greeting[host] = (sock, thread)
        thread.start()

    def _greet(self, host: str, sock: socket.socket) -> None:
        """In a thread of its own: prove the key, and ask who that is."""
        place = format_address(host, self._where.port)
        result: Union[Wire, Exception]
        try:
            result = _identified(
                greet(sock, place, self._where.authkey, self._timeout_s, self._where.encryption),
                self._where,
                place,
            )
        except Exception as error:  # whatever listens there may answer anything
            result = error
        self._results.put((host, result))
        self._button.send(b"!")

    def _look_at_results(self) -> Union[Reached, None]:
        while not self._results.empty():
            host, result = self._results.get()
            self._bell.recv(1)
            self._greeting.pop(host)[1].join()
            if isinstance(result, Wire):
                return Reached(host, result)
            if isinstance(result, UsageError):  # it concerns all addresses
                raise result
            self._failures[host] = result
        return None

    def _close(self) -> None:
        """Let go of all that has not won."""
        for sock in self._connecting:
            sock.close()
        for sock, thread in self._greeting.values():
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended by itself
            thread.join()
        while not self._results.empty():
            late = self._results.get()[1]
            if isinstance(late, Wire):
                late.close()
        self._selector.close()
        self._bell.close()
        self._button.close()
