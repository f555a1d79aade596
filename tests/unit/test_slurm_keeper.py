"""The rules of `cwmp-slurm keep`, by hand-cranked time and in seeded random runs."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count
from typing import Any, Dict, List, Optional, Set

import pytest

from cwmp.slurm.keeper import (
    ALL_LOST_S,
    GROW_S,
    IDLE_S,
    JOIN_S,
    LOST_S,
    TRIES,
    Bounds,
    Decision,
    Keeper,
    Sight,
)
from cwmp.slurm.seats import BACKOFF_MAX_S, BACKOFF_S, BLAMELESS, LOST, YOUNG_S, Member

pytestmark = pytest.mark.core


class Crank:
    """A keeper, the world as it sees it, and a clock that moves when told."""

    def __init__(self, least: int, most: Optional[int] = None, slots: int = 1) -> None:
        self.keeper = Keeper()
        self.bounds = Bounds(least, least if most is None else most)
        self.slots = slots
        self.now = 0.0
        self.jobs: Optional[int] = 0
        self.members: Dict[str, Member] = {}
        self.names = count(1)
        self.master_waits = False

    def submit(self, number: int = 1, **facts: Any) -> List[str]:
        """That many new members, running and connected unless told otherwise."""
        names = [f"9_{next(self.names)}" for _ in range(number)]
        for worker, name in enumerate(names, len(self.members)):
            self.members[name] = Member(name, **{"state": "RUNNING", "node": "n1", "worker": worker, **facts})
        return names

    def change(self, *names: str, **facts: Any) -> None:
        for name in names:
            self.members[name] = replace(self.members[name], **facts)

    def end(self, *names: str, state: str = "FAILED", **facts: Any) -> None:
        self.change(*names, state=state, worker=None, **facts)

    def look(self, after_s: float = 1.0) -> Decision:
        self.now += after_s
        sight = Sight(tuple(self.members.values()), self.jobs, self.slots, self.master_waits)
        return self.keeper.decide(sight, self.bounds, self.now)

    def settled(self, number: int) -> List[str]:
        """That many members which the keeper has seen working for a long time."""
        names = self.submit(number)
        for after_s in (1.0, YOUNG_S):
            assert self.look(after_s).notes == ()
        return names


# --- a fixed size ---------------------------------------------------------------------------


def test_what_is_missing_is_submitted() -> None:
    crank = Crank(3)
    assert crank.look().submit == 3
    crank.submit(2, state="PENDING", worker=None)
    assert crank.look().submit == 1
    crank.submit(1, state="PENDING", worker=None)
    assert crank.look() == Decision()


@pytest.mark.parametrize(
    "state", sorted(BLAMELESS - {LOST}) + ["TIMEOUT", "FAILED", "COMPLETED", "OUT_OF_MEMORY", ""]
)
def test_a_worker_that_ended_is_replaced_at_once_whatever_ended_it(state: str) -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    crank.end(first, state=state)
    decision = crank.look()
    assert decision.submit == 1
    assert decision.notes[0].startswith(
        f"worker {first} ended: {state or 'SLURM no longer knows it'}, after 6"
    )


def test_a_job_that_slurm_has_forgotten_has_ended() -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    del crank.members[first]
    assert crank.look().submit == 1


def test_what_ended_before_the_first_look_is_only_replaced() -> None:
    crank = Crank(3)
    crank.submit(1)
    crank.submit(2, state="FAILED", worker=None)
    assert crank.look() == Decision(submit=2)


def test_one_that_was_never_seen_alive_has_died_young_all_the_same() -> None:
    crank = Crank(1)
    for _ in range(TRIES):
        assert crank.look(BACKOFF_MAX_S).submit == 1
        crank.submit(state="FAILED", worker=None)
        decision = crank.look()
        assert decision.submit == 0 and len(decision.notes) == 1
    assert decision.hopeless


def test_a_submission_that_failed_is_made_again() -> None:
    crank = Crank(1)
    assert [crank.look().submit for _ in range(3)] == [1, 1, 1]


def test_nothing_is_submitted_while_the_master_waits_for_a_node() -> None:
    crank = Crank(2)
    crank.master_waits = True
    assert crank.look().submit == 0
    crank.master_waits = False
    assert crank.look().submit == 2


def test_a_worker_near_its_end_is_replaced_when_it_has_ended_and_no_sooner() -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    crank.change(first, draining=True)
    assert crank.look().submit == 0, "never more than there may be"
    crank.end(first, state="COMPLETED")
    assert crank.look().submit == 1


def test_where_there_may_be_more_it_is_replaced_when_it_begins_to_drain() -> None:
    crank = Crank(1, 3)
    first, _ = crank.settled(2)
    crank.jobs = 2
    crank.change(first, draining=True)
    assert crank.look().submit == 1
    crank.submit()
    assert crank.look() == Decision()
    crank.end(first, state="COMPLETED")
    assert crank.look().submit == 0


def test_a_worker_that_slurm_puts_back_into_its_queue_has_not_ended() -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    crank.change(first, state="PENDING", reason="BeginTime", worker=None, node="")
    assert crank.look() == Decision()
    crank.change(first, state="RUNNING", worker=7, node="n2")
    assert crank.look() == Decision()


def test_a_worker_that_the_master_lost_is_replaced_and_cancelled_though_slurm_takes_it_for_alive() -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    crank.change(first, worker=None)
    assert crank.look() == Decision()
    assert crank.look(LOST_S - 0.1) == Decision()
    note = f"worker {first} ended: LOST (the master no longer hears it), after 72 s, on n1"
    decision = crank.look(0.2)
    assert (decision.submit, decision.kill) == (1, (first,)) and decision.notes[0][:50] == note[:50]
    crank.submit()
    assert crank.look() == Decision(kill=(first,)), "it could not be cancelled"
    for state in ("COMPLETING", "CANCELLED"):
        crank.change(first, state=state)
        assert crank.look(LOST_S) == Decision(), "it is dealt with"


def test_a_worker_that_comes_back_was_not_lost() -> None:
    crank = Crank(2)
    first, second = crank.settled(2)
    for _ in range(3):
        crank.change(first, worker=None)
        assert crank.look(LOST_S - 1.0) == Decision()
        assert crank.look(LOST_S - 1.0 - 8.5) == Decision()
        crank.change(first, worker=7)
        assert crank.look(LOST_S) == Decision()


def test_when_all_are_missing_it_may_be_the_masters_doing() -> None:
    crank = Crank(2)
    names = crank.settled(2)
    crank.change(*names, worker=None)
    crank.look()
    assert crank.look(ALL_LOST_S - 0.1) == Decision()
    crank.change(*names, worker=5)
    assert crank.look(ALL_LOST_S) == Decision()
    crank.jobs = None
    crank.change(*names, worker=None)
    for _ in range(5):
        assert crank.look(ALL_LOST_S) == Decision(), "nobody can tell"


def test_a_job_that_completes_for_ever_has_ended() -> None:
    crank = Crank(2)
    first, _ = crank.settled(2)
    crank.end(first, state="COMPLETING")
    assert crank.look() == Decision()
    decision = crank.look(LOST_S)
    assert (decision.submit, decision.kill) == (1, ())


def test_one_that_runs_and_never_joins_is_given_up_like_one_that_dies() -> None:
    crank = Crank(1)
    for _ in range(TRIES):
        [name] = crank.submit(worker=None)
        assert crank.look() == Decision()
        assert crank.look(JOIN_S - 1.0) == Decision()
        decision = crank.look()
        assert decision.kill == (name,)
        assert decision.notes == (
            f"worker {name} ended: RUNNING (it has not joined within 600 s), after 600 s, on n1",
        )
        crank.end(name, state="CANCELLED")
        crank.look(BACKOFF_MAX_S)
    assert decision.hopeless


@pytest.mark.parametrize("ran_s", [5 * 3600.0, -7 * 3600.0])
def test_a_wall_clock_that_was_set_makes_no_worker_old(ran_s: float) -> None:
    """`squeue` reckons with the clock of its own machine for how long a job has run."""
    crank = Crank(1)
    [name] = crank.submit(worker=None, ran_s=1.0)
    assert crank.look() == Decision()
    crank.change(name, ran_s=ran_s)
    assert crank.look(JOIN_S - 1.0) == Decision()
    assert crank.look().kill == (name,)


def test_it_follows_a_pool_that_somebody_scales() -> None:
    crank = Crank(4)
    names = crank.settled(4)
    crank.bounds = Bounds(2, 2)
    crank.change(*names[:2], dismissed=True)
    decision = crank.look()
    assert decision == Decision(notes=(f"worker {names[0]} was let go", f"worker {names[1]} was let go"))
    crank.end(*names[:2], state="COMPLETED")
    assert crank.look() == Decision()
    crank.bounds = Bounds(5, 5)
    assert crank.look().submit == 3


# --- dying young ----------------------------------------------------------------------------


def test_a_seat_whose_members_die_young_waits_longer_each_time_and_is_given_up() -> None:
    crank = Crank(2)
    crank.settled(1)
    for tried in range(1, TRIES + 1):
        assert crank.look().submit == 1
        [name] = crank.submit(worker=None)
        assert crank.look().submit == 0
        crank.end(name, reason="NonZeroExitCode", exit_code="127:0", ran_s=1.0)
        decision = crank.look()
        assert decision.submit == 0
        if tried < TRIES:
            pause_s = BACKOFF_S * 2 ** (tried - 1)
            assert crank.look(pause_s - 0.1).submit == 0
    [given_up] = decision.given_up
    assert str(given_up) == (
        f"worker {name} is not replaced any more, 3 in a row died young: "
        "FAILED (NonZeroExitCode), exit code 127:0, after 1 s, on n1"
    )
    assert not decision.hopeless, "the other one is well"
    assert crank.look(10 * BACKOFF_MAX_S) == Decision()


def test_when_none_is_well_one_is_tried_at_a_time_and_then_all_are_given_up() -> None:
    crank = Crank(8)
    assert crank.look().submit == 8
    names = crank.submit(8, worker=None)
    crank.look()
    crank.end(*names, ran_s=0.5)
    submitted = 0
    for _ in range(1000):
        decision = crank.look()
        if decision.hopeless:
            break
        assert decision.submit <= 1
        submitted += decision.submit
        for name in crank.submit(decision.submit, worker=None):
            crank.look()
            crank.end(name, ran_s=0.5)
    assert decision.hopeless and len(decision.given_up) == 1
    assert submitted == TRIES - 1
    assert crank.look(1e6) == Decision(hopeless=True)


def test_the_others_are_submitted_when_the_one_that_was_tried_is_well() -> None:
    crank = Crank(4)
    names = crank.submit(4, worker=None)
    crank.look()
    crank.end(*names, ran_s=0.5)
    crank.look()
    assert crank.look(BACKOFF_S).submit == 1
    crank.submit(1, state="PENDING", worker=None)
    assert crank.look(BACKOFF_MAX_S).submit == 0, "that one tells whether the others are worth it"
    crank.change("9_5", state="RUNNING", worker=3)
    assert crank.look().submit == 3


def test_one_that_never_found_its_master_is_at_fault_however_long_it_tried() -> None:
    crank = Crank(1)
    for _ in range(TRIES):
        [name] = crank.submit(worker=None)
        crank.look()
        crank.end(name, ran_s=10 * YOUNG_S)
        decision = crank.look()
        crank.look(BACKOFF_MAX_S)
    assert decision.hopeless


def test_when_the_master_cannot_be_seen_an_old_one_is_not_blamed() -> None:
    crank = Crank(1)
    crank.jobs = None
    for _ in range(5 * TRIES):
        [name] = crank.submit(worker=None)
        crank.look()
        crank.end(name, ran_s=10 * YOUNG_S)
        assert not crank.look().given_up
        assert crank.look(BACKOFF_MAX_S).submit == 1


@pytest.mark.parametrize("state", sorted(BLAMELESS - {LOST}))
def test_a_worker_ended_by_others_is_not_blamed_yet_replaced_ever_more_slowly(state: str) -> None:
    crank = Crank(1)
    submitted = 0
    [name] = crank.submit()
    for _ in range(3600):
        decision = crank.look()
        assert not decision.given_up
        if decision.submit:
            [name] = crank.submit()
            submitted += 1
        elif crank.members[name].alive:
            crank.end(name, state=state, ran_s=1.0)
    assert 10 < submitted < 25


def test_a_worker_whose_time_is_too_short_is_not_blamed() -> None:
    crank = Crank(1)
    for _ in range(TRIES + 1):
        [name] = crank.submit(ran_s=5.0)
        crank.look()
        crank.change(name, draining=True)
        crank.look()
        crank.end(name, state="COMPLETED")
        assert not crank.look().given_up
        assert crank.look(BACKOFF_MAX_S).submit == 1


def test_having_been_well_for_long_wipes_the_slate_clean() -> None:
    crank = Crank(1)
    for _ in range(3 * TRIES):
        [name] = crank.submit()
        crank.look()
        crank.look(YOUNG_S)
        crank.end(name)
        assert crank.look().submit == 1


def test_what_slurm_could_not_start_and_holds_for_ever_is_cancelled_and_tried_again() -> None:
    crank = Crank(2)
    crank.settled(1)
    for reason in (
        "launch failed requeued held",
        "launch_failed_requeued_held",
        "launch failed requeued held",
    ):
        crank.look(BACKOFF_MAX_S)
        [name] = crank.submit(state="PENDING", reason=reason, worker=None)
        assert crank.look().cancel == (name,)
        crank.end(name, state="CANCELLED")
        decision = crank.look()
    assert len(decision.given_up) == 1


def test_a_node_where_workers_die_is_avoided_while_others_are_well() -> None:
    crank = Crank(2)
    crank.settled(1)
    for _ in range(TRIES - 1):
        assert crank.look(BACKOFF_MAX_S).avoid == ()
        [name] = crank.submit(node="n2", worker=None)
        crank.look()
        crank.end(name, ran_s=1.0)
        decision = crank.look()
    assert decision.avoid == ("n2",)
    assert crank.look(BACKOFF_MAX_S) == Decision(submit=1, avoid=("n2",))
    crank.submit(node="n2")
    assert crank.look().avoid == (), "one has joined from there"


# --- growing and shrinking ------------------------------------------------------------------


def test_the_pool_grows_with_the_queue_after_a_moment_and_never_above_its_limit() -> None:
    crank = Crank(1, 5, slots=4)
    crank.settled(1)
    crank.jobs = 10
    assert crank.look().submit == 0
    assert crank.look(GROW_S).submit == 2
    crank.submit(2, state="PENDING", worker=None)
    assert crank.look(GROW_S).submit == 0
    crank.jobs = 1000
    crank.look()
    assert crank.look(GROW_S).submit == 2


def test_a_burst_that_is_over_soon_calls_nobody() -> None:
    crank = Crank(1, 5)
    crank.settled(1)
    for _ in range(20):
        crank.jobs = 1000
        assert crank.look(GROW_S - 2.0).submit == 0
        crank.jobs = 0
        assert crank.look().submit == 0


def test_workers_without_work_are_let_go_down_to_the_least() -> None:
    crank = Crank(1, 4)
    names = crank.submit(4)
    crank.look()
    for idle_s in (0.0, IDLE_S - 1.0):
        crank.change(*names, idle_s=idle_s)
        assert crank.look(IDLE_S / 3).drain == ()
    crank.change(*names, idle_s=IDLE_S)
    crank.change(names[0], busy=1)
    decision = crank.look(IDLE_S)
    assert sorted(decision.drain) == names[1:]
    assert decision.submit == 0 and decision.cancel == ()
    assert sorted(crank.look().drain) == names[1:], "they could not be told"
    crank.change(*names[1:], dismissed=True)
    assert crank.look() == Decision(notes=tuple(f"worker {name} was let go" for name in names[1:]))
    crank.end(*names[1:], state="COMPLETED", ran_s=1.0)
    assert crank.look() == Decision()


def test_those_that_have_not_started_are_cancelled_before_any_is_drained() -> None:
    crank = Crank(0, 4)
    running = crank.submit(2, idle_s=IDLE_S, busy=0)
    waiting = crank.submit(2, state="PENDING", worker=None)
    crank.jobs = 2
    crank.look()
    decision = crank.look(IDLE_S)
    assert (sorted(decision.cancel), decision.drain) == (waiting, ())
    crank.change(*waiting, dismissed=True)
    crank.jobs = 0
    crank.look()
    assert len(crank.look(IDLE_S).drain) == len(running)


def test_nobody_is_let_go_and_nobody_called_while_the_master_cannot_be_seen() -> None:
    crank = Crank(0, 4)
    crank.submit(2, idle_s=10 * IDLE_S)
    crank.look()
    crank.jobs = None
    assert crank.look(10 * IDLE_S) == Decision()


# --- random runs ----------------------------------------------------------------------------


class World:
    """A SLURM and a master that do what they like, a keeper, and what must hold all the time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.crank = Crank(self.random.randrange(4), self.random.randrange(4, 9), self.random.choice([1, 4]))
        self.healthy_s = 0.0  # for how long nothing has died and no pool was too small
        self.lost: Set[str] = set()

    def step(self, faults: bool) -> None:
        crank, choose = self.crank, self.random
        if faults and choose.random() < 0.1:
            crank.jobs = choose.choice([None, 0, 1, 3, 10, 1000])
        elif crank.jobs is None:
            crank.jobs = 0
        for name, member in list(crank.members.items()):
            self.live(name, member, faults)
        before = dict(crank.members)
        decision = crank.look(choose.choice([0.5, 2.0, 5.0, 20.0]))
        self.check(decision, before)
        if not faults or choose.random() < 0.9:  # else it could not be submitted
            crank.submit(decision.submit, state="PENDING", worker=None, node="")
        if not faults or choose.random() < 0.9:
            crank.change(*decision.cancel, *decision.drain, dismissed=True)
            for name in decision.cancel:
                crank.end(name, state="CANCELLED")
        for name in decision.kill:
            crank.end(name, state=choose.choice(["CANCELLED", "COMPLETING"]))

    def live(self, name: str, member: Member, faults: bool) -> None:
        crank, choose = self.crank, self.random
        luck = choose.random()
        if member.state == "COMPLETING" or (member.draining and luck < 0.3):
            crank.end(name, state="COMPLETED")
        elif not member.alive:
            if luck < 0.05 and not member.dismissed:
                del crank.members[name]
        elif member.waits:
            if luck < 0.5:
                crank.change(name, state="RUNNING", node=f"n{choose.randrange(3)}")
        elif faults and luck < 0.1:
            crank.end(name, state=choose.choice(["FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED", "PREEMPTED"]))
        elif faults and luck < 0.13:
            crank.change(name, state="PENDING", worker=None, node="", draining=False)
        elif faults and luck < 0.15:
            crank.change(name, worker=None)
            self.lost.add(name)  # its node is gone, and SLURM does not know
        elif name in self.lost:
            pass
        elif faults and luck < 0.17:
            crank.change(name, draining=member.worker is not None)
        elif member.worker is None or crank.jobs is None:
            worker = None if crank.jobs is None else int(name.partition("_")[2])
            crank.change(name, worker=worker)
        else:
            busy = choose.randrange(2)
            crank.change(name, busy=busy, idle_s=0.0 if busy else member.idle_s + 10.0)

    def check(self, decision: Decision, members: Dict[str, Member]) -> None:
        bounds = self.crank.bounds
        ending = {name for name, member in members.items() if member.state == "COMPLETING"}.union(
            decision.kill
        )
        living = [member for name, member in members.items() if member.alive and name not in ending]
        assert decision.submit >= 0
        assert decision.submit == 0 or len(living) + decision.submit <= bounds.most, "too many"
        for name in decision.drain:
            member = members[name]
            assert member.alive and member.worker is not None, "has not joined"
            assert member.busy == 0 and not member.draining and member.idle_s >= IDLE_S, "had work"
        for name in decision.cancel:
            assert members[name].waits, "has started"
        staying = len(living) - len(decision.drain) - len(decision.cancel)
        if decision.drain or decision.cancel:
            assert staying >= bounds.least, "too few stay"


@pytest.mark.parametrize("seed", range(60))
def test_random_runs(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step(faults=True)
    crank = world.crank
    for name in world.lost & crank.members.keys():
        crank.end(name, state="NODE_FAIL")  # SLURM has noticed at last
    world.step(faults=False)
    given_up = sum(seat.given_up for seat in crank.keeper._seats)
    # From here on nothing fails any more, and in a while there are as many as there should be.
    deadline = crank.now + JOIN_S + BACKOFF_MAX_S + 100.0
    while crank.now < deadline:
        world.step(faults=False)
    living = [member for member in crank.members.values() if member.alive and member.worker]
    assert len(living) >= crank.bounds.least - given_up
    assert len(living) <= crank.bounds.most


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_always_die_are_given_up_after_few_submissions(seed: int) -> None:
    choose = random.Random(seed)
    size = choose.randrange(1, 10)
    crank = Crank(size)
    submitted = 0
    while not crank.look(choose.choice([1.0, 5.0])).hopeless:
        decision = crank.keeper.decide(Sight(tuple(crank.members.values()), 0), crank.bounds, crank.now)
        submitted += decision.submit
        crank.submit(decision.submit, state="PENDING", worker=None, node="")
        for name, member in list(crank.members.items()):
            if member.waits and choose.random() < 0.5:
                crank.change(name, state="RUNNING", node="n1")
            elif member.alive and choose.random() < 0.5:
                crank.end(name, exit_code="1:0")
        assert submitted <= size + TRIES, "it would go on for ever"
