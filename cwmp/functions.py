"""The functions of jobs to bytes and back.

A function is turned into bytes once, for as long as what it captured stays the same, and its bytes are
shared by all the jobs that call it. They also carry where the client stands: its working directory and
`sys.path`; and the classes that the calls and results of these jobs may name by key.
"""

from __future__ import annotations

import os
import pickle
import sys
import weakref
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from . import defaults, directory, packing, payload, references
from .captures import Captures
from .errors import PayloadError
from .messages import Packed

_PROTOCOL = 5
_NO_KEYS: FrozenSet[str] = frozenset()


class Place(NamedTuple):
    """Where a client stands: what its jobs see as working directory and module search path."""

    cwd: Optional[str]  # None where it has been deleted
    path: Tuple[str, ...]
    session: str  # random: tells one run of a program from the next


class Function(NamedTuple):
    """A function as a slot takes it up: the place, the pickle, and whether one copy serves many jobs."""

    place: Place
    pickle: Packed
    reusable: bool
    checkable: bool
    """One copy serves for as long as `Captures` finds it unchanged."""


class _Known:
    """A function that was dumped before, and how to tell that its bytes are still right."""

    __slots__ = ("captures", "data", "extendable", "extras", "keys", "place", "ref")

    def __init__(
        self, ref: weakref.ref[Any], place: Place, captures: Captures, extras: List[weakref.ref[type]]
    ) -> None:
        self.ref = ref
        self.place = place
        self.captures: Optional[Captures] = captures  # None: its bytes are to be made anew
        self.extras = extras  # classes that it did not capture, but that were among its arguments
        self.data: Packed = b""
        self.keys = _NO_KEYS
        self.extendable = True


class FunctionDumper:
    """Turns functions into bytes, each one once for as long as what it captured stays the same.

    >>> dumper = FunctionDumper()
    >>> dumper.dump(len) is dumper.dump(len)
    True
    """

    def __init__(self, new_lot: Optional[payload.NewLot] = None) -> None:
        self._new_lot = new_lot
        self._known: Dict[int, _Known] = {}
        self._session = os.urandom(4).hex()
        self._place = Place(None, (), self._session)
        self._cwd: Optional[bytes] = None  # the directory and ...
        self._path: List[str] = []  # ... `sys.path` when `_place` was made

    def dump(self, function: Callable[..., Any]) -> Packed:
        """The bytes of `function` as it is now. Raises PayloadError."""
        return self._dump(function)[0]

    def dump_job(
        self, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Tuple[Packed, Packed, FrozenSet[str]]:
        """The bytes of a function and of a call of it, and the keys of classes in there. Raises PayloadError.

        Classes that the function takes along are named by key in the call. One that only the call has
        is added to those of the function, so that the next call can name it, too.
        """
        data, keys = self._dump(function)
        small = payload.pack_small((args, kwargs))
        if small is not None:
            return data, small, keys
        picklers = references.Picklers(keys)
        call = payload.dump_call(args, kwargs, self._new_lot, picklers)
        if picklers.met and type(call) is bytes and self._extend(function, picklers.met):
            data, keys = self._dump(function)
            call = payload.dump_call(args, kwargs, self._new_lot, references.Picklers(keys))
        return data, call, keys

    def _dump(self, function: Callable[..., Any]) -> Tuple[Packed, FrozenSet[str]]:
        place = self._place_now()
        known = self._known.get(id(function))
        if known is None or known.ref() is not function:
            return self._dump_anew(function, place, [])
        captures = known.captures
        if known.place is place and captures is not None and captures.unchanged():
            return known.data, known.keys
        return self._dump_anew(function, place, known.extras)

    def _dump_anew(
        self, function: Callable[..., Any], place: Place, extras: List[weakref.ref[type]]
    ) -> Tuple[Packed, FrozenSet[str]]:
        alive = tuple(kind for kind in (reference() for reference in extras) if kind is not None)
        captures = Captures.of(function, *alive)
        pickled, keys = self._pickle(function, alive)
        reusable = captures is not None and captures.reusable
        checkable = captures is not None and captures.checkable
        data = pickle.dumps((tuple(place), pickled, reusable, checkable), _PROTOCOL)
        self._known.pop(id(function), None)
        if isinstance(pickled, tuple):
            return (data, pickled[1]), keys  # what it needs may be gone the next time
        if captures is not None:
            try:
                known = _Known(self._forgetful_ref(function), place, captures, extras)
            except TypeError:  # an object without weak references: perhaps it can't even be called
                return data, keys
            known.data, known.keys = data, keys
            self._known[id(function)] = known
        return data, keys

    def _pickle(
        self, function: Callable[..., Any], extras: Tuple[type, ...]
    ) -> Tuple[Packed, FrozenSet[str]]:
        """The pickle of a function with these classes, and the keys of all classes in there."""
        only_small = None if self._new_lot is None else packing.only_small
        plain = None if extras else payload.dump_plainly(function, only_small)
        if plain is not None and self._is_small(plain):
            return plain, _NO_KEYS
        try:
            data, keys = references.dumps_function(function, extras, only_small)
            if self._is_small(data):
                return data, frozenset(keys)
        except Exception:
            pass  # it may hold something large; and if not, the same error comes again
        try:  # classes of a function so large are not named by key
            if self._new_lot is None:
                return payload.dump_value(function), _NO_KEYS
            return payload.pack(function, self._new_lot), _NO_KEYS
        except PayloadError as error:
            name = getattr(function, "__qualname__", repr(type(function)))
            raise PayloadError(f"function {name}: {error}") from error.__cause__

    def _is_small(self, data: bytes) -> bool:
        return self._new_lot is None or len(data) <= defaults.INLINE_MAX

    def _extend(self, function: Callable[..., Any], classes: List[type]) -> bool:
        """Take these classes along with the function from now on; False if it must not be."""
        known = self._known.get(id(function))
        if known is None or not known.extendable:
            return False
        known.extendable = Captures.of(function, *classes) is not None
        if known.extendable:
            kept = known.extras if len(known.extras) < defaults.CLASSES_OF_ARGUMENTS else []
            known.extras = kept + list(map(weakref.ref, classes))
            known.captures = None
        return known.extendable

    def _forgetful_ref(self, function: Callable[..., Any]) -> weakref.ref[Any]:
        """A weak reference whose death also removes what is known: ids are used again."""
        ident, known = id(function), self._known
        return weakref.ref(function, lambda _: known.pop(ident, None))

    def _place_now(self) -> Place:
        """Where this process stands; the same object while that does not change."""
        cwd = directory.current()
        if cwd is None or cwd != self._cwd or sys.path != self._path:
            path = list(sys.path)
            place = Place(_directory_name(), tuple(map(str, path)), self._session)
            if place != self._place:
                self._place = place
            self._cwd = cwd
            self._path = path  # last: an interrupt in between costs only another look
        return self._place


def _directory_name() -> Optional[str]:
    try:
        return os.getcwd()
    except OSError:
        return None


def open_function(data: Packed) -> Function:
    """Take a function's bytes apart without loading it: first enter the place, then `load_function`."""
    inline = data if isinstance(data, bytes) else data[0]
    (cwd, path, session), pickled, reusable, checkable = pickle.loads(inline)
    path = tuple(entry or cwd or "" for entry in path)  # "" stands for the client's directory
    return Function(Place(cwd, path, session), pickled, reusable, checkable)


def load_function(
    function: Function, fetch: Optional[packing.Fetch] = None
) -> Tuple[Callable[..., Any], references.Classes]:
    """The function itself, and the classes that came with it. Raises what their loading raises."""
    if isinstance(function.pickle, bytes):
        return references.loads_function(function.pickle)
    return payload.load_packed(function.pickle, fetch), {}
