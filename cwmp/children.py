"""Starting and ending a master and its workers as child processes, for the launchers.

A child on a leash has a pipe as its standard input whose other end only this process has, so it
ends with us even when we are killed. Addresses and keys go through the same pipe.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import selectors
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from .errors import CwmpError

START_S = 60.0
"""How long a process may take until it is ready: imports from a busy network disk are slow."""

STOP_S = 3.0
"""How long a process that was told to stop may take, beyond its grace time, before it is killed."""

FOREIGN = ("CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE", "CWMP_MASTER", "CWMP_NAME")
"""Environment variables that tell of another cluster than the one being started."""

_MAIN = Path(__file__).resolve().with_name("__main__.py")


class Child:
    """A master or worker that we started, in a session of its own so that Ctrl-C is not for it."""

    def __init__(self, role: str, arguments: Sequence[str], output: int) -> None:
        self.role = role
        stdin, leash = os.pipe()
        ready, ready_in_child = os.pipe()
        self._leash: Optional[int] = leash
        self._ready: Optional[int] = ready
        _watch_forks()
        _open.add(self)
        command = [sys.executable, str(_MAIN), role, *arguments, "--ready-fd", str(ready_in_child)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=[ready_in_child],
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in FOREIGN},
            )
        except BaseException:
            self.let_go()
            raise
        finally:
            os.close(stdin)
            os.close(ready_in_child)

    def tell(self, *lines: bytes) -> None:
        """Send lines to its standard input."""
        assert self._leash is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: `wait_ready` tells why
            os.write(self._leash, b"".join(line + b"\n" for line in lines))

    def wait_ready(self, sign: str) -> str:
        """Its ready line, which must contain `sign`; any other line, or none, is a CwmpError."""
        assert self._ready is not None
        line = _read_line(self._ready, time.monotonic() + START_S)
        if sign in line:
            return line
        if line:
            raise CwmpError(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(timeout=1.0)
            raise CwmpError(f"the {self.role} ended with status {status} before it was ready")
        raise CwmpError(f"the {self.role} was not ready within {START_S:g} s")

    def reap(self, deadline: float) -> None:
        """Wait until it has ended, and from `deadline` on kill it."""
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def dismiss(self) -> str:
        """Close its standard input and wait until it has ended; returns the line that it then said."""
        leash, self._leash = self._leash, None
        if leash is not None:
            os.close(leash)
        line = "" if self._ready is None else _read_line(self._ready, math.inf)
        self.process.wait()
        self.let_go()
        return line

    def let_go(self) -> None:
        """Close our ends of its pipes: on a leash it ends now, otherwise it stays."""
        for descriptor in (self._leash, self._ready):
            if descriptor is not None:
                os.close(descriptor)
        self._leash = self._ready = None


def _read_line(descriptor: int, deadline: float) -> str:
    """One line without its end, or what came of it until the other side closed or time was up."""
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not data.endswith(b"\n"):
            left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            if not selector.select(left_s):
                break
            more = os.read(descriptor, 4096)
            if not more:
                break
            data += more
    return data.decode(errors="replace").strip()


def end_children(children: List[Child], owner: int, grace_s: float) -> None:
    """Stop the workers, then the master, and reap them. Does nothing in a forked copy of the owner."""
    if os.getpid() != owner:
        return
    try:
        for role in ("worker", "master"):
            ending = [child for child in children if child.role == role]
            for child in ending:
                child.process.terminate()
            deadline = time.monotonic() + grace_s + STOP_S
            for child in ending:
                child.reap(deadline)
    finally:
        for child in children:
            child.let_go()
        children.clear()


def spawn(
    slots: Sequence[int],
    *,
    master: Sequence[str],
    worker: Sequence[str],
    outputs: Tuple[int, int],
    into: List[Child],
) -> None:
    """Start a master and a worker for each of `slots`; each is in `into` as soon as it runs.

    `master` and `worker` are more arguments for them, `outputs` the descriptors that they print
    to. The workers start together with the master, to import while it does.
    """
    into.append(Child("master", ["--host", "127.0.0.1", "--port", "0", *master], outputs[0]))
    for count in slots:
        into.append(Child("worker", ["-", "--procs", str(count), *worker], outputs[1]))


def wait_ready(children: Sequence[Child], stdin: Sequence[bytes]) -> int:
    """Wait until what `spawn` started works together; returns the master's port.

    `stdin` is what each is told; the workers are told the address before. Raises CwmpError.
    """
    master, *workers = children
    master.tell(*stdin)
    match = re.search(r"listening on \S+:(\d+)", master.wait_ready("listening on "))
    assert match
    for worker in workers:
        worker.tell(b"127.0.0.1:" + match[1].encode(), *stdin)
    for worker in workers:
        worker.wait_ready("connected to ")
    return int(match[1])


_open: weakref.WeakSet[Child] = weakref.WeakSet()
"""Children whose pipes a forked copy of this process must not hold open."""


@functools.cache
def _watch_forks() -> None:
    """Have forked copies of this process let go of all leashes; once."""
    os.register_at_fork(after_in_child=_let_all_go)


def _let_all_go() -> None:
    for child in list(_open):
        child.let_go()
    _open.clear()
