"""User objects to bytes and back: the only place that pickles user data.

A *function* and a *call* (its arguments) travel apart, so that a function is turned into bytes
once and its bytes are shared by all the jobs that call it. The bytes of a function also carry
where the client stands: its working directory and `sys.path`.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
import traceback
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import cloudpickle

from . import defaults, packing
from .captures import Captures
from .errors import CwmpError, PayloadError, RemoteError, RemoteTraceback
from .messages import Packed, Ref

_PROTOCOL = 5
_MAIN = b"__main__"
_BY_VALUE = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES  # the registry itself: its copy costs too much

Call = Tuple[Tuple[Any, ...], Dict[str, Any]]
Received = Tuple[bytes, Tuple[Ref, ...], packing.Fetch]
"""A large value that was packed, and how to get its large pieces."""


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


class Here:
    """In a slot: the attempt that it is at. Tracebacks name it."""

    attempt = 0

    def __str__(self) -> str:
        return f"node {platform.node()}, pid {os.getpid()}, attempt {self.attempt}"


here = Here()


# --- values ---------------------------------------------------------------------------------


def dump_value(value: Any) -> bytes:
    """Any user object to bytes: plain pickle where that will do, else cloudpickle.

    What lives in `__main__` goes by value, since the `__main__` of a worker is another one.
    Raises PayloadError, naming the type.
    """
    if not _BY_VALUE:
        try:
            data = pickle.dumps(value, _PROTOCOL)
            if _MAIN not in data:
                return data
        except Exception:
            data = b""  # cloudpickle can do more; where it can't, its error is the one to show
    try:
        return bytes(cloudpickle.dumps(value, _PROTOCOL))
    except Exception as error:
        raise _unpicklable(value, error) from error


def load_value(data: Union[bytes, Received]) -> Any:
    """The object that `dump_value` or `pack` turned into `data`. Raises what its type's loading raises."""
    if type(data) is tuple:
        layout, refs, fetch = data
        return packing.put_together((layout, refs), fetch)
    return pickle.loads(data)  # type: ignore[arg-type]


Buffer = packing.Buffer
NewLot = Callable[[], packing.Lot]
"""Where the large pieces of a value go: called when there are any."""


def pack(value: Any, new_lot: NewLot) -> Packed:
    """As `dump_value`, but a large value is taken apart: its large pieces go into `new_lot()`."""
    large = False
    if not _BY_VALUE:
        try:
            data = pickle.dumps(value, _PROTOCOL, buffer_callback=packing.only_small)
            large = len(data) > defaults.INLINE_MAX
            if not large and _MAIN not in data:
                return data
        except packing.TooLarge:
            large = True
        except Exception:
            large = False  # cloudpickle can do more; where it can't, its error is the one to show
    try:
        return _pack_by_value_or_apart(value, new_lot, large)
    except CwmpError:
        raise
    except Exception as error:
        raise _unpicklable(value, error) from error


def _pack_by_value_or_apart(value: Any, new_lot: NewLot, large: bool) -> Packed:
    """What pickle alone could not do. Raises what the value's own pickling raises."""
    by_value = bool(_BY_VALUE) or not large
    if not large:
        try:
            data = bytes(cloudpickle.dumps(value, _PROTOCOL, buffer_callback=packing.only_small))
            if len(data) <= defaults.INLINE_MAX:
                return data
        except packing.TooLarge:
            pass
    lot = new_lot()
    try:
        return packing.take_apart(value, lot, by_value)
    except BaseException:
        lot.abandon()
        raise


def share(value: Any, bring: Callable[[Any], Any]) -> Any:
    """What `bring(value)` returns, for a function that pickles it. Raises PayloadError."""
    try:
        return bring(value)
    except CwmpError:
        raise
    except Exception as error:
        raise _unpicklable(value, error) from error


def load_packed(packed: Packed, fetch: Optional[packing.Fetch]) -> Any:
    """The object that `pack` packed; `fetch` gets its large pieces. Raises BlobLost, and as `load_value`."""
    if type(packed) is bytes or fetch is None:
        return pickle.loads(packed)  # type: ignore[arg-type]
    return packing.put_together(packed, fetch)


def _unpicklable(value: Any, error: BaseException) -> PayloadError:
    return PayloadError(
        f"cannot pickle {_type_name(type(value))} object: {type(error).__name__}: {error}"
    )


def dump_call(
    args: Tuple[Any, ...], kwargs: Dict[str, Any], new_lot: Optional[NewLot] = None
) -> Packed:
    """The arguments of one call, packed; inline without `new_lot`. A PayloadError names the argument."""
    try:
        return dump_value((args, kwargs)) if new_lot is None else pack((args, kwargs), new_lot)
    except PayloadError as error:
        if error.__cause__ is None or isinstance(error.__cause__, CwmpError):
            raise  # the way is to blame
        raise _blame_argument(args, kwargs, error) from error.__cause__


def load_call(call: Packed, fetch: Optional[packing.Fetch] = None) -> Call:
    """The (args, kwargs) that `dump_call` packed."""
    found: Call = load_packed(call, fetch)
    return found


def _blame_argument(args: Tuple[Any, ...], kwargs: Dict[str, Any], error: PayloadError) -> PayloadError:
    """The error of the first argument that cannot be pickled by itself."""
    named = [(f"argument {i + 1}", value) for i, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            dump_value(value)
        except PayloadError as cause:
            return PayloadError(f"{name}: {cause}")
    return error


# --- functions ------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A function that was dumped before, and how to tell that its bytes are still right."""

    ref: weakref.ref[Any]
    place: Place
    captures: Captures
    data: Packed


class FunctionDumper:
    """Turns functions into bytes, each one once for as long as what it captured stays the same.

    >>> dumper = FunctionDumper()
    >>> dumper.dump(len) is dumper.dump(len)
    True
    """

    def __init__(self, new_lot: Optional[NewLot] = None) -> None:
        self._new_lot = new_lot
        self._known: Dict[int, _Known] = {}
        self._session = os.urandom(4).hex()
        self._place = Place(None, (), self._session)
        self._path: List[str] = []  # `sys.path` when `_place` was made

    def dump(self, function: Callable[..., Any]) -> Packed:
        """The bytes of `function` as it is now. Raises PayloadError."""
        place = self._place_now()
        known = self._known.get(id(function))
        if known is not None:
            ref, then, captures, data = known
            if then is place and ref() is function and captures.unchanged():
                return data
        return self._dump_anew(function, place)

    def _dump_anew(self, function: Callable[..., Any], place: Place) -> Packed:
        captures = Captures.of(function)
        try:
            new_lot = self._new_lot
            pickled = dump_value(function) if new_lot is None else pack(function, new_lot)
        except PayloadError as error:
            name = getattr(function, "__qualname__", repr(type(function)))
            raise PayloadError(f"function {name}: {error}") from error.__cause__
        reusable = captures is not None and captures.reusable
        data: Packed = pickle.dumps((tuple(place), pickled, reusable), _PROTOCOL)
        if isinstance(data, bytes) and isinstance(pickled, tuple):
            return data, pickled[1]  # what it needs may be gone the next time
        if captures is not None:
            self._known[id(function)] = _Known(self._forgetful_ref(function), place, captures, data)
        return data

    def _forgetful_ref(self, function: Callable[..., Any]) -> weakref.ref[Any]:
        """A weak reference whose death also removes what is known: ids are used again."""
        ident, known = id(function), self._known
        return weakref.ref(function, lambda _: known.pop(ident, None))

    def _place_now(self) -> Place:
        """Where this process stands; the same object while that does not change."""
        try:
            cwd: Optional[str] = os.getcwd()
        except OSError:
            cwd = None
        if cwd != self._place[0] or sys.path != self._path:
            path = list(sys.path)
            self._place = Place(cwd, tuple(map(str, path)), self._session)
            self._path = path  # last: an interrupt in between costs only another look
        return self._place


def open_function(data: Packed) -> Function:
    """Take a function's bytes apart without loading it: first enter the place, then `load_packed`."""
    inline = data if isinstance(data, bytes) else data[0]
    (cwd, path, session), pickled, reusable = pickle.loads(inline)
    path = tuple(entry or cwd or "" for entry in path)  # "" stands for the client's directory
    return Function(Place(cwd, path, session), pickled, reusable)


# --- outcomes -------------------------------------------------------------------------------


def dump_error(error: BaseException) -> bytes:
    """What a job raised, to bytes: the exception if it survives the way, and always its text.

    `here` heads the traceback. Never raises.
    """
    text = _describe(error)
    pickled: Optional[bytes] = None
    try:
        data = dump_value(error)
        load_value(data)  # an exception that cannot be rebuilt must be found out here
        pickled = data
    except BaseException:  # its own code may raise anything, SystemExit too
        pass  # its text goes alone
    return pickle.dumps((pickled, _type_name(type(error)), _message(error), text), _PROTOCOL)


def load_error(data: bytes) -> BaseException:
    """The exception that a job raised, chained to the remote traceback; RemoteError where it can't travel."""
    pickled, type_name, message, text = pickle.loads(data)
    error: Optional[BaseException] = None
    if pickled is not None:
        try:
            error = load_value(pickled)
        except BaseException:
            error = None  # its class does not load here; the text says what it was
    if not isinstance(error, BaseException):
        error = RemoteError(type_name, message, text)
    # Not by assignment, which a class of the user's may refuse.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


def _describe(error: BaseException) -> str:
    """The traceback as text, without the frames of cwmp itself."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__package__") == __package__:
        tb = tb.tb_next
    try:
        lines: List[str] = traceback.format_exception(type(error), error, tb)
    except BaseException as broken:  # an exception whose own __str__ fails
        lines = [f"{_type_name(type(error))} (its text can't be made: {type(broken).__name__})\n"]
    return f"In {here}:\n" + "".join(lines)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"(no message: {type(broken).__name__} in its __str__)"


def _type_name(kind: type) -> str:
    """A type as people write it: builtins by their bare name."""
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"
