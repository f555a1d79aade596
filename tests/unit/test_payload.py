"""User objects to bytes and back: calls, results, and whatever a job may raise."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import platform
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Type

import pytest

from cwmp import messages, outcomes, payload
from cwmp.errors import PayloadError, RemoteError, RemoteTraceback
from cwmp.functions import FunctionDumper, open_function
from cwmp.payload import (
    dump_call,
    dump_error,
    dump_value,
    load_call,
    load_error,
    load_value,
)

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]


def named() -> str:
    return "named"


class Unpicklable:
    """Refuses."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


class Exits:
    """Ends the program when it is pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ExitsWhenLoaded:
    """Ends the program when it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class FailsWhenLoaded:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


# --- values ---------------------------------------------------------------------------------


def test_values_survive() -> None:
    plain = (None, 5, "text", b"bytes", [1, {2: (3,)}], {1, 2}, 1j)
    for value in (*plain, named, len, Unpicklable, ValueError("x"), Path("a")):
        again = load_value(dump_value(value))
        assert type(again) is type(value)
        assert repr(again) == repr(value)


def test_lambdas_closures_and_their_company_survive() -> None:
    n = 5
    thing = {"partial": functools.partial(pow, 2), "lambda": lambda x: x + n, "method": "text".upper}
    again = load_value(dump_value(thing))
    assert again["partial"](3) == 8
    assert again["lambda"](1) == 6
    assert again["method"]() == "TEXT"


def test_text_that_speaks_of_main_survives() -> None:
    for value in ("__main__", b"__main__", {"__main__": ["__main__"]}):
        assert load_value(dump_value(value)) == value


@pytest.mark.parametrize(
    "value", [threading.Lock(), Unpicklable(), (n for n in ())], ids=["lock", "own", "generator"]
)
def test_what_cannot_be_pickled_is_named(value: Any) -> None:
    with pytest.raises(PayloadError, match=type(value).__name__) as caught:
        dump_value(value)
    assert caught.value.__cause__ is not None


def test_the_error_says_why() -> None:
    with pytest.raises(PayloadError, match="RuntimeError: not this one"):
        dump_value(Unpicklable())


def deep_list(depth: int) -> List[Any]:
    value: List[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_too_deep_a_value_is_an_error_and_nothing_worse() -> None:
    with pytest.raises(PayloadError, match="list"):
        dump_value(deep_list(20_000))


# --- calls ----------------------------------------------------------------------------------


def test_calls_survive() -> None:
    for args, kwargs in (((), {}), ((1, "two"), {"three": [3]}), ((lambda: 1,), {})):  # type: ignore[var-annotated]
        again_args, again_kwargs = load_call(dump_call(args, kwargs))
        assert (len(again_args), again_kwargs) == (len(args), kwargs)
    assert load_call(dump_call((1, "two"), {"three": [3]})) == ((1, "two"), {"three": [3]})


def test_arguments_are_copied_when_dumped() -> None:
    numbers = [1]
    data = dump_call((numbers,), {})
    numbers.append(2)
    assert load_call(data) == (([1],), {})


def test_one_object_in_two_arguments_stays_one() -> None:
    shared: List[int] = []
    args, kwargs = load_call(dump_call((shared, shared), {"again": shared}))
    assert args[0] is args[1] is kwargs["again"]


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        ((Unpicklable(),), {}, "argument 1: "),
        ((1, 2, Unpicklable(), Unpicklable()), {}, "argument 3: "),
        ((1,), {"good": 1, "bad": Unpicklable()}, "argument 'bad': "),
        ((1, [Unpicklable()]), {}, "argument 2: cannot pickle list"),
        ((), {"bad": deep_list(20_000)}, "argument 'bad': cannot pickle list"),
    ],
    ids=["first", "third", "keyword", "inside", "deep"],
)
def test_an_unpicklable_argument_is_named(args: Any, kwargs: Dict[str, Any], name: str) -> None:
    with pytest.raises(PayloadError) as caught:
        dump_call(args, kwargs)
    assert str(caught.value).startswith(name)
    assert isinstance(caught.value, TypeError)


# --- functions ------------------------------------------------------------------------------


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, other: int) -> int:
        return self.n + other

    def add(self, other: int) -> int:
        return self.n + other


def test_bound_methods_partials_and_callable_instances_travel() -> None:
    dumper = FunctionDumper()
    functions: List[Any] = [
        Adder(1),
        Adder(1).add,
        functools.partial(max, 3),
        {2: 3}.get,
        functools.partial(lambda a, b: a + b, 1),
        lambda n: n + 1,
    ]
    for function in functions:
        assert load_value(open_function(dumper.dump(function)).pickle)(2) == 3


def test_a_bound_method_takes_its_object_as_it_is_now() -> None:
    dumper = FunctionDumper()
    adder = Adder(1)
    method = adder.add
    results = []
    for adder.n in (1, 2):
        results.append(load_value(open_function(dumper.dump(method)).pickle)(10))
    assert results == [11, 12]


def test_bytes_of_a_function_can_be_taken_apart_without_loading_it() -> None:
    function = open_function(FunctionDumper().dump(FailsWhenLoaded().__reduce__))
    assert function.place.cwd == os.getcwd()
    with pytest.raises(ValueError, match="no number"):
        load_value(function.pickle)


MAIN_SCRIPT = """
import pickle, subprocess, sys
from cwmp.functions import FunctionDumper
from cwmp.payload import dump_call, load_error, load_value

class Point:
    def __init__(self, x): self.x = x
    def moved(self, by): return Point(self.x + by)
    def __eq__(self, other): return type(other) is Point and other.x == self.x

class Own(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)

def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def make(x): return Point(x)
def fail(): raise Own(1, 2)
N = 1
def number(): return N

dumper = FunctionDumper()
calls = [(fib, 10), (make, 5), (Point(1).moved, 2), (Point, 7), (lambda p: p.x, Point(9))]
jobs = [(dumper.dump(function), dump_call((arg,), {})) for function, arg in calls]
jobs.append((dumper.dump(fail), dump_call((), {})))
jobs.append((dumper.dump(number), dump_call((), {})))
N = 2
jobs.append((dumper.dump(number), dump_call((), {})))
worker = subprocess.run(
    [sys.executable, "worker.py"], input=pickle.dumps(jobs), stdout=subprocess.PIPE, check=True)
answers = pickle.loads(worker.stdout)
got = [load_value(a) for a in answers[:5]]
assert got[0] == 55, got
assert type(got[1]) is Point and got[1].x == 5, got
assert got[2] == Point(3) and got[3] == Point(7) and got[4] == 9, got
error = load_error(answers[5])
assert type(error) is Own and error.args == (1, 2), repr(error)
assert "in fail" in str(error.__cause__)
assert [load_value(a) for a in answers[6:]] == [1, 2]
print("all well")
"""

WORKER_SCRIPT = """
import pickle, sys
from cwmp.functions import open_function
from cwmp.payload import load_value, load_call, dump_value, dump_error
answers = []
for function, call in pickle.load(sys.stdin.buffer):
    args, kwargs = load_call(call)
    try:
        answers.append(dump_value(load_value(open_function(function).pickle)(*args, **kwargs)))
    except Exception as error:
        answers.append(dump_error(error))
sys.stdout.buffer.write(pickle.dumps(answers))
"""


def test_what_lives_in_main_comes_back_as_itself(tmp_path: Path) -> None:
    """A program's own classes and functions, through a process that knows none of them."""
    (tmp_path / "program.py").write_text(MAIN_SCRIPT)
    (tmp_path / "worker.py").write_text(WORKER_SCRIPT)
    program = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, text=True,
    )  # fmt: skip
    assert program.stdout == "all well\n", program.stdout


# --- errors ---------------------------------------------------------------------------------


class Plain(Exception):
    """As most exceptions are."""


class Attributes(Exception):
    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class OtherConstructor(Exception):
    """Can't be rebuilt from its args."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class ExitingStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


class BadRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class BadReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class ExitingReduce(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class BecomesAnother(Exception):
    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class ExitsOnLoad(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (5,)


class Holds(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


def raised(error: BaseException) -> BaseException:
    """The exception with a traceback, as a job leaves it."""
    try:
        raise error
    except BaseException as caught:
        return caught


def over_the_wire(error: BaseException) -> BaseException:
    return load_error(dump_error(raised(error)))


@pytest.mark.parametrize(
    "error",
    [Plain("a", 1), ValueError("x"), KeyError("k"), OSError(2, "No such file", "f"), Attributes("m", code=3),
     UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), SystemExit(3), KeyboardInterrupt(), StopIteration(5),
     RemoteError("t", "m"), Plain()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_an_error_comes_back_with_its_own_type(error: BaseException) -> None:
    again = over_the_wire(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert isinstance(again.__cause__, RemoteTraceback)


def test_the_remote_traceback_names_place_and_line() -> None:
    again = over_the_wire(Plain("the message"))
    text = str(again.__cause__)
    where = f"node {platform.node()}, pid {os.getpid()}, attempt {payload.here.attempt}"
    assert where in text
    assert "in raised" in text and "test_payload.py" in text and "Plain: the message" in text
    shown = "".join(traceback.format_exception(type(again), again, again.__traceback__))
    assert where in shown and "direct cause" in shown


def test_the_remote_traceback_keeps_the_chain() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise Plain("second") from first
    except Plain as error:
        text = str(load_error(dump_error(error)).__cause__)
    assert "KeyError: 'first'" in text and "second" in text and "direct cause" in text


@pytest.mark.parametrize(
    ("error", "message"),
    [(OtherConstructor(1, 2), "1 and 2"), (BadReduce("m"), "m"), (ExitingReduce("m"), "m"),
     (Holds(), "holds a lock"), (BecomesAnother("m"), "m"), (ExitsOnLoad("m"), "m")],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)  # fmt: skip
def test_an_error_that_cannot_travel_is_told_of(error: Exception, message: str) -> None:
    again = over_the_wire(error)
    assert type(again) is RemoteError
    assert again.type_name == f"{__name__}.{type(error).__name__}"
    assert again.message == message
    assert "in raised" in again.traceback
    assert str(again) == f"{again.type_name}: {message}"
    assert isinstance(again.__cause__, RemoteTraceback)


@pytest.mark.parametrize("kind", [BadStr, ExitingStr, BadRepr, Frozen], ids=lambda k: k.__name__)
def test_an_error_whose_own_code_fails_still_arrives(kind: Type[Exception]) -> None:
    again = over_the_wire(kind("args"))
    if type(again) is RemoteError:
        assert again.type_name.endswith(kind.__name__)
    else:
        assert type(again) is kind
    assert kind.__name__ in str(again.__cause__)


def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


def test_a_recursion_overflow_arrives() -> None:
    try:
        recurse()
    except RecursionError as error:
        again = load_error(dump_error(error))
    assert type(again) is RecursionError
    assert len(str(again.__cause__)) < 100_000


def test_dump_error_works_near_the_recursion_limit() -> None:
    datas: List[bytes] = []

    def dive() -> None:
        try:
            dive()
        except RecursionError as error:
            if not datas:
                try:
                    datas.append(dump_error(error))
                except RecursionError:
                    raise  # too deep even for that: one frame up there is more room

    dive()
    assert isinstance(load_error(datas[0]), (RecursionError, RemoteError))


def test_an_error_with_a_cycle_arrives() -> None:
    error = Plain("m")
    error.__cause__ = error
    error.me = error  # type: ignore[attr-defined]
    again = load_error(dump_error(error))
    assert type(again) is Plain
    assert again.me is again


def test_an_error_whose_class_is_not_here_is_told_of() -> None:
    """A class from a module that only the worker has."""
    good = dump_error(Plain("m"))
    pickled, *rest = pickle.loads(good)
    data = pickle.dumps((pickled.replace(b"Plain", b"Elsew"), *rest))
    again = load_error(data)
    assert type(again) is RemoteError
    assert again.message == "m"


def test_errors_without_a_traceback_arrive() -> None:
    assert type(load_error(dump_error(Plain("m")))) is Plain


def test_a_local_class_comes_back_as_itself() -> None:
    class Local(Exception):
        pass

    assert type(over_the_wire(Local("m"))) is Local


def test_the_error_is_not_changed_by_dumping() -> None:
    error = Attributes("m", code=1)
    before = copy.copy(vars(error))
    dump_error(error)
    assert vars(error) == before
    assert error.__cause__ is None


# --- outcomes -------------------------------------------------------------------------------

OUTCOMES: List[Any] = [
    (messages.RESULT, dump_value(5), 5, None),
    (messages.ERROR, dump_error(Plain("m")), None, "Plain"),
    (messages.LOST, [{"attempt": 1, "node": "n", "cause": "killed"}], None, "WorkerLost"),
    (outcomes.MASTER_LOST, "gone", None, "MasterLost"),
    (outcomes.CANCELLED, "left", None, "CancelledError"),
    (messages.RESULT, b"garbage", None, "PayloadError"),
    (messages.RESULT, dump_value(FailsWhenLoaded()), None, "PayloadError"),
    (messages.RESULT, dump_value(ExitsWhenLoaded()), None, "PayloadError"),
    (messages.ERROR, b"garbage", None, "PayloadError"),
    (messages.ERROR, pickle.dumps((dump_value(ExitsWhenLoaded()), "T", "m", "text")), None, "RemoteError"),
    (77, None, None, "CwmpError"),
]


@pytest.mark.parametrize(("kind", "data", "value", "error"), OUTCOMES, ids=range(len(OUTCOMES)))
def test_settle_never_raises(kind: int, data: Any, value: Any, error: Any) -> None:
    """Else the dispatcher thread would end, and its jobs would be open for ever."""
    got, failure = outcomes.settle(kind, data)
    assert got == value
    assert (type(failure).__name__ if failure else None) == error


def test_a_result_that_cannot_be_loaded_says_why() -> None:
    _, error = outcomes.settle(messages.RESULT, dump_value(FailsWhenLoaded()))
    assert "no number" in str(error)


def test_unpicklable_that_exits_is_the_callers_exit() -> None:
    """At submit, what the user's own code raises in the user's own thread goes its way."""
    with pytest.raises((SystemExit, PayloadError)):
        dump_call((Exits(),), {})


def test_nothing_but_bytes_leaves_this_module() -> None:
    makers: List[Callable[[], Any]] = [
        lambda: dump_value(1), lambda: dump_call((), {}), lambda: dump_error(Plain()),
        lambda: FunctionDumper().dump(named),
    ]  # fmt: skip
    assert all(type(make()) is bytes for make in makers)
    assert payload.load_value(makers[0]()) == 1
