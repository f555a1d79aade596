"""What objects are made of, as far as their pickles are concerned.

A pickle by value depends on the object and on all that is found in it, on and on. Here are the ways to
find what is in a function, a class, or one of the things that classes consist of. Of anything else it
is unknown, and so nobody can tell whether it has changed.
"""

from __future__ import annotations

import abc
import enum
import sys
import types
from itertools import repeat
from operator import attrgetter
from typing import Any, Callable, Iterator, List, Optional, Tuple

import cloudpickle

MISSING = object()
"""Stands for a global that does not exist, and for what is in an empty cell."""

CACHES = {"__slotnames__", "__annotations_cache__"}
"""Attributes that Python adds to a class when it first needs them, and that follow from the others."""

MAX_ITEMS = 100  # of one list, dict or set: to compare more costs about as much as to pickle them

MadeOf = Callable[[Any], List[Any]]
"""From an object to all that its pickle shows of it. Same objects, same pickle, if those haven't changed."""

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, and so not for ever as it is
_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range)
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
# Pickled by name, or immutable; by the names of their types, so that nothing is imported for them.
_CONSTANT_TYPES = {
    "_abc._abc_data",  # what matters of it is found by `_of_abc`
    "_collections._tuplegetter",
    "collections._tuplegetter",  # the same in newer Pythons
    "dataclasses._FIELD_BASE",
    "dataclasses._HAS_DEFAULT_FACTORY_CLASS",
    "dataclasses._KW_ONLY_TYPE",
    "dataclasses._MISSING_TYPE",
    "logging.Logger",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "re.Pattern",
    "typing._SpecialForm",
    "typing._SpecialGenericAlias",
    "typing._TupleType",
    "typing._CallableType",
}
_FUNCTION_PARTS = attrgetter(
    "__code__", "__defaults__", "__name__", "__qualname__", "__module__", "__doc__",
    "__kwdefaults__", "__annotations__", "__dict__", "__closure__", "__globals__.get",
)  # fmt: skip


def is_constant(value: Any) -> bool:
    """Whether this object can't change, or goes by a name that means the same everywhere."""
    kind = type(value)
    if kind in _ATOMS or value is MISSING:
        return True
    if kind in (tuple, frozenset):
        return all(map(is_constant, value))
    if kind is types.CodeType:
        return True
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value and not _is_registered(value.__name__)
    if isinstance(value, type):
        return is_by_reference(value) or not value.__flags__ & _HEAP_TYPE
    if isinstance(value, (types.FunctionType, *_BUILT_IN)):
        return is_by_reference(value) or (isinstance(value, _BUILT_IN) and _is_of_builtin(value))
    if isinstance(value, enum.Enum):
        return is_by_reference(kind)
    return f"{kind.__module__}.{kind.__qualname__}" in _CONSTANT_TYPES


def made_of(value: Any) -> Optional[MadeOf]:
    """How to find what `value` is made of; None if that is unknown. Not for constants."""
    kind = type(value)
    if isinstance(value, types.FunctionType):
        return _of_function_with(tuple(sorted(set(names_in(value.__code__)))))
    if isinstance(value, type):
        return _of_abc if issubclass(kind, abc.ABCMeta) else _of_class
    if isinstance(value, enum.Enum):
        return _of_attributes
    if kind in (list, set, dict, types.MappingProxyType) and len(value) > MAX_ITEMS:
        return None
    return _WAYS.get(f"{kind.__module__}.{kind.__qualname__}")


def is_mutable(value: Any) -> bool:
    """Whether this holds what a job could change without naming it in an assignment."""
    if isinstance(value, types.FunctionType):
        return bool(value.__dict__)
    return type(value) not in (tuple, frozenset)


def is_by_reference(value: Any) -> bool:
    """Whether pickle can find this function or class by its name in an importable module."""
    module_name = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if module_name in (None, "__main__") or name is None:
        return False
    if _is_registered(module_name):
        return False
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def names_in(code: types.CodeType) -> Iterator[str]:
    """Every name that the code, or code inside it, may look up in its globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def _is_registered(module_name: str) -> bool:
    """Whether the user asked cloudpickle to pickle this module's functions by value."""
    return module_name in cloudpickle.list_registry_pickle_by_value()


def _is_of_builtin(value: Any) -> bool:
    """Whether this belongs to a class that goes by reference, like `object.__new__` and `str.join`."""
    owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
    return isinstance(owner, type) and is_by_reference(owner)


# --- functions and classes ------------------------------------------------------------------


def _of_function_with(names: Tuple[str, ...]) -> MadeOf:
    """The way for a function whose code has these names."""

    def of_function(function: Any) -> List[Any]:
        *parts, keywords, annotations, attributes, closure, get = _FUNCTION_PARTS(function)
        if keywords:
            parts += keywords
            parts += keywords.values()
        if annotations:
            parts += annotations
            parts += annotations.values()
        if attributes:
            parts += attributes
            parts += attributes.values()
        if names:
            parts += map(get, names, repeat(MISSING))
        if closure:
            parts += map(_content, closure)
        return parts

    return of_function


def _of_class(kind: Any) -> List[Any]:
    space = dict(kind.__dict__)
    for name in CACHES & space.keys():
        del space[name]
    return [kind.__name__, kind.__qualname__, *kind.__bases__, MISSING, *space, *space.values()]


def _of_abc(kind: Any) -> List[Any]:
    registry = abc._get_dump(kind)[0]  # type: ignore[attr-defined]
    return [*_of_class(kind), MISSING, *(reference() for reference in registry)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return MISSING


# --- what is found in classes ---------------------------------------------------------------


def _of_items(value: Any) -> List[Any]:
    return list(value)


def _of_mapping(value: Any) -> List[Any]:
    return [*value, *value.values()]


def _of_attributes(value: Any) -> List[Any]:
    return _of_mapping(vars(value))


def _of_slots(value: Any) -> List[Any]:
    return [getattr(value, name, MISSING) for name in type(value).__slots__]


def _of_dynamic(value: Any) -> List[Any]:
    """Of a property of `enum`, which has attributes besides what every property has."""
    return [value.fget, value.fset, value.fdel, *_of_attributes(value)]


def _by_names(*names: str) -> MadeOf:
    return lambda value: [getattr(value, name) for name in names]


def _of_generic(value: Any) -> List[Any]:
    return [value.__origin__, *value.__args__]


_WAYS = {
    "builtins.tuple": _of_items,
    "builtins.frozenset": _of_items,
    "builtins.list": _of_items,
    "builtins.set": _of_items,
    "builtins.dict": _of_mapping,
    "builtins.mappingproxy": _of_mapping,
    "builtins.property": _by_names("fget", "fset", "fdel", "__doc__"),
    "builtins.staticmethod": _by_names("__func__"),
    "builtins.classmethod": _by_names("__func__"),
    "builtins.member_descriptor": _by_names("__name__"),  # made anew from `__slots__`
    "builtins.getset_descriptor": _by_names("__name__"),
    "dataclasses.Field": _of_slots,
    "dataclasses._DataclassParams": _of_slots,
    "enum.property": _of_dynamic,
    "types.DynamicClassAttribute": _of_dynamic,
    "functools.cached_property": _of_attributes,
    "types.GenericAlias": _of_generic,
    "types.UnionType": _by_names("__args__"),
    "typing._GenericAlias": _of_generic,
    "typing._UnionGenericAlias": _of_generic,
    "typing._CallableGenericAlias": _of_generic,
    "typing._LiteralGenericAlias": _of_generic,
    "typing._AnnotatedAlias": _by_names("__origin__", "__metadata__"),
    "typing.Union": _by_names("__args__"),
    "typing.TypeVar": _by_names(
        "__name__", "__bound__", "__constraints__", "__covariant__", "__contravariant__"
    ),
    "typing.ForwardRef": _by_names("__forward_arg__"),
}
