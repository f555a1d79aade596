"""When the bytes of a function can be used again, and when they must be made anew."""

from __future__ import annotations

import functools
import gc
import os
import sys
import types
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import cloudpickle
import pytest

from cwmp import payload
from cwmp.captures import Captures
from cwmp.functions import FunctionDumper, open_function
from cwmp.ingredients import is_by_reference
from cwmp.payload import load_value

pytestmark = pytest.mark.core


def named() -> str:
    """A function that pickle finds by its name."""
    return "named"


class Named:
    """A class that pickle finds by its name."""

    def method(self) -> str:
        return "method"

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__


def by_value(source: str, name: str = "f", **names: Any) -> Any:
    """What `source` defines as `name`, as if it stood in `__main__`: pickled by value."""
    space: Dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, space)
    return space[name]


@pytest.fixture
def dumper() -> FunctionDumper:
    return FunctionDumper()


def loaded(data: bytes) -> Callable[..., Any]:
    """The function as a slot calls it."""
    function: Callable[..., Any] = load_value(open_function(data).pickle)
    return function


class Slotlike:
    """Loads functions as a slot does: one copy serves many jobs where the bytes allow it."""

    def __init__(self) -> None:
        self.kept: Dict[bytes, Callable[..., Any]] = {}

    def call(self, data: bytes, *args: Any) -> Any:
        function = self.kept.get(data) or loaded(data)
        if open_function(data).reusable:
            self.kept[data] = function
        return function(*args)


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


# --- what is dumped once --------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [named, len, os.path.join, Named, int, Named.method, Named.static],
    ids=lambda f: f.__qualname__,
)
def test_a_function_by_reference_is_dumped_once(dumper: FunctionDumper, function: Any) -> None:
    data = dumper.dump(function)
    assert dumper.dump(function) is data
    assert open_function(data).reusable
    assert loaded(data) is function


def test_what_captured_only_constants_is_dumped_once(dumper: FunctionDumper) -> None:
    for function in (
        closure(5), closure("text"), closure(b"bytes"), closure(None), closure((1, "two")), closure(named),
        closure(os.path), closure(frozenset({1})), closure(range(3)), closure(Named),
        by_value("def f(a=1, *, b=2): return a + b"),
        by_value("import os\ndef f(): return os.sep"),
        by_value("N = 3\ndef g(): return N\ndef f(): return g()"),
        by_value("def f(n): return 1 if n < 2 else n * f(n - 1)"),
    ):  # fmt: skip
        data = dumper.dump(function)
        assert dumper.dump(function) is data
        assert open_function(data).reusable


# --- what changed between two submits -------------------------------------------------------


def test_a_captured_variable_that_was_rebound(dumper: FunctionDumper) -> None:
    value = 1

    def f() -> int:
        return value

    first = dumper.dump(f)
    value = 2
    second = dumper.dump(f)
    assert (loaded(first)(), loaded(second)()) == (1, 2)


def test_an_equal_value_of_another_type_is_another_value(dumper: FunctionDumper) -> None:
    value: Any = 1

    def f() -> Any:
        return value

    dumper.dump(f)
    value = 1.0
    assert type(loaded(dumper.dump(f))()) is float
    value = True
    assert loaded(dumper.dump(f))() is True


def test_a_loop_variable(dumper: FunctionDumper) -> None:
    datas = []
    for n in range(5):
        datas.append(dumper.dump(lambda: n))  # noqa: B023
    assert [loaded(data)() for data in datas] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "mutable", [[1], {"n": 1}, {1}, bytearray(b"1"), types.SimpleNamespace(n=1)], ids=repr
)
def test_mutable_captures_are_dumped_each_time(dumper: FunctionDumper, mutable: Any) -> None:
    function = closure(mutable)
    assert not open_function(dumper.dump(function)).reusable
    if isinstance(mutable, list):
        mutable[0] = 2
    elif isinstance(mutable, dict):
        mutable["n"] = 2
    elif isinstance(mutable, set):
        mutable.add(2)
    elif isinstance(mutable, bytearray):
        mutable[:] = b"2"
    else:
        mutable.n = 2
    assert loaded(dumper.dump(function))() == mutable


def test_a_mutable_inside_a_tuple(dumper: FunctionDumper) -> None:
    inner = [1]
    function = closure((0, (inner,)))
    dumper.dump(function)
    inner.append(2)
    assert loaded(dumper.dump(function))() == (0, ([1, 2],))


def test_an_instance(dumper: FunctionDumper) -> None:
    thing = Named()
    thing.n = 1  # type: ignore[attr-defined]
    function = closure(thing)
    dumper.dump(function)
    thing.n = 2  # type: ignore[attr-defined]
    assert loaded(dumper.dump(function))().n == 2


def test_a_global_that_was_rebound(dumper: FunctionDumper) -> None:
    f = by_value("N = 1\ndef f(): return N")
    assert loaded(dumper.dump(f))() == 1
    f.__globals__["N"] = 2
    assert loaded(dumper.dump(f))() == 2


def test_a_global_that_comes_and_goes(dumper: FunctionDumper) -> None:
    f = by_value("def f(): return len('four')")
    assert loaded(dumper.dump(f))() == 4
    f.__globals__["len"] = named
    with pytest.raises(TypeError):
        loaded(dumper.dump(f))()
    del f.__globals__["len"]
    assert loaded(dumper.dump(f))() == 4


def test_a_mutable_global(dumper: FunctionDumper) -> None:
    f = by_value("SEEN = []\ndef f(): return SEEN")
    dumper.dump(f)
    f.__globals__["SEEN"].append(1)
    assert loaded(dumper.dump(f))() == [1]


def test_a_global_of_a_helper(dumper: FunctionDumper) -> None:
    f = by_value("N = 1\ndef g(): return N\ndef f(): return g()")
    assert loaded(dumper.dump(f))() == 1
    f.__globals__["N"] = 2
    assert loaded(dumper.dump(f))() == 2


def test_a_helper_that_was_defined_anew(dumper: FunctionDumper) -> None:
    f = by_value("def g(): return 1\ndef f(): return g()")
    assert loaded(dumper.dump(f))() == 1
    exec("def g(): return 2", f.__globals__)
    assert loaded(dumper.dump(f))() == 2


def test_a_global_used_in_a_nested_function(dumper: FunctionDumper) -> None:
    f = by_value("N = 1\ndef f(): return (lambda: [N for _ in range(1)][0])()")
    assert loaded(dumper.dump(f))() == 1
    f.__globals__["N"] = 2
    assert loaded(dumper.dump(f))() == 2


def test_defaults(dumper: FunctionDumper) -> None:
    f = by_value("def f(a=1): return a")
    assert loaded(dumper.dump(f))() == 1
    f.__defaults__ = (2,)
    assert loaded(dumper.dump(f))() == 2


def test_a_mutable_default(dumper: FunctionDumper) -> None:
    f = by_value("def f(a=[]): return a")
    dumper.dump(f)
    f.__defaults__[0].append(1)
    assert loaded(dumper.dump(f))() == [1]


def test_a_mutable_default_does_not_remember_the_job_before(dumper: FunctionDumper) -> None:
    f = by_value("def f(a=[]):\n a.append(1)\n return len(a)")
    slot = Slotlike()
    assert [slot.call(dumper.dump(f)) for _ in range(3)] == [1, 1, 1]


def test_keyword_defaults_changed_in_place(dumper: FunctionDumper) -> None:
    f = by_value("def f(*, a=1): return a")
    assert loaded(dumper.dump(f))() == 1
    f.__kwdefaults__["a"] = 2
    assert loaded(dumper.dump(f))() == 2


def test_keyword_defaults_replaced(dumper: FunctionDumper) -> None:
    f = by_value("def f(*, a=1): return a")
    assert loaded(dumper.dump(f))() == 1
    f.__kwdefaults__ = {"a": 2}
    assert loaded(dumper.dump(f))() == 2


def test_keyword_defaults_given_later(dumper: FunctionDumper) -> None:
    f = by_value("def f(*, a): return a")
    dumper.dump(f)
    f.__kwdefaults__ = {"a": 2}
    assert loaded(dumper.dump(f))() == 2


def test_a_keyword_default_added_in_place(dumper: FunctionDumper) -> None:
    f = by_value("def f(*, a=1, b): return a, b")
    dumper.dump(f)
    f.__kwdefaults__["b"] = 2
    assert loaded(dumper.dump(f))() == (1, 2)


def test_code_replaced(dumper: FunctionDumper) -> None:
    f, g = by_value("def f(): return 1"), by_value("def f(): return 2")
    dumper.dump(f)
    f.__code__ = g.__code__
    assert loaded(dumper.dump(f))() == 2


def test_function_attributes(dumper: FunctionDumper) -> None:
    f = by_value("def f(): return f.n")
    f.n = 1
    assert loaded(dumper.dump(f))() == 1
    f.n = 2
    assert loaded(dumper.dump(f))() == 2
    f.__dict__ = {"n": 3}
    assert loaded(dumper.dump(f))() == 3


def test_function_attributes_given_later(dumper: FunctionDumper) -> None:
    f = by_value("def f(): return getattr(f, 'n', 0)")
    assert loaded(dumper.dump(f))() == 0
    f.n = 1
    assert loaded(dumper.dump(f))() == 1
    del f.n
    assert loaded(dumper.dump(f))() == 0


def test_attributes_of_a_helper(dumper: FunctionDumper) -> None:
    f = by_value("def g(): return g.n\ndef f(): return g()")
    f.__globals__["g"].n = 1
    dumper.dump(f)
    f.__globals__["g"].n = 2
    assert loaded(dumper.dump(f))() == 2


def test_a_module_made_by_hand(dumper: FunctionDumper) -> None:
    """Nobody can import it on the worker, so it travels by value, and it is mutable."""
    module = types.ModuleType("made_by_hand")
    module.n = 1  # type: ignore[attr-defined]

    def f() -> Any:
        return module.n  # type: ignore[attr-defined]

    assert loaded(dumper.dump(f))() == 1
    module.n = 2  # type: ignore[attr-defined]
    assert loaded(dumper.dump(f))() == 2


def test_a_class_by_value_is_dumped_each_time(dumper: FunctionDumper) -> None:
    kind = by_value("class K:\n n = 1", "K")
    function = closure(kind)
    dumper.dump(function)
    kind.n = 2
    assert cloudpickle.loads(open_function(dumper.dump(function)).pickle)().n == 2
    assert not open_function(dumper.dump(kind)).reusable


def test_a_module_registered_by_value(
    dumper: FunctionDumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registered_by_value.py").write_text("N = 1\ndef f(): return N\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("registered_by_value")
    assert is_by_reference(module.f)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert not is_by_reference(module.f)
        dumper.dump(module.f)
        module.N = 2
        assert loaded(dumper.dump(module.f))() == 2
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["registered_by_value"]


def test_partials_bound_methods_and_callables_are_dumped_each_time(dumper: FunctionDumper) -> None:
    thing = Named()
    thing.n = 1  # type: ignore[attr-defined]
    numbers = [1]
    for function in (functools.partial(named), thing.method, numbers.append, Named.of_class, thing):
        if callable(function):
            assert not open_function(dumper.dump(function)).reusable
    assert numbers.append != loaded(dumper.dump(numbers.append))


# --- jobs of one slot do not see each other -------------------------------------------------

REBINDING = {
    "global": "N = 0\ndef f():\n global N\n N += 1\n return N",
    "deleted global": "N = 0\ndef f():\n global N\n n = N\n del N\n return n + 1",
    "nonlocal": "def make():\n n = 0\n def f():\n  nonlocal n\n  n += 1\n  return n\n return f\nf = make()",
    "in a helper": "N = 0\ndef g():\n global N\n N += 1\n return N\ndef f(): return g()",
    "in a nested function": "N = 0\ndef f():\n def g():\n  global N\n  N += 1\n  return N\n return g()",
    "in a nested class": "N = 0\ndef f():\n class A:\n  global N\n  N += 1\n return N",
    "import": "json = 0\ndef f():\n global json\n n = json\n import json\n return n + 1 if n == 0 else 2",
    "for": "N = 0\ndef f():\n global N\n n = N\n for N in (5,): pass\n return n + 1",
    "attribute": "def f():\n f.n += 1\n return f.n\nf.n = 0",
    "new attribute": "def f():\n f.n = getattr(f, 'n', 0) + 1\n return f.n",
    "setattr": "def f():\n setattr(f, 'n', getattr(f, 'n', 0) + 1)\n return f.n",
    "dict of attributes": "def f():\n f.__dict__['n'] = f.__dict__.get('n', 0) + 1\n return f.n",
    "new attribute of a helper": "def g(): pass\ndef f():\n g.n = getattr(g, 'n', 0) + 1\n return g.n",
    "attribute of a helper": "def g(): pass\ng.n = 0\ndef f():\n g.n += 1\n return g.n",
    "list": "L = []\ndef f():\n L.append(1)\n return len(L)",
}  # fmt: skip


@pytest.mark.parametrize("source", REBINDING.values(), ids=REBINDING)
def test_no_job_sees_what_another_has_rebound(dumper: FunctionDumper, source: str) -> None:
    f = by_value(source)
    slot = Slotlike()
    assert [slot.call(dumper.dump(f)) for _ in range(3)] == [1, 1, 1]


def test_own_variables_are_no_captures(dumper: FunctionDumper) -> None:
    """A function may rebind what is its own, for its inner functions as well."""
    f = by_value("def f(n):\n def g():\n  nonlocal n\n  n += 1\n  return n\n return g()")
    slot = Slotlike()
    assert [slot.call(dumper.dump(f), 1) for _ in range(3)] == [2, 2, 2]


# --- recursion ------------------------------------------------------------------------------


def test_mutual_recursion_of_globals(dumper: FunctionDumper) -> None:
    even = by_value(
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
        "even",
    )
    data = dumper.dump(even)
    assert dumper.dump(even) is data
    assert loaded(data)(10) is True


def test_recursion_in_a_closure(dumper: FunctionDumper) -> None:
    def outer() -> Callable[[int], int]:
        def fib(n: int) -> int:
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        return fib

    fib = outer()
    data = dumper.dump(fib)
    assert dumper.dump(fib) is data
    assert loaded(data)(10) == 55


def test_a_cell_that_is_not_filled_yet(dumper: FunctionDumper) -> None:
    if not named:
        later = 0

    def f() -> int:
        return later

    dumper.dump(f)
    later = 7
    assert loaded(dumper.dump(f))() == 7


def test_a_long_chain_of_helpers_is_followed(dumper: FunctionDumper) -> None:
    source = "".join(f"def f{n}(): return f{n - 1}()\n" for n in range(1, 60))
    f = by_value("N = 1\ndef f0(): return N\n" + source, "f59")
    assert loaded(dumper.dump(f))() == 1
    f.__globals__["N"] = 2
    assert loaded(dumper.dump(f))() == 2


# --- what the dumper keeps alive ------------------------------------------------------------


def self_recursive() -> Callable[..., Any]:
    def fact(n: int) -> int:
        return n * fact(n - 1) if n else 1

    return fact


def mutually_recursive() -> Callable[..., Any]:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    return even


def helped() -> Callable[..., Any]:
    helper = closure(1)
    return closure(helper)


def default_helper() -> Callable[..., Any]:
    def f(g: Any = closure(1), *, h: Any = closure(2)) -> Any:  # noqa: B008
        return g() + h()

    return f


MAKERS: List[Callable[[], Callable[..., Any]]] = [
    lambda: closure(5),
    lambda: closure(b"x" * 1000),
    lambda: closure([]),
    self_recursive,
    mutually_recursive,
    helped,
    default_helper,
    lambda: by_value("def f(n): return f(n)"),
]


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
def test_the_dumper_keeps_no_function_alive(dumper: FunctionDumper, make: Callable[[], Any]) -> None:
    function = make()
    memory = weakref.ref(function)
    for _ in range(2):
        dumper.dump(function)
    del function
    gc.collect()
    assert memory() is None
    assert not dumper._known, "the bytes stay for ever"


def test_a_million_lambdas_do_not_pile_up(dumper: FunctionDumper) -> None:
    for n in range(200):
        dumper.dump(closure(n))
    gc.collect()
    assert not dumper._known


def test_an_id_that_is_used_again_is_another_function(dumper: FunctionDumper) -> None:
    seen: Dict[int, int] = {}
    reused = 0
    for n in range(300):
        function = closure(n)
        reused += id(function) in seen
        seen[id(function)] = n
        assert loaded(dumper.dump(function))() == n
        del function
    assert reused, "this test needs ids that come back"


def test_a_captured_value_whose_id_is_used_again(dumper: FunctionDumper) -> None:
    value = 10.5
    cell: List[Any] = []

    def f() -> float:
        return value

    for n in range(300):
        value = n + 0.5  # the old float may be freed, and the new one take its place
        cell.append(loaded(dumper.dump(f))())
    assert cell == [n + 0.5 for n in range(300)]


# --- the place ------------------------------------------------------------------------------


def test_the_working_directory_is_that_of_the_submit(
    dumper: FunctionDumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dumper.dump(named)
    here = os.getcwd()
    monkeypatch.chdir(tmp_path)
    there = dumper.dump(named)
    assert open_function(before).place.cwd == here
    assert open_function(there).place.cwd == str(tmp_path)
    assert dumper.dump(named) is there
    monkeypatch.chdir(here)
    assert open_function(dumper.dump(named)).place == open_function(before).place


def test_sys_path_is_that_of_the_submit(dumper: FunctionDumper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/first"])
    assert open_function(dumper.dump(named)).place.path[-1] == "/first"
    sys.path.append("/second")
    assert open_function(dumper.dump(named)).place.path[-2:] == ("/first", "/second")
    sys.path[-1] = "/third"
    assert open_function(dumper.dump(named)).place.path[-2:] == ("/first", "/third")


def test_the_empty_entry_of_sys_path_is_the_clients_directory(
    dumper: FunctionDumper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path, tmp_path / "a-path-object"])
    place = open_function(dumper.dump(named)).place
    assert place.path[0] == str(tmp_path)
    assert place.path[-1] == str(tmp_path / "a-path-object")


def test_a_working_directory_that_was_deleted(
    dumper: FunctionDumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert open_function(dumper.dump(named)).place.cwd is None
    assert dumper.dump(named) is dumper.dump(named)


def test_a_working_directory_with_a_very_long_path(
    dumper: FunctionDumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    deep = dumper.dump(named)
    assert dumper.dump(named) is deep
    os.chdir("..")
    assert open_function(deep).place.cwd == os.path.join(os.getcwd(), "d" * 250)
    assert open_function(dumper.dump(named)).place.cwd == os.getcwd()


# --- by name or by value --------------------------------------------------------------------


def test_what_is_by_reference() -> None:
    decorated = functools.lru_cache(named)
    for value in (named, Named, Named.method, Named.static, len, os.path.join, dict, functools.partial):
        assert is_by_reference(value), value
    others = (functools.wraps(named), by_value("def f(): pass"))
    for value in (closure(1), lambda: 0, [].append, decorated, 5, None, *others):
        assert not is_by_reference(value), value


def test_a_function_that_was_replaced_under_its_name(
    dumper: FunctionDumper, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = named
    monkeypatch.setitem(globals(), "named", len)
    assert not is_by_reference(original)
    assert loaded(dumper.dump(original))() == "named"


def test_captures_tells_whether_a_change_would_be_seen() -> None:
    assert Captures.of(named) is not None
    assert Captures.of(closure(iter([]))) is None
    assert Captures.of(functools.partial(named)) is None
    captures = Captures.of(closure(1))
    assert captures is None or not captures.unchanged() or captures.reusable


def test_dump_of_what_cannot_be_pickled_names_the_function(dumper: FunctionDumper, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:

        def writes() -> Tuple[Any, ...]:
            return (file,)

        with pytest.raises(payload.PayloadError, match="writes"):
            dumper.dump(writes)
        with pytest.raises(payload.PayloadError, match=r"function .*partial"):
            dumper.dump(functools.partial(named, file))
