"""The process that carries large values between a node and the master, so that the agent never waits.

The agent tells it what to fetch and what to bring; it does one after the other, over connections of its
own, and says how each went. It runs no user code, and ends with the agent.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Callable, Dict, List, Optional, Set, Tuple

from . import shelf
from .errors import BlobLost, ConnectError
from .guardian import Guardian, close_all_but, die_with_parent
from .loop import Channel, Loop
from .messages import Ref
from .patience import pauses
from .transfers import Transfer
from .transport import Wire, dump_message, load_message

FETCH = "fetch"
BRING = "bring"

OnDone = Callable[[str, str, Optional[str]], None]
"""Told (FETCH or BRING, name, None or what went wrong) in the agent."""


class Porter:
    """The agent's side. The process starts with the first errand, and again after its death.

    `directory` is the node's shelf, `transfer` the way to the master's.
    """

    def __init__(
        self,
        loop: Loop,
        guardian: Guardian,
        directory: str,
        transfer: Transfer,
        on_done: OnDone,
    ) -> None:
        self._loop = loop
        self._guardian = guardian
        self._directory = directory
        self._transfer = transfer
        self._on_done = on_done
        self._channel: Optional[Channel] = None
        self._errands: Dict[Tuple[str, str], int] = {}  # under way, and their sizes
        self._retried: Set[Tuple[str, str]] = set()  # those of them that a death has interrupted before
        self.pid = 0

    def send(self, kind: str, ref: Ref) -> None:
        """Have it fetch or bring a blob."""
        if self._channel is None:
            try:
                self._start()
            except OSError as error:
                wrong = f"the process that carries large values cannot be started: {error.strerror}"
                self._loop.post(lambda: self._on_done(kind, ref[0], wrong))
                return
        assert self._channel is not None
        self._errands[kind, ref[0]] = ref[1]
        self._channel.send(dump_message((kind, ref[0], ref[1])))

    def go_to(self, transfer: Transfer) -> None:
        """Another master has the large values now: what is under way begins anew."""
        self._transfer = transfer
        if self._channel is not None:
            self._bury()
            for (kind, name), size in list(self._errands.items()):
                self.send(kind, (name, size))

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._errands.clear()
        self._retried.clear()
        self._bury()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child would write it a second time
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            _work(theirs, parent, self._directory, self._transfer)
        theirs.close()
        self._guardian.watch(self.pid)
        self._channel = Channel(self._loop, ours, self._on_frames, lambda _: self._on_death())

    def _on_frames(self, frames: List[bytes]) -> None:
        for frame in frames:
            kind, name, error = load_message(frame)
            self._retried.discard((kind, name))
            if self._errands.pop((kind, name), None) is not None:
                self._on_done(kind, name, error)

    def _on_death(self) -> None:
        """Somebody has killed it: what it was told to do is done once more."""
        self._bury()
        errands, self._errands = self._errands, {}
        for (kind, name), size in errands.items():
            if (kind, name) in self._retried:
                self._retried.discard((kind, name))
                self._on_done(kind, name, "the process that carries large values was killed")
            else:
                self._retried.add((kind, name))
                self.send(kind, (name, size))

    def _bury(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended
            os.waitpid(self.pid, 0)
            self._guardian.release(self.pid)


# --- the process itself ---------------------------------------------------------------------


def _work(sock: socket.socket, parent: int, directory: str, transfer: Transfer) -> None:
    """Do errands until the agent hangs up; ends the process."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else signal.SIG_DFL)
        die_with_parent(parent)
        close_all_but(sock.fileno())
        wire = Wire(sock)
        wire.expect_long_frames()
        while True:
            kind, name, size = load_message(wire.recv_bytes())
            wire.send_bytes(dump_message((kind, name, _run(kind, (name, size), directory, transfer))))
    finally:
        os._exit(0)


def _run(kind: str, ref: Ref, directory: str, transfer: Transfer) -> Optional[str]:
    """Do one errand, once more if it fails; returns what went wrong.

    Without a connection it goes on trying: the agent ends this process when there is no hope any more.
    """
    errand = _fetch if kind == FETCH else _bring
    failed = False
    for pause_s in pauses():
        try:
            errand(ref, directory, transfer)
            return None
        except ConnectError:
            time.sleep(pause_s)
        except Exception as error:
            if failed:
                return f"{type(error).__name__}: {error}"
            failed = True
    raise AssertionError("pauses end")


def _fetch(ref: Ref, directory: str, transfer: Transfer) -> None:
    """Get a blob from the master; it has its name here only when all of it has arrived undamaged."""
    path = os.path.join(directory, ref[0])
    aside = f"{path}.part"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)

    def take(piece: memoryview) -> None:
        try:
            shelf.write_all(fd, piece)
        except OSError as error:
            transfer.close()  # the rest is of no use
            raise BlobLost(f"it cannot be written to {directory}: {error.strerror}") from error

    try:
        transfer.get(ref, take)
        os.rename(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
    finally:
        os.close(fd)


def _bring(ref: Ref, directory: str, transfer: Transfer) -> None:
    """Send the master a part of a result; it is removed here."""
    transfer.put(ref[0], [shelf.view(directory, ref)])
    shelf.remove(directory, [ref[0]])
