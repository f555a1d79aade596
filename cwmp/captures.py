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
import weakref
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import cloudpickle

_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range)
_MISSING = object()
_REBINDS = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"}
_ATTRIBUTE_WRITES = {"STORE_ATTR", "DELETE_ATTR"}
_WRITERS = {"setattr", "delattr", "vars", "__dict__", "__setattr__"}


class _Part(NamedTuple):
    """One function that is pickled by value, and what it is made of.

    Functions are held weakly, here and among the captured values: whoever knows a function by this
    must not keep it alive, and closures often hold themselves.
    """

    function: weakref.ref[types.FunctionType]
    code: types.CodeType
    defaults: Optional[Tuple[Any, ...]]
    keyword_defaults: Optional[Dict[str, Any]]
    globals: Tuple[Tuple[str, Any], ...]  # (name, value), or a weak reference to the value
    cells: Tuple[Any, ...]
    keywords: Tuple[Tuple[str, Any], ...]

    def unchanged(self) -> bool:
        """Whether the function still consists of the very same objects."""
        function = self.function()
        if function is None or function.__code__ is not self.code or function.__dict__:
            return False
        if (
            function.__defaults__ is not self.defaults
            or function.__kwdefaults__ is not self.keyword_defaults
            or len(self.keyword_defaults or ()) != len(self.keywords)
        ):
            return False
        for space, captured in (
            (function.__globals__, self.globals),
            (self.keyword_defaults, self.keywords),
        ):
            for name, value in captured:
                if not _same(space.get(name, _MISSING), value):  # type: ignore[union-attr]
                    return False
        return all(map(_same, map(_content, function.__closure__ or ()), self.cells))


class Captures:
    """The captured objects of one function, remembered by identity."""

    __slots__ = ("_captures_functions", "_parts", "_rebinds", "_writes_attributes")

    def __init__(self) -> None:
        self._parts: List[_Part] = []
        self._rebinds = self._writes_attributes = self._captures_functions = False

    @property
    def reusable(self) -> bool:
        """Whether a loaded copy may serve several jobs: it can change nothing that it captured."""
        return not (self._rebinds or (self._writes_attributes and self._captures_functions))

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
        for part in self._parts:
            if not part.unchanged():
                return False
        return True

    def _track(self, value: Any, seen: Set[int]) -> bool:
        """Remember what `value` is made of; False where that could change unseen."""
        if type(value) in _ATOMS or value is _MISSING:
            return True
        if type(value) in (tuple, frozenset):
            return all(type(item) in _ATOMS for item in value)
        if isinstance(value, types.ModuleType):
            return sys.modules.get(value.__name__) is value and not _is_registered(value.__name__)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            if is_by_reference(value):
                return True
        if isinstance(value, types.FunctionType):
            return id(value) in seen or self._track_function(value, seen)
        return False

    def _track_function(self, function: types.FunctionType, seen: Set[int]) -> bool:
        """Remember a function that is pickled by value, and all that it captured."""
        if function.__dict__:
            return False  # attributes: the place where functions keep state
        seen.add(id(function))
        code = function.__code__
        space = function.__globals__
        names = set(_names_in(code))
        found = [(name, space.get(name, _MISSING)) for name in sorted(names)]
        self._rebinds = self._rebinds or _does(code, _REBINDS, set(code.co_freevars))
        if names & _WRITERS or _does(code, _ATTRIBUTE_WRITES, names):
            self._writes_attributes = True
        keywords = list((function.__kwdefaults__ or {}).items())
        cells = [_content(cell) for cell in function.__closure__ or ()]
        part = _Part(
            weakref.ref(function),
            code,
            function.__defaults__,
            function.__kwdefaults__,
            tuple((name, _hold(value)) for name, value in found),
            tuple(map(_hold, cells)),
            tuple((name, _hold(value)) for name, value in keywords),
        )
        self._parts.append(part)
        captured = [*cells, *(value for _, value in found + keywords)]
        if any(isinstance(value, types.FunctionType) and not is_by_reference(value) for value in captured):
            self._captures_functions = True
        return self._track(function.__defaults__, seen) and all(self._track(v, seen) for v in captured)


def _hold(value: Any) -> Any:
    """What to remember a captured value by: itself, or a weak reference to a function."""
    return weakref.ref(value) if isinstance(value, types.FunctionType) else value


def _same(value: Any, held: Any) -> bool:
    return value is held or (isinstance(held, weakref.ref) and value is held())


def _is_registered(module_name: str) -> bool:
    """Whether the user asked cloudpickle to pickle this module's functions by value."""
    return module_name in cloudpickle.list_registry_pickle_by_value()


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


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Every name that the code, or code inside it, may look up in its globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _does(code: types.CodeType, operations: Set[str], names: Set[str]) -> bool:
    """Whether the code, or code inside it, has one of these operations on a global or on one of `names`."""
    for step in dis.get_instructions(code):
        if step.opname in operations and ("GLOBAL" in step.opname or step.argval in names):
            return True
    return any(_does(c, operations, names) for c in code.co_consts if isinstance(c, types.CodeType))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING
