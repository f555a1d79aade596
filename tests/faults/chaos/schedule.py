"""What is done to the cluster and when: a function of the seed, so that what failed can be done again."""

from __future__ import annotations

import random
from typing import Callable, Collection, Dict, Iterator, List, NamedTuple, Tuple

KINDS = ("slots", "workers", "stops", "joins", "master", "links", "clients")
EVERY_S = {
    "slots": 3.0,
    "workers": 25.0,
    "stops": 8.0,
    "joins": 30.0,
    "master": 45.0,
    "links": 10.0,
    "clients": 40.0,
}
"""Seconds from one action of a kind to the next, give or take a half.

With eight slots and jobs of 2 s at most, one in some thousand jobs has its slot killed three times.
"""
FIRST_S = 5.0
"""The first action comes no sooner, and the last one so long before the end."""
REST_S = 2.0
"""A moment in which nothing happens to what has just been mended."""


class Action(NamedTuple):
    """At `at_s`, do `act` to `target` (such as "worker 2"), and undo it `length_s` later.

    `pick` says which of its slots is meant: that part of them comes before it.
    """

    at_s: float
    kind: str
    act: str
    target: str
    length_s: float
    pick: float

    def __str__(self) -> str:
        after = f" for {self.length_s:.1f} s" if self.length_s else ""
        return f"{self.act} {self.target}{after}"


def schedule(
    seed: int, minutes: float, *, clients: int = 2, workers: int = 4, only: Collection[str] = KINDS
) -> List[Action]:
    """The actions of a run, in order. What each kind would do does not depend on which others there are."""
    every: List[Action] = []
    for kind in KINDS:
        if kind in only:
            every += _of_kind(kind, random.Random(f"{seed} {kind}"), minutes * 60, clients, workers)
    return _without_clashes(sorted(every), workers)


def _of_kind(
    kind: str, chance: random.Random, length_s: float, clients: int, workers: int
) -> Iterator[Action]:
    at_s = FIRST_S
    while True:
        at_s += EVERY_S[kind] * chance.uniform(0.5, 1.5)
        act, target, for_s = _CHOICES[kind](chance, clients, workers)
        if at_s + for_s > length_s - FIRST_S:
            return
        yield Action(round(at_s, 2), kind, act, target, round(for_s, 2), int(chance.random() * 1000) / 1000)


Choice = Tuple[str, str, float]


def _worker(chance: random.Random, workers: int) -> str:
    return f"worker {chance.randrange(workers)}"


def _stop(chance: random.Random, clients: int, workers: int) -> Choice:
    role = chance.choice(["worker", "worker", "slot", "slot", "client", "master"])
    if role == "master":
        return "stop", "master", chance.uniform(1, 12)
    if role == "client":
        return "stop", f"client {chance.randrange(clients)}", chance.uniform(1, 15)
    worker = _worker(chance, workers)
    if role == "slot":
        return "stop a slot of", worker, chance.uniform(1, 10)
    is_lost = chance.random() < 0.3  # its jobs go to others meanwhile
    return "stop", worker, chance.uniform(18, 24) if is_lost else chance.uniform(1, 8)


def _link(chance: random.Random, clients: int, workers: int) -> Choice:
    target = _worker(chance, workers) if chance.random() < 0.6 else f"client {chance.randrange(clients)}"
    if chance.random() < 0.5:
        return "drop the connections of", target, 0.0
    is_long = chance.random() < 0.3
    return "freeze the link of", target, chance.uniform(6, 20) if is_long else chance.uniform(1, 6)


_CHOICES: Dict[str, Callable[[random.Random, int, int], Choice]] = {
    "slots": lambda chance, clients, workers: ("kill a slot of", _worker(chance, workers), 0.0),
    "workers": lambda chance, clients, workers: ("kill", _worker(chance, workers), chance.uniform(0.1, 8)),
    "stops": _stop,
    "joins": lambda chance, clients, workers: ("let go", _worker(chance, workers), chance.uniform(1, 8)),
    "master": lambda chance, clients, workers: ("kill", "master", chance.uniform(5, 20)),
    "links": _link,
    "clients": lambda chance, clients, workers: (
        "kill", f"client {chance.randrange(clients)}", chance.uniform(0.1, 5)
    ),
}  # fmt: skip


def _without_clashes(actions: List[Action], workers: int) -> List[Action]:
    """Leave out what would happen to something that is not there, or would leave too few workers."""
    kept: List[Action] = []
    busy_until: Dict[str, float] = {}
    for action in actions:
        busy = {target for target, until_s in busy_until.items() if until_s > action.at_s}
        crippled = sum(target.startswith("worker") for target in busy)
        takes_out = action.target.startswith("worker") and "slot" not in action.act and action.length_s > 0
        if action.target in busy or (takes_out and crippled >= max(1, workers // 2)):
            continue
        kept.append(action)
        if action.length_s:
            busy_until[action.target] = action.at_s + action.length_s + REST_S
    return kept
