"""Large values taken apart while they are pickled, and put together again where they are needed.

Long byte strings and the buffers of arrays (pickle protocol 5) become *blobs*, so that the same bytes
are stored once whatever they are part of; the rest of the pickle stays inline. What is taken apart
is `(layout, refs)`: the pickle of (stream, buffers), two lists of inline bytes and of spans
`(index in refs, begin, length)`.
"""

from __future__ import annotations

import pickle
import threading
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple, Union

import cloudpickle

from . import defaults
from .messages import Packed, Ref

_PROTOCOL = 5
_MAIN = b"__main__"
_ALIGN = 64  # what numerical libraries like their arrays to begin at a multiple of
_WHOLE_BYTES = 256 << 10  # a pickle up to here is put together in memory: cheaper than many small reads
_MAX_BLOBS = 32  # of one value; more large pieces share one blob

Buffer = Union[bytes, bytearray, memoryview]
NewPickler = Callable[..., Any]
"""Makes a pickler from a file, a protocol and `buffer_callback`."""

Span = Union[bytes, Tuple[int, int, int]]


class TooLarge(pickle.PicklingError):
    """In the middle of pickling: this value is to be taken apart, see `take_apart`."""


class Lot(Protocol):
    """What is stored for one value on its way."""

    def keep(self, pieces: Sequence[Buffer]) -> Ref:
        """Store these bytes as one blob."""

    def refer(self, handle: Any) -> Sequence[Ref]:
        """The value contains this handle of a shared one; returns the blobs that it needs."""

    def abandon(self) -> None:
        """It could not be pickled after all."""


class _Local(threading.local):
    """What this thread is taking apart."""

    parts: Optional[_Parts] = None


_local = _Local()


class _Parts:
    """The file that a pickler writes to: keeps large pieces as they are, without copying them."""

    def __init__(self, lot: Lot) -> None:
        self.lot = lot
        self.stream: List[Buffer] = []
        self.buffers: List[memoryview] = []
        self.refs: Dict[Ref, int] = {}  # and their order

    def write(self, data: Buffer) -> None:
        """Called with what is pickled: many small pieces as one, each large one by itself."""
        self.stream.append(data)

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Called with each buffer that could travel apart; True: it goes into the stream."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # it is not in one piece
        if raw.nbytes < defaults.INLINE_MAX:
            return True
        self.buffers.append(raw)
        return False

    def add(self, ref: Ref) -> int:
        """The index of a blob among `refs`."""
        return self.refs.setdefault(ref, len(self.refs))


def only_small(buffer: pickle.PickleBuffer) -> bool:
    """A buffer callback for values that are expected to be small: raises TooLarge for a large one."""
    try:
        if buffer.raw().nbytes >= defaults.INLINE_MAX:
            raise TooLarge("a large buffer")
    except BufferError:
        pass
    return True


def take_apart(value: Any, lot: Lot, by_value: bool, picklers: NewPickler = cloudpickle.Pickler) -> Packed:
    """Pickle a value that may be large, storing large pieces of it in `lot`.

    `by_value`: only what `picklers` makes will do. Raises what the value's own pickling raises.
    """
    parts = _parts_of(value, lot, by_value, picklers)
    if not parts.buffers and not parts.refs and sum(map(len, parts.stream)) <= defaults.INLINE_MAX:
        return b"".join(parts.stream)
    return _packed(parts)


def take_apart_whole(value: Any, lot: Lot) -> Tuple[bytes, Tuple[Ref, ...]]:
    """As `take_apart`, but something of the value becomes a blob however small it is."""
    packed = take_apart(value, lot, by_value=False)
    if isinstance(packed, tuple):
        return packed
    layout: Tuple[List[Span], List[Span]] = ([(0, 0, len(packed))], [])
    return pickle.dumps(layout, _PROTOCOL), (lot.keep([packed]),)


def _parts_of(value: Any, lot: Lot, by_value: bool, picklers: NewPickler) -> _Parts:
    """The value, pickled by whichever pickler can do it, in parts."""
    if not by_value:
        try:
            parts = _pickled(value, lot, pickle.Pickler)
            if not any(_MAIN in p for p in parts.stream if len(p) < defaults.INLINE_MAX or _is_frame(p)):
                return parts
        except Exception:
            pass  # cloudpickle can do more; where it can't, its error is the one to show
    return _pickled(value, lot, picklers)


def _pickled(value: Any, lot: Lot, pickler: NewPickler) -> _Parts:
    """The parts of a value."""
    outer, parts = _local.parts, _Parts(lot)
    _local.parts = parts
    try:
        pickler(parts, _PROTOCOL, buffer_callback=parts.take_buffer).dump(value)
    finally:
        _local.parts = outer
    return parts


def _packed(parts: _Parts) -> Packed:
    """Store the large parts; returns what refers to them."""
    stream = _runs(parts.stream)
    large = [p for p in [*stream, *parts.buffers] if memoryview(p).nbytes >= defaults.INLINE_MAX]
    spans: Dict[int, Span] = {}
    if len(large) > _MAX_BLOBS:
        spans = _together(parts, large)
    else:
        for piece in large:
            if id(piece) not in spans:
                spans[id(piece)] = (parts.add(parts.lot.keep([piece])), 0, memoryview(piece).nbytes)
    layout = [spans.get(id(piece)) or bytes(piece) for piece in stream], [spans[id(b)] for b in parts.buffers]
    return pickle.dumps(layout, _PROTOCOL), tuple(parts.refs)


def _together(parts: _Parts, large: Sequence[Buffer]) -> Dict[int, Span]:
    """Store many large pieces as one blob."""
    pieces: List[Buffer] = []
    found: Dict[int, Tuple[int, int]] = {}
    at = 0
    for piece in large:
        length = memoryview(piece).nbytes
        padding = -at % _ALIGN
        pieces += [bytes(padding), piece]
        found[id(piece)] = (at + padding, length)
        at += padding + length
    index = parts.add(parts.lot.keep(pieces))
    return {ident: (index, begin, length) for ident, (begin, length) in found.items()}


def _runs(stream: Sequence[Buffer]) -> List[Buffer]:
    """The stream with its small pieces joined."""
    runs: List[Buffer] = []
    small: List[Buffer] = []
    for piece in stream:
        if len(piece) < defaults.INLINE_MAX or _is_frame(piece):
            small.append(piece)
            continue
        if small:
            runs.append(b"".join(small))
            small = []
        runs.append(piece)
    if small:
        runs.append(b"".join(small))
    return runs


def _is_frame(piece: Buffer) -> bool:
    """Whether a pickler wrote this out of its own buffer, and not a long string of the value's."""
    for begin in (b"\x95", b"\x80\x05\x95"):
        head = len(begin)
        length = int.from_bytes(piece[head : head + 8], "little")
        if piece[:head] == begin and length == len(piece) - head - 8:
            return True
    return False


def refer(handle: Any) -> Tuple[Any, Sequence[Ref]]:
    """For a handle that is being pickled: the lot that it goes into, and its blobs noted there.

    Raises TooLarge where no value is being taken apart.
    """
    parts = _local.parts
    if parts is None:
        raise TooLarge("the handle of a shared value can only be part of what is submitted to its cluster")
    refs = parts.lot.refer(handle)
    for ref in refs:
        parts.add(ref)
    return parts.lot, refs


# --- back together --------------------------------------------------------------------------

class Source(Protocol):
    """Bytes that can be read where they are needed."""

    def read_into(self, target: memoryview, at: int) -> None:
        """Fill `target` with the bytes from `at` on. Raises BlobLost."""


Fetch = Callable[[Ref, bool], Union[memoryview, Source]]
"""The bytes of a blob. With True in memory: they become part of an object, for as long as that lives."""


def put_together(packed: Packed, fetch: Fetch) -> Any:
    """The value that `take_apart` took apart. Raises BlobLost and what its loading raises."""
    if isinstance(packed, bytes):
        return pickle.loads(packed)
    layout, refs = packed
    stream, buffers = pickle.loads(layout)
    fetched: Dict[Tuple[int, bool], Any] = {}

    def bytes_of(index: int, lasting: bool) -> Any:
        key = index, lasting
        if key not in fetched:
            fetched[key] = fetch(refs[index], lasting)
        return fetched[key]

    kept = [bytes_of(index, True)[begin : begin + length] for index, begin, length in buffers]
    pieces = [
        _Piece(span, 0, len(span)) if isinstance(span, bytes) else _Piece(bytes_of(span[0], False), *span[1:])
        for span in stream
    ]
    if len(pieces) == 1:
        return pickle.loads(pieces[0].all(), buffers=kept)
    if sum(piece.left for piece in pieces) <= _WHOLE_BYTES:
        return _load_whole(pieces, kept)
    return pickle.Unpickler(_Stream(pieces), buffers=kept).load()


_scratch: List[bytearray] = []  # memory for `_load_whole`: fresh memory costs more than what is done with it


def _load_whole(pieces: Sequence[_Piece], buffers: Sequence[Any]) -> Any:
    """The value of a pickle that fits into `_WHOLE_BYTES`."""
    try:
        data = _scratch.pop()
    except IndexError:  # another thread has it, or who loads this value as a part of its own
        data = bytearray(_WHOLE_BYTES)
    try:
        with memoryview(data) as whole:
            at = 0
            for piece in pieces:
                begin, at = at, at + piece.left
                piece.read_into(whole[begin:at])
            return pickle.loads(whole[:at], buffers=buffers)
    finally:
        _scratch[:] = [data]


class _Piece:
    """A part of a pickle, in memory or to be read."""

    __slots__ = ("_at", "_data", "left")

    def __init__(self, data: Any, at: int, length: int) -> None:
        self._data = memoryview(data) if isinstance(data, bytes) else data
        self._at = at
        self.left = length

    def read_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes."""
        count = len(target)
        if isinstance(self._data, memoryview):
            target[:] = self._data[self._at : self._at + count]
        else:
            self._data.read_into(target, self._at)
        self._at += count
        self.left -= count

    def all(self) -> Buffer:
        """All of them, in memory."""
        if isinstance(self._data, memoryview):
            return self._data[self._at : self._at + self.left]
        data = bytearray(self.left)
        self.read_into(memoryview(data))
        return data


class _Stream:
    """The file that an unpickler reads from: pieces, one after the other."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = list(reversed(pieces))

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end."""
        data = bytearray(size if size >= 0 else sum(piece.left for piece in self._pieces))
        return bytes(memoryview(data)[: self.readinto(data)])

    def readinto(self, target: Any) -> int:
        """Fill `target`; returns how many bytes there were."""
        done = 0
        into = memoryview(target)
        while done < len(into) and self._pieces:
            piece = self._pieces[-1]
            count = min(piece.left, len(into) - done)
            piece.read_into(into[done : done + count])
            done += count
            if not piece.left:
                self._pieces.pop()
        return done

    def readline(self) -> bytes:
        """The bytes up to the next newline; pickles of protocol 5 have lines in old opcodes only."""
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = self.read(1)
            if not byte:
                break
            line += byte
        return bytes(line)
