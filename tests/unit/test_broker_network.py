"""The broker behind a network that loses, doubles, delays and reorders messages, checked after each step.

Clients send again what nobody acknowledged, and take the first end of a job that they hear of, as they
do after a connection broke. Whatever the network did, in the end each job has one outcome at its client,
and it is that job's.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Dict, List, Optional, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cwmp import defaults
from cwmp.broker import Broker
from cwmp.errors import UnknownMember
from cwmp.messages import ERROR, LOST, RESULT, RUNNING, Lease

pytestmark = pytest.mark.core

Message = Tuple[Any, ...]
"""(receiver's method, arguments...)"""

pick = st.integers(0, 1 << 16)


class Client:
    """A program: what it has submitted, and what it has heard."""

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.numbers = count(1)
        self.open: Set[int] = set()
        self.ended: Dict[int, Tuple[int, Any]] = {}
        self.withdrawn: Set[int] = set()
        self.seen = 0  # number of the last event that it has


class Network(RuleBasedStateMachine):
    """What is on its way, and who is at both ends."""

    @initialize()
    def begin(self) -> None:
        self.broker = Broker()
        self.now = 0.0
        self.on_way: List[Message] = []
        self.clients = [Client(self.broker.join_client({})) for _ in range(2)]
        self.workers: Dict[int, Dict[int, Lease]] = {}
        self.tickets: Set[int] = set()
        self.join()

    # --- what they send ----------------------------------------------------------------------

    @rule(who=pick, size=st.integers(1, 4))
    def submit(self, who: int, size: int) -> None:
        client = self.clients[who % 2]
        numbers = [next(client.numbers) for _ in range(size)]
        client.open.update(numbers)
        self.on_way.append(("put", client, numbers))

    @rule(who=pick)
    def send_again(self, who: int) -> None:
        """The connection broke: it cannot know what has arrived."""
        client = self.clients[who % 2]
        self.on_way.append(("put", client, sorted(client.open)))

    @rule(who=pick, which=pick)
    def cancel(self, who: int, which: int) -> None:
        client = self.clients[who % 2]
        if client.open:
            self.on_way.append(("cancel", client, sorted(client.open)[which % len(client.open)]))

    @rule(who=pick)
    def ask(self, who: int) -> None:
        client = self.clients[who % 2]
        self.on_way.append(("collect", client, client.seen))

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def join(self) -> None:
        self.workers[self.broker.join_worker({"slots": 2}, self.now)] = {}

    @rule(who=pick, room=st.integers(1, 5))
    def want_work(self, who: int, room: int) -> None:
        worker = self.some_worker(who)
        if worker:
            self.on_way.append(("take", worker, room))

    @rule(who=pick, which=pick, how=st.sampled_from(["result", "error", "died", "returned", "running"]))
    def report(self, who: int, which: int, how: str) -> None:
        worker = self.some_worker(who)
        if worker and self.workers[worker]:
            held = self.workers[worker]
            ticket = sorted(held)[which % len(held)]
            lease = held[ticket] if how == "running" else held.pop(ticket)
            self.on_way.append((how, worker, ticket, lease[3]))

    # --- what the network does ---------------------------------------------------------------

    @precondition(lambda self: self.on_way)
    @rule(which=pick, doubled=st.booleans())
    def arrives(self, which: int, doubled: bool) -> None:
        """Any of them, so that others come later than they were sent."""
        which %= len(self.on_way)
        method, *rest = self.on_way[which] if doubled else self.on_way.pop(which)
        try:
            getattr(self, f"on_{method}")(*rest)
        except UnknownMember:
            assert isinstance(rest[0], int) and rest[0] not in self.broker.workers()

    @precondition(lambda self: self.on_way)
    @rule(which=pick)
    def is_lost(self, which: int) -> None:
        self.on_way.pop(which % len(self.on_way))

    @rule(who=pick, closed=st.booleans())
    def worker_is_lost(self, who: int, closed: bool) -> None:
        """The worker does not know, and goes on."""
        known = self.broker.workers()
        if closed and known:
            self.broker.lose_worker(known[who % len(known)], "closed")
        else:
            self.now += defaults.SILENT_S / 2
            for worker in self.broker.expire(self.now):
                self.broker.lose_worker(worker, "silent")

    # --- at the other end --------------------------------------------------------------------

    def on_put(self, client: Client, numbers: List[int]) -> None:
        self.broker.submit(client.ident, [self.job(client, number) for number in numbers])

    def on_cancel(self, client: Client, number: int) -> None:
        for withdrawn in self.broker.cancel(client.ident, [number]):
            self.on_way.append(("cancelled", client, withdrawn))

    def on_cancelled(self, client: Client, number: int) -> None:
        if number in client.open:  # else another answer was quicker
            client.open.remove(number)
            client.withdrawn.add(number)

    def on_collect(self, client: Client, after: int) -> None:
        self.broker.acknowledge(client.ident, after)
        last, events = self.broker.collect(client.ident, after)
        self.on_way.append(("events", client, last - len(events), events))

    def on_events(self, client: Client, after: int, events: List[Any]) -> None:
        for seq, (number, kind, data) in enumerate(events, after + 1):
            if seq != client.seen + 1:
                continue  # had before, or one in between is missing
            client.seen = seq
            if kind != RUNNING and number in client.open:
                assert kind == LOST or data == self.job(client, number)[2], "another job's outcome"
                client.open.remove(number)
                client.ended[number] = (kind, data)

    def on_take(self, worker: int, room: int) -> None:
        self.broker.heard(worker, self.now)
        self.on_way.append(("leases", worker, self.broker.take(worker, room)))

    def on_leases(self, worker: int, leases: List[Lease]) -> None:
        for lease in leases:
            self.workers[worker].setdefault(lease[0], lease)
            assert lease[0] not in self.tickets or worker == self.owner(lease[0]), "one ticket for two"
            self.tickets.add(lease[0])

    def on_result(self, worker: int, ticket: int, call: bytes, kind: int = RESULT) -> None:
        self.broker.finish(worker, [(ticket, kind, call)])

    def on_error(self, worker: int, ticket: int, call: bytes) -> None:
        self.on_result(worker, ticket, call, ERROR)

    def on_died(self, worker: int, ticket: int, call: bytes) -> None:
        self.broker.died(worker, ticket, {"cause": "killed"})

    def on_returned(self, worker: int, ticket: int, call: bytes) -> None:
        self.broker.give_back(worker, [ticket])

    def on_running(self, worker: int, ticket: int, call: bytes) -> None:
        self.broker.running(worker, [ticket])

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "broker"):
            self.broker.check_invariants()
            for client in self.clients:
                assert not client.open & set(client.ended) and not client.withdrawn & set(client.ended)

    def teardown(self) -> None:
        """The network is whole again: all who are owed an outcome get it."""
        if not hasattr(self, "broker"):
            return
        for worker in self.broker.workers():
            self.broker.lose_worker(worker, "closed")
        good = self.broker.join_worker({"slots": 9}, self.now)
        for client in self.clients:
            self.on_put(client, sorted(client.open))
        while self.broker.queued:
            leases = self.broker.take(good, 99)
            self.broker.finish(good, [(ticket, RESULT, call) for ticket, _, _, call in leases])
        for client in self.clients:
            last, events = self.broker.collect(client.ident, client.seen)
            self.on_events(client, last - len(events), events)
            assert not client.open, "submitted, and never heard of again"
        self.the_books_are_right()
        assert self.broker.status(self.now)["jobs"]["running"] == 0

    # --- helpers -----------------------------------------------------------------------------

    def job(self, client: Client, number: int) -> Tuple[int, bytes, bytes]:
        return number, b"f", b"%d:%d" % (client.ident, number)

    def some_worker(self, who: int) -> Optional[int]:
        return sorted(self.workers)[who % len(self.workers)] if self.workers else None

    def owner(self, ticket: int) -> Optional[int]:
        return next((worker for worker, held in self.workers.items() if ticket in held), None)


Network.TestCase.settings = settings(
    max_examples=40, stateful_step_count=60, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TestNetwork = Network.TestCase
