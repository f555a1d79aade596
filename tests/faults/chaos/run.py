"""One run: do what the schedule says, mend everything, and have it judged."""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import psutil

from tests.faults.chaos.cluster import Cluster
from tests.faults.chaos.judge import Blocked, Verdict, judge
from tests.faults.chaos.schedule import Action

FINISH_S = 120.0
"""So long after everything is mended the programs may take to get all outcomes."""
RECOVERY_S = 10.0
"""So long after its end a fault may keep outcomes from a client: the promise for a master that is back."""
_LOOK_S = 0.5

Undo = Callable[[], None]


class Run:
    """A cluster, and what has been done to it so far. `say` gets a line for each thing that happens."""

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._say = say
        self._begun_s = time.monotonic()
        self._blocked: List[Blocked] = []
        self._undo: List[Tuple[float, int, str, Undo]] = []  # when, in which order, what, how: a heap
        self._order = itertools.count()

    def carry_out(self, actions: Sequence[Action], length_s: float) -> None:
        """Do all of it, each at its time, and mend what is then still broken."""
        for action in actions:
            self._wait_until(action.at_s)
            self._do(action)
        self._wait_until(length_s)
        while self._undo:
            self._undo_next()

    def finish(self) -> Verdict:
        """Let the programs end, end the cluster, and see what came of it all."""
        self._tell("all mended; the programs are to end")
        self._cluster.finish(FINISH_S)
        histories, runs = self._cluster.histories(), self._cluster.runs()
        verdict = judge(histories, runs, self._blocked, self._cluster.left(), now_s=time.monotonic())
        verdict.problems += self._cluster.problems
        return verdict

    def _wait_until(self, at_s: float) -> None:
        """Let that time come; undo what is to be undone until then."""
        while True:
            left_s = at_s - self._now_s()
            next_undo_s = self._undo[0][0] - self._now_s() if self._undo else left_s
            if next_undo_s <= min(0.0, left_s) and self._undo:
                self._undo_next()
                continue
            if left_s <= 0:
                return
            time.sleep(max(0.0, min(left_s, next_undo_s, _LOOK_S)))
            for label in self._cluster.replace_ended():
                self._tell(f"{label} has ended by itself: replaced")

    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def _tell(self, text: str) -> None:
        self._say(f"{self._now_s():7.1f}  {text}")

    def _do(self, action: Action) -> None:
        undo, mended = _ACTS[action.act](self._cluster, action)
        self._tell(str(action))
        self.done[f"{action.act} {action.target.split()[0]}"] += 1
        if undo is not None:
            due = (action.at_s + action.length_s, next(self._order), f"{mended} {action.target}", undo)
            heapq.heappush(self._undo, due)
        whom = self._cluster.members[action.target]
        if whom.role != "worker":
            from_s = self._begun_s + action.at_s
            client = whom.label if whom.role == "client" else None
            self._blocked.append(Blocked(from_s, from_s + action.length_s + RECOVERY_S, client))

    def _undo_next(self) -> None:
        _, _, what, undo = heapq.heappop(self._undo)
        undo()
        self._tell(what)


# --- what each act is, how it is undone, and what that is called ------------------------------

Done = Tuple[Optional[Undo], str]


def _kill(cluster: Cluster, action: Action) -> Done:
    cluster.kill(action.target)
    return lambda: cluster.start(action.target), "a new"


def _let_go(cluster: Cluster, action: Action) -> Done:
    cluster.let_go(action.target)
    return lambda: cluster.start(action.target), "a new"


def _stop(cluster: Cluster, action: Action) -> Done:
    process = cluster.members[action.target].holder
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT), "continue"


def _kill_slot(cluster: Cluster, action: Action) -> Done:
    _signal(cluster.members[action.target].slot(action.pick), signal.SIGKILL)
    return None, ""


def _stop_slot(cluster: Cluster, action: Action) -> Done:
    slot = cluster.members[action.target].slot(action.pick)
    _signal(slot, signal.SIGSTOP)
    return lambda: _signal(slot, signal.SIGCONT), "continue the slot of"


def _signal(process: Optional[psutil.Process], number: int) -> None:
    """A slot may be gone in the moment in which we want it."""
    try:
        if process is not None:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def _freeze(cluster: Cluster, action: Action) -> Done:
    link = cluster.members[action.target].link
    assert link is not None
    link.freeze()
    return link.thaw, "thaw the link of"


def _drop(cluster: Cluster, action: Action) -> Done:
    link = cluster.members[action.target].link
    assert link is not None
    link.drop()
    return None, ""


_ACTS: Dict[str, Callable[[Cluster, Action], Done]] = {
    "kill": _kill,
    "let go": _let_go,
    "stop": _stop,
    "kill a slot of": _kill_slot,
    "stop a slot of": _stop_slot,
    "freeze the link of": _freeze,
    "drop the connections of": _drop,
}


def run(
    actions: Sequence[Action],
    length_s: float,
    directory: Path,
    *,
    clients: int,
    workers: int,
    say: Callable[[str], None],
) -> Tuple[Verdict, Counter[str]]:
    """Do all that to a cluster that lives in an empty directory; returns what came of it, and the acts."""
    with Cluster(directory, clients, workers) as cluster:
        this = Run(cluster, say)
        this.carry_out(actions, length_s)
        return this.finish(), this.done
