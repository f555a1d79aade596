"""The slots of a worker: start, feed, watch, kill, refill."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import defaults, descriptors, gpus, shelf, slot
from .deaths import Death, cause_of, was_killed
from .echo import Echo
from .frames import FrameReader
from .guardian import Guardian, die_with_parent
from .loop import READ, Channel, Loop, Poller
from .messages import Lease, Outcome, Packed
from .oom import Watch
from .transport import load_message

_HUNG_UP_S = 0.5  # from a slot's hang-up to its death; later it is killed
_STALLED_S = 1.0  # what slots have printed may wait so long to be read when the pool is closed
_AGAIN_S = 1.0  # after a slot could not be started
_YOUNG_S = 1.0  # a slot that dies younger than this without a job is not refilled at once


class Answers(NamedTuple):
    """Jobs that a slot has ended, and the seconds that they took together."""

    slot: int
    outcomes: List[Outcome]
    busy_s: float


class _Process:
    """One child process and the worker's ends of what joins it to the worker."""

    def __init__(self, pid: int, channel: Channel, claims: Tuple[int, int], answers_in: int) -> None:
        self.pid = pid
        self.channel = channel  # for messages with leases
        self.claims_in, self.claims_out = claims
        self.answers_in = answers_in
        self.reader = FrameReader()
        self.generation = 0
        self.born = time.monotonic()
        self.hung_up: Optional[float] = None  # when its socket was closed
        self.given_up = False  # we killed it for that
        self.worked = False
        self.results = 0  # large parts of results that it has announced

    def close(self) -> None:
        self.channel.close()
        for fd in (self.claims_in, self.claims_out, self.answers_in):
            os.close(fd)


class Pool:
    """`size` slots, each a child process of this one, which must have no other thread.

    `answers()` and `deaths()` tell what has happened since the last call; `fileno()` is readable
    when there are answers, so that who watches the pool decides when to look at them. `on_hang_up` is
    called when a slot has closed its connection: `reap` soon, and again until it is dead. `say` gets a line
    when a slot cannot be started, and when one can again.
    """

    def __init__(
        self, size: int, loop: Loop, on_hang_up: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self.size = size
        self._limit = descriptors.raise_limit()  # what jobs get: each slot needs some of ours
        self._loop = loop
        self._say = say
        self._in_trouble = False  # a slot could not be started, and we have said so
        self._note_hang_up = on_hang_up
        self._slots: List[Optional[_Process]] = [None] * size
        self._poller = Poller()  # of what the slots write; a loop can watch it as a whole
        self._slot_of: Dict[int, int] = {}  # by descriptor in `_poller`
        self._deaths: List[Tuple[int, Death]] = []
        self._last_words: List[Answers] = []  # answers of slots that have died
        self._refill_at: Dict[int, float] = dict.fromkeys(range(size), 0.0)
        self.guardian = Guardian()
        self._echo = Echo(size, loop, self._has_answered)
        self._oom = Watch.of_this_process()
        self._place: Dict[str, Any] = {}  # where large values are, as every slot is told

    def refill(self, now: float) -> List[int]:
        """Start the slots that are missing and due; returns their indexes. To be called every few seconds."""
        self._oom.look(now)
        due = [index for index, at in self._refill_at.items() if at <= now]
        started = []
        for index in due:
            try:
                self._start(index)
            except OSError as error:  # no processes, descriptors or memory left
                self._refill_at[index] = now + _AGAIN_S
                if not self._in_trouble:
                    self._say(f"cannot start slot {index}: {error.strerror}; trying every {_AGAIN_S:g} s")
                self._in_trouble = True
                continue
            del self._refill_at[index]
            started.append(index)
        if started and self._in_trouble:
            self._in_trouble = False
            self._say(f"slot {started[0]} could be started again")
        return started

    def next_refill(self) -> Optional[float]:
        """When a missing slot is due; None when none is missing."""
        return min(self._refill_at.values(), default=None)

    def feed(self, index: int, leases: List[Lease]) -> None:
        """Send a slot these leases, and as many claims."""
        process = self._slots[index]
        if process is None:
            raise LookupError(f"slot {index} is not up")
        process.worked = True
        # Claims first: a slot that reads the message must find them.
        os.write(process.claims_out, bytes([process.generation]) * len(leases))
        process.channel.send(pickle.dumps((process.generation, leases), 4))

    def use_shelf(self, directory: str, prefix: str) -> None:
        """Have slots find large values in `directory`, and put theirs there under `prefix`..."""
        self._place = {"directory": directory, "prefix": prefix}
        self.tell(self._place)

    def tell(self, word: Dict[str, Any]) -> None:
        """Pass a word on to every slot, see `slot.Shelf.heed`."""
        frame = pickle.dumps((None, word), 4)
        for process in self._slots:
            if process is not None:
                process.channel.send(frame)

    def take_back(self, index: int) -> int:
        """Recover what a slot has not begun; returns how many of the last leases that is."""
        process = self._slots[index]
        if process is None:
            return 0
        count = _read_claims(process.claims_in)
        if count:
            process.generation = (process.generation + 1) % 256
        return count

    def fileno(self) -> int:
        """A descriptor that is readable while slots have answers."""
        return int(self._poller.fileno())

    def answers(self) -> List[Answers]:
        """What the slots have answered, each in the order in which it was fed."""
        found, self._last_words = self._last_words, []
        for fd, _ in self._poller.poll(0):
            index = self._slot_of[fd]
            process = self._slots[index]
            if process is not None:
                answers = self._read_answers(index, process)
                if answers.outcomes:
                    found.append(answers)
        return found

    def reap(self) -> None:
        """Collect the children that have ended."""
        for index, process in enumerate(self._slots):
            if process is None:
                continue
            if process.hung_up is not None and time.monotonic() - process.hung_up > _HUNG_UP_S:
                process.given_up = True
                os.kill(process.pid, signal.SIGKILL)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                self._bury(index, process, status, usage.ru_maxrss)

    def deaths(self) -> List[Tuple[int, Death]]:
        """(slot, death) of the slots that have died, to be asked for after their `answers`."""
        deaths, self._deaths = self._deaths, []
        return deaths

    def hung_up(self) -> bool:
        """Whether a slot has closed its socket and still lives: `reap` again soon."""
        return any(process is not None and process.hung_up is not None for process in self._slots)

    def rss_bytes(self) -> int:
        """Resident memory of this process and its slots, as far as that can be found out."""
        total = 0
        for pid in (os.getpid(), *[process.pid for process in self._slots if process is not None]):
            try:
                import psutil  # costs 20 ms, which a worker that has just started has no time for

                total += psutil.Process(pid).memory_info().rss
            except Exception:
                pass  # it has just died, or there is no descriptor left to look with
        return total

    def replace(self, index: int) -> None:
        """End a slot that has begun no job, and does not begin any; `reap` and `refill` do the rest."""
        process = self._slots[index]
        if process is not None:
            _kill_group(process.pid)

    def kill(self) -> None:
        """End all slots at once, with what their jobs have started."""
        for process in self._slots:
            if process is not None:
                _kill_group(process.pid)

    def close(self, patience_s: float) -> None:
        """Let idle slots exit by themselves, kill what is left after `patience_s`."""
        left = [process for process in self._slots if process is not None]
        for process in left:
            self._stop_listening(process)
            process.close()
        deadline = time.monotonic() + patience_s
        while left and time.monotonic() < deadline:
            left = [process for process in left if not os.waitpid(process.pid, os.WNOHANG)[0]]
            self._echo.pass_on()  # a slot may have much to say at its end
            time.sleep(0.002 if left else 0)
        for process in left:
            _kill_group(process.pid)
            os.waitpid(process.pid, 0)
        self._slots = [None] * self.size
        self._poller.close()
        self.guardian.dismiss()
        self._echo.close(_STALLED_S)

    # --- one slot ----------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        """Fork a slot."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            claims, answers = _pipe(undo), _pipe(undo)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # or the child would write it a second time
            parent = os.getpid()
            pid = os.fork()
            undo.pop_all()
        if pid == 0:
            die_with_parent(parent)
            self._echo.become_stderr(index)
            descriptors.set_limit(self._limit)
            gpus.keep_share(index, self.size)
            slot.main(theirs.detach(), claims[0], answers[1])
        theirs.close()
        os.close(answers[1])
        self.guardian.watch(pid)
        channel = Channel(self._loop, ours, lambda _: None, lambda _: self._on_hang_up(index))
        self._poller.register(answers[0], READ)
        self._slot_of[answers[0]] = index
        self._slots[index] = _Process(pid, channel, claims, answers[0])
        if self._place:
            channel.send(pickle.dumps((None, self._place), 4))

    def _has_answered(self, index: int) -> bool:
        """Whether an answer of that slot is waiting to be read."""
        process = self._slots[index]
        return process is not None and any(fd == process.answers_in for fd, _ in self._poller.poll(0))

    def _read_answers(self, index: int, process: _Process) -> Answers:
        """What a slot has written so far."""
        answers = _read_answers(index, process)
        if answers.outcomes:
            self._echo.job_ended(index)
        return answers

    def _remove_unannounced(self, process: _Process) -> None:
        """Remove what a slot had written of a result when it died."""
        prefix = f"{self._place['prefix']}{process.pid}."
        begun = shelf.begun_by(self._place["directory"], prefix)
        left = [name for name in begun if int(name[len(prefix) :]) > process.results]
        shelf.remove(self._place["directory"], left)

    def _stop_listening(self, process: _Process) -> None:
        self._poller.unregister(process.answers_in)
        del self._slot_of[process.answers_in]

    def _on_hang_up(self, index: int) -> None:
        """The slot closed its socket: it is dying, or a job has closed it."""
        process = self._slots[index]
        if process is not None:
            process.hung_up = time.monotonic()
            self._note_hang_up()

    def _bury(self, index: int, process: _Process, status: int, peak_rss: int) -> None:
        """Note a death, and keep what the slot had answered before it."""
        self._last_words.append(self._read_answers(index, process))
        self._slots[index] = None
        self._stop_listening(process)
        unclaimed = _read_claims(process.claims_in)
        process.close()
        _kill_group(process.pid, leader_too=False)  # what its jobs have left behind
        if self._place:
            self._remove_unannounced(process)
        self.guardian.release(process.pid)
        cause = cause_of(
            process.pid,
            status,
            peak_rss,
            given_up=process.given_up,
            oom=self._oom.verdict() if was_killed(status) and not process.given_up else (False, ""),
            printed=self._echo.last_words(index),
        )
        self._deaths.append((index, Death(unclaimed, cause)))
        now = time.monotonic()
        idle_and_young = not process.worked and now - process.born < _YOUNG_S
        self._refill_at[index] = now + (_YOUNG_S if idle_and_young else 0.0)


def _pipe(undo: contextlib.ExitStack) -> Tuple[int, int]:
    """A pipe that does not block its reader, and that `undo` closes."""
    reading, writing = os.pipe()
    undo.callback(os.close, reading)
    undo.callback(os.close, writing)
    os.set_blocking(reading, False)
    return reading, writing


def _unpacked(process: _Process, data: bytes) -> Packed:
    """What a slot says of a large result."""
    layout, refs = load_message(data)
    process.results += len(refs)
    return layout, tuple(refs)


def _read_answers(index: int, process: _Process) -> Answers:
    """What a slot has written so far."""
    unpack, size = slot.OUTCOME.unpack_from, slot.OUTCOME.size
    outcomes: List[Outcome] = []
    busy_s = 0.0
    while True:
        try:
            stream = os.read(process.answers_in, defaults.READ_BYTES)
        except BlockingIOError:
            break
        for frame in process.reader.feed(stream):
            ticket, kind, took_s = unpack(frame)
            busy_s += took_s
            data: Packed = frame[size:]
            if kind >= slot.LARGE:
                kind -= slot.LARGE
                data = _unpacked(process, frame[size:])
            outcomes.append((ticket, kind, data))
        if len(stream) < defaults.READ_BYTES:
            break
    return Answers(index, outcomes, busy_s)


def _read_claims(fd: int) -> int:
    """Take all claims out of a pipe; returns how many there were."""
    count = 0
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return count
        count += len(data)


def _kill_group(pid: int, leader_too: bool = True) -> None:
    """Kill a slot and what its jobs have started; the slot itself only while it is not reaped."""
    calls = [os.killpg, os.kill] if leader_too else [os.killpg]  # one just forked leads no group yet
    for kill in calls:
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            pass  # gone already
