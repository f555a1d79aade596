"""Random runs of the broker against a simple model, checked after each step.

The model knows what every client may expect: each job that it submitted ends in exactly one outcome, or
was withdrawn. A run that fails prints its seed; hypothesis prints the shortest run that it can find.
"""

from __future__ import annotations

import random
from itertools import count
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cwmp import defaults
from cwmp.broker import Broker
from cwmp.errors import UnknownMember
from cwmp.messages import ERROR, LOST, RESULT, RUNNING, Lease

pytestmark = pytest.mark.core

Choose = Callable[[int], int]
"""A number from 0 up to, not including, the argument."""

STEPS = 400


class ClientModel:
    """What one client has asked for and heard."""

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.numbers = count(1)
        self.submitted: Set[int] = set()
        self.withdrawn: Set[int] = set()
        self.ended: Dict[int, Tuple[int, Any]] = {}
        self.seen = 0  # sequence number of the last event that we have


class World:
    """A broker, the clients and workers around it, and what must come out of it."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.broker = Broker()
        self.clients: List[ClientModel] = []
        self.workers: Dict[int, Dict[int, Lease]] = {}  # what each one believes it holds
        self.unfit: Dict[int, Set[bytes]] = {}  # by worker: functions that it has no time for
        self.former: List[int] = []  # workers that left, were lost or were silent
        self.old_tickets: List[int] = []
        self.tickets: Set[int] = set()
        self.attempts: Dict[bytes, int] = {}
        self.deaths: Dict[bytes, int] = {}
        self.now = 0.0
        self.add_client()
        self.add_worker()

    # --- steps -------------------------------------------------------------------------------

    def add_client(self) -> None:
        if len(self.clients) < 4:
            self.clients.append(ClientModel(self.broker.join_client({})))

    def add_worker(self) -> None:
        if len(self.workers) < 4:
            self.workers[self.broker.join_worker({"slots": 1 + self.choose(3)}, self.now)] = {}

    def submit(self) -> None:
        client = self.some_client()
        if client:
            batch = [next(client.numbers) for _ in range(self.choose(6))]
            for _ in range(1 + self.choose(2)):  # perhaps it is sent twice
                self.broker.submit(client.ident, [self.job(client, n) for n in batch])
            client.submitted.update(batch)

    def cancel(self) -> None:
        client = self.some_client()
        if client and client.submitted:
            known = sorted(client.submitted)
            wanted = {known[self.choose(len(known))] for _ in range(1 + self.choose(5))} | {10**6}
            withdrawn = self.broker.cancel(client.ident, wanted)
            assert len(withdrawn) == len(set(withdrawn))
            assert set(withdrawn) <= wanted & self.open_numbers(client)
            client.withdrawn.update(withdrawn)

    def take(self) -> None:
        if self.workers:
            self.lease(self.some_worker(), self.choose(8))

    def finish(self) -> None:
        if self.workers:
            worker = self.some_worker()
            outcomes = []
            for lease in self.some_held(worker):
                if lease[3].endswith(b"7"):
                    self.die_of(worker, lease)  # these never end well
                else:
                    outcomes.append((lease[0], self.choose(2), lease[3]))
            outcomes += [(t, RESULT, b"late") for t in self.old_tickets[: self.choose(3)]]
            self.broker.finish(worker, outcomes)

    def start(self) -> None:
        if self.workers:
            worker = self.some_worker()
            held = list(self.workers[worker])
            self.broker.running(worker, held[: self.choose(3)] + self.old_tickets[: self.choose(2)])

    def die(self) -> None:
        if self.workers:
            worker = self.some_worker()
            for lease in self.some_held(worker):
                self.die_of(worker, lease)

    def give_back(self) -> None:
        if self.workers:
            worker = self.some_worker()
            self.broker.give_back(worker, [lease[0] for lease in self.some_held(worker)])

    def decline(self) -> None:
        if self.workers:
            worker = self.some_worker()
            declined = self.some_held(worker)
            self.broker.decline(worker, [lease[0] for lease in declined] + self.old_tickets[-2:])
            self.unfit.setdefault(worker, set()).update(lease[2] for lease in declined)

    def get_more_time(self) -> None:
        if self.workers:
            worker = self.some_worker()
            self.broker.heard(worker, self.now, {"ends_in_s": None})
            self.unfit.pop(worker, None)

    def part(self) -> None:
        if self.workers:
            worker = self.some_worker()
            if self.choose(2):
                self.broker.leave_worker(worker)
            else:
                self.broker.lose_worker(worker, "closed")
            self.forget(worker)

    def crank(self) -> None:
        """Time passes, and only some workers are heard."""
        self.now += self.choose(2) * defaults.SILENT_S * 0.7
        for worker in list(self.workers):
            if self.choose(4):
                self.broker.heard(worker, self.now)
        for worker in self.broker.expire(self.now):
            self.broker.lose_worker(worker, "silent")
            self.forget(worker)

    def late_report(self) -> None:
        if self.former:
            for call in (self.broker.finish, self.broker.running, self.broker.give_back):
                with pytest.raises(UnknownMember):
                    call(self.former[-1], self.old_tickets[:2])  # type: ignore[arg-type,operator]

    def leave_client(self) -> None:
        if self.clients and self.choose(4) == 0:
            client = self.clients.pop(self.choose(len(self.clients)))
            self.broker.leave_client(client.ident)

    def collect(self) -> None:
        client = self.some_client()
        if client:
            last, events = self.broker.collect(client.ident, client.seen)
            assert self.broker.collect(client.ident, client.seen) == (last, events), "told two things"
            assert last == client.seen + len(events)
            if self.choose(3):  # else the answer was lost on its way
                self.hear(client, events)
                client.seen = last
                self.broker.acknowledge(client.ident, last)

    STEPS = (
        submit, submit, submit, cancel, take, take, take, take, finish, finish, finish, start, die, give_back,
        decline, get_more_time, part, crank, late_report, leave_client, collect, collect, add_client,
        add_worker, add_worker,
    )  # fmt: skip

    # --- the model ---------------------------------------------------------------------------

    def job(self, client: ClientModel, number: int) -> Tuple[int, bytes, bytes]:
        return number, b"f%d" % (number % 2), b"%d:%d" % (client.ident, number)

    def open_numbers(self, client: ClientModel) -> Set[int]:
        """Jobs that the client has heard nothing final of."""
        return client.submitted - client.withdrawn - set(client.ended)

    def some_client(self) -> Any:
        return self.clients[self.choose(len(self.clients))] if self.clients else None

    def some_worker(self) -> int:
        return sorted(self.workers)[self.choose(len(self.workers))]

    def some_held(self, worker: int) -> List[Lease]:
        """Some leases of a worker, which it holds no longer."""
        held = self.workers[worker]
        chosen = [lease for lease in held.values() if self.choose(2)]
        for lease in chosen:
            del held[lease[0]]
            self.old_tickets.insert(0, lease[0])
        return chosen

    def lease(self, worker: int, room: int) -> None:
        leases = self.broker.take(worker, room)
        assert len(leases) <= room
        for lease in leases:
            ticket, attempt, function, call = lease
            client, number = map(int, call.split(b":"))
            assert ticket not in self.tickets, "a ticket was used twice"
            assert attempt == self.attempts.get(call, 0) + 1, "attempts are numbered"
            assert function == b"f%d" % (number % 2), "another job's function"
            assert function not in self.unfit.get(worker, ()), "it has no time for that"
            for model in self.clients:
                if model.ident == client:
                    assert number in self.open_numbers(model), "handed out after its end"
            self.tickets.add(ticket)
            self.attempts[call] = attempt
            self.workers[worker][ticket] = lease

    def die_of(self, worker: int, lease: Lease) -> None:
        """The slot that ran this job has died."""
        self.deaths[lease[3]] = self.deaths.get(lease[3], 0) + 1
        self.broker.died(worker, lease[0], {"cause": "killed"})

    def forget(self, worker: int) -> None:
        self.former.append(worker)
        self.old_tickets[:0] = self.workers.pop(worker)

    def hear(self, client: ClientModel, events: List[Tuple[int, int, Any]]) -> None:
        for number, kind, data in events:
            if kind == RUNNING:  # perhaps it was returned and withdrawn since
                assert number in self.open_numbers(client) | client.withdrawn
                continue
            assert number in self.open_numbers(client), f"job {number} ended twice, or was never submitted"
            call = self.job(client, number)[2]
            if kind == LOST:
                died = [attempt for attempt in data if attempt["cause"] == "killed"]
                assert len(died) == self.deaths.get(call, 0) <= defaults.MAX_ATTEMPTS
                assert [a["attempt"] for a in data] == sorted({a["attempt"] for a in data})
                lost = len(data) - len(died)
                assert len(died) == defaults.MAX_ATTEMPTS or lost == defaults.MAX_WORKER_LOSSES
            else:
                assert kind in (RESULT, ERROR)
                assert data == call, "the result of another job, or of an old attempt"
            client.ended[number] = (kind, data)

    def check(self) -> None:
        """After each step."""
        self.broker.check_invariants()
        shown = {c["id"]: c for c in self.broker.status(self.now)["clients"]}
        assert set(shown) == {client.ident for client in self.clients}
        assert self.broker.queued == sum(c["queued"] for c in shown.values())
        assert set(self.broker.workers()) == set(self.workers)

    def finish_everything(self) -> None:
        """A good worker comes, does what is left, and every client hears of all its jobs."""
        for worker in list(self.workers):
            self.broker.leave_worker(worker)
            self.forget(worker)
        good = self.broker.join_worker({"slots": 4}, self.now)
        self.workers[good] = {}
        while self.broker.queued:
            self.lease(good, 50)
            self.broker.finish(good, [(t, RESULT, lease[3]) for t, lease in self.workers[good].items()])
            self.workers[good].clear()
        self.check()
        for client in self.clients:
            last, events = self.broker.collect(client.ident, client.seen)
            self.hear(client, events)
            self.broker.acknowledge(client.ident, last)
            assert not self.broker.has_events(client.ident, last)
            assert self.open_numbers(client) == set(), "submitted, and never heard of again"
            assert not set(client.ended) & client.withdrawn, "withdrawn and yet ended"
        status = self.broker.status(self.now)["jobs"]
        assert status["queued"] == status["running"] == 0


@pytest.mark.parametrize("seed", range(12))
def test_random_run(seed: int) -> None:
    rng = random.Random(seed)
    world = World(rng.randrange)
    step: Any = None
    try:
        for number in range(STEPS):
            step = number, rng.choice(World.STEPS)
            step[1](world)
            world.check()
        world.finish_everything()
    except BaseException:
        print(f"seed {seed}, step {step}")
        raise


def test_random_runs_reach_every_kind_of_end() -> None:
    """The runs above are worth their time only if jobs end in every way in them."""
    kinds: Set[int] = set()
    stale = cancelled = 0
    for seed in range(12):
        rng = random.Random(seed)
        world = World(rng.randrange)
        for _ in range(STEPS):
            rng.choice(World.STEPS)(world)
        kinds |= {kind for client in world.clients for kind, _ in client.ended.values()}
        stale += world.broker.stale
        cancelled += world.broker.cancelled
    assert kinds == {RESULT, ERROR, LOST}
    assert stale and cancelled


class BrokerMachine(RuleBasedStateMachine):
    """The same steps, in the order in which hypothesis likes them."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.data = data
        self.world = World(lambda n: self.data.draw(st.integers(0, n - 1)))

    @rule(data=st.data(), step=st.sampled_from(sorted(set(World.STEPS), key=lambda s: s.__name__)))
    def step(self, data: st.DataObject, step: Callable[[World], None]) -> None:
        self.data = data
        step(self.world)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.choose = lambda n: 0
            self.world.finish_everything()


BrokerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TestBrokerMachine = BrokerMachine.TestCase
