"""Classes that travel by value once, and by reference from then on.

A class of `__main__`, or one made in a function, goes to the slots by value, within the function that
uses it. Each such class gets a *key*, which goes along. What is sent for the same job, its arguments
and its result, names the class by that key: an instance costs what it would cost if the class
could be imported, and on both sides it is an instance of the very class that is there already.
"""

from __future__ import annotations

import enum
import io
import os
import pickle
import weakref
from typing import (
    Any,
    Callable,
    Container,
    ContextManager,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Optional,
    Sized,
    Tuple,
    cast,
)

import cloudpickle

from .ingredients import CACHES

_PROTOCOL = 5

Classes = Dict[str, type]
"""Classes by their keys."""

_Frame = Tuple[str, str, Tuple[type, ...], Tuple[str, ...]]
"""Of a class: name, qualified name, bases, and the names of its attributes."""

NONE: Container[str] = frozenset()
"""No keys: nothing goes by reference."""


class Registry:
    """The keys of classes in this process. Keeps no class alive."""

    def __init__(self) -> None:
        self._keys: Dict[int, Tuple[weakref.ref[type], str]] = {}  # by the id of the class
        self._classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()

    def key_of(self, kind: type) -> Optional[str]:
        """The key of a class, if it has one."""
        known = self._keys.get(id(kind))
        return known[1] if known is not None and known[0]() is kind else None

    def give_key(self, kind: type) -> str:
        """The key of a class, a new one if need be."""
        return self.key_of(kind) or self.adopt(os.urandom(12).hex(), kind)

    def adopt(self, key: str, kind: type) -> str:
        """Know this class by this key, unless it has one; returns the one that it has."""
        ident, keys = id(kind), self._keys
        known = keys.setdefault(ident, (weakref.ref(kind, lambda gone: _forget(keys, ident, gone)), key))
        if known[0]() is not kind:  # the id of one that is just going
            known = keys[ident] = (weakref.ref(kind, lambda gone: _forget(keys, ident, gone)), key)
        self._classes[known[1]] = kind
        return known[1]

    def find(self, key: str) -> type:
        """The class with this key. Raises LookupError."""
        found = self._classes.get(key)
        if found is None:
            raise LookupError("its class does not exist any more")
        return found


def _forget(keys: Dict[int, Tuple[weakref.ref[type], str]], ident: int, gone: weakref.ref[type]) -> None:
    """A class has died; another one may have its id by now."""
    known = keys.get(ident)
    if known is not None and known[0] is gone:
        del keys[ident]


class HeldClasses:
    """In a client: classes that must not go while results may name them, whatever the program forgets."""

    def __init__(self) -> None:
        self._classes: Classes = {}

    def hold(self, keys: Iterable[str]) -> None:
        """Keep the classes with these keys."""
        for key in keys:
            if key not in self._classes:
                self._classes[key] = find_class(key)

    def let_go(self, lock: ContextManager[Any], needed_by: Sized) -> None:
        """Keep none, unless they are needed after all; `lock` guards both."""
        if self._classes:
            with lock:
                if not needed_by:
                    self._classes.clear()


class AtHand:
    """In a slot: the classes that came with the function that it is at."""

    classes: Classes = {}


registry = Registry()
at_hand = AtHand()


def find_class(key: str) -> type:
    """What stands for a class in a pickle. Raises LookupError."""
    return at_hand.classes.get(key) or registry.find(key)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Names the known classes by their keys, and notes those that it takes along by value."""

    def __init__(self, file: Any, protocol: int, buffer_callback: Any, known: Container[str]) -> None:
        super().__init__(file, protocol, buffer_callback)
        self._known = known
        self.met: List[Tuple[str, type, _Frame]] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, type):
            return super().reducer_override(obj)
        key = registry.key_of(obj)
        if key is not None and key in self._known:
            return find_class, (key,)
        reduced = super().reducer_override(obj)
        if isinstance(reduced, tuple) and len(reduced) > 2:  # not just a name
            attributes, *_ = reduced[2]
            frame = obj.__name__, obj.__qualname__, obj.__bases__, tuple(attributes)
            self.met.append((registry.give_key(obj), obj, frame))
            _keep_slots(obj, reduced)
        return reduced


def _keep_slots(kind: type, reduced: Tuple[Any, ...]) -> None:
    """Have the class made with its `__slots__`, which cloudpickle 3 forgets: its instances would differ."""
    made_with = reduced[1][3] if len(reduced[1]) > 3 else None
    slots = kind.__dict__.get("__slots__")
    if slots and isinstance(made_with, dict) and not issubclass(kind, (enum.Enum, tuple)):
        made_with.setdefault("__slots__", slots)


class Picklers:
    """Makes picklers for values whose reader has the classes with the `known` keys."""

    __slots__ = ("_known", "_last")

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self._last: Optional[_Pickler] = None

    def __call__(self, file: Any, protocol: int, buffer_callback: Any = None) -> _Pickler:
        """A pickler as `cloudpickle.Pickler` makes it."""
        self._last = _Pickler(file, protocol, buffer_callback, self._known)
        return self._last

    def dumps(self, value: Any, buffer_callback: Any = None) -> bytes:
        """Any object to bytes. Raises what its pickling raises."""
        file = io.BytesIO()
        self(file, _PROTOCOL, buffer_callback).dump(value)
        return file.getvalue()

    @property
    def met(self) -> List[type]:
        """The classes that the last pickler took along by value."""
        return [kind for _, kind, _ in self._last.met] if self._last else []


def dumps_function(
    function: Callable[..., Any], extras: Tuple[type, ...], buffer_callback: Any = None
) -> Tuple[bytes, List[str]]:
    """A function to bytes, with `extras` and the keys of all classes in there; and those keys.

    The bytes hold two pickles where there are classes. The first is the function.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, _PROTOCOL, buffer_callback, NONE)
    pickler.dump(function)
    if extras or pickler.met:
        pickler.dump((extras, pickler.met))  # in this order: pickling `extras` adds to `met`
    return file.getvalue(), [key for key, _, _ in pickler.met]


def loads_function(data: bytes) -> Tuple[Callable[..., Any], Classes]:
    """The function of `dumps_function`, and its classes by their keys."""
    file = io.BytesIO(data)
    unpickler = pickle.Unpickler(file)
    function = cast(Callable[..., Any], unpickler.load())
    classes: Classes = {}
    if file.tell() < len(data):
        _, met = unpickler.load()
        for key, kind, frame in met:
            registry.adopt(key, kind)
            _frames.mend(kind, frame)
            classes[key] = kind
    return function, classes


class _Frames:
    """In a slot: sees to what cloudpickle leaves as it is when it loads a class again.

    A class that has changed is the same object there, with its attributes set anew. What the client
    has deleted since, and what a job has added, must go; bases and names may have been assigned to.
    """

    def __init__(self) -> None:
        # The attributes that Python itself gives to a class, besides those that came with it.
        self._own_names: weakref.WeakKeyDictionary[type, FrozenSet[str]] = weakref.WeakKeyDictionary()
        self._members: weakref.WeakKeyDictionary[type, List[Dict[str, Any]]] = weakref.WeakKeyDictionary()

    def mend(self, kind: Any, frame: _Frame) -> None:
        """Make the class what it was when it was sent."""
        name, qualname, bases, names = frame
        if kind.__bases__ != bases:
            kind.__bases__ = bases
        if kind.__name__ != name or kind.__qualname__ != qualname:
            kind.__name__, kind.__qualname__ = name, qualname
        present = frozenset(kind.__dict__)
        own = self._own_names.setdefault(kind, present.difference(names))
        for name in present.difference(own, names, CACHES):
            try:
                type.__delattr__(kind, name)  # past the metaclass, which may not allow it
            except (AttributeError, TypeError):
                pass  # gone meanwhile, or not to be touched
        if issubclass(kind, enum.Enum):
            before = self._members.setdefault(kind, [dict(vars(member)) for member in kind])
            for member, attributes in zip(kind, before):
                if vars(member) != attributes:
                    vars(member).clear()
                    vars(member).update(attributes)


_frames = _Frames()
