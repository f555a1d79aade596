"""The handle of a value that many jobs use: sent once, loaded once in each slot that needs it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, Callable, Iterable, Optional, Tuple

from . import defaults, packing
from .errors import BlobLost, UsageError
from .messages import Ref


class Shared:
    """What `share` returns: anywhere in the arguments of a job it becomes the value itself there.

    The value is freed when the handle is dropped, or closed, and no job needs it any more.

    >>> with ClusterExecutor() as executor:                 # doctest: +SKIP
    ...     table = executor.share(list(range(10**6)))
    ...     print(executor.submit(len, table).result())
    """

    def __init__(self, layout: bytes, refs: Tuple[Ref, ...], drop: Callable[[Tuple[Ref, ...]], None]) -> None:
        self.size = sum(size for _, size in refs)
        """Bytes that it takes up on each node."""
        self._layout = layout
        self._refs = refs
        self._finalizer = weakref.finalize(self, drop, refs)
        self._finalizer.atexit = False

    @property
    def refs(self) -> Tuple[Ref, ...]:
        """The blobs that hold the value. Raises UsageError after `close`."""
        if not self._finalizer.alive:
            raise UsageError("this shared value was closed: share it again")
        return self._refs

    def close(self) -> None:
        """Free the value as soon as no job needs it. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else ", closed"
        return f"<shared value of {self.size} bytes{state}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        packing.refer(self)
        return _open, (self._layout, self._refs)


# --- in a slot ------------------------------------------------------------------------------

_Key = Tuple[bytes, Tuple[Ref, ...]]
_loaded: OrderedDict[_Key, Any] = OrderedDict()  # least recently used first
_fetch: Optional[packing.Fetch] = None


def load_with(fetch: packing.Fetch) -> None:
    """From now on handles that arrive here become values, of bytes from `fetch`."""
    global _fetch
    _fetch = fetch


def forget(names: Iterable[str]) -> None:
    """Keep no value that one of these blobs is part of."""
    gone = set(names)
    for key in list(_loaded):
        if any(name in gone for name, _ in key[1]):
            del _loaded[key]


def _open(layout: bytes, refs: Tuple[Ref, ...]) -> Any:
    """The value behind a handle: loaded when it is first needed here."""
    key = layout, refs
    if key in _loaded:
        _loaded.move_to_end(key)
        return _loaded[key]
    if _fetch is None:
        raise BlobLost("a shared value exists in jobs only: this process runs none")
    value = _loaded[key] = packing.put_together(key, _fetch)
    if len(_loaded) > defaults.LOADED_SHARED:
        _loaded.popitem(last=False)
    return value
