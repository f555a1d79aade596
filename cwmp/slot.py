"""What runs inside a slot: take a job, call it, turn *anything* that happens into bytes.

A slot is a child process that its worker forked. Three descriptors join them.

Over a socket come messages with leases, one after the other. Through a pipe go the answers, one
frame a job, written before the next job begins: so nothing that is finished waits behind something
that is not, or dies with it. Through another pipe come *claims*, one byte a lease. A slot reads one
before it begins a job; the worker holds the reading end too, and takes a job back by reading its byte
first. Each byte is read by one side only, so it is always certain who has a job, also when a slot
has died.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import pickle
import signal
import struct
import sys
from collections import OrderedDict
from time import perf_counter
from typing import Any, Callable, List, Optional, Sequence, Set, Union

from . import defaults, payload, shared, shelf
from .errors import PayloadError, UsageError
from .frames import FrameReader, header
from .functions import open_function
from .loaded import Loaded
from .messages import ERROR, RESULT, Lease, Packed, Ref
from .payload import here
from .references import at_hand
from .surroundings import Surroundings

OUTCOME = struct.Struct("!QBf")  # ticket, kind, seconds that the job took; the data follow
_HEADED_OUTCOME = struct.Struct("!iQBf")  # the same behind the header of its frame
LARGE = 0x80  # added to the kind where the data are not the bytes of the value, but say where they are
_SMALL_BYTES = 1 << 20


class _Ended(Exception):
    """The worker is gone, or has no more use for this slot."""


class Shelf:
    """Where a slot finds large arguments, and puts large results once it was told where."""

    def __init__(self) -> None:
        self._directory = ""
        self._prefix: Optional[str] = None
        self._count = 0
        shared.load_with(self.fetch)

    def heed(self, directory: Optional[str] = None, prefix: str = "", forget: Sequence[str] = ()) -> None:
        """A word from the worker: where large values are, or which shared ones are needed no more."""
        if directory is not None:
            self._directory = directory
            self._prefix = f"{prefix}{os.getpid()}."
        shared.forget(forget)

    def fetch(self, ref: Ref, lasting: bool) -> Union[memoryview, shelf.Source]:
        """The bytes of a blob, read-only: other slots read them, too."""
        return shelf.view(self._directory, ref) if lasting else shelf.Source(self._directory, ref)

    def dump_result(self, value: Any) -> Packed:
        """A result, packed. Raises PayloadError, naming the type."""
        try:
            if self._prefix is None:
                return payload.dump_value(value, at_hand.classes)
            return payload.pack(value, lambda: _ResultLot(self), at_hand.classes)
        except PayloadError as error:
            raise PayloadError(f"the result of this job: {error}") from error.__cause__

    def put(self, pieces: Sequence[payload.Buffer]) -> Ref:
        """Write a large part of a result."""
        self._count += 1
        name = f"{self._prefix}{self._count}"
        try:
            return name, shelf.write(self._directory, name, pieces)
        except OSError as error:
            raise PayloadError(f"cannot be written to {self._directory}: {error.strerror}") from error

    def remove(self, refs: Sequence[Ref]) -> None:
        """A result that could not be pickled after all."""
        shelf.remove(self._directory, [name for name, _ in refs])


class _ResultLot:
    """The large parts of one result."""

    def __init__(self, place: Shelf) -> None:
        self._place = place
        self._refs: List[Ref] = []

    def keep(self, pieces: Sequence[payload.Buffer]) -> Ref:
        """Store these bytes as one blob."""
        self._refs.append(self._place.put(pieces))
        return self._refs[-1]

    def refer(self, handle: Any) -> Sequence[Ref]:
        """A handle has become its value before a job sees it."""
        raise UsageError("the handle of a shared value cannot be part of a result")

    def abandon(self) -> None:
        """It could not be pickled after all."""
        self._place.remove(self._refs)


class Slot:
    """The loop of one slot."""

    def __init__(self, jobs_fd: int, claims_fd: int, answers_fd: int) -> None:
        self._jobs_fd = jobs_fd
        self._claims_fd = claims_fd
        self._answers_fd = answers_fd
        self._surroundings = Surroundings()
        self._loaded: OrderedDict[Packed, Loaded] = OrderedDict()
        self._shelf = Shelf()
        self._claim_in_hand: Optional[int] = None  # read too early: it belongs to a later message
        self._is_copy = False
        os.register_at_fork(after_in_child=self._note_copy)

    def run(self) -> None:
        """Work until the worker hangs up."""
        reader = FrameReader()
        try:
            while True:
                data = os.read(self._jobs_fd, defaults.READ_BYTES)
                if not data:
                    return
                for frame in reader.feed(data):
                    generation, leases = pickle.loads(frame)
                    if generation is None:
                        self._shelf.heed(**leases)
                        continue
                    self._work(generation, leases)
                    self._surroundings.note_imports()
        except _Ended:
            return

    def _work(self, generation: int, leases: List[Lease]) -> None:
        """Run the jobs of one message, up to the first that was taken back."""
        began = perf_counter()
        last = leases[-1][0]
        for ticket, attempt, function, call in leases:
            if not self._claim(generation):
                self._surroundings.flush()
                return
            here.attempt = attempt
            try:
                target = self._load(function)
                if type(call) is bytes:
                    args, kwargs = pickle.loads(call)
                else:
                    args, kwargs = payload.load_call(call, self._shelf.fetch)
                value = target(*args, **kwargs)
                data = payload.pack_small(value) or self._shelf.dump_result(value)
                kind = RESULT
            except BaseException as error:
                data = payload.dump_error(error)
                kind = ERROR
            if self._is_copy:
                os._exit(0)  # the job forked, and this is the copy that came back from it
            ended = perf_counter()
            if ticket == last:
                self._surroundings.flush()  # this result may be the last thing that anybody waits for
            self._answer(ticket, kind, ended - began, data)
            began = ended
            target = args = kwargs = value = None  # type: ignore[assignment]
            self._surroundings.restore()

    def _claim(self, generation: int) -> bool:
        """Whether the next lease of this generation is ours; False: the worker took it back."""
        claim = self._claim_in_hand
        if claim is None:
            try:
                byte = os.read(self._claims_fd, 1)
            except BlockingIOError:
                return False
            if not byte:
                raise _Ended
            claim = byte[0]
        # After a take-back the generation changes: this claim may be for what comes next.
        self._claim_in_hand = None if claim == generation else claim
        return claim == generation

    def _load(self, data: Packed) -> Callable[..., Any]:
        """The function, with its place entered; loaded once if one copy can serve many jobs."""
        loaded = self._loaded.get(data)
        if loaded is None:
            loaded = Loaded(open_function(data), self._shelf.fetch)
            if self._surroundings.enter(loaded.function.place):
                self._loaded.clear()  # what was edited is imported anew
            self._loaded[data] = loaded
            if len(self._loaded) > defaults.LOADED_FUNCTIONS:
                self._loaded.popitem(last=False)
        else:
            self._surroundings.enter(loaded.function.place)
        return loaded.target()

    def _answer(self, ticket: int, kind: int, took_s: float, data: Packed) -> None:
        """Send one outcome to the worker."""
        if isinstance(data, tuple):
            kind |= LARGE
            data = pickle.dumps(data, 4)
        length = OUTCOME.size + len(data)
        if length <= _SMALL_BYTES:
            frame = _HEADED_OUTCOME.pack(length, ticket, kind, took_s) + data
        else:
            frame = header(length) + OUTCOME.pack(ticket, kind, took_s) + data
        try:
            sent = os.write(self._answers_fd, frame)
            while sent < len(frame):
                sent += os.write(self._answers_fd, memoryview(frame)[sent:])
        except OSError:
            raise _Ended from None

    def _note_copy(self) -> None:
        """In a process that a job forks."""
        self._is_copy = True


def main(jobs_fd: int, claims_fd: int, answers_fd: int) -> None:
    """Be a slot: to be called in a fresh child of the worker; ends the process."""
    status = 0
    try:
        _prepare(keep={jobs_fd, claims_fd, answers_fd})
        Slot(jobs_fd, claims_fd, answers_fd).run()
        atexit._run_exitfuncs()  # what jobs have registered
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more
        os._exit(status)


def _prepare(keep: Set[int]) -> None:
    """Leave nothing of the worker in this process but what a slot needs."""
    gc.set_threshold(700, 10, 10)  # Python's own, for what jobs make
    os.environ.pop("CWMP_AUTHKEY", None)  # not for jobs, nor for the programs that they start
    os.setpgid(0, 0)  # so that the children of a job end with the slot
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The worker decides when a slot ends: SLURM signals every process of a job, a terminal its
    # whole group. Handlers, unlike SIG_IGN, are not passed on to the programs that a job starts.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _carry_on)
    os.register_at_fork(after_in_child=_restore_signals)
    with contextlib.suppress(OSError):
        os.close(min(set(range(3, 7)) - keep))  # one to list them with, where the worker has none left
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):  # lines stay whole among others, also with PYTHONUNBUFFERED
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    faulthandler.enable(2)  # a crash in a library leaves the calls that led to it among our last words


def _carry_on(number: int, frame: Any) -> None:
    """A signal handler that does nothing."""


def _restore_signals() -> None:
    """In a process that a job forks: signals end it as they end any other."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
