"""Bytes that nobody meant, sent to a master: `python -m tests.faults.fuzz --inputs 100000 --seed 1`.

Half of the inputs come from strangers, half from a peer that has proven the key and joined. Every so
often the master is asked whether it works, has forgotten the peer, and is no larger than before.

One thing is left out: the index of pickle's LONG_BINPUT ("r"), for which CPython's unpickler reserves
as much memory as it says. Who holds the key can make the master ask for more than there is.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import tempfile
import time
from typing import Any, Dict, List

import psutil

from cwmp import shortcut
from cwmp.children import Child, end_children, spawn, wait_ready
from cwmp.frames import header
from cwmp.messages import BLOB_STORE, JOB_QUEUE, RESULT, RESULT_QUEUE, this_side
from cwmp.transport import Wire, connect, dump_message, introduce
from tests.waiting import wait_until

KEY = b"0123456789abcdef" * 2
WORKER = {"slots": 2, "busy": 0, "done": 0, "rss_bytes": 0}
CHECK_EVERY = 500
WAIT_S = 30.0
GROWTH_BYTES = 64 << 20
ODD: List[Any] = [None, -1, 1 << 70, 0.5, float("nan"), "", "x" * 300, b"", (), [], {}, [[]], True, ("a", 1)]


class Target:
    """A master of our own, and what it was like before."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()
        self._children: List[Child] = []
        own = ["--unlisted", "--leash", "--authkey-file", "-"]
        spawn([], master=own, worker=[], outputs=(self.log.fileno(),) * 2, into=self._children)
        self.port = wait_ready(self._children, [KEY])
        self._process = psutil.Process(self._children[0].process.pid)
        self.check()
        self._before = self._size()
        self._rss = self._process.memory_info().rss

    def wire(self) -> Wire:
        return connect("127.0.0.1", self.port, KEY)

    def check(self) -> None:
        """One job goes through, and nothing else is there."""
        submit, collect, work, report = (self.wire() for _ in range(4))
        try:
            wait_until(lambda: self._is_empty(submit), timeout_s=WAIT_S)
            client = introduce(submit, this_side("client"))["member"]
            worker = introduce(work, this_side("worker", **WORKER))["member"]
            submit.call(JOB_QUEUE, "put", client, [(1, b"f", b"x")])
            [(ticket, *_)] = work.call(JOB_QUEUE, "take", worker, 1)
            report.call(RESULT_QUEUE, "report", worker, {"outcomes": [(ticket, RESULT, b"y")]})
            collect.request(RESULT_QUEUE, "collect", client, 0)
            assert collect.reply() == (1, [(1, RESULT, b"y")])
        finally:
            for wire in (submit, collect, work, report):
                wire.close()

    def check_size(self) -> None:
        """No thread or descriptor more than after the first job, and little memory."""
        wait_until(
            lambda: all(self._size()[what] <= count for what, count in self._before.items()),
            timeout_s=WAIT_S,
            describe=lambda: str(self._size()),
        )
        assert self._process.memory_info().rss < self._rss + GROWTH_BYTES

    def errors(self) -> str:
        """What the master logged of its own errors, from the first on."""
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        first = text.find("error of its own")
        return text[first : first + 5000] if first >= 0 else ""

    def close(self) -> None:
        end_children(self._children, os.getpid(), 0.0)
        self.log.close()

    def _size(self) -> Dict[str, int]:
        return {"threads": self._process.num_threads(), "descriptors": self._process.num_fds()}

    @staticmethod
    def _is_empty(wire: Wire) -> bool:
        """But for clients that are waited for, because they may come back."""
        status = wire.call(JOB_QUEUE, "status")
        here = [client for client in status["clients"] if not client["away"]]
        waiting = sum(client["queued"] for client in status["clients"])
        return not here and not status["workers"] and status["jobs"]["queued"] == waiting


class Stranger:
    """Has no key."""

    WORDS = (b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#", b"{sha256}", b"{md5}", b"GET / HTTP/1.0\r\n\r\n")

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._port, self._rng = target.port, rng

    def send(self) -> None:
        rng = self._rng
        body = rng.choice(self.WORDS) + rng.randbytes(rng.choice((0, 1, 16, 32, 40, 300)))
        data = rng.choice((header(len(body)), b"", header(rng.randrange(1 << 33)))) + body
        data = mutated(data, rng) if rng.random() < 0.5 else data
        sock = shortcut.connect("127.0.0.1", self._port, WAIT_S) if rng.random() < 0.5 else None
        with sock or socket.create_connection(("127.0.0.1", self._port), timeout=WAIT_S) as peer:
            try:
                peer.sendall(data)
            except OSError:
                pass  # it had heard enough

    def close(self) -> None:
        """It has nothing to close."""


class Insider:
    """Has the key, has joined, and lost its mind."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target, self._rng = target, rng
        self._wire: Any = None

    def send(self) -> None:
        rng = self._rng
        if self._wire is None or rng.random() < 0.02:
            self._come_anew()
        request = list(rng.choice(self._requests))
        if rng.random() < 0.6:
            twist(request, rng)
        body = dump_message(tuple(request))
        if rng.random() < 0.4:
            body = mutated(body, rng).replace(b"r", b"R")
        lies = rng.random() < 0.02
        try:
            self._wire.sock.sendall(header(rng.randrange(1 << 33) if lies else len(body)) + body)
            self._swallow()
        except OSError:
            lies = True
        if lies:
            self.close()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _come_anew(self) -> None:
        self.close()
        self._wire = wire = self._target.wire()
        welcome = introduce(wire, this_side("client"))
        client = welcome["member"]
        worker = introduce(wire, this_side("worker", **WORKER))["member"]
        wire.call(JOB_QUEUE, "put", client, [(number, b"f", b"x") for number in range(5)])
        ticket = wire.call(JOB_QUEUE, "take", worker, 3)[0][0]
        news = {"outcomes": [(ticket, 0, b"y")], "running": [ticket], "returned": [ticket], "unfit": [ticket]}
        back = {"cluster": welcome["name"], "nonce": welcome["nonce"], "holding": [(ticket, (client, 1), 1)]}
        late = {**back, "nonce": "another", "holding": [(1 << 40, (client, 2), 1), (1 << 41, (999, 2), 1)]}
        death = {"died": [(ticket, {"cause": "x"})], "limit": 9, "facts": {"busy": 1, "place": {}}}
        self._requests: List[List[Any]] = [
            [JOB_QUEUE, "put", [client, [(7, b"f", b"x"), (8, (b"f", (("a" * 64, 9),)), b"x")], False], {}],
            [JOB_QUEUE, "cancel", [client, [1, 2]], {}],
            [JOB_QUEUE, "take", [worker, 5], {}],
            [JOB_QUEUE, "alive", [client, [1, 2]], {}],
            [JOB_QUEUE, "join", [this_side("client")], {}],
            [JOB_QUEUE, "join", [this_side("client", member=client, back=back)], {}],
            [JOB_QUEUE, "join", [this_side("worker", **WORKER, member=worker, back=back)], {}],
            [JOB_QUEUE, "join", [this_side("worker", **WORKER, member=worker, back=late)], {}],
            [JOB_QUEUE, "status", [], {}],
            [JOB_QUEUE, "drain", [[10**9]], {}],
            [RESULT_QUEUE, "report", [worker, news, True], {}],
            [RESULT_QUEUE, "report", [worker, death], {}],
            [RESULT_QUEUE, "collect", [client, 0], {}],
            [RESULT_QUEUE, "leave", [], {}],
            [BLOB_STORE, "offer", [client, [("c1.x", "a" * 64, 5)], ["b"], ["c"], True], {}],
            [None, "get_methods", [("x", JOB_QUEUE)], {}],
            [None, "create", [JOB_QUEUE], {}],
        ]
        wire.sock.setblocking(False)

    def _swallow(self) -> None:
        """Read what has come, without waiting."""
        try:
            while self._wire.sock.recv(1 << 16):
                pass
            self.close()
        except BlockingIOError:
            pass


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same with some bytes changed, lost, added or said twice."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randrange(1, 9))
        piece = rng.choice((b"", rng.randbytes(end - at), rng.randbytes(4), data[at:end] * 2))
        data = data[:at] + piece + data[end:]
    return data


def twist(value: Any, rng: random.Random) -> None:
    """Put something odd in one place of a request, however deep."""
    holder, place = value, rng.randrange(len(value))
    while rng.random() < 0.8:
        inner = holder[place]
        if not isinstance(inner, (list, dict)) or not inner:
            break
        inner = holder[place] = inner.copy()
        holder, place = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    holder[place] = rng.choice(ODD)


def run(inputs: int, seed: int) -> None:
    """Send so many; AssertionError, or an error of the connection, where the master did not stand it."""
    rng = random.Random(seed)
    target = Target()
    peers = (Stranger(target, rng), Insider(target, rng))
    try:
        for number in range(inputs):
            rng.choice(peers).send()
            if number % CHECK_EVERY == CHECK_EVERY - 1 or number == inputs - 1:
                for peer in peers:
                    peer.close()
                target.check()
                assert not target.errors(), target.errors()
        target.check_size()
    except BaseException:
        print(f"seed {seed}, input {number}")
        raise
    finally:
        for peer in peers:
            peer.close()
        target.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Send bytes that nobody meant to a master.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args()
    begin = time.monotonic()
    run(args.inputs, args.seed)
    print(f"{args.inputs} inputs with seed {args.seed} in {time.monotonic() - begin:.0f} s: the master works")


if __name__ == "__main__":
    main()
