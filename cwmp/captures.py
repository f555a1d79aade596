"""What a function's pickle depends on, and whether any of it has changed since.

A function that is pickled by reference is its name: nothing in it can change on the way. One that
is pickled by value (from `__main__`, a closure, a lambda) takes along its defaults, its closure and
the globals that it names; a class takes along its bases and all that its body has defined. As long as
all of those are the very same objects, down to constants, the old bytes still say the truth. Where one
of them is of a kind that is not known here nobody can tell, and it is pickled again each time.
"""

from __future__ import annotations

import dis
import types
import weakref
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from .ingredients import MadeOf, is_by_reference, is_constant, is_mutable, made_of, names_in

MAX_PARTS = 5000  # more than this would cost more to compare than to pickle

_REBINDS = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"}
_ATTRIBUTE_WRITES = {"STORE_ATTR", "DELETE_ATTR"}
_WRITERS = {"setattr", "delattr", "vars", "__dict__", "__setattr__"}


class _Step(NamedTuple):
    """One object to look into, found as a part of another, and the ids of what it was made of."""

    owner: int  # index of the step that found it
    position: int  # among the parts of its owner
    made_of: MadeOf
    ids: List[int]


class Captures:
    """The captured objects of some functions and classes, remembered by identity.

    Only the constants at the ends are held, so that their ids stay theirs. All between are found
    anew each time, from their owners: whoever knows a function by this must not keep it alive, and
    an object that came to stand at the place of another one that was just like it does no harm.
    """

    __slots__ = ("_captures_functions", "_codes", "_constants", "_count", "_roots", "_steps", "checkable")

    def __init__(self) -> None:
        self._roots: List[weakref.ref[Any]] = []
        self._steps: List[_Step] = []
        self._constants: Dict[int, Any] = {}
        self._codes: List[types.CodeType] = []
        self._count = 0
        self._captures_functions = False
        self.checkable = False
        """Something mutable is among them: a loaded copy may serve again while it is `unchanged()`."""

    @classmethod
    def of(cls, *roots: Any) -> Optional[Captures]:
        """The captures of functions and classes; None where a change could go unnoticed."""
        captures = cls()
        try:
            known = captures._track(roots)
        except Exception:  # user code may be asked for attributes
            return None
        return captures if known else None

    @property
    def reusable(self) -> bool:
        """Whether a loaded copy may serve several jobs: they can change nothing that was captured."""
        if self.checkable:
            return False
        names = [set(names_in(code)) for code in self._codes]
        if any(_does(code, _REBINDS, set(code.co_freevars)) for code in self._codes):
            return False
        if not self._captures_functions:
            return True
        return not any(
            own & _WRITERS or _does(code, _ATTRIBUTE_WRITES, own) for code, own in zip(self._codes, names)
        )

    def unchanged(self) -> bool:
        """Whether everything that was captured is still the same object."""
        if not self._steps:
            return True
        try:
            if len(self._steps) == 1:  # most functions; all of this is done at every submit
                node = self._roots[0]()
                parts = self._steps[0][2](node)
                parts.append(type(node))
                return list(map(id, parts)) == self._steps[0][3]
            found: List[Any] = [[reference() for reference in self._roots]]
            for owner, position, made_of, ids in self._steps:
                node = found[owner][position]
                parts = made_of(node)
                parts.append(type(node))
                if list(map(id, parts)) != ids:
                    return False
                found.append(parts)
        except Exception:
            return False  # what stands there now is something else
        return True

    def _track(self, roots: Tuple[Any, ...]) -> bool:
        """Look into all that these are made of; False where something could change unseen."""
        roots = tuple(root for root in roots if not is_constant(root))
        if not all(isinstance(root, (types.FunctionType, type)) for root in roots):
            return False
        self._roots = [weakref.ref(root) for root in roots]
        seen: Set[int] = set()
        lists: List[List[Any]] = [list(roots)]
        for owner, values in enumerate(lists):  # grows meanwhile
            for position, value in enumerate(values):
                if id(value) in seen:
                    continue
                seen.add(id(value))
                if is_constant(value):
                    self._constants[id(value)] = value
                    continue
                parts = self._step(owner, position, value)
                if parts is None:
                    return False
                lists.append(parts)
        return True

    def _step(self, owner: int, position: int, value: Any) -> Optional[List[Any]]:
        """Note how to find `value`, and what it is made of: returns that. None if it is unknown."""
        way = made_of(value)
        if way is None:
            return None
        parts = way(value)
        parts.append(type(value))
        self._count += len(parts)
        if self._count > MAX_PARTS:
            return None
        self._steps.append(_Step(owner, position, way, list(map(id, parts))))
        self.checkable = self.checkable or is_mutable(value)
        if isinstance(value, types.FunctionType):
            self._codes.append(value.__code__)
            if any(isinstance(part, types.FunctionType) and not is_by_reference(part) for part in parts):
                self._captures_functions = True
        return parts


def _does(code: types.CodeType, operations: Set[str], names: Set[str]) -> bool:
    """Whether the code, or code inside it, has one of these operations on a global or on one of `names`."""
    for step in dis.get_instructions(code):
        if step.opname in operations and ("GLOBAL" in step.opname or step.argval in names):
            return True
    return any(_does(c, operations, names) for c in code.co_consts if isinstance(c, types.CodeType))
