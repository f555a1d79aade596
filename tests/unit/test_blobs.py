"""Which large values stay, go or wait: by hand, and at random against a simple model."""

from __future__ import annotations

import random
from typing import Dict, List, Set, Tuple

import pytest

from cwmp.blobs import Pins, Store
from cwmp.errors import UsageError

pytestmark = pytest.mark.core


@pytest.fixture
def store() -> Store:
    return Store(limit=100)


def removed(store: Store) -> List[str]:
    """What the store has given up since the last time."""
    doomed, store.doomed = store.doomed, []
    store.check_invariants()
    return doomed


# --- by hand --------------------------------------------------------------------------------


def test_what_a_job_needs_stays(store: Store) -> None:
    assert store.arrive(1, "a", 60)
    pins = store.pin((("a", 60),))
    store.release(1, ["a"])
    assert store.arrive(1, "b", 60)
    assert removed(store) == []
    assert store.used == 120, "over the limit, but nothing can go"
    del pins
    assert removed(store) == ["a"]


def test_the_same_bytes_again_are_no_news(store: Store) -> None:
    assert store.arrive(1, "a", 10)
    assert not store.arrive(2, "a", 10)
    assert store.used == 10
    store.release(1, ["a"], forget=True)
    assert removed(store) == [], "the other client holds it"
    store.release(2, ["a"], forget=True)
    assert removed(store) == ["a"]


def test_idle_ones_stay_for_the_next_and_the_least_recently_used_goes_first(store: Store) -> None:
    for name in "abc":
        store.arrive(1, name, 8)
        store.release(1, [name])
    assert store.hold(2, "a", 8)
    store.release(2, ["a"])
    store.arrive(1, "d", 20)
    store.release(1, ["d"])
    assert removed(store) == ["b", "c", "a"]
    assert "d" in store


def test_of_idle_ones_there_are_at_most_a_quarter(store: Store) -> None:
    for name in "abcdef":
        store.arrive(1, name, 10)
        store.release(1, [name])
    assert removed(store) == ["a", "b", "c", "d"]


def test_pinning_something_that_is_not_here_pins_nothing(store: Store) -> None:
    store.arrive(1, "a", 10)
    assert store.pin((("a", 10), ("b", 10))) is None
    store.release(1, ["a"], forget=True)
    assert removed(store) == ["a"]


@pytest.mark.parametrize("size", [9, 11])
def test_a_size_that_cannot_be(store: Store, size: int) -> None:
    store.arrive(1, "a", 10)
    with pytest.raises(UsageError):
        store.pin((("a", size),))
    with pytest.raises(UsageError):
        store.hold(2, "a", size)
    store.check_invariants()


def test_results_go_when_they_are_needed_no_more(store: Store) -> None:
    pins = store.bring_result(("w1.2.3", 40))
    assert not store.flooded
    others = store.bring_result(("w1.2.4", 40))
    assert store.flooded
    del pins
    assert removed(store) == ["w1.2.3"]
    assert not store.flooded
    assert store.forgotten == [], "nobody has a copy of it"
    del others
    assert removed(store) == ["w1.2.4"]


def test_a_result_that_was_brought_before(store: Store) -> None:
    pins = store.bring_result(("w1.2.3", 40))
    with pytest.raises(UsageError):
        store.bring_result(("w1.2.3", 40))
    assert pins is not None


def test_what_is_shared_goes_with_the_last_who_needs_it(store: Store) -> None:
    store.arrive(1, "a", 10)
    pins = store.pin((("a", 10),))
    store.release(1, ["a"], forget=True)
    assert removed(store) == []
    del pins
    assert removed(store) == ["a"]
    assert store.forgotten == ["a"]


def test_room_is_granted_in_order_and_as_it_comes(store: Store) -> None:
    store.arrive(1, "a", 60)
    assert store.granted() == [(1, 60)]
    store.arrive(1, "b", 60)
    store.arrive(2, "c", 10)
    assert store.granted() == []
    assert store.restless
    store.release(1, ["a"])
    assert store.granted() == [(1, 60), (2, 10)]
    assert removed(store) == ["a"]
    assert not store.restless


def test_a_client_that_leaves_holds_nothing_and_waits_for_nothing(store: Store) -> None:
    store.arrive(1, "a", 20)
    store.arrive(1, "b", 100)
    store.leave(1)
    assert store.granted() == [(1, 20)] or store.granted() == []
    assert removed(store) == ["a", "b"] or store.used <= 100


def test_a_node_forgets(store: Store) -> None:
    store.arrive(0, "a", 10)
    store.release(0, ["a"])
    store.arrive(0, "b", 10)
    pins = store.pin((("b", 10),))
    store.release(0, ["b"])
    for name in ("a", "b", "never"):
        store.forget(name)
    assert removed(store) == ["a"]
    del pins
    assert removed(store) == ["b"]


# --- at random ------------------------------------------------------------------------------


STEPS = ["arrive", "arrive", "hold", "pin", "unpin", "release", "forget", "leave", "result"]


class Model:
    """What may be needed, kept in the simplest way."""

    def __init__(self) -> None:
        self.sizes: Dict[str, int] = {}
        self.held: Dict[int, Set[str]] = {1: set(), 2: set(), 3: set()}
        self.pins: List[Tuple[Tuple[Tuple[str, int], ...], Pins]] = []

    def needed(self) -> Set[str]:
        """What must be in the store."""
        names = {name for names in self.held.values() for name in names}
        return names | {name for refs, _ in self.pins for name, _ in refs}


@pytest.mark.parametrize("seed", range(30))
def test_what_is_needed_is_there_and_all_else_fits(seed: int) -> None:
    choose = random.Random(seed)
    store, model = Store(limit=200), Model()
    present: Set[str] = set()
    waiting: List[Tuple[int, int]] = []
    for _ in range(600):
        client, name = choose.choice([1, 2, 3]), f"b{choose.randrange(12)}"
        size = 5 + 3 * int(name[1:])
        step = choose.choice(STEPS)
        if step == "arrive":
            assert store.arrive(client, name, size) == (name not in present)
            present.add(name)
            model.held[client].add(name)
            waiting.append((client, size))
        elif step == "hold" and store.hold(client, name, size):
            model.held[client].add(name)
        elif step == "pin":
            refs = ((name, size), ("b1", 8))
            pins = store.pin(refs)
            assert (pins is None) == (not {name, "b1"} <= present)
            if pins is not None:
                model.pins.append((refs, pins))
            del pins
        elif step == "unpin" and model.pins:
            model.pins.pop(choose.randrange(len(model.pins)))
        elif step in ("release", "forget"):
            store.release(client, [name], forget=step == "forget")
            model.held[client].discard(name)
        elif step == "leave" and choose.random() < 0.2:
            store.leave(client)
            model.held[client].clear()
            waiting = [entry for entry in waiting if entry[0] != client]
        elif step == "result":
            result = f"w1.{_}.1"
            model.pins.append((((result, 7),), store.bring_result((result, 7))))
            present.add(result)
        gone = removed(store)
        present -= set(gone)
        assert not set(gone) & model.needed(), f"seed {seed}: removed what is needed"
        assert all(name in store for name in model.needed())
        assert len(store) == len(present)
        granted = store.granted()
        assert granted == waiting[: len(granted)]
        waiting = waiting[len(granted) :]
        assert not waiting or store.used > store.limit, "who waits has a reason"
