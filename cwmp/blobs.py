"""Which large values are needed, which may go, and who waits for room: the rules, without files or clock.

A blob is *pinned* by the jobs and results that refer to it and *held* by clients that may send it again
or share it. What nobody needs stays *idle* for the next who sends the same bytes, least recently used
first to go, unless it is of use to nobody else. Names of what must be removed gather in `doomed`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Deque, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from .errors import UsageError
from .messages import Ref

_IDLE_SHARE = 4  # idle blobs take up at most this part of the limit


class _Blob:
    """One blob and who needs it."""

    __slots__ = ("holders", "is_result", "lasting", "named", "pins", "size")

    def __init__(self, size: int, named: bool, is_result: bool) -> None:
        self.size = size
        self.named = named  # by its bytes, so that whoever brings the same finds it
        self.is_result = is_result
        self.lasting = named  # kept when nobody needs it: the same bytes may come again
        self.pins = 0
        self.holders: Set[int] = set()  # clients

    @property
    def needed(self) -> bool:
        """Whether it must stay."""
        return bool(self.pins or self.holders)


class Pins:
    """Keeps blobs from being removed for as long as it exists."""

    __slots__ = ("_refs", "_store")

    def __init__(self, store: Store, refs: Tuple[Ref, ...]) -> None:
        self._store = store
        self._refs = refs

    def __del__(self) -> None:
        self._store._unpin(self._refs)


class Store:
    """The blobs of one shelf.

    >>> store = Store(limit=100)
    >>> store.arrive(1, "a", 60)
    True
    >>> pins = store.pin((("a", 60),))
    >>> store.release(1, ["a"], forget=True); store.doomed
    []
    >>> del pins
    >>> store.doomed
    ['a']
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # bytes of all blobs
        self.results = 0  # of those of results that wait for their clients
        self.doomed: List[str] = []  # to be removed by whoever reads this; they do not count any more
        self.forgotten: List[str] = []  # those of them that no copy should be kept of, either
        self._blobs: Dict[str, _Blob] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # least recently used first
        self._idle_bytes = 0
        self._waiting: Deque[Tuple[int, int]] = deque()  # (client, bytes) for which there is no room yet

    def __len__(self) -> int:
        return len(self._blobs)

    def __contains__(self, name: str) -> bool:
        return name in self._blobs

    # --- in ----------------------------------------------------------------------------------

    def arrive(self, client: int, name: str, size: int, *, named: bool = True) -> bool:
        """A client has brought a blob, and holds it; False if it is here already.

        One that is not `named` by its bytes nobody else will ever ask for.
        """
        known = self.hold(client, name, size)
        if not known:
            self._add(name, size, named).holders.add(client)
        self._waiting.append((client, size))
        self._make_room()
        return not known

    def hold(self, client: int, name: str, size: int) -> bool:
        """A client needs this blob for now; False if it is not here. Raises UsageError."""
        blob = self._blobs.get(name)
        if blob is None:
            return False
        _check_size(blob, name, size)
        blob.lasting = blob.named
        blob.holders.add(client)
        self._wake(name)
        return True

    def bring_result(self, ref: Ref) -> Pins:
        """A worker has brought a part of a result; it stays for as long as what is returned."""
        name, size = ref
        if name in self._blobs:
            raise UsageError(f"the large value {name} was brought before")
        self._add(name, size, named=False, is_result=True)
        self.results += size
        pins = self.pin((ref,))
        assert pins is not None
        self._make_room()
        return pins

    def inherit(self, ref: Ref, named: bool) -> Pins:
        """An earlier owner of the shelf has kept this blob, and somebody still needs it."""
        self._add(*ref, named)
        pins = self.pin((ref,))
        assert pins is not None
        self._make_room()
        return pins

    def _add(self, name: str, size: int, named: bool, is_result: bool = False) -> _Blob:
        blob = self._blobs[name] = _Blob(size, named, is_result)
        self.used += size
        return blob

    # --- needed ------------------------------------------------------------------------------

    def pin(self, refs: Tuple[Ref, ...]) -> Optional[Pins]:
        """Keep these from being removed; None if one is not here. Raises UsageError."""
        blobs = []
        for name, size in refs:
            blob = self._blobs.get(name)
            if blob is None:
                return None
            _check_size(blob, name, size)
            blobs.append((name, blob))
        for name, blob in blobs:
            blob.pins += 1
            self._wake(name)
        return Pins(self, refs)

    def _unpin(self, refs: Sequence[Ref]) -> None:
        for name, _ in refs:
            self._blobs[name].pins -= 1
            self._settle(name)

    def release(self, client: int, names: Iterable[str], forget: bool = False) -> None:
        """A client holds these no longer; with `forget` they go as soon as nobody else needs them."""
        for name in names:
            blob = self._blobs.get(name)
            if blob is not None and client in blob.holders:
                blob.holders.discard(client)
                blob.lasting = blob.lasting and not (forget and not blob.holders)
                self._settle(name)

    def forget(self, name: str) -> None:
        """This goes as soon as nobody needs it."""
        blob = self._blobs.get(name)
        if blob is not None:
            self._wake(name)
            blob.lasting = False
            self._settle(name)

    def leave(self, client: int) -> None:
        """A client is gone."""
        self.release(client, list(self._blobs))
        self._waiting = deque(entry for entry in self._waiting if entry[0] != client)

    def _wake(self, name: str) -> None:
        """It is needed again."""
        if name in self._idle:
            del self._idle[name]
            self._idle_bytes -= self._blobs[name].size

    def _settle(self, name: str) -> None:
        """See whether it is still needed."""
        blob = self._blobs[name]
        if blob.needed or name in self._idle:
            return
        if blob.lasting:
            self._idle[name] = None
            self._idle_bytes += blob.size
            self._make_room()
        else:
            self._doom(name)

    # --- out ---------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Let go of idle blobs that there is no room for."""
        while self._idle and (self.used > self.limit or self._idle_bytes * _IDLE_SHARE > self.limit):
            name = next(iter(self._idle))
            self._wake(name)
            self._doom(name)

    def _doom(self, name: str) -> None:
        blob = self._blobs.pop(name)
        self.used -= blob.size
        if blob.is_result:
            self.results -= blob.size
        elif blob.named and not blob.lasting:
            self.forgotten.append(name)
        self.doomed.append(name)

    def granted(self) -> List[Tuple[int, int]]:
        """(client, bytes) for which there is room now, in the order in which they came."""
        found = []
        while self._waiting and self.used <= self.limit:
            found.append(self._waiting.popleft())
        return found

    @property
    def idle(self) -> int:
        """Bytes of blobs that nobody needs now."""
        return self._idle_bytes

    @property
    def restless(self) -> bool:
        """Whether there is something to remove, or somebody to tell of room."""
        return bool(self.doomed or self._waiting)

    @property
    def flooded(self) -> bool:
        """Whether so many results wait for their clients that no job should make more of them."""
        return self.results * 2 > self.limit

    def check_invariants(self) -> None:
        """Raise AssertionError unless every count is right and nothing that is needed is idle."""
        assert self.used == sum(blob.size for blob in self._blobs.values()), "bytes"
        assert self._idle_bytes == sum(self._blobs[name].size for name in self._idle), "idle bytes"
        for name, blob in self._blobs.items():
            assert blob.pins >= 0, "unpinned twice"
            assert blob.needed != (name in self._idle), "needed and idle, or neither"
        assert not self._idle or self.used <= self.limit, "idle ones stay although there is no room"


def _check_size(blob: _Blob, name: str, size: int) -> None:
    if blob.size != size:
        raise UsageError(f"the large value {name} has {blob.size} bytes, not {size}")
