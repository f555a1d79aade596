"""What a function's pickle depends on, and whether any of it has changed since.

A function that is pickled by reference is its name: nothing in it can change on the way. One that
is pickled by value (from `__main__`, a closure, a lambda) takes along its defaults, its closure and
the globals that it names. As long as all of those are the very same immutable objects, its old bytes
still say the truth; where one of them is mutable nobody can tell, and it is pickled again each time.
"""

from __future__ import annotations

import dis
import sys
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import cloudpickle

_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range)
_MISSING = object()
_REBINDS = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"}


class Captures:
    """The captured objects of one function, remembered by identity."""

    __slots__ = ("reusable", "_functions", "_names", "_cells")

    def __init__(self) -> None:
        self.reusable = True
        """Whether a loaded copy may serve several jobs: it rebinds nothing that it captured."""
        self._functions: List[Tuple[types.FunctionType, Any, Any, int]] = []
        self._names: List[Tuple[Dict[str, Any], str, Any]] = []  # (namespace, name, value)
        self._cells: List[Tuple[Any, Any]] = []

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Optional[Captures]:
        """The captures of `function`; None where a change could go unnoticed."""
        captures = cls()
        if isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)):
            if captures._track(function, set()):
                return captures
        return None

    def unchanged(self) -> bool:
        """Whether everything that was captured is still the same object."""
        for namespace, name, value in self._names:
            if namespace.get(name, _MISSING) is not value:
                return False
        for cell, value in self._cells:
            if _content(cell) is not value:
                return False
        for function, code, given, attributes in self._functions:
            if function.__code__ is not code or function.__defaults__ is not given:
                return False
            if len(function.__dict__) != attributes:
                return False
        return True

    def _track(self, value: Any, seen: Set[int]) -> bool:
        """Remember what `value` is made of; False where that could change unseen."""
        if type(value) in _ATOMS or isinstance(value, types.ModuleType) or value is _MISSING:
            return True
        if type(value) in (tuple, frozenset):
            return all(self._track(item, seen) for item in value)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            if is_by_reference(value):
                return True
        if isinstance(value, types.FunctionType):
            return id(value) in seen or self._track_function(value, seen)
        return False

    def _track_function(self, function: types.FunctionType, seen: Set[int]) -> bool:
        """Remember a function that is pickled by value, and all that it captured."""
        seen.add(id(function))
        code = function.__code__
        self.reusable = self.reusable and not _rebinds(code)
        self._functions.append((function, code, function.__defaults__, len(function.__dict__)))
        names = [(function.__globals__, name) for name in set(_names_in(code))]
        for namespace in (function.__kwdefaults__ or {}, function.__dict__):
            names += [(namespace, name) for name in namespace]
        captured = [(space, name, space.get(name, _MISSING)) for space, name in names]
        cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        self._names += captured
        self._cells += cells
        return (
            self._track(function.__defaults__, seen)
            and all(self._track(value, seen) for _, _, value in captured)
            and all(self._track(value, seen) for _, value in cells)
        )


def is_by_reference(value: Any) -> bool:
    """Whether pickle can find this function or class by its name in an importable module."""
    module_name = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if module_name in (None, "__main__") or name is None:
        return False
    if module_name in cloudpickle.list_registry_pickle_by_value():
        return False
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Every name that the code, or code inside it, may look up in its globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _rebinds(code: types.CodeType) -> bool:
    """Whether running the code assigns to a global or to a captured variable."""
    free = set(code.co_freevars)
    for step in dis.get_instructions(code):
        if step.opname in _REBINDS and ("GLOBAL" in step.opname or step.argval in free):
            return True
    return any(_rebinds(c) for c in code.co_consts if isinstance(c, types.CodeType))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING
