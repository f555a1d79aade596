"""What the agent is to its master: take, report, beat, drain. It runs no user code, so it always answers.

One thread, two connections (take; report and beat) and a pool of slots. While the connections are broken
the slots go on with what they have begun, and what they end is kept until a master takes it. When the
worker is told to stop it goes in this order: take no more, give back what no slot has begun, let the slots
finish as long as `departure` allows, kill and give back the rest, report it all, say goodbye.
"""

from __future__ import annotations

import signal
import time
from typing import Any, Callable, Dict, List, Optional

from . import defaults
from .account import Account, given_up
from .departure import Departure
from .experience import Experience
from .joining import Joined
from .larder import Place
from .line import Line
from .loop import Loop
from .messages import JOB_QUEUE, RESULT_QUEUE, Outcome
from .pool import Pool
from .stock import Stock
from .values import Values

_ANY_PLACE = Place()
_LOOK_S = 0.05  # how often dead slots are looked for while there is no master
_CLOSE_S = 1.0  # from the hang-up to an idle slot's end; later it is killed


class Worker:
    """Serves masters, one after the other: `serve` returns why one is gone. The slots stay up.

    `departure` says when to leave; `say` gets a line about what happens to slots. `tend(now)` is called every
    few seconds.
    """

    def __init__(
        self,
        slots: int,
        loop: Loop,
        departure: Departure,
        say: Callable[[str], None],
        tend: Callable[[float], None] = lambda now: None,
        place: Place = _ANY_PLACE,
    ) -> None:
        self._slots = slots
        self._loop = loop
        self._departure = departure
        self._say = say
        self._tend = tend
        self._joined: Optional[Joined] = None  # where we are, or were last
        self._stock = Stock(slots)
        self._ident = 0
        self._done = 0
        self._limit = 0  # leases that the master may send in all
        self._limit_span = 0  # how many of them were still to come when it was set
        self._check_low = True  # whether to ask for more
        self._received = 0  # and has sent
        self._account = Account()  # reports on their way, and what is known of their jobs
        self._prompt_under_way = False  # one of them is being waited for
        self._lone_reports = 0  # since leases came
        self._lost: Optional[str] = None  # why the master is gone
        self._left = False  # we have said goodbye
        self._next_beat = self._next_chore = 0.0
        self._answers_wait = False  # the pool has something to gather
        self._deaf_until: Optional[float] = None  # when the pool may wake us again
        self._draining = False  # the master has been told that we leave, or told us
        self._child_ended = False  # a slot has died or is about to: written by a signal handler
        signal.signal(signal.SIGCHLD, lambda number, frame: self._on_child())
        self._pool = Pool(slots, loop, self._on_child, say)
        self._values = Values(place, loop, self._pool, say, self._stock.add, self._outcomes_later)
        self._refill(time.monotonic())

    def serve(self, joined: Joined) -> Optional[str]:
        """Work until it is time to leave; returns why the master is gone, if that was the end."""
        former = self._joined
        self._open_lines(joined)
        self._values.settle(joined, former)
        if former is not None:
            self._go_on(joined)
        self._received = 0
        self._limit = self._limit_span = 0 if self._departure.under_way else max(1, self._stock.room())
        self._take_line.request(JOB_QUEUE, "take", self._ident, self._limit)
        self._serve()
        if self._lost is not None:
            self._stop_beginning()
        return self._lost

    def _open_lines(self, joined: Joined) -> None:
        self._joined = joined
        self._ident = joined.ident
        self._lost = None
        self._take_line = Line(self._loop, joined.take, self._on_leases, self._on_take_lost)
        self._report_line = Line(self._loop, joined.report, self._on_receipt, self._on_lost)

    def close(self) -> None:
        """End the slots, and remove what was kept for them."""
        self._values.close()  # first: it tells the pool's guardian whom to watch no more
        self._pool.close(_CLOSE_S)

    # --- without a master --------------------------------------------------------------------

    @property
    def dismissed(self) -> bool:
        """Whether the master has said that it ends."""
        return self._take_line.dismissed or self._report_line.dismissed

    def card(self) -> Dict[str, Any]:
        """What to say, besides the usual, when coming back to a master."""
        joined = self._joined
        assert joined is not None
        holding = self._account.holding(self._stock.leases(), self._values.tickets())
        where = {"cluster": joined.cluster, "nonce": joined.nonce, "holding": holding}
        return {"member": joined.ident, "back": where}

    def bide(self, seconds: float) -> bool:
        """Look after the slots for a while; False when it is time to leave."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            self._mind_slots(now)
            self._mind_time(now)
            idle = not (self._stock.busy() or self._values.leaving or self._account.outcomes)
            if self._departure.under_way and (idle or self._departure.is_over(now)):
                return False
            if now >= until:
                return True
            self._loop.poll(min(until - now, _LOOK_S))

    def _stop_beginning(self) -> None:
        """What no slot has begun can wait for a master: it may be another worker's by then."""
        for index, _ in self._stock.handed_out():
            self._stock.taken_back(index, self._pool.take_back(index))
        self._prompt_under_way = False

    def _go_on(self, joined: Joined) -> None:
        """Back at a master: say again what ours never heard, or begin anew with another one."""
        if joined.known:
            for report in self._account.goes_on(joined.taken):
                self._send(report, True, time.monotonic())
            return
        self._account.begins_anew()
        self._draining = False
        self._stock.give_back()
        self._values.give_back()

    def _outcomes_later(self, outcomes: List[Outcome]) -> None:
        self._account.outcomes += outcomes

    # --- serving -----------------------------------------------------------------------------

    def _serve(self) -> None:
        """The loop: wait, pass on what has come in, then see to what is due."""
        now = time.monotonic()
        self._next_beat = now + defaults.BEAT_S
        self._loop.watch(self._pool, self._note_answers)
        while self._lost is None:
            if self._child_ended or self._departure.under_way or now >= self._next_chore:
                if not self._do_chores(now):
                    break
            if self._answers_wait:
                self._gather(now)
            self._feed(now)
            self._report(now)
            self._loop.poll(max(0.0, min(self._next_chore, self._next_beat) - time.monotonic()))
            now = time.monotonic()
        self._hear_slots_again(now + defaults.PACE_MAX_S)
        self._loop.forget(self._pool)
        if self._lost is None:
            self._say_goodbye()

    def _do_chores(self, now: float) -> bool:
        """What is due by the clock or has been asked for by a signal; False when it is time to leave."""
        self._check_low = True
        self._mind_slots(now)
        self._mind_time(now)
        if self._departure.under_way and self._drained(now):
            return False
        self._notice_long_jobs(now)
        if self._account.is_overdue(now):
            self._on_lost(f"no reply within {defaults.REPLY_S:g} s")
        self._hear_slots_again(now)
        next_steps = (self._stock.next_notice(), self._pool.next_refill(), self._departure.next_step(now))
        times = [time for time in (*next_steps, self._deaf_until) if time is not None]
        self._next_chore = min([self._next_beat, *times])
        if self._pool.hung_up():
            self._next_chore = min(self._next_chore, now + 0.05)
        return True

    def _mind_time(self, now: float) -> None:
        """Notice that our time is limited, and that it is nearly up."""
        self._tend(now)
        self._departure.look(now)
        if self._departure.ends_at is not None and self._stock.experience is None:
            self._stock.experience = Experience()

    def _hear_slots_again(self, now: float) -> None:
        """The pause after a report is over."""
        if self._deaf_until is not None and now >= self._deaf_until:
            self._deaf_until = None
            self._loop.watch(self._pool, self._note_answers)
            self._answers_wait = True

    def _note_answers(self) -> None:
        self._answers_wait = True

    def _gather(self, now: float) -> None:
        """Take in what the slots have answered."""
        self._answers_wait = False
        for index, outcomes, busy_s in self._pool.answers():
            self._stock.finished(index, len(outcomes), busy_s, now)
            self._done += len(outcomes)
            self._account.outcomes += self._values.send_off(outcomes)
        if self._limit - self._received <= self._slots:
            self._check_low = True

    def _mind_slots(self, now: float) -> None:
        """Bury dead slots and start new ones."""
        if self._child_ended or self._pool.hung_up():
            self._child_ended = False
            self._pool.reap()
        self._gather(now)  # a slot's last answers count before its death
        for index, death in self._pool.deaths():
            ticket = self._stock.slot_died(index, death.unclaimed)
            if ticket is not None:
                self._account.died.append((ticket, death.cause))
            self._say(f"slot {index} (pid {death.cause['pid']}) {death.cause['cause']}; refilled")
        self._refill(now)

    def _refill(self, now: float) -> None:
        for index in self._pool.refill(now):
            self._stock.slot_up(index)

    def _notice_long_jobs(self, now: float) -> None:
        """Announce jobs that run for long, and free what waits behind them."""
        due = self._stock.next_notice()
        if due is None or due > now:
            return
        self._gather(now)  # they may have ended without our looking
        for index in self._stock.long_jobs(now):
            self._stock.taken_back(index, self._pool.take_back(index))
            lease = self._stock.at_work_on(index)
            if lease is not None:
                self._account.begun(lease[0], lease[1])
            elif self._stock.stalled(index, now):
                self._pool.replace(index)

    def _feed(self, now: float) -> None:
        if not self._departure.under_way and self._stock.ready:
            for index, leases in self._stock.hand_out(now):
                self._pool.feed(index, leases)
                self._next_chore = min(self._next_chore, now + defaults.NOTICE_S)
            if self._stock.ready:
                self._account.returned += self._stock.surplus()

    def _on_leases(self, leases: Any) -> None:
        if leases is None:
            self._say("let go by the master: finishing what runs")
            self._departure.let_go()
            return
        if type(leases) is tuple:
            self._values.forget(leases[1])
            return
        if type(leases) is not list:
            self._on_lost(f"it sent a {type(leases).__name__} instead of work")
            return
        self._received += len(leases)
        self._lone_reports = 0
        if self._stock.experience is not None:
            leases = self._fitting(leases, self._stock.experience)
        self._stock.add(self._values.admit(leases))
        # Counting what there is takes longer than a small job: not for each one that is on order.
        if self._limit - self._received < self._limit_span // 2:
            self._check_low = True

    def _fitting(self, leases: List[Any], experience: Experience) -> List[Any]:
        """Those that we have the time for; the others go back."""
        left_s = self._departure.left_s(time.monotonic())
        if left_s is None:
            return leases
        unfit = {lease[0] for lease in leases if experience.is_unlikely(lease[2], left_s)}
        self._account.unfit += unfit
        return [lease for lease in leases if lease[0] not in unfit] if unfit else leases

    def _report(self, now: float) -> None:
        """Send what there is to say, in natural batches, and a sign of life at least every beat.

        A single outcome, or the first few since the last leases came, is reported without asking for a
        receipt. Else the report is `prompt`, and until the receipt is here the next outcomes gather.
        """
        if self._prompt_under_way:
            return
        leaving = self._departure.under_way
        low = self._check_low and not leaving and self._stock.is_low(self._coming())
        self._check_low = False
        draining = leaving and not self._draining
        if not (self._account.has_news or low or draining or now >= self._next_beat):
            return
        report = self._account.next_report()
        self._values.done(given_up(report))
        if low:
            waiting = self._coming() - (self._limit - self._received)
            self._limit_span = max(0, self._stock.room() - waiting)
            report["limit"] = self._limit = self._received + self._limit_span
        if draining:
            self._draining = True
            report["limit"], report["facts"] = self._received, {"draining": True}
        elif now >= self._next_beat:
            report["facts"] = self._facts()
            self._next_beat = now + defaults.BEAT_S
        count = len(report.get("outcomes", ()))
        prompt = count != 1 or self._lone_reports >= defaults.UNHURRIED
        self._lone_reports += 1
        pause_s = self._stock.pause_s(report.get("outcomes", ()))
        if pause_s and self._deaf_until is None:
            # Many jobs are being done: let some more gather before anybody is woken for them.
            self._deaf_until = now + pause_s
            self._next_chore = min(self._next_chore, self._deaf_until)
            self._loop.forget(self._pool)
        self._send(report, prompt, now)

    def _send(self, report: Dict[str, Any], prompt: bool, now: float) -> None:
        self._prompt_under_way = prompt
        self._account.sent(report, now + defaults.REPLY_S)
        self._report_line.request(RESULT_QUEUE, "report", self._ident, report, prompt)

    def _on_receipt(self, origins: Any) -> None:
        self._account.acknowledged(origins)
        if not self._account:
            self._prompt_under_way = False

    def _coming(self) -> int:
        """Leases that are on their way, or may be, or wait for large values."""
        return self._limit - self._received + self._values.waiting

    def _facts(self) -> Dict[str, Any]:
        facts = {"busy": self._stock.busy(), "done": self._done, "rss_bytes": self._pool.rss_bytes()}
        return {**facts, "ends_in_s": self._departure.ends_in_s(time.monotonic())}

    # --- leaving -----------------------------------------------------------------------------

    def _drained(self, now: float) -> bool:
        """Work towards leaving; True when nothing is left to wait for."""
        if not self._draining:
            for index, _ in self._stock.handed_out():
                self._stock.taken_back(index, self._pool.take_back(index))
        self._account.returned += self._stock.give_back()
        self._account.returned += self._values.give_back()
        if (self._stock.busy() or self._values.leaving) and not self._departure.is_over(now):
            return False
        if self._stock.busy():
            self._pool.kill()
            for _, tickets in self._stock.handed_out():
                self._account.returned += tickets  # killed by us, so nobody is charged
        return True

    def _say_goodbye(self) -> None:
        """Everything that is still to be reported, then leave: bounded, for the master may be gone."""
        deadline = time.monotonic() + defaults.REPLY_S / 3
        while self._lost is None and time.monotonic() < deadline:
            if self._account.has_news:
                self._report(time.monotonic())
            elif not self._left:
                self._left = True
                self._account.sent({}, deadline)
                self._report_line.request(RESULT_QUEUE, "leave")
            elif not self._account:
                break
            self._loop.poll(0.1)
        self._take_line.close()
        self._report_line.close()
        self._pool.kill()

    def _on_lost(self, reason: str) -> None:
        """The master is gone, or knows us no more; after our goodbye that is as it should be."""
        if self._left:
            self._account = Account()  # nobody is left who could acknowledge anything
        elif self._lost is None:
            self._lost = reason
            self._take_line.close()
            self._report_line.close()

    def _on_take_lost(self, reason: str) -> None:
        """What has come over the other connection says whose jobs we run: the next master will ask that."""
        if self._lost is None:
            self._report_line.hear_out()
        self._on_lost(reason)

    def _on_child(self) -> None:
        self._child_ended = True
