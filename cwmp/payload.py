"""User objects to bytes and back: the only place that pickles user data.

A *function* and a *call* (its arguments) travel apart; of functions see `functions`. Classes that both
sides have from there are named by key, see `references`.
"""

from __future__ import annotations

import os
import pickle
import platform
import traceback
from typing import Any, Callable, Container, Dict, List, Optional, Tuple, Union

import cloudpickle

from . import defaults, packing
from .errors import CwmpError, PayloadError, RemoteError, RemoteTraceback
from .messages import Packed, Ref
from .references import NONE, Picklers, at_hand

_PROTOCOL = 5
_MAIN = b"__main__"
_only_small = packing.only_small
_BY_VALUE = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES  # the registry itself: its copy costs too much

Call = Tuple[Tuple[Any, ...], Dict[str, Any]]
Received = Tuple[bytes, Tuple[Ref, ...], packing.Fetch]
"""A large value that was packed, and how to get its large pieces."""


class Here:
    """In a slot: the attempt that it is at. Tracebacks name it."""

    attempt = 0

    def __str__(self) -> str:
        return f"node {platform.node()}, pid {os.getpid()}, attempt {self.attempt}"


here = Here()


# --- values ---------------------------------------------------------------------------------


def dump_value(value: Any, known: Container[str] = NONE) -> bytes:
    """Any user object to bytes: plain pickle where that will do, else cloudpickle.

    What lives in `__main__` goes by value, since the `__main__` of a worker is another one; except
    for classes whose keys are `known` to who will load it. Raises PayloadError, naming the type.
    """
    return _dump(value, Picklers(known))


def _dump(value: Any, picklers: Picklers) -> bytes:
    data = dump_plainly(value)
    if data is not None:
        return data
    try:
        return picklers.dumps(value)
    except Exception as error:
        raise _unpicklable(value, error) from error


def dump_plainly(value: Any, buffer_callback: Any = None) -> Optional[bytes]:
    """The bytes of what pickle alone can do; None otherwise."""
    if not _BY_VALUE:
        try:
            data = pickle.dumps(value, _PROTOCOL, buffer_callback=buffer_callback)
            if _MAIN not in data:
                return data
        except Exception:
            pass  # cloudpickle can do more; where it can't, its error is the one to show
    return None


def load_value(data: Union[bytes, Received]) -> Any:
    """The object that `dump_value` or `pack` turned into `data`. Raises what its type's loading raises."""
    if type(data) is tuple:
        layout, refs, fetch = data
        return packing.put_together((layout, refs), fetch)
    return pickle.loads(data)  # type: ignore[arg-type]


Buffer = packing.Buffer
NewLot = Callable[[], packing.Lot]
"""Where the large pieces of a value go: called when there are any."""


class _Expect:
    """What the next value will be like, as far as the last one tells: most come in series."""

    large = False


_expect = _Expect()


def pack_small(value: Any) -> Optional[bytes]:
    """What `pack` makes of most values, at once; None where there is more to it."""
    if not (_expect.large or _BY_VALUE):
        try:
            data = pickle.dumps(value, _PROTOCOL, buffer_callback=_only_small)
            if len(data) <= defaults.INLINE_MAX and _MAIN not in data:
                return data
        except Exception:
            pass  # `pack` does it, or tells
    return None


def pack(value: Any, new_lot: NewLot, known: Container[str] = NONE) -> Packed:
    """As `dump_value`, but a large value is taken apart: its large pieces go into `new_lot()`."""
    return _pack(value, new_lot, Picklers(known))


def _pack(value: Any, new_lot: NewLot, picklers: Picklers) -> Packed:
    large = _expect.large
    if not (large or _BY_VALUE):
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
        return _pack_by_value_or_apart(value, new_lot, picklers, large)
    except CwmpError:
        raise
    except Exception as error:
        raise _unpicklable(value, error) from error


def _pack_by_value_or_apart(value: Any, new_lot: NewLot, picklers: Picklers, large: bool) -> Packed:
    """What pickle alone could not do. Raises what the value's own pickling raises."""
    by_value = bool(_BY_VALUE) or not large
    if not large:
        try:
            data = picklers.dumps(value, packing.only_small)
            if len(data) <= defaults.INLINE_MAX:
                return data
        except packing.TooLarge:
            pass
    lot = new_lot()
    try:
        packed = packing.take_apart(value, lot, by_value, picklers)
    except BaseException:
        lot.abandon()
        raise
    _expect.large = isinstance(packed, tuple)
    return packed


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
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    new_lot: Optional[NewLot] = None,
    picklers: Optional[Picklers] = None,
) -> Packed:
    """The arguments of one call, packed; inline without `new_lot`. A PayloadError names the argument.

    `picklers` notes the classes that go by value.
    """
    picklers = picklers or Picklers(NONE)
    try:
        call = args, kwargs
        return _dump(call, picklers) if new_lot is None else _pack(call, new_lot, picklers)
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


# --- outcomes -------------------------------------------------------------------------------


def dump_error(error: BaseException) -> bytes:
    """What a job raised, to bytes: the exception if it survives the way, and always its text.

    `here` heads the traceback. Never raises.
    """
    text = _describe(error)
    pickled: Optional[bytes] = None
    try:
        data = dump_value(error, at_hand.classes)
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
