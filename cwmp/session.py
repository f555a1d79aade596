"""One client's side of the cluster: two connections, pipelined submission, collected events.

    submitting threads --put--> [submit connection] --> master
                                   reader thread <-- replies: sends what has gathered meanwhile
    dispatcher thread  <-- events -- [collect connection] <-- master

If no request is in flight the submitting thread writes itself and does not wait for the reply;
otherwise the job joins the pending batch, which the reader thread sends as soon as the reply is
here. So an idle system has no delay and a busy one large batches.

While the connections are broken, jobs join the pending batch; see `link`.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, ContextManager, Dict, Iterable, List, Optional, Tuple

from . import at_exit, defaults, payload
from .carriers import Arrival
from .collector import Collector
from .errors import ConnectError, MasterLost
from .functions import FunctionDumper
from .interrupts import let_go
from .link import CANCELLED, MASTER_LOST, Event, Link, OnEvents, close_all
from .membership import Joined, Membership
from .messages import BLOB_STORE, GRANTED, RUNNING, Job
from .outbox import OnReply, Settled, do_nothing, first_batch, sort_out
from .references import HeldClasses
from .shared import Shared
from .uploads import Uploads

log = logging.getLogger("cwmp")


class Session(Link):
    """The open jobs of one client. Each is known by a *token* of the caller's, given to `submit`.

    `dispatch()` must run in one thread, the caller's choice; it returns after `close()`, or when the master
    is lost. Raises ConnectError, WrongKey or VersionMismatch.
    """

    def __init__(self, membership: Membership, on_events: OnEvents) -> None:
        super().__init__(membership)
        self._on_events = on_events
        # Guarded by the link's lock, down to `_anew`:
        self._open: Dict[int, Any] = {}  # number -> token; the dispatcher removes without the lock
        self._jobs: Dict[int, Job] = {}  # to be said again; apart, so that garbage collection ignores them
        self._next_number = 0
        self._classes = HeldClasses()  # those that results of open jobs may name
        self._pending: List[Job] = []  # jobs that wait for the prompt put under way
        self._prompt_under_way = False
        self._anew = False  # events are counted from the beginning again
        self.cancelling = threading.RLock()
        """Held by who cancels a job, from asking the master to telling those who wait for the job."""
        self._idle = threading.Condition()  # notified when the last open job has ended
        self._telling = False  # events are being passed on
        self._closing = self._left = False  # no further submit; we have left
        self._uploads = Uploads(self._joined.store, self._joined.transfer, self._offer)
        self._functions = FunctionDumper(self._uploads.new_lot)
        self._collector = Collector(self._joined.collect, self._joined.ident)
        self._reader = threading.Thread(target=self._read_replies, name="cwmp-submit", daemon=True)
        self._reader.start()
        at_exit.finish(self)

    # --- submitting --------------------------------------------------------------------------

    def submit(
        self, token: Any, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> int:
        """Send one job on its way; returns its number. Raises PayloadError or MasterLost.

        Large arguments go first, and wait while the master has no room for them.
        """
        try:
            function_bytes, call, keys = self._functions.dump_job(function, args, kwargs)
            with self._lock:
                if self._closing:
                    raise RuntimeError("this client has been stopped: no job can be submitted to it")
                if self._lost is not None:
                    raise MasterLost(self._lost)
                number = self._next_number = self._next_number + 1
                job = (number, function_bytes, call)
                sent_before = self._submit_wire.sent
                try:
                    self._open[number] = token
                    self._jobs[number] = job
                    self._classes.hold(keys)
                    if self._prompt_under_way:
                        self._pending.append(job)
                    else:
                        self._put([job])
                    if self._collector.aside and len(self._open) > 1:
                        self._collector.recall()
                except BaseException:  # an interrupt, after which the caller may well go on
                    on_its_way = self._submit_wire.sent > sent_before or job in self._pending[-1:]
                    if not on_its_way:
                        self._forget(number)
                    raise
            if type(call) is tuple or type(function_bytes) is tuple:
                self._uploads.sent(function_bytes, call)
            return number
        except BaseException as error:
            let_go(self._lock, error)
            raise

    def share(self, value: Any) -> Shared:
        """A handle that is this value in jobs. Raises PayloadError or MasterLost."""
        if self._lost is not None:
            raise MasterLost(self._lost)
        handle: Shared = payload.share(value, self._uploads.share)
        return handle

    def _offer(self, arrivals: List[Any], *gone: List[str], on_reply: Optional[OnReply] = None) -> None:
        """Tell the master of large values. Jobs that have yet to be sent may need what is released."""
        with self._lock:
            while self._pending and any(gone):
                self._put(self._next_batch())
            message = (arrivals, *gone, on_reply is not None)
            self._request("offer", *message, on_reply=on_reply or do_nothing, target=BLOB_STORE)

    def _put(self, jobs: List[Job]) -> None:
        """Send jobs; with the lock held.

        Where no more than a few jobs are open, a single one asks for no receipt. Else the put is
        `prompt`: what is submitted until its receipt is here travels together.
        """
        prompt = len(jobs) > 1 or bool(self._pending) or len(self._open) > defaults.UNHURRIED
        self._request("put", jobs, prompt, on_reply=self._on_prompt_put if prompt else do_nothing)
        self._prompt_under_way = prompt

    def withdraw(self, numbers: Iterable[int]) -> List[int]:
        """Cancel the jobs that have not been handed out; returns their numbers. Blocks for a round trip.

        No event comes for a withdrawn job. Jobs that could not be withdrawn go on as before.
        """
        wanted = set(numbers)
        if self._lost is not None:
            return []  # without the lock: at the interpreter's end, who held it may have ended with it
        with self._lock:
            unsent = [job[0] for job in self._pending if job[0] in wanted]
            if unsent:
                gone = set(unsent)
                self._pending = [job for job in self._pending if job[0] not in gone]
                wanted -= gone
            answer: List[List[int]] = []
            arrived = threading.Event()

            def on_reply(value: Any) -> None:
                answer.append(value or [])
                arrived.set()

            if wanted and self._lost is None:
                self._request("cancel", sorted(wanted), on_reply=on_reply)
            else:
                on_reply([])
        arrived.wait()
        withdrawn = unsent + answer[0]
        for number in withdrawn:
            self._forget(number)
        self._note_idle()
        return withdrawn

    def _on_prompt_put(self, _: Any) -> None:
        """The prompt put was acknowledged: send what has gathered meanwhile."""
        with self._lock:
            self._prompt_under_way = False
            batch = self._next_batch()
            if batch:
                self._put(batch)

    def _next_batch(self) -> List[Job]:
        """The pending jobs that fit into one message, oldest first."""
        count, pending = first_batch(self._pending), self._pending
        self._pending = pending[count:]
        return pending[:count]

    # --- collecting --------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Collect events and pass them to `on_event`, until `close()` or the loss of the master."""
        try:
            self._collect()
        finally:
            self._end_open_jobs()

    def _collect(self) -> None:
        collector = self._collector
        self._uploads.never_wait()
        stay: Optional[int] = 0
        begun = False
        while stay is not None:
            try:
                if not begun:
                    begun = True
                    self._begin_collecting(stay)
                collector.read(self._pass_on)
                self._barren = 0
                self._uploads.tidy()
                if not self._open:
                    collector.stand_aside()
            except Exception as error:
                stay = self._mend(stay, error)
                begun = False

    def _begin_collecting(self, stay: int) -> None:
        """Ask for events over the connections of this stay."""
        with self._lock:
            if stay != self._stay:
                raise ConnectError("they have broken, too")
            joined, anew, self._anew = self._joined, self._anew, False
        self._collector.go_on(joined.collect, joined.ident, anew)
        close_all(self._left_collect)

    def read_for(self, number: int, settle: Callable[[int, Any], bool]) -> None:
        """In a thread that waits for a job: read its end at once if nobody else does; see `Collector.visit`.

        `settle(kind, data)` says whether it did. Returns in any case within milliseconds of the end.
        """

        def take(events: List[Any]) -> bool:
            if len(events) != 1 or events[0][0] != number:
                return False
            _, kind, data = events[0]
            if type(data) is tuple or not settle(kind, data):  # large results are the dispatcher's
                return False
            self._forget(number)
            self._note_idle()
            return True

        self._collector.visit(take)

    def attend(self) -> None:
        """Somebody wants to know what happens without waiting for a result: it must be read promptly."""
        if self._collector.aside:
            self._collector.recall()

    def _forget(self, number: int) -> None:
        """A job is open no longer."""
        self._open.pop(number, None)
        self._jobs.pop(number, None)

    def _pass_on(self, events: List[Any]) -> bool:
        """Tell the owner of these jobs what became of them; returns whether any result was large."""
        tokens, jobs, large = self._open, self._jobs, False
        if tokens and not events:
            self._explain_wait(len(tokens))
        known = []
        self._telling = True  # jobs are not over before their owner knows
        try:
            for number, kind, data in events:
                if kind == RUNNING:
                    token = tokens.get(number)
                else:
                    token = tokens.pop(number, None)
                    jobs.pop(number, None)
                if type(data) is tuple:
                    large = True
                    data = (*data, self._uploads.fetch)
                if token is not None:  # else it was withdrawn, or this is the second time
                    known.append((token, kind, data))
                elif kind == GRANTED:
                    self._uploads.granted(data[0])
        finally:  # should memory run out, these are ours no longer
            token = data = None
            self._tell(known)
            self._telling = False
        if not tokens:
            self._note_idle()
        return large

    def _tell(self, events: List[Event]) -> None:
        """Call the owner; nothing that happens there may end this thread."""
        while events:
            try:
                self._on_events(events)  # which takes out what it is about to handle
            except BaseException:
                log.exception("cwmp's own handling of an event failed")

    # --- ending ------------------------------------------------------------------------------

    def open_jobs(self) -> int:
        """How many jobs have been submitted and not ended."""
        return len(self._open)

    def tokens(self) -> List[Any]:
        """The tokens of the jobs that have not ended."""
        with self._lock:  # numbers are only added under it
            return list(self._open.values())

    def wait_idle(self, timeout_s: Optional[float] = None) -> bool:
        """Wait until no job is open; False if that took longer than `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(self._is_idle, timeout_s)

    def close(self) -> None:
        """Leave the cluster at once. Open jobs end as CANCELLED, and the master drops them."""
        with self._lock:
            self._closing = True
            if self._lost is None:
                self._left = True
                self._lost = f"this client has left the master at {self.place}"
                self._say_goodbye()
        self._membership.give_up()
        self._hang_up()

    def abandon(self) -> None:
        """This process is a copy of the one that made the session: let go of it, and disturb nothing."""
        self._abandon_connections()
        self._idle = threading.Condition()
        self._closing = self._left = True
        self._open.clear()
        self._collector.aside = False
        self._uploads.abandon()

    def close_when_idle(self) -> None:
        """Accept no further job, and leave the cluster once none is open."""
        with self._lock:
            self._closing = True
        self._note_idle()

    def _is_idle(self) -> bool:
        return not self._open and not self._telling

    def _note_idle(self) -> None:
        if not self._is_idle():
            return
        self._classes.let_go(self._lock, self._open)
        with self._idle:
            self._idle.notify_all()
        if self._closing:
            self.close()

    # --- another connection ------------------------------------------------------------------

    def _on_away(self) -> None:
        self._prompt_under_way = True  # jobs join the pending batch

    def _at_rest(self) -> ContextManager[None]:
        return self._uploads.at_rest()

    def _settle_in(self, joined: Joined) -> Settled:
        """We are at a master again: send what it does not know."""
        settled = self._go_on(joined.taken) if joined.known else self._begin_anew(joined)
        if not self._outbox.holds("put", self._on_prompt_put):
            self._on_prompt_put(None)
        return settled

    def _go_on(self, taken: int) -> Settled:
        """The master knew us, and had taken so many requests."""
        heard, again = self._outbox.goes_on(taken)
        settled: Settled = []
        for request in again:
            self._request(request.method, *request.args, on_reply=request.on_reply, target=request.target)
        for request in heard:
            if request.method == "cancel":  # whose answer was lost: what will not be heard of was withdrawn
                self._ask_what_is_alive(request, self._open)
            elif request.on_reply == self._uploads.missing:  # whose answer was lost, too
                self._ask_what_is_missing([("", name, size) for _, name, size in request.args[0]])
            elif request.on_reply != self._on_prompt_put:
                settled.append((request.on_reply, None))
        return settled

    def _ask_what_is_missing(self, arrivals: List[Arrival]) -> None:
        """Tell a master that knows of nothing which large values we have; it says which it has not."""
        self._request("offer", arrivals, [], [], True, on_reply=self._uploads.missing, target=BLOB_STORE)

    def _begin_anew(self, joined: Joined) -> Settled:
        """The master is another one, or has given us up: it gets all open jobs."""
        settled, withdrawn, arrivals = sort_out(self._outbox.begins_anew(), self._open)
        offers = self._uploads.move(joined.store, joined.transfer, arrivals)
        if offers:
            self._ask_what_is_missing(offers)
        withdrawn.update(job[0] for job in self._pending)
        again = [job for number, job in list(self._jobs.items()) if number not in withdrawn]
        self._pending = again + self._pending
        self._anew = True
        return settled

    def _on_lost(self) -> None:
        with self._lock:
            self._pending = []
        self._uploads.end()

    def _end_open_jobs(self) -> None:
        """In the dispatcher thread, last of all: every job still open has its outcome now."""
        if self._lost is None:  # something failed on our way back
            self._lost = "this client broke down: see the traceback of the thread that collects its events"
            self._hang_up()
        kind = CANCELLED if self._left else MASTER_LOST
        while self._open:
            _, token = self._open.popitem()
            self._tell([(token, kind, self._lost)])
            token = None
        self._jobs.clear()
        self._note_idle()
        self._reader.join(defaults.REPLY_S)
        self._close_wires()
