"""Clients and workers around masters that die: connections break anywhere, and all come back in any order.

The real rules (`broker`, `members`, `account`, `outbox`) run over connections that deliver in order until
they break, and then lose what was on its way. Whatever happens, each job has one outcome at its client, and
that is its own; what was withdrawn has none.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any, Deque, Dict, List, Optional, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cwmp import defaults
from cwmp.account import Account
from cwmp.broker import Broker
from cwmp.members import CLIENT, WORKER, Members
from cwmp.messages import LOST, RESULT, RUNNING, Lease, this_side
from cwmp.outbox import Outbox, Request, sort_out

pytestmark = pytest.mark.core

pick = st.integers(0, 1 << 16)


class Peer:
    """The master's end of one connection, and what is on its way in both directions."""

    def __init__(self) -> None:
        self.name = "peer"
        self.member: Optional[Tuple[str, int]] = None
        self.former: List[Tuple[str, int]] = []
        self.inward: Deque[Tuple[Any, ...]] = deque()
        self.outward: Deque[Tuple[Any, ...]] = deque()
        self.open = True

    def hear_out(self) -> None:
        """Of members with one connection there is none to be heard out for another's sake."""

    def close(self) -> None:
        """What has arrived and was not looked at is lost; so is what was sent."""
        self.open = False
        self.inward.clear()
        self.outward.clear()


class Master:
    """One life of the master."""

    def __init__(self, number: int, clock: Any) -> None:
        self.broker = Broker(first=1 + 1000 * number)
        self.members = Members(self.broker, "tested", f"nonce {number}", clock)
        self.members.on_gone = self._on_gone
        self.sent: Dict[int, int] = {}  # number of the last event sent, by client

    def _on_gone(self, member: Tuple[str, int], reason: Optional[str]) -> None:
        if member[0] == CLIENT:
            self.broker.leave_client(member[1])
        else:
            self.broker.lose_worker(member[1], str(reason))

    def serve(self, peer: Peer) -> None:
        """Take one message in."""
        method, *args = peer.inward.popleft()
        assert peer.member is not None
        getattr(self, f"on_{method}")(peer, peer.member[1], *args)

    def on_put(self, peer: Peer, client: int, jobs: List[Any]) -> None:
        self.broker.submit(client, jobs)
        peer.outward.append(("reply", None))

    def on_cancel(self, peer: Peer, client: int, numbers: List[int]) -> None:
        peer.outward.append(("reply", self.broker.cancel(client, numbers)))

    def on_alive(self, peer: Peer, client: int, numbers: List[int]) -> None:
        peer.outward.append(("reply", self.broker.alive(client, numbers)))

    def on_collect(self, peer: Peer, client: int, after: int) -> None:
        self.broker.acknowledge(client, after)
        self.sent[client] = max(after, self.sent.get(client, 0))

    def on_report(self, peer: Peer, worker: int, report: Dict[str, Any]) -> None:
        self.broker.note_report(worker)
        self.broker.finish(worker, report.get("outcomes", ()))
        origins = None
        if "running" in report:
            self.broker.running(worker, report["running"])
            origins = self.broker.origins(worker, report["running"])
        for ticket, cause in report.get("died", ()):
            self.broker.died(worker, ticket, cause)
        self.broker.give_back(worker, report.get("returned", ()))
        peer.outward.append(("reply", origins))

    def tell(self, peer: Peer) -> None:
        """Send a client its news."""
        assert peer.member is not None
        client = peer.member[1]
        seq, events = self.broker.collect(client, self.sent.get(client, 0))
        self.sent[client] = seq
        peer.outward.append(("events", seq, events))


class Member:
    """What both kinds have in common: where they are, and over which connection."""

    role = ""

    def __init__(self) -> None:
        self.peer: Optional[Peer] = None
        self.welcome: Dict[str, Any] = {}

    def holding(self) -> Dict[str, Any]:
        return {}

    def enter(self, master: Master) -> None:
        """Join, or come back."""
        hello = this_side(self.role, slots=2)
        if self.welcome:
            back = {"cluster": "tested", "nonce": self.welcome["nonce"], **self.holding()}
            hello.update(member=self.welcome["member"], back=back)
        peer = Peer()
        self.welcome = master.members.join(peer, hello)  # type: ignore[arg-type]
        self.peer = peer


class Client(Member):
    """A program: what it has submitted, and what it has heard."""

    role = CLIENT

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.open: Dict[int, Any] = {}
        self.ended: Dict[int, int] = {}
        self.withdrawn: Set[int] = set()
        self.asked: Set[int] = set()
        self.outbox = Outbox()
        self.seen = 0

    def request(self, method: str, *args: Any, on_reply: Any) -> None:
        """As `Link._request`: what can't be sent is sent later."""
        self.outbox.add(Request("", method, args, on_reply), 0.0)
        if self.peer is not None and self.peer.open:
            self.peer.inward.append((method, *args))

    def submit(self, size: int) -> None:
        numbers = [next(self.numbers) for _ in range(size)]
        jobs = [(number, b"f", b"%d:%d" % (id(self), number)) for number in numbers]
        self.open.update((job[0], job) for job in jobs)
        self.request("put", jobs, on_reply=lambda _: None)

    def withdraw(self, number: int) -> None:
        self.request("cancel", [number], on_reply=self.on_withdrawn)

    def on_withdrawn(self, numbers: Any) -> None:
        for number in numbers or ():
            assert number in self.open, "withdrawn after its end"
            del self.open[number]
            self.withdrawn.add(number)

    def enter(self, master: Master) -> None:
        known_before = bool(self.welcome)
        super().enter(master)
        assert self.peer is not None
        settled: List[Any] = []
        if not known_before:
            requests = self.outbox.drain()
            for request in requests:
                self.request(request.method, *request.args, on_reply=request.on_reply)
        elif self.welcome["known"]:
            heard, again = self.outbox.goes_on(self.welcome["taken"])
            for request in again:
                self.request(request.method, *request.args, on_reply=request.on_reply)
            for request in heard:
                if request.method == "cancel":
                    self.ask_what_is_alive(request)
        else:
            settled, withdrawn, _ = sort_out(self.outbox.begins_anew(), self.open)
            self.seen = 0
            again = [job for number, job in self.open.items() if number not in withdrawn]
            self.request("put", again, on_reply=lambda _: None)
        self.peer.inward.append(("collect", self.seen))
        for on_reply, value in settled:
            on_reply(value)

    def ask_what_is_alive(self, cancel: Request) -> None:
        numbers = cancel.args[0]

        def on_reply(alive: Any) -> None:
            cancel.on_reply([n for n in numbers if n not in set(alive or ()) and n in self.open])

        self.request("alive", numbers, on_reply=on_reply)

    def hear(self) -> None:
        """Take one message in."""
        assert self.peer is not None
        kind, *args = self.peer.outward.popleft()
        if kind == "reply":
            self.outbox.answered().on_reply(args[0])
            return
        self.seen, events = args
        for number, end, data in events:
            if end == RUNNING or number not in self.open:
                assert number not in self.withdrawn or end == RUNNING, "an outcome of what was withdrawn"
                continue
            assert end == LOST or data == self.open[number][2], "another job's outcome"
            del self.open[number]
            self.ended[number] = end


class Worker(Member):
    """An agent: what it was leased, and what of that it has begun."""

    role = WORKER

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()
        self.waiting: Dict[int, Lease] = {}
        self.running: Dict[int, Lease] = {}

    def holding(self) -> Dict[str, Any]:
        return {"holding": self.account.holding([*self.waiting.values(), *self.running.values()], [])}

    def enter(self, master: Master) -> None:
        known_before = bool(self.welcome)
        super().enter(master)
        if not known_before:
            return
        if self.welcome["known"]:
            for report in self.account.goes_on(self.welcome["taken"]):
                self.send(report)
        else:
            self.account.begins_anew()
            self.waiting.clear()

    def send(self, report: Dict[str, Any]) -> None:
        self.account.sent(report, 0.0)
        if self.peer is not None and self.peer.open:
            self.peer.inward.append(("report", report))

    def report(self) -> None:
        if self.account.has_news:
            self.send(self.account.next_report())

    def hear(self) -> None:
        """Take one message in."""
        assert self.peer is not None
        kind, *args = self.peer.outward.popleft()
        if kind == "reply":
            self.account.acknowledged(args[0])
        else:
            self.waiting.update((lease[0], lease) for lease in args[0])

    def begin(self, which: int) -> None:
        ticket = sorted(self.waiting)[which % len(self.waiting)]
        self.running[ticket] = lease = self.waiting.pop(ticket)
        self.account.begun(ticket, lease[1])

    def end(self, which: int, how: str) -> None:
        ticket = sorted(self.running)[which % len(self.running)]
        lease = self.running.pop(ticket)
        if how == "died":
            self.account.died.append((ticket, {"cause": "killed"}))
        else:
            self.account.outcomes.append((ticket, RESULT, lease[3]))


class Reunion(RuleBasedStateMachine):
    """Two clients, three workers, and one master after the other."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.lives = count(1)
        self.clients = [Client(), Client()]
        self.workers = [Worker() for _ in range(3)]
        self.restart()

    # --- what they do ------------------------------------------------------------------------

    @rule(who=pick, size=st.integers(1, 3))
    def submit(self, who: int, size: int) -> None:
        self.clients[who % 2].submit(size)

    @rule(who=pick, which=pick)
    def withdraw(self, who: int, which: int) -> None:
        client = self.clients[who % 2]
        if client.open:
            client.withdraw(sorted(client.open)[which % len(client.open)])

    @rule(who=pick, which=pick)
    def begin_job(self, who: int, which: int) -> None:
        worker = self.workers[who % 3]
        if worker.waiting:
            worker.begin(which)

    @rule(who=pick, which=pick, how=st.sampled_from(["result", "result", "result", "died"]))
    def end_job(self, who: int, which: int, how: str) -> None:
        worker = self.workers[who % 3]
        if worker.running:
            worker.end(which, how)

    @rule(who=pick)
    def report(self, who: int) -> None:
        self.workers[who % 3].report()

    @rule(who=pick)
    def acknowledge(self, who: int) -> None:
        client = self.clients[who % 2]
        if client.peer is not None and client.peer.open:
            client.peer.inward.append(("collect", client.seen))

    # --- messages ----------------------------------------------------------------------------

    @rule(who=pick)
    def serve(self, who: int) -> None:
        waiting = [m.peer for m in self.everybody() if m.peer is not None and m.peer.inward]
        if waiting:
            self.master.serve(waiting[who % len(waiting)])

    @rule(who=pick)
    def hear(self, who: int) -> None:
        waiting = [m for m in self.everybody() if m.peer is not None and m.peer.outward]
        if waiting:
            waiting[who % len(waiting)].hear()

    @rule(who=pick, room=st.integers(1, 4))
    def hand_out(self, who: int, room: int) -> None:
        peer = self.workers[who % 3].peer
        if peer is not None and peer.open and peer.member is not None:
            leases = self.master.broker.take(peer.member[1], room)
            if leases:
                peer.outward.append(("leases", leases))

    @rule(who=pick)
    def tell(self, who: int) -> None:
        peer = self.clients[who % 2].peer
        if peer is not None and peer.open and peer.member is not None:
            self.master.tell(peer)

    # --- faults ------------------------------------------------------------------------------

    @rule(who=pick, reason=st.sampled_from(["closed by the other side", "Connection timed out"]))
    def breaks(self, who: int, reason: str) -> None:
        peer = self.everybody()[who % 5].peer
        if peer is not None and peer.open:
            peer.close()
            self.master.members.lose(peer, reason)  # type: ignore[arg-type]

    @rule(who=pick)
    def comes_back(self, who: int) -> None:
        """Also one whose connection the master takes for a good one still."""
        member = self.everybody()[who % 5]
        member.enter(self.master)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 30.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.master.members.tend(self.now)

    @precondition(lambda self: self.master is not None)
    @rule()
    def restart(self) -> None:
        for member in self.everybody():
            if member.peer is not None:
                member.peer.close()
        self.master = Master(next(self.lives), lambda: self.now)

    master: Any = True  # until `begin`

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        if isinstance(self.master, Master):
            self.master.broker.check_invariants()
            for client in self.clients:
                assert not client.withdrawn & set(client.ended)

    def teardown(self) -> None:
        """Everybody comes back for good: all who are owed an outcome get it."""
        if not isinstance(self.master, Master):
            return
        self.time_passes(defaults.OFFER_S)
        for member in self.everybody():
            member.enter(self.master)
        for _ in range(8):
            for member in self.everybody():
                assert member.peer is not None
                if isinstance(member, Worker):
                    assert member.peer.member is not None
                    member.peer.outward.append(("leases", self.master.broker.take(member.peer.member[1], 99)))
                while member.peer.inward:
                    self.master.serve(member.peer)
                if isinstance(member, Client):
                    self.master.tell(member.peer)
                while member.peer.outward:
                    member.hear()
                if isinstance(member, Worker):
                    while member.waiting:
                        member.begin(0)
                    while member.running:
                        member.end(0, "result")
                    member.report()
                self.the_books_are_right()
        for client in self.clients:
            assert not client.open, "submitted, and never heard of again"
            assert not len(client.outbox)
        for worker in self.workers:
            assert not len(worker.account) and not worker.account._begun and not worker.account._origins
        assert self.master.broker.status(self.now)["jobs"]["running"] == 0

    def everybody(self) -> List[Any]:
        return [*self.clients, *self.workers]


Reunion.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TestReunion = Reunion.TestCase
