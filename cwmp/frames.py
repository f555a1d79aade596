"""Length-prefixed frames, as `multiprocessing.connection` writes them.

A frame is a signed 32-bit big-endian length and that many bytes; a body over 2 GiB has -1 there
and then an unsigned 64-bit length. Nothing here touches a socket.
"""

from __future__ import annotations

import struct
from typing import List, Tuple

from . import defaults

_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!iQ")
_SHORT_MAX = 0x7FFFFFFF

class FrameError(ValueError):
    """What arrived can't be a frame: the peer is confused, or is not one of us."""


def header(length: int) -> bytes:
    """The bytes that announce a body of `length` bytes."""
    return _SHORT.pack(length) if length <= _SHORT_MAX else _LONG.pack(-1, length)


class FrameReader:
    """Cuts a stream of bytes into frames.

    >>> reader = FrameReader()
    >>> reader.feed(b"\\x00\\x00\\x00\\x02hi\\x00\\x00")
    [b'hi']
    >>> reader.feed(b"\\x00\\x01!")
    [b'!']
    """

    def __init__(self, max_frame: int = defaults.MAX_FRAME_BYTES) -> None:
        self._max_frame = max_frame
        self._parts: List[bytes] = []  # of the frame under way
        self._have = 0
        self._want = _SHORT.size  # bytes needed before anything can be decided

    def feed(self, data: bytes) -> List[bytes]:
        """Take in `data`; return the frames that are complete now.

        Raises FrameError for a length that is negative or over the limit.
        """
        size = len(data)
        if not self._have and size > _SHORT.size:
            length = _SHORT.unpack_from(data)[0]
            if length == size - _SHORT.size and length <= self._max_frame:
                return [data[_SHORT.size :]]  # one frame and no more: the common case
        self._parts.append(data)
        self._have += size
        if self._have < self._want:
            return []
        stream = b"".join(self._parts) if len(self._parts) > 1 else data
        frames: List[bytes] = []
        at, end = 0, len(stream)
        unpack, size, max_frame = _SHORT.unpack_from, _SHORT.size, self._max_frame
        want = size
        while end - at >= size:
            length = unpack(stream, at)[0]
            body = at + size
            if not 0 <= length <= max_frame:
                if length == -1 and end - at < _LONG.size:
                    want = _LONG.size
                    break
                length, body = self._long(stream, at, length)
            stop = body + length
            if stop > end:
                want = stop - at
                break
            frames.append(stream[body:stop])
            at = stop
        self._parts = [stream[at:]] if at else [stream]
        self._have = end - at
        self._want = want
        return frames

    def _long(self, stream: bytes, at: int, length: int) -> Tuple[int, int]:
        """(length, begin) of a body whose length does not fit the short header."""
        if length == -1:
            length = _LONG.unpack_from(stream, at)[1]
            if length <= self._max_frame:
                return length, at + _LONG.size
        raise FrameError(f"a frame of {length} bytes was announced; at most {self._max_frame} are taken")

    @property
    def at_frame(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._have

    def limit(self, max_frame: int) -> None:
        """From now on take frames up to `max_frame` bytes."""
        self._max_frame = max_frame
