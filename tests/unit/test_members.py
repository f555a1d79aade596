"""Who is a member, away, or back, and what becomes of jobs meanwhile, with time cranked by hand."""

from __future__ import annotations

import errno
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

from cwmp import defaults
from cwmp.broker import Broker
from cwmp.errors import ConnectError, MasterLost, UnknownMember, UsageError, VersionMismatch
from cwmp.members import CLIENT, WORKER, Member, Members
from cwmp.messages import LOST, RESULT, RUNNING, this_side

pytestmark = pytest.mark.core

CLOSED = "closed by the other side"
TIMED_OUT = os.strerror(errno.ETIMEDOUT)


class Peer:
    """A connection of which only the ends are of interest."""

    def __init__(self) -> None:
        self.name = "peer"
        self.member: Optional[Member] = None
        self.former: List[Member] = []
        self.closed = False
        self.failed: List[Exception] = []
        self.unheard: List[Callable[[], None]] = []

    def hear_out(self) -> None:
        while self.unheard and not self.closed:
            self.unheard.pop(0)()

    def close(self) -> None:
        self.closed = True

    def fail(self, error: Exception) -> None:
        self.failed.append(error)


class Master:
    """One life of a master, without its sockets."""

    def __init__(self, nonce: str = "first", first: int = 1, begun: float = 100.0) -> None:
        self.now = begun
        self.nonce = nonce
        self.broker = Broker(first=first)
        self.members = Members(self.broker, "tested", nonce, lambda: self.now)
        self.members.on_gone = self.note_gone
        self.members.on_away = lambda member: self.away.append(member)
        self.away: List[Member] = []
        self.gone: List[Tuple[Member, Optional[str]]] = []

    def note_gone(self, member: Member, reason: Optional[str]) -> None:
        self.gone.append((member, reason))
        if member[0] == CLIENT:
            self.broker.leave_client(member[1])
        else:
            self.broker.lose_worker(member[1], str(reason))

    def join(self, role: str, **facts: Any) -> Tuple[Any, Dict[str, Any]]:
        """(peer, welcome) of somebody new, of a further connection, or of one who comes back."""
        peer: Any = Peer()
        return peer, self.members.join(peer, this_side(role, **{"slots": 2, **facts}))

    def back(self, role: str, ident: int, nonce: str = "first", holding: Any = (), **more: Any) -> Any:
        """(peer, welcome) of one who was at the master of that nonce."""
        where = {"cluster": "tested", "nonce": nonce, "holding": holding, **more}
        return self.join(role, member=ident, back=where)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.members.tend(self.now)
        self.broker.check_invariants()

    def events(self, client: int) -> List[Any]:
        return self.broker.collect(client, 0)[1]


def jobs(*numbers: int) -> List[Any]:
    return [(number, b"f", b"%d" % number) for number in numbers]


def with_client_and_worker() -> Tuple[Master, Any, Any]:
    """A master, and the (peer, id) of both."""
    master = Master()
    client, worker = master.join(CLIENT), master.join(WORKER)
    return master, (client[0], client[1]["member"]), (worker[0], worker[1]["member"])


# --- connections ----------------------------------------------------------------------------


def test_one_broken_connection_closes_the_others_of_the_member() -> None:
    master, (peer, client), _ = with_client_and_worker()
    other, _ = master.join(CLIENT, member=client)
    master.members.lose(peer, CLOSED)
    assert other.closed
    assert master.away == [(CLIENT, client)]


@pytest.mark.parametrize("role", [CLIENT, WORKER])
def test_who_says_goodbye_over_one_connection_and_closes_both_is_not_waited_for(role: str) -> None:
    """Which of the two is looked at first is chance."""
    master = Master()
    peer, welcome = master.join(role)
    member = (role, welcome["member"])
    other, _ = master.join(role, member=welcome["member"])
    peer.unheard = [lambda: master.members.part(member, None), lambda: master.members.lose(peer, CLOSED)]
    master.members.lose(other, CLOSED)
    assert master.gone == [(member, None)]
    assert master.away == []


def test_a_member_that_says_nothing_more_when_it_is_heard_out_is_away() -> None:
    master, (peer, client), _ = with_client_and_worker()
    other, _ = master.join(CLIENT, member=client)
    peer.unheard = [lambda: master.members.lose(peer, CLOSED)]
    master.members.lose(other, CLOSED)
    assert master.gone == []
    assert master.away == [(CLIENT, client)]


def test_a_further_connection_needs_a_member() -> None:
    master = Master()
    with pytest.raises(UnknownMember, match="no client 7 is here"):
        master.join(CLIENT, member=7)


@pytest.mark.parametrize(
    ("role", "reason", "patience_s"),
    [
        (WORKER, CLOSED, defaults.WORKER_AWAY_S),
        (WORKER, TIMED_OUT, defaults.WORKER_AWAY_S),
        (CLIENT, CLOSED, defaults.CLIENT_AWAY_S),
        (CLIENT, "Connection reset by peer", defaults.CLIENT_AWAY_S),
        (CLIENT, "sent something that is not a request", defaults.CLIENT_AWAY_S),
        (CLIENT, TIMED_OUT, defaults.CLIENT_UNREACHABLE_S),
    ],
)
def test_who_is_away_is_waited_for_for_a_while(role: str, reason: str, patience_s: float) -> None:
    master = Master()
    peer, welcome = master.join(role)
    master.members.lose(peer, reason)
    master.wait(patience_s - 0.01)
    assert master.gone == []
    master.wait(0.02)
    assert master.gone == [((role, welcome["member"]), f"connection {reason}")]


def test_members_that_share_a_connection_lose_it_together() -> None:
    """As those of a plain BaseManager do."""
    master, (peer, client), _ = with_client_and_worker()
    welcome = master.members.join(peer, this_side(WORKER, slots=1))
    other, _ = master.back(CLIENT, client)
    assert peer.closed and not other.closed
    assert (WORKER, welcome["member"]) in master.away
    master.wait(defaults.WORKER_AWAY_S)
    assert [member for member, _ in master.gone] == [(WORKER, welcome["member"])]


def test_who_comes_back_over_its_own_connection_keeps_it() -> None:
    master, (peer, client), _ = with_client_and_worker()
    back = {"cluster": "tested", "nonce": "first"}
    assert master.members.join(peer, this_side(CLIENT, member=client, back=back))["known"]
    assert not peer.closed
    master.members.lose(peer, CLOSED)
    assert master.away[-1] == (CLIENT, client)


def test_one_of_several_members_of_a_connection_says_goodbye() -> None:
    master, (peer, client), _ = with_client_and_worker()
    welcome = master.members.join(peer, this_side(WORKER, slots=1))
    master.members.part((CLIENT, client), None)
    master.members.lose(peer, CLOSED)
    assert master.away == [(WORKER, welcome["member"])]


def test_who_said_goodbye_is_gone_at_once() -> None:
    master, (peer, client), _ = with_client_and_worker()
    master.members.part((CLIENT, client), None)
    assert master.gone == [((CLIENT, client), None)]
    master.members.lose(peer, CLOSED)
    assert master.away == []


def test_the_end_of_the_master_is_told_to_all() -> None:
    master, (client, _), (worker, _) = with_client_and_worker()
    master.members.say_goodbye("it was stopped")
    assert [str(error) for error in client.failed + worker.failed] == ["it was stopped"] * 2
    assert isinstance(client.failed[0], MasterLost)


@pytest.mark.parametrize(
    "back",
    [
        7,
        {"cluster": "tested", "nonce": "first", "holding": [5]},
        {"cluster": "tested", "nonce": "first", "holding": [(1, (2,), 1)]},
        {"cluster": "tested", "nonce": "first", "holding": [("1", None, 1)]},
    ],
)
def test_nonsense_does_not_come_back(back: Any) -> None:
    master, _, (_, worker) = with_client_and_worker()
    with pytest.raises(UsageError):
        master.join(WORKER, member=worker, back=back)
    master.broker.check_invariants()


def test_another_cluster_takes_nobody_in_who_comes_back() -> None:
    with pytest.raises(ConnectError, match="cluster 'tested' answers where cluster 'other' was"):
        Master().back(CLIENT, 3, cluster="other")


def test_another_version_does_not_come_back() -> None:
    master, (_, client), _ = with_client_and_worker()
    with pytest.raises(VersionMismatch):
        master.join(CLIENT, member=client, back={"cluster": "tested", "nonce": "first"}, protocol=1)


# --- back at the same master ----------------------------------------------------------------


def test_nothing_of_a_client_is_begun_while_it_is_away() -> None:
    master, (peer, client), (_, worker) = with_client_and_worker()
    master.broker.submit(client, jobs(1, 2))
    master.members.lose(peer, CLOSED)
    assert master.broker.take(worker, 5) == []
    assert master.broker.status(0.0)["clients"][0]["away"]
    _, welcome = master.back(CLIENT, client)
    assert (welcome["known"], welcome["member"], welcome["taken"]) == (True, client, 1)
    assert len(master.broker.take(worker, 5)) == 2


def test_results_wait_for_a_client_that_is_away() -> None:
    master, (peer, client), (_, worker) = with_client_and_worker()
    master.broker.submit(client, jobs(1))
    [lease] = master.broker.take(worker, 1)
    master.members.lose(peer, CLOSED)
    master.broker.finish(worker, [(lease[0], RESULT, b"r")])
    master.back(CLIENT, client)
    assert master.events(client) == [(1, RESULT, b"r")]


def test_a_worker_that_comes_back_keeps_what_it_holds_and_no_more() -> None:
    master, (_, client), (peer, worker) = with_client_and_worker()
    master.broker.submit(client, jobs(1, 2, 3))
    leases = master.broker.take(worker, 3)
    master.members.lose(peer, CLOSED)
    master.wait(defaults.WORKER_AWAY_S / 2)
    _, welcome = master.back(WORKER, worker, holding=[(leases[1][0], None, 1)])
    assert welcome["known"]
    master.wait(60.0)
    assert [lease[3] for lease in master.broker.take(worker, 9)] == [b"1", b"3"], "they never arrived"
    assert master.broker.finish(worker, [(leases[1][0], RESULT, b"r")]) == {client}


def test_who_comes_back_before_its_end_was_noticed_is_known_as_well() -> None:
    master, (peer, client), _ = with_client_and_worker()
    _, welcome = master.back(CLIENT, client)
    assert welcome["known"] and peer.closed
    master.members.lose(peer, CLOSED)  # late news of the old connection: its peer is no member's any more
    master.wait(0.0)


def test_which_jobs_a_client_will_hear_of() -> None:
    master, (_, client), (_, worker) = with_client_and_worker()
    master.broker.submit(client, jobs(1, 2, 3))
    [lease, *_] = master.broker.take(worker, 2)
    master.broker.finish(worker, [(lease[0], RESULT, b"r")])
    master.broker.cancel(client, [3])
    assert master.broker.alive(client, [1, 2, 3, 99]) == [1, 2]
    master.broker.acknowledge(client, 1)
    assert master.broker.alive(client, [1, 2, 3, 99]) == [2]


# --- at another master ----------------------------------------------------------------------


def successor(**facts: Any) -> Master:
    return Master(nonce="second", first=1001, **facts)


def held_by(worker_ticket: int, client: int, number: int, attempt: int = 1) -> Any:
    return (worker_ticket, (client, number), attempt)


def test_members_keep_their_numbers_at_another_master() -> None:
    master = successor()
    _, client = master.back(CLIENT, 7)
    _, worker = master.back(WORKER, 9)
    assert (client["known"], client["member"], worker["known"], worker["member"]) == (False, 7, False, 9)
    _, other = master.back(CLIENT, 7)
    assert other["member"] > 1000, "that one is taken"
    assert master.join(CLIENT)[1]["member"] > 1000


def test_jobs_of_a_predecessor_wait_until_workers_had_time_to_come() -> None:
    master = successor()
    _, worker = master.join(WORKER)
    _, client = master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1))
    assert master.broker.take(worker["member"], 5) == []
    master.wait(defaults.HOLD_OFF_S)
    assert len(master.broker.take(worker["member"], 5)) == 1


def test_a_client_that_comes_late_need_not_wait() -> None:
    master = successor()
    master.wait(defaults.HOLD_OFF_S)
    _, worker = master.join(WORKER)
    master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1))
    assert len(master.broker.take(worker["member"], 5)) == 1


@pytest.mark.parametrize("first", [CLIENT, WORKER])
def test_a_job_that_runs_on_is_not_run_again(first: str) -> None:
    master = successor()
    if first == WORKER:
        master.back(WORKER, 9, holding=[held_by(55, 7, 1, attempt=2)])
    master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1, 2))
    if first == CLIENT:
        master.back(WORKER, 9, holding=[held_by(55, 7, 1, attempt=2)])
    master.wait(defaults.HOLD_OFF_S)
    [lease] = master.broker.take(9, 5)
    assert lease[3] == b"2"
    assert master.broker.finish(9, [(55, RESULT, b"r")]) == {7}
    assert master.events(7) == [(1, RESULT, b"r")]


def test_an_outcome_waits_for_the_client_that_it_is_for() -> None:
    master = successor()
    master.back(WORKER, 9, holding=[held_by(55, 7, 1)])
    assert master.broker.finish(9, [(55, RESULT, b"r")]) == set()
    master.broker.leave_worker(9)
    master.back(CLIENT, 7)
    assert master.broker.submit(7, jobs(1)), "it has news at once"
    assert master.events(7) == [(1, RESULT, b"r")]
    assert master.broker.done == 1


def test_what_comes_to_nothing_is_run_again() -> None:
    master = successor()
    master.back(WORKER, 9, holding=[held_by(55, 7, 1), held_by(56, 7, 2), held_by(57, 7, 3)])
    master.broker.died(9, 55, {"cause": "killed"})
    master.broker.give_back(9, [56])
    master.broker.lose_worker(9, "vanished")
    master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1, 2, 3))
    master.wait(defaults.HOLD_OFF_S)
    _, other = master.join(WORKER)
    assert len(master.broker.take(other["member"], 9)) == 3


def test_offers_that_nobody_takes_are_forgotten() -> None:
    master = successor()
    master.back(WORKER, 9, holding=[held_by(55, 7, 1)])
    master.wait(defaults.OFFER_S)
    master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1))
    assert master.broker.finish(9, [(55, RESULT, b"late")]) == set()
    assert [lease[3] for lease in master.broker.take(9, 5)] == [b"1"]
    master.back(WORKER, 8, holding=[held_by(66, 6, 1)])
    assert master.broker.finish(8, [(66, RESULT, b"late")]) == set()
    assert master.broker.stale == 2


def test_what_others_have_by_now_is_not_taken_from_them() -> None:
    """A worker was silent for too long, and comes back to the same master."""
    master, (_, client), (_, worker) = with_client_and_worker()
    master.broker.submit(client, jobs(1, 2))
    leases = master.broker.take(worker, 2)
    assert master.broker.origins(worker, [leases[0][0], 999]) == [(client, 1), None]
    master.members.part((WORKER, worker), "silent")
    _, other = master.join(WORKER)
    [again] = master.broker.take(other["member"], 1)
    holding = [held_by(leases[0][0], client, 1), held_by(leases[1][0], client, 2)]
    _, welcome = master.back(WORKER, worker, holding=holding)
    assert not welcome["known"]
    late = [(lease[0], RESULT, b"late") for lease in leases]
    assert master.broker.finish(worker, late) == {client}
    assert master.events(client) == [(2, RESULT, b"late")], "nobody else had begun that one"
    assert master.broker.finish(other["member"], [(again[0], RESULT, b"r")]) == {client}


def test_the_client_of_a_job_says_how_often_it_may_be_tried() -> None:
    master = Master()
    _, welcome = master.join(CLIENT, max_attempts=1)
    _, other = master.join(WORKER)
    client, worker = welcome["member"], other["member"]
    master.broker.submit(client, jobs(1))
    [lease] = master.broker.take(worker, 1)
    master.broker.died(worker, lease[0], {"cause": "killed"})
    assert [kind for _, kind, _ in master.events(client)] == [LOST]
    with pytest.raises(UsageError, match="at least one attempt"):
        master.join(CLIENT, max_attempts=0)


def test_a_job_that_was_announced_is_not_announced_again() -> None:
    master = successor()
    master.back(WORKER, 9, holding=[held_by(55, 7, 1)])
    master.back(CLIENT, 7)
    master.broker.submit(7, jobs(1))
    assert master.broker.running(9, [55]) == set()
    assert RUNNING not in [kind for _, kind, _ in master.events(7)]


def test_a_job_is_not_run_again_whose_client_came_before_its_worker_and_submits_it_after() -> None:
    master = Master("second", begun=200.0)
    _, client = master.back(CLIENT, 5)
    _, worker = master.back(WORKER, 7, holding=[(70, (5, 1), 1)])
    master.broker.finish(worker["member"], [(70, RESULT, b"r")])
    master.broker.submit(client["member"], jobs(1))
    master.wait(defaults.HOLD_OFF_S + 1)
    assert master.broker.take(worker["member"], 1) == []
    assert master.events(client["member"]) == [(1, RESULT, b"r")]
