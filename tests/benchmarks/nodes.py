"""Simulated nodes: `python -m tests.benchmarks.nodes COUNT SLOTS`, a driver process for `swarm`.

Each node is to the master what a real worker is: two proven connections, a standing `take`, reports in
natural batches, a beat every `BEAT_S`. Only the slots are missing: a job "runs" by waiting for its
time to pass, and its result is its own arguments, so that a client can tell whose result it got.

Commands come as lines of JSON on standard input, and each is answered with one on standard output:
`{"do": "join", "host": …, "port": …, "key": …}`, `{"do": "set", "job_s": …}` and `{"do": "tell"}`. At
the end of its input the driver ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from cwmp import defaults
from cwmp.errors import ConnectError
from cwmp.line import Line
from cwmp.loop import Loop
from cwmp.messages import JOB_QUEUE, RESULT, RESULT_QUEUE, Lease, Outcome, this_side
from cwmp.transport import Wire, connect, introduce

JOIN_S = 120.0  # how long nodes go on trying
RSS_BYTES = 64 << 20  # what every node says of itself


class Node:
    """One simulated agent with `slots` slots, driven by its driver's loop."""

    def __init__(self, driver: Driver, number: int, slots: int) -> None:
        self.next_beat = 0.0
        self.running: List[int] = []
        self.outcomes: List[Outcome] = []
        self._driver = driver
        self._slots = slots
        self._free = slots
        self._hello = {**this_side("worker", slots=slots), "node": f"simulated-{os.getpid()}-{number}"}
        self._ident = 0
        self._ready: Deque[Lease] = deque()
        self._received = 0
        self._limit = 0
        self._span = 0  # how many leases were still to come when `_limit` was set
        self._done = 0
        self._receipts_due = 0
        self._prompt_under_way = False

    @property
    def held(self) -> int:
        """Leases that have not been reported as done."""
        return self._received - self._done

    def join(self, host: str, port: int, key: bytes) -> None:
        """In a thread of its own, as long as it takes: connect, prove the key, introduce ourselves."""
        wires = [self._connect(host, port, key) for _ in ("take", "report")]
        self._ident = introduce(wires[0], self._hello)["member"]
        introduce(wires[1], {**self._hello, "member": self._ident})
        self._driver.loop.post(lambda: self._begin(wires))

    @staticmethod
    def _connect(host: str, port: int, key: bytes) -> Wire:
        deadline_s = time.monotonic() + JOIN_S
        pause_s = 0.05
        while True:
            try:
                return connect(host, port, key)
            except ConnectError:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)

    def _begin(self, wires: List[Wire]) -> None:
        loop, lost = self._driver.loop, self._driver.on_lost
        self._take_line = Line(loop, wires[0], self._on_leases, lost)
        self._report_line = Line(loop, wires[1], self._on_receipt, lost)
        self._limit = self._span = self._room()
        self._take_line.request(JOB_QUEUE, "take", self._ident, self._limit)
        self._driver.on_joined(self)

    def _on_leases(self, leases: List[Lease]) -> None:
        self._received += len(leases)
        job_s = self._driver.job_s
        if job_s <= 0:
            self.outcomes += [(ticket, RESULT, call) for ticket, _, _, call in leases]
        else:
            self._ready.extend(leases)
            self.start_jobs()
        self._driver.has_news.add(self)

    def start_jobs(self) -> None:
        """Let what waits run, as far as there are free slots."""
        count = min(self._free, len(self._ready))
        if count:
            self._free -= count
            batch = [self._ready.popleft() for _ in range(count)]
            self._driver.run(self, batch)

    def finish(self, batch: List[Lease]) -> None:
        """The time of these jobs has passed."""
        self._free += len(batch)
        self.outcomes += [(ticket, RESULT, call) for ticket, _, _, call in batch]
        self.start_jobs()

    def report(self, now: float) -> None:
        """What a worker's `_report` does: outcomes, starts, a new limit, a beat, one prompt at a time."""
        if self._prompt_under_way:
            return
        news: Dict[str, Any] = {}
        if self.outcomes:
            news["outcomes"] = self.outcomes[: defaults.MAX_BATCH_JOBS]
            self.outcomes = self.outcomes[defaults.MAX_BATCH_JOBS :]
            self._done += len(news["outcomes"])
        if self.running:
            news["running"], self.running = self.running, []
        if self._is_low():
            self._span = self._room()
            news["limit"] = self._limit = self._received + self._span
        if now >= self.next_beat:
            news["facts"] = {"busy": self._slots - self._free, "done": self._done, "rss_bytes": RSS_BYTES}
            self.next_beat = now + defaults.BEAT_S
        if not news:
            return
        prompt = len(news.get("outcomes", ())) != 1
        self._prompt_under_way = prompt
        self._receipts_due += 1
        self._report_line.request(RESULT_QUEUE, "report", self._ident, news, prompt)

    def _room(self) -> int:
        """What `Stock.room` says of slots that have measured such jobs."""
        depth = self._driver.depth
        if depth <= 1:
            return self._free - len(self._ready)
        return depth * self._slots - len(self._ready)

    def _is_low(self) -> bool:
        coming = self._limit - self._received
        if self._driver.depth <= 1:
            return self._room() != coming
        return coming < self._span // 2

    def _on_receipt(self, _: Any) -> None:
        self._receipts_due -= 1
        if not self._receipts_due:
            self._prompt_under_way = False
        if self.outcomes or self.running:
            self._driver.has_news.add(self)


class Driver:
    """The nodes of this process, and the one loop that they share."""

    def __init__(self, count: int, slots: int) -> None:
        self.loop = Loop()
        self.has_news: set[Node] = set()
        self.job_s = 0.0
        self.depth = defaults.MAX_STOCK
        """Jobs a slot that a worker asks for, see `Stock`."""
        self._nodes = [Node(self, number, slots) for number in range(count)]
        self._beats: Deque[Tuple[float, Node]] = deque()  # when who has joined is to beat, the next first
        self._due: Deque[Tuple[float, Node, List[Lease]]] = deque()  # jobs that run, in order of their end
        self._lost: Optional[str] = None
        self._began_s = 0.0
        self._input = b""
        self._ended = False
        self.loop.watch(0, self._on_input)

    def serve(self) -> None:
        """Until the end of the input."""
        while not self._ended:
            now = time.monotonic()
            due = [when for when in (self._next_end(), self._next_beat()) if when is not None]
            self.loop.poll(max(0.0, min(due) - now) if due else None)
            now = time.monotonic()
            self._end_jobs(now)
            while self._beats and self._beats[0][0] <= now:
                _, node = self._beats.popleft()
                self.has_news.add(node)
                self._beats.append((now + defaults.BEAT_S, node))
            nodes, self.has_news = self.has_news, set()
            for node in nodes:
                node.report(now)

    def on_joined(self, node: Node) -> None:
        """A node stands before its first beat; the answer to `join` follows when all do."""
        node.next_beat = time.monotonic() + defaults.BEAT_S
        self._beats.append((node.next_beat, node))
        if len(self._beats) == len(self._nodes):
            _answer({"joined": len(self._nodes), "join_s": time.monotonic() - self._began_s})

    def on_lost(self, reason: str) -> None:
        """A node's connection broke, which none should."""
        self._lost = self._lost or reason

    def run(self, node: Node, batch: List[Lease]) -> None:
        """These jobs begin now."""
        if self.job_s > defaults.NOTICE_S:
            node.running += [lease[0] for lease in batch]
        self._due.append((time.monotonic() + self.job_s, node, batch))

    def _end_jobs(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, node, batch = self._due.popleft()
            node.finish(batch)
            self.has_news.add(node)

    def _next_end(self) -> Optional[float]:
        return self._due[0][0] if self._due else None

    def _next_beat(self) -> Optional[float]:
        return self._beats[0][0] if self._beats else None

    def _on_input(self) -> None:
        data = os.read(0, 4096)
        self._ended = not data
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: Dict[str, Any]) -> None:
        if command["do"] == "join":
            self._join(command["host"], command["port"], command["key"].encode())
        elif command["do"] == "set":
            self.job_s = command["job_s"]
            horizon = defaults.HORIZON_S / self.job_s if self.job_s else defaults.MAX_STOCK
            self.depth = int(min(defaults.MAX_STOCK, max(1.0, horizon)))
            self.has_news |= set(self._nodes)
            _answer({})
        else:
            _answer({"held": sum(node.held for node in self._nodes), "lost": self._lost})

    def _join(self, host: str, port: int, key: bytes) -> None:
        """All at once: that is how an array of SLURM jobs starts."""
        self._began_s = time.monotonic()
        threading.stack_size(256 << 10)
        for node in self._nodes:
            threading.Thread(target=node.join, args=(host, port, key), daemon=True).start()


def _answer(answer: Dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Drive as many nodes as the command line says."""
    count, slots = int(sys.argv[1]), int(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    driver = Driver(count, slots)
    _answer({"ready": count})
    driver.serve()


if __name__ == "__main__":
    main()
