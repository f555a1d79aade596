"""A client's session, for which the test plays the master, by hand."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any, Iterator, List, Tuple, Type

import pytest

from cwmp.errors import ConnectError
from cwmp.link import CANCELLED, MASTER_LOST, Event
from cwmp.membership import Joined, Membership
from cwmp.messages import BLOB_STORE, JOB_QUEUE, RESULT, RESULT_QUEUE
from cwmp.session import Session
from cwmp.transfers import Transfer
from cwmp.transport import RETURN, Wire, dump_message, load_message
from tests.waiting import wait_until

pytestmark = pytest.mark.core

IDENT = 7


class NoMemory(Wire):
    """A connection whose replies do not fit into memory."""

    def reply(self) -> Any:
        raise MemoryError


class Master(Membership):
    """The way to a master that is this test. `plan` is what comes of each attempt to get back."""

    def __init__(self, *plan: Any) -> None:
        super().__init__(self._nowhere, 60.0)
        self.plan = list(plan)
        self.paused: List[float] = []
        self.stays = 0  # pairs of connections made
        self.submit: Wire
        self.collect: Wire

    def _nowhere(self) -> Any:
        raise AssertionError("this test looks for no master")

    def join(self) -> Joined:
        return self._joined()

    def come_back(self, former: Joined) -> Joined:
        step = self.plan.pop(0) if self.plan else ConnectError("refused")
        if isinstance(step, BaseException):
            raise step
        self.hang_up()
        return self._joined(**step)

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    def hang_up(self) -> None:
        for wire in (self.submit, self.collect):  # looked up together: the session is quick to ask for others
            wire.close()

    def _joined(self, known: bool = False, taken: int = 0, kind: Type[Wire] = Wire) -> Joined:
        ours_submit, theirs_submit = socket.socketpair()
        ours_collect, theirs_collect = socket.socketpair()
        self.submit, self.collect = Wire(theirs_submit), Wire(theirs_collect)
        submit, collect = Wire(ours_submit), kind(ours_collect)
        for wire in (self.submit, self.collect, submit, collect):
            wire.expect_long_frames()
            wire.deadline(20)
        transfer = Transfer(("127.0.0.1", 1), b"key", {"member": IDENT})
        self.stays += 1
        store = {"path": None, "token": None, "limit": 1 << 30}
        return Joined(IDENT, "here:1", "played", "nonce", store, transfer, submit, collect, known, taken)

    def hear(self, wire: Wire, obj: str, method: str) -> Tuple[Any, ...]:
        """The arguments of the next request, which must be this one."""
        target, name, (ident, *args), _ = load_message(wire.recv_bytes())
        assert (target, name, ident) == (obj, method, IDENT)
        return tuple(args)

    def answer(self, value: Any) -> None:
        """The next reply to what was asked over the submit connection."""
        self.submit.send_bytes(dump_message((RETURN, value)))

    def tell(self, seen: int, *events: Event) -> None:
        """What there is to collect."""
        self.collect.send_bytes(dump_message((RETURN, (seen, list(events)))))


class Side:
    """A session with its dispatcher, and what its owner was told."""

    def __init__(self, master: Master) -> None:
        self.master = master
        self.told: List[Tuple[Any, int, Any]] = []
        self.session = Session(master, self.on_events)
        self.dispatcher = threading.Thread(target=self.session.dispatch)

    def on_events(self, events: List[Event]) -> None:
        while events:
            self.told.append(events.pop(0))

    def kinds(self) -> List[Tuple[Any, int]]:
        return [(token, kind) for token, kind, _ in self.told]


@contextlib.contextmanager
def playing(*plan: Any) -> Iterator[Side]:
    """A session whose way back goes by this plan; where it ends, there is no way back."""
    side = Side(Master(*plan))
    side.dispatcher.start()
    try:
        yield side
    finally:
        side.session.close()
        side.dispatcher.join(20)
        side.master.hang_up()
    assert not side.dispatcher.is_alive()


def submit(side: Side, *tokens: str) -> None:
    for token in tokens:
        side.session.submit(token, abs, (-1,), {})


def share(side: Side) -> None:
    """Have something large at the master: it says that it is there already."""
    handles: List[Any] = []
    thread = threading.Thread(target=lambda: handles.append(side.session.share(bytes(1 << 20))))
    thread.start()
    side.master.hear(side.master.submit, BLOB_STORE, "offer")
    side.master.answer([])
    thread.join(20)
    side.told.append(("handle", 0, handles[0]))  # it lives as long as the test


# --- large values, and a master that knows of nothing ---------------------------------------

ANEW: Any = {"known": False}
KNOWN_WITH_ONE_TAKEN: Any = {"known": True, "taken": 1}


def test_an_answer_about_large_values_that_was_lost_is_asked_for_again() -> None:
    with playing(ANEW, KNOWN_WITH_ONE_TAKEN) as side:
        share(side)
        side.master.hang_up()
        wait_until(lambda: side.master.stays == 2)
        [asked], _, _, prompt = side.master.hear(side.master.submit, BLOB_STORE, "offer")
        assert prompt
        side.master.hang_up()
        wait_until(lambda: side.master.stays == 3)
        [again], released, forgotten, prompt = side.master.hear(side.master.submit, BLOB_STORE, "offer")
        assert (again, released, forgotten, prompt) == (asked, [], [], True)
        side.master.answer([asked[1]])
        share(side)  # hears the question that is only asked where nothing is held


def test_a_master_lost_while_it_is_asked_about_large_values_ends_the_jobs() -> None:
    with playing(ANEW) as side:
        share(side)
        submit(side, "a", "b")
        side.master.hang_up()
        wait_until(lambda: side.master.stays == 2)
        side.master.hear(side.master.submit, BLOB_STORE, "offer")
        side.master.hang_up()
        side.dispatcher.join(20)
        assert sorted(side.kinds()[1:]) == [("a", MASTER_LOST), ("b", MASTER_LOST)]


# --- connections that break again at once ----------------------------------------------------


def test_a_reader_that_missed_a_pair_of_connections_hears_the_answers_over_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with playing(KNOWN_WITH_ONE_TAKEN, KNOWN_WITH_ONE_TAKEN) as side:
        submit(side, "a")
        session, mend = side.session, side.session._mend
        mended, go_on = threading.Event(), threading.Event()

        def slow_mend(stay: int, error: BaseException) -> Any:
            new = mend(stay, error)
            if threading.current_thread() is session._reader and new == 1:
                mended.set()
                go_on.wait(20)
            return new

        monkeypatch.setattr(session, "_mend", slow_mend)
        side.master.hang_up()
        assert mended.wait(20)
        side.master.collect.close()
        wait_until(lambda: session._stay == 2)
        go_on.set()
        withdrawn: List[int] = []
        thread = threading.Thread(target=lambda: withdrawn.extend(session.withdraw([1])))
        thread.start()
        assert side.master.hear(side.master.submit, JOB_QUEUE, "cancel") == ([1],)
        side.master.answer([1])
        thread.join(10)
        assert withdrawn == [1]


# --- what goes wrong at this side -----------------------------------------------------------


def test_an_event_that_its_owner_cannot_handle_keeps_no_other_from_being_handled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with playing() as side:

        def on_events(events: List[Event]) -> None:
            while events:
                event = events.pop(0)
                if event[0] == "a":
                    raise RuntimeError("no way to tell a")
                side.told.append(event)

        side.session._on_events = on_events
        submit(side, "a", "b", "c")
        side.master.tell(3, *((number, RESULT, b"") for number in (1, 2, 3)))
        wait_until(lambda: len(side.told) == 2)
        assert sorted(side.kinds()) == [("b", RESULT), ("c", RESULT)]
        assert "no way to tell a" in caplog.text


def test_what_fails_on_moving_in_ends_the_jobs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with playing(ANEW) as side:
        submit(side, "a")
        monkeypatch.setattr(side.session, "_settle_in", lambda joined: {}["lost track"])
        side.master.hang_up()
        side.dispatcher.join(20)
        [(token, kind, why)] = side.told
        assert (token, kind) == ("a", MASTER_LOST)
        assert "was left: 'lost track'" in why
        assert "Traceback" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dispatcher_that_breaks_ends_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with playing() as side:
        submit(side, "a")
        monkeypatch.setattr(side.session, "_on_away", lambda: {}["lost track"])
        side.master.collect.close()
        side.dispatcher.join(20)
        [(token, kind, why)] = side.told
        assert (token, kind) == ("a", MASTER_LOST)
        assert "this client broke down" in why
        side.session._reader.join(20)


# --- no memory ------------------------------------------------------------------------------


def test_without_memory_for_what_comes_it_goes_back_more_and_more_slowly_and_then_gives_up() -> None:
    with playing(*[{"kind": NoMemory}] * 20) as side:
        submit(side, "a")
        side.master.hang_up()
        side.dispatcher.join(20)
        [(token, kind, why)] = side.told
        assert (token, kind) == ("a", MASTER_LOST)
        assert "this program has no memory for what its jobs return" in why
        assert len(side.master.plan) == 10
        assert len(side.master.paused) == 9, "each time but the first"
        assert sum(side.master.paused[-3:]) > 5 * sum(side.master.paused[:3])


def test_no_memory_on_the_way_back_counts_as_well() -> None:
    with playing(*[MemoryError()] * 20) as side:
        submit(side, "a")
        side.master.hang_up()
        side.dispatcher.join(20)
        assert side.kinds() == [("a", MASTER_LOST)]
        assert "no memory" in side.told[0][2]
        assert len(side.master.plan) == 10


def test_what_comes_in_between_makes_it_patient_again() -> None:
    short = {"kind": NoMemory}
    with playing(*[short] * 8, ANEW, *[short] * 8, ANEW) as side:
        submit(side, "a", "b")
        for number in (1, 2):
            side.master.hang_up()
            wait_until(lambda number=number: side.master.stays == 1 + 9 * number)
            side.master.hear(side.master.submit, JOB_QUEUE, "put")
            side.master.hear(side.master.collect, RESULT_QUEUE, "collect")
            side.master.tell(1, (number, RESULT, b""))
            wait_until(lambda number=number: len(side.told) == number)
        assert side.kinds() == [("a", RESULT), ("b", RESULT)]


def test_who_leaves_is_told_that() -> None:
    with playing() as side:
        submit(side, "a")
    assert side.kinds() == [("a", CANCELLED)]
