"""A client's large values: brought to the master once, announced, held while they may be used again.

What a client has brought it *holds* for some seconds, so that the same bytes cost nothing when they
are submitted again; it recognises them by a sample and then by comparing them with what it brought.
`submit` waits while more than `WINDOW_BYTES` have found no room at the master yet.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from . import defaults, packing, shelf
from .carriers import Arrival, carrier_to
from .errors import PayloadError, UsageError
from .messages import Packed, Ref
from .shared import Shared
from .transfers import Transfer

log = logging.getLogger("cwmp")

_SAMPLES = 8
_SAMPLE_BYTES = 64

Offer = Callable[..., None]
"""`Session._offer`: tells the master what has arrived, what this client holds and shares no longer."""


class _Held:
    """A blob that this client holds."""

    __slots__ = ("busy", "forget", "mapped", "sample", "shares", "size", "used")

    def __init__(self, size: int, sample: Any, mapped: Optional[memoryview]) -> None:
        self.size = size
        self.sample = sample
        self.mapped = mapped  # made when somebody wants to compare
        self.busy = 0  # submits under way that refer to it
        self.shares = 0  # handles
        self.forget = False  # the last handle was dropped: the master need not keep it either
        self.used = time.monotonic()

    @property
    def free(self) -> bool:
        """Whether nothing here refers to it."""
        return not (self.busy or self.shares)


class Uploads:
    """The large values of one session. `store` is what the master has told of its shelf."""

    def __init__(self, store: Dict[str, Any], transfer: Transfer, offer: Offer) -> None:
        self._prefix = f"c{transfer.member}."
        self._limit = int(store["limit"])
        self._window = min(defaults.WINDOW_BYTES, self._limit // 4)
        self._carrier = carrier_to(store, transfer, offer)
        self._offer = offer
        self._room = threading.Condition(threading.RLock())  # guards what follows; notified of grants
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently used first
        self._by_sample: Dict[Any, str] = {}
        self._ungranted = 0  # bytes that have found no room yet
        self._count = 0  # names given
        self._ended = False
        self._warned = False
        self._released: List[str] = []  # held no longer, as the master has yet to be told
        self._forgotten: List[str] = []  # and shared no longer
        self._tidied = 0.0
        self._dropped: List[Tuple[Ref, ...]] = []  # handles, by finalizers, which may take no lock
        self._waitless: Set[int] = set()  # threads that must not wait

    # --- values ------------------------------------------------------------------------------

    def new_lot(self) -> _UploadLot:
        """For the large pieces of one value."""
        return _UploadLot(self)

    def sent(self, *values: Packed) -> None:
        """The jobs that these are part of have been sent, or will not be."""
        for value in values:
            if isinstance(value, tuple):
                self.let_go(value[1])

    def let_go(self, refs: Sequence[Ref]) -> None:
        """One submit that referred to these is over."""
        with self._room:
            for name, _ in refs:
                if name in self._held:
                    self._held[name].busy -= 1

    def share(self, value: Any) -> Shared:
        """Bring a value that many jobs will use. Raises what its pickling raises."""
        lot = _UploadLot(self, sharing=True)
        try:
            layout, refs = packing.take_apart_whole(value, lot)
        except BaseException:
            lot.abandon()
            raise
        with self._room:
            for name, _ in refs:
                self._held[name].shares += 1
        self.let_go(refs)
        return Shared(layout, refs, self._drop)

    def _drop(self, refs: Tuple[Ref, ...]) -> None:
        """A handle is gone. Its finalizer may run anywhere, so the rest is done by a thread of its own."""
        self._dropped.append(refs)
        if not self._ended:
            try:
                threading.Thread(target=self.tidy, name="cwmp-free", daemon=True).start()
            except RuntimeError:
                pass  # the interpreter ends

    def fetch(self, ref: Ref, lasting: bool) -> Union[memoryview, packing.Source]:
        """The bytes of a part of a result, as `packing.Fetch`. Raises BlobLost."""
        return self._carrier.fetch(ref, lasting)

    # --- bytes -------------------------------------------------------------------------------

    def keep(self, pieces: Sequence[packing.Buffer], sharing: bool) -> Ref:
        """Have the master keep these bytes as one blob, at least until `let_go`."""
        size = sum(memoryview(piece).nbytes for piece in pieces)
        sample = _sample(pieces[0]) if len(pieces) == 1 else None
        with self._room:
            if self._ended:
                return "gone", size  # who submits is told why
            known = self._by_sample.get(sample) if sample is not None else None
            if known is not None and self._is_same(known, pieces[0], sharing):
                self._use(known)
                return known, size
            self._await_room(size)
            self._count += 1
            staged = f"{self._prefix}{self._count}"
        if size > defaults.LARGE_WARNING_BYTES and not sharing and not self._warned:
            self._warned = True
            log.warning(
                "a job carries a single value of %d MiB: where many jobs use the same one, `share` it and "
                "pass the handle",
                size >> 20,
            )
        name, mapped, new = self._carrier.bring(staged, pieces, sharing)
        with self._room:
            if self._is_over():
                return name, size  # who submits is told why
            if name not in self._held:
                self._held[name] = _Held(size, sample, mapped)
                if sample is not None:
                    self._by_sample[sample] = name
            self._use(name)
            if new is not None:
                self._ungranted += size
                self._let_go_of_spare(time.monotonic())
                released, self._released = self._released, []  # in one message with what has come
                self._offer([(new, name, size)], released, [])
        return name, size

    def _is_over(self) -> bool:
        return self._ended

    def refer(self, handle: Any) -> Sequence[Ref]:
        """A value on its way contains this handle. Raises UsageError for one of another cluster."""
        refs: Sequence[Ref] = handle.refs
        with self._room:
            if self._ended:
                return refs
            if not all(name in self._held and self._held[name].shares for name, _ in refs):
                raise UsageError("this value was shared by another executor or client: share it here, too")
            for name, _ in refs:
                self._use(name)
        return refs

    def _is_same(self, name: str, piece: packing.Buffer, sharing: bool) -> bool:
        """Whether these are the bytes that were brought before, and will do."""
        held = self._held[name]
        if sharing and not shelf.is_digest(name):
            return False  # a shared value must be known by its bytes
        if held.mapped is None:
            held.mapped = self._carrier.view((name, held.size))
        return _equal(held.mapped, piece)

    def _use(self, name: str) -> None:
        held = self._held[name]
        held.busy += 1
        held.used = time.monotonic()
        self._held.move_to_end(name)

    def _await_room(self, size: int) -> None:
        """Wait until the master has room for what was brought before. Raises PayloadError."""
        if size > self._limit:
            raise PayloadError(
                f"a value of {size >> 20} MiB exceeds what this cluster keeps of large values, "
                f"{self._limit >> 20} MiB: start its master with a larger --blob-limit"
            )
        if self._has_room(size) or threading.get_ident() in self._waitless:
            return
        self._let_go_of_spare(float("inf"))
        self._tell_released()
        self._room.wait_for(lambda: self._has_room(size))

    def _has_room(self, size: int) -> bool:
        return self._ended or not self._ungranted or self._ungranted + size <= self._window

    # --- events ------------------------------------------------------------------------------

    def never_wait(self) -> None:
        """The calling thread is the one that hears of new room."""
        self._waitless.add(threading.get_ident())

    def granted(self, size: int) -> None:
        """The master has found room for so many bytes."""
        with self._room:
            self._ungranted -= size
            self._room.notify_all()

    def end(self) -> None:
        """The session is over: nobody needs to wait."""
        with self._room:
            self._ended = True
            self._held.clear()
            self._by_sample.clear()
            self._room.notify_all()
        self._carrier.close()

    def abandon(self) -> None:
        """This process is a copy of the one that has the session."""
        self._ended = True
        self._room = threading.Condition(threading.RLock())  # whoever held it does not exist here
        self._carrier.abandon()

    # --- another master ----------------------------------------------------------------------

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing of this changes meanwhile."""
        with self._room:
            yield

    def move(self, store: Dict[str, Any], transfer: Transfer, on_way: Sequence[Arrival]) -> List[Arrival]:
        """The master is another one, which has been told of nothing: returns what to offer it.

        `on_way` are the arrivals that the one before may never have heard of.
        """
        self._prefix = f"c{transfer.member}."
        self._limit = int(store["limit"])
        if self._carrier.leads_to(store):
            self._carrier.go_to(transfer)
        else:
            self._carrier.close()
            self._carrier = carrier_to(store, transfer, self._offer)
        self._released, self._forgotten = [], []
        self._ungranted = sum(size for _, _, size in on_way)
        self._room.notify_all()
        coming = {name for _, name, _ in on_way}
        held = [("", name, held.size) for name, held in self._held.items() if name not in coming]
        return [*on_way, *held]

    def missing(self, names: Optional[Sequence[str]]) -> None:
        """The new master has none of these: whoever needs one again brings it again. None: it never said."""
        with self._room:
            for name in names or ():
                held = self._held.pop(name, None)
                if held is not None and self._by_sample.get(held.sample) == name:
                    del self._by_sample[held.sample]

    def tidy(self) -> None:
        """Hold no longer what was not used for a while; to be called now and then."""
        now = time.monotonic()
        if self._held and (self._dropped or now - self._tidied > defaults.HOLD_S / 10):
            with self._room:
                self._tidied = now
                self._let_go_of_spare(now)
                self._tell_released()

    def _tell_released(self) -> None:
        """Tell the master what is held no longer."""
        released, self._released = self._released, []
        forgotten, self._forgotten = self._forgotten, []
        if (released or forgotten) and not self._ended:
            self._offer([], released, forgotten)

    def _let_go_of_spare(self, now: float) -> None:
        """Hold nothing that is old or too much, or shared no more; nothing unused at the end of time."""
        while self._dropped:
            self._unshare(self._dropped.pop())
        free = [(name, held) for name, held in self._held.items() if held.free]
        size = sum(held.size for _, held in free)
        unnamed = sum(not shelf.is_digest(name) for name, _ in free)
        for left, (name, held) in zip(range(len(free), 0, -1), free):
            is_unnamed = not shelf.is_digest(name)
            too_many = left > defaults.HOLD_COUNT or (is_unnamed and unnamed > defaults.HOLD_UNNAMED)
            too_much = left > 1 and size > self._limit // 8
            if held.forget or too_many or too_much or now - held.used > defaults.HOLD_S:
                unnamed -= is_unnamed
                size -= held.size
                del self._held[name]
                if self._by_sample.get(held.sample) == name:
                    del self._by_sample[held.sample]
                (self._forgotten if held.forget else self._released).append(name)

    def _unshare(self, refs: Sequence[Ref]) -> None:
        """One handle of these is gone."""
        for name, _ in refs:
            held = self._held.get(name)
            if held is not None:
                held.shares -= 1
                held.forget = not held.shares


class _UploadLot:
    """The blobs of one value on its way to the master."""

    def __init__(self, uploads: Uploads, sharing: bool = False) -> None:
        self._uploads = uploads
        self._sharing = sharing
        self._refs: List[Ref] = []

    def keep(self, pieces: Sequence[packing.Buffer]) -> Ref:
        """Store these bytes as one blob."""
        ref = self._uploads.keep(pieces, self._sharing)
        self._note(ref)
        return ref

    def refer(self, handle: Any) -> Sequence[Ref]:
        """The value contains this handle."""
        refs = self._uploads.refer(handle)
        for ref in refs:
            self._note(ref)
        return refs

    def _note(self, ref: Ref) -> None:
        """The value needs it; once is enough."""
        if ref in self._refs:
            self._uploads.let_go([ref])
        else:
            self._refs.append(ref)

    def abandon(self) -> None:
        """The value could not be pickled after all."""
        self._uploads.let_go(self._refs)


def _sample(piece: packing.Buffer) -> Any:
    """A few bytes from all over a piece, and its length: equal pieces have equal samples."""
    view = memoryview(piece).cast("B")
    step = len(view) // _SAMPLES
    return len(view), b"".join([view[at * step : at * step + _SAMPLE_BYTES] for at in range(_SAMPLES)])


def _equal(mapped: Optional[memoryview], piece: packing.Buffer) -> bool:
    """Whether these are the bytes that were brought before."""
    if mapped is None:
        return False
    from .memory import equal  # not needed by most programs

    return equal(mapped, piece)
