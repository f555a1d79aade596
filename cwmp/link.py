"""A client's two connections to its master: requests out, replies in, and the way back when they break.

When a connection breaks, whichever thread notices *mends* both: it gets back to the master, or to one that
was started in its place. What was not answered is kept meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Any, Callable, Container, ContextManager, List, Optional, Tuple

from . import defaults
from .errors import ConnectError, CwmpError, MasterLost, UnknownMember
from .membership import Joined, Membership
from .messages import JOB_QUEUE, RESULT_QUEUE
from .outbox import OnReply, Outbox, Request, Settled
from .patience import pauses
from .transport import Wire

log = logging.getLogger("cwmp")

MASTER_LOST = -1
CANCELLED = -2
"""Kinds of event, besides those of `messages`, for jobs that the master says no more of."""

_SHORTAGES = 10  # of memory in a row, in some 5 s

Event = Tuple[Any, int, Any]
"""(token, kind, data) of a job; RUNNING is the only kind that does not end it."""

OnEvents = Callable[[List[Event]], None]
"""Called in the dispatcher thread with events in the order they happened in; takes out what it handles."""


class Link:
    """Who has one says what is to be sent again (`_settle_in`), and what the end means (`_on_lost`).

    `membership` is the way to the master. Raises ConnectError, WrongKey or VersionMismatch.
    """

    def __init__(self, membership: Membership) -> None:
        # Guards what follows, down to `_lost`. Re-entrant, because the finalizer of an executor may
        # run, and close us, in whatever our own thread is doing.
        self._lock = threading.RLock()
        self._outbox = Outbox()  # requests that wait for their replies
        self._away = False  # there is no connection
        self._stay = 0  # which pair of connections is in use
        self._lost: Optional[str] = None  # why all is over
        # Connections that were in use before. Each is closed by the thread that reads from it: under a read
        # of another thread the descriptor's number could go to the next connection.
        self._left_submit: List[Wire] = []
        self._left_collect: List[Wire] = []
        self._mending = threading.Lock()  # held by the thread that gets us back to the master
        self._explained = False  # we have said why nothing happens
        self._barren = 0  # connections in a row that broke before any event came, the present one included
        self._pauses = pauses()
        self._membership = membership
        self._use(membership.join())

    def _use(self, joined: Joined) -> None:
        """From now on these connections."""
        self._joined = joined
        self._submit_wire = joined.submit
        self.place = joined.place

    @property
    def lost(self) -> Optional[str]:
        """Why the session has ended; None while it stands."""
        return self._lost

    # --- requests ----------------------------------------------------------------------------

    def _request(self, method: str, *args: Any, on_reply: OnReply, target: str = JOB_QUEUE) -> None:
        """Write one request; with the lock held, so that replies come in the order noted."""
        request = Request(target, method, args, on_reply)
        sent_before = self._submit_wire.sent
        try:
            self._outbox.add(request, time.monotonic() + defaults.REPLY_S)
            if not self._away:  # else it is sent when we are back
                self._write(request)
        except OSError as error:
            self._submit_wire.hang_up()  # the reader sees the end, and mends
            log.debug("could not send %s: %s", method, error)
        except BaseException:  # an interrupt: no reply will come to what was not sent
            if self._submit_wire.sent == sent_before:
                self._outbox.take_out(request)
            raise

    def _write(self, request: Request) -> None:
        member = () if request.method == "status" else (self._joined.ident,)
        self._submit_wire.request(request.target, request.method, *member, *request.args)

    def _read_replies(self) -> None:
        """The reader thread: take each reply and do what it was awaited for."""
        stay: Optional[int] = 0
        while stay is not None:
            with self._lock:
                stay, wire = self._stay, self._submit_wire  # which may have been mended twice
            close_all(self._left_submit)
            try:
                while True:
                    self._read_reply(wire, stay)
            except socket.timeout:
                if self._outbox.is_overdue(time.monotonic()):
                    stay = self._mend(stay, ConnectError(f"no reply within {defaults.REPLY_S:g} s"))
            except Exception as error:
                stay = self._mend(stay, error)

    def _read_reply(self, wire: Wire, stay: int) -> None:
        value = wire.reply()
        with self._lock:
            # What came over an earlier pair of connections was settled when they were mended.
            request = self._outbox.answered() if stay == self._stay else None
        if request is not None:
            request.on_reply(value)

    def _ask_what_is_alive(self, cancel: Request, still_open: Container[int]) -> None:
        """Find out what became of a request to withdraw jobs whose answer was lost."""
        numbers: List[int] = cancel.args[0]

        def on_reply(alive: Any) -> None:
            kept = set(alive or ())
            cancel.on_reply([n for n in numbers if n not in kept and n in still_open])

        self._request("alive", numbers, on_reply=on_reply)

    def _explain_wait(self, jobs: int) -> None:
        """Nothing happens to so many jobs: if that is for want of workers, say so once."""

        def on_reply(status: Any) -> None:
            if status and not status["workers"]:
                warn_without_workers(jobs, self.place, status["name"])

        with self._lock:
            if self._lost is None and not self._explained:
                self._explained = True
                self._request("status", on_reply=on_reply)

    # --- the way back ------------------------------------------------------------------------

    def _mend(self, stay: int, error: BaseException) -> Optional[int]:
        """A connection of this stay is no good: get back to the master, or wait until the other thread has.

        Returns the new stay; None when all is over.
        """
        with self._mending:
            if self._stay != stay:
                return self._stay
            told_off = isinstance(error, CwmpError) and not isinstance(error, (ConnectError, UnknownMember))
            with self._lock:
                self._away = True
                self._on_away()
                over = told_off or self._lost is not None
            self._hang_up()  # so that the other thread comes here, too
            if over:
                self._lose(f"is gone: {_said_by(error)}")
                return None
            return self._go_back(error)

    def _go_back(self, error: BaseException) -> Optional[int]:
        """Get back to a master. Returns the new stay; None when all is over."""
        while not (isinstance(error, MemoryError) and self._barren >= _SHORTAGES):
            self._pause()
            try:
                joined = self._membership.come_back(self._joined)
            except MemoryError as shortage:
                error = shortage
                continue
            except MasterLost as dismissal:
                self._lose(f"gave this client up: {dismissal}")
                return None
            except Exception as failure:
                waited = f"no way back within {self._membership.timeout_s:g} s: {_said_by(failure)}"
                self._lose(f"is gone: {_said_by(error)}; {waited}")
                return None
            try:
                return self._move_in(joined)
            except Exception as failure:  # half moved in: nobody knows what the master was told
                log.exception("cwmp could not go on with the master that it got back to")
                self._lose(f"was left: {_said_by(failure)}")
                self._hang_up()
                return None
        self._lose("was left: this program has no memory for what its jobs return")
        return None

    def _pause(self) -> None:
        """Before going back: not at once again where that did not help the last time."""
        if self._barren:
            self._membership.pause(next(self._pauses))
        else:
            self._pauses = pauses()
        self._barren += 1

    def _move_in(self, joined: Joined) -> int:
        """Use new connections, and send what the master at their end does not know."""
        with self._at_rest(), self._lock:
            self._left_submit.append(self._joined.submit)
            self._left_collect.append(self._joined.collect)
            self._use(joined)
            self._stay += 1
            self._away = False
            settled = self._settle_in(joined)
            stay = self._stay
        for on_reply, value in settled:
            on_reply(value)
        if self._lost is not None:  # we were closed meanwhile
            self._hang_up()
        return stay

    def _lose(self, why: str) -> None:
        """The session is over: wake everybody who waits for it."""
        with self._lock:
            if self._lost is None:
                self._lost = f"the master at {self.place} {why}"
            requests = self._outbox.drain()
        self._on_lost()
        for request in requests:
            if request.method != "put":  # whose reply would have the next batch sent
                request.on_reply(None)

    def _say_goodbye(self) -> None:
        """Tell the master that we do not come back, if that takes no waiting; with the lock held."""
        with contextlib.suppress(OSError, ValueError):  # it may be broken, or closed
            if not self._away and self._submit_wire.can_send:
                self._submit_wire.request(RESULT_QUEUE, "leave")

    def _hang_up(self) -> None:
        """End both connections; whoever reads them notices."""
        self._joined.submit.hang_up()
        self._joined.collect.hang_up()

    def _close_wires(self) -> None:
        """Close all there are; when nobody reads from them any more."""
        close_all(self._left_submit)
        close_all(self._left_collect)
        close_all([self._joined.submit, self._joined.collect])

    def _abandon_connections(self) -> None:
        """This process is a copy of the one that made them."""
        self._lock = threading.RLock()  # whoever held it does not exist here
        self._mending = threading.Lock()
        self._lost = "it belongs to the process that this one was forked from"
        for wire in (*self._left_submit, *self._left_collect, self._joined.submit, self._joined.collect):
            wire.sock.close()  # without a shutdown, which would be for both

    # --- what the owner says -----------------------------------------------------------------

    def _on_away(self) -> None:
        """There are no connections; with the lock held."""

    def _at_rest(self) -> ContextManager[None]:
        """What must not change while we move in, to be entered before the lock is."""
        return contextlib.nullcontext()

    def _settle_in(self, joined: Joined) -> Settled:
        """We are at a master again: send what it does not know. With the lock held."""
        raise NotImplementedError

    def _on_lost(self) -> None:
        """All is over: wake everybody who waits, but for replies."""
        raise NotImplementedError


def warn_without_workers(count: int, place: str, cluster: str) -> None:
    """Say why nothing happens to so many jobs."""
    log.warning(
        "%d job%s waiting, and no worker is connected to the master at %s (cluster %s): start one, "
        "for example with `cwmp-worker %s`",
        count, "s are" if count != 1 else " is", place, cluster, place,
    )  # fmt: skip


def close_all(wires: List[Wire]) -> None:
    """Close them, and forget them."""
    while wires:
        wires.pop().close()


def _said_by(error: BaseException) -> str:
    return str(error) or type(error).__name__
