"""Classes that travel by value: never stale, never another job's, and themselves when they come back."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import random
import sys
import types
import weakref
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Tuple

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cwmp import functions, payload, references
from cwmp.captures import Captures
from cwmp.errors import PayloadError
from cwmp.functions import FunctionDumper
from cwmp.loaded import Loaded
from cwmp.streams import call_each, each_of

pytestmark = pytest.mark.core

WAIT_S = 30.0
Job = Tuple[bytes, bytes, FrozenSet[str]]


# --- a slot ---------------------------------------------------------------------------------


class Slot:
    """A process that runs jobs as a slot does, in whatever order they are given to it."""

    def __init__(self) -> None:
        self.dumper = FunctionDumper()
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_be_a_slot, args=(theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()

    def job(self, function: Callable[..., Any], *args: Any) -> Job:
        """What a submit sends."""
        return self.dumper.dump_job(function, args, {})

    def answer(self, job: Job) -> Tuple[bool, bytes]:
        """Run a job: whether it succeeded, and the bytes that come back."""
        self._pipe.send(job[:2])
        assert self._pipe.poll(WAIT_S), "no answer"
        answer: Tuple[bool, bytes] = self._pipe.recv()
        return answer

    def run(self, job: Job) -> Any:
        """Run a job: its value, or its error raised."""
        succeeded, data = self.answer(job)
        if not succeeded:
            raise payload.load_error(data)
        return payload.load_value(data)

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.run(self.job(function, *args))

    def loads(self) -> int:
        """How many times the slot has loaded a function so far."""
        self._pipe.send(None)
        count: int = self._pipe.recv()
        return count

    def close(self) -> None:
        self._pipe.close()
        self._process.join(WAIT_S)
        self._process.close()


def _be_a_slot(pipe: Any, other_end: Any) -> None:
    other_end.close()
    known: Dict[bytes, Loaded] = {}
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            os._exit(0)
        if job is None:
            pipe.send(sum(loaded._loads for loaded in known.values()))
            continue
        function, call = job
        try:
            target = known.setdefault(function, Loaded(functions.open_function(function))).target()
            args, kwargs = payload.load_call(call)
            answer = True, payload.dump_value(target(*args, **kwargs), references.at_hand.classes)
        except BaseException as error:
            answer = False, payload.dump_error(error)
        target = args = kwargs = None
        pipe.send(answer)


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot()
    yield slot
    slot.close()


def main_module(source: str) -> Dict[str, Any]:
    """The names that `source` defines as if it stood in `__main__`."""
    space: Dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space


KINDS = """
import abc, collections, dataclasses, enum, functools, typing
from dataclasses import dataclass, field
T = typing.TypeVar("T")
SCALE = 1
def scaled(n): return n * SCALE
class Plain:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return type(other) is type(self) and vars(other) == vars(self)
    def scaled(self): return scaled(self.n)
class Child(Plain):
    def scaled(self): return super().scaled() + 1
class Other: pass
@dataclass
class Data:
    n: int
    more: typing.List[int] = field(default_factory=list, metadata={"unit": "m"})
    other: "typing.Optional[Data]" = None
@dataclass(frozen=True, order=True)
class Frozen:
    n: int
    plain: Plain = dataclasses.field(default=None, compare=False)
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
    def next(self): return Colour(3 - self.value)
class Flag(enum.IntFlag):
    A = 1
    B = 2
class Pair(typing.NamedTuple):
    left: int
    right: int = 3
    def total(self): return self.left + self.right
Old = collections.namedtuple("Old", "a b", defaults=[1])
class Generic(typing.Generic[T]):
    def __init__(self, n): self.n = n
class Ints(Generic[int]): pass
class Base(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
    @property
    @abc.abstractmethod
    def name(self): ...
class Square(Base):
    def __init__(self, n): self.n = n
    def area(self): return self.n ** 2
    @property
    def name(self): return "square"
class Meta(type):
    def __call__(cls, *args): return super().__call__(*args)
class Made(metaclass=Meta):
    def __init__(self, n): self.n = n
class Outer:
    class Inner:
        n = 1
    def inner(self): return self.Inner()
class Slots:
    __slots__ = ("n", "__weakref__")
    def __init__(self, n): self.n = n
class Odd(Exception):
    def __init__(self, n, m):
        super().__init__(f"{n} {m}")
        self.n = n
    def __reduce__(self): return Odd, (self.n, 0)
class Rich:
    kept = []
    @staticmethod
    def static(): return Rich
    @classmethod
    def of_class(cls, n): return cls()
    @functools.wraps(len)
    def wrapped(self): return 5
class Shape(typing.Protocol):
    def area(self) -> int: ...
class Dict(typing.TypedDict):
    n: int
class Listy(list):
    pass
"""
INSTANCES = {
    "Plain": "Plain(1)",
    "Child": "Child(1)",
    "Data": "Data(1, [2], Data(3))",
    "Frozen": "Frozen(1, Plain(2))",
    "Colour": "Colour.RED",
    "Flag": "Flag.A | Flag.B",
    "Pair": "Pair(1)",
    "Old": "Old(1)",
    "Generic": "Generic(1)",
    "Ints": "Ints(1)",
    "Square": "Square(2)",
    "Made": "Made(1)",
    "Inner": "Outer().inner()",
    "Slots": "Slots(1)",
    "Rich": "Rich.of_class(1)",
    "Listy": "Listy([1])",
    "Odd": "Odd(1, 2)",
    "class": "Plain",
    "nested": "{'a': [Plain(1), (Data(2), Colour.BLUE)]}",
}


# --- what comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("make", INSTANCES.values(), ids=INSTANCES)
def test_what_comes_back_is_of_the_very_class(slot: Slot, make: str) -> None:
    space = main_module(f"{KINDS}\ndef make(): return {make}\ndef same(x): return x")
    here = space["make"]()
    kind = type(here)
    before = dict(kind.__dict__)
    for _ in range(2):
        there = slot(space["make"])
        assert type(there) is kind
        assert {**before, **kind.__dict__, "__slotnames__": 0} == {**before, "__slotnames__": 0}, (
            "a result must not touch the client's class"
        )
        again = slot(space["same"], there)
        assert type(again) is kind
    if "__eq__" in kind.__dict__ or isinstance(here, (int, tuple, list, type)):
        assert there == here == again
    if isinstance(here, space["Colour"]):
        assert there is here is again


@pytest.mark.parametrize("make", INSTANCES.values(), ids=INSTANCES)
def test_a_class_is_dumped_and_loaded_once(slot: Slot, make: str) -> None:
    space = main_module(f"{KINDS}\ndef make(): return {make}\ndef same(x): return {make} and x")
    value = space["make"]()
    jobs = [slot.job(space["same"], value) for _ in range(5)]
    for job in jobs:
        slot.run(job)
    jobs.append(slot.job(space["same"], value))
    assert len({id(job[0]) for job in jobs}) == 1, "the function was dumped again"
    assert len(jobs[0][1]) < 600, "the class is among the arguments"
    succeeded, data = slot.answer(jobs[0])
    assert succeeded
    assert len(data) < 600, "the class is in the result"
    assert slot.loads() <= 2  # a flag is another one once its members have been combined


def test_arguments_of_a_function_that_does_not_know_their_class(slot: Slot) -> None:
    space = main_module(KINDS + "def take(x): return x.n\ndef kind(x): return type(x)")
    plain = space["Plain"](5)
    jobs = [slot.job(space["take"], plain) for _ in range(3)]
    assert len({id(function) for function, _, _ in jobs}) == 1
    assert len(jobs[0][1]) < 200
    assert [slot.run(job) for job in jobs] == [5, 5, 5]
    assert slot(isinstance, plain, space["Plain"]) is True
    assert slot(space["kind"], plain) is space["Plain"]
    assert slot(space["kind"], space["Data"](1)) is space["Data"]
    assert slot(space["kind"], plain) is space["Plain"]


def test_a_function_called_with_many_classes(slot: Slot) -> None:
    space = main_module("def same(x): return x\n" + "".join(f"class K{n}: pass\n" for n in range(30)))
    for _ in range(2):
        for n in range(30):
            kind = space[f"K{n}"]
            assert type(slot(space["same"], kind())) is kind
    assert len(slot.job(space["same"], 1)[2]) < 15, "old classes pile up"


def test_isinstance_holds_inside_the_job(slot: Slot) -> None:
    space = main_module(
        KINDS + "def ask(x, k): return isinstance(x, Plain), type(x) is k, x == Plain(1), Colour.RED is k.c"
    )
    space["Plain"].c = space["Colour"].RED
    for _ in range(3):
        assert slot(space["ask"], space["Plain"](1), space["Plain"]) == (True, True, True, True)
        assert slot(space["ask"], space["Child"](1), space["Child"]) == (True, True, False, True)


def test_classes_made_by_the_job_come_by_value(slot: Slot) -> None:
    space = main_module(
        KINDS + "def make():\n class Local(Plain):\n  def twice(self): return self.n * 2\n return Local(4)"
    )
    local = slot(space["make"])
    assert isinstance(local, space["Plain"])
    assert local.twice() == 8
    assert slot(space["make"]) is not None


def test_functions_that_come_back_use_the_clients_class(slot: Slot) -> None:
    space = main_module(KINDS + "def make():\n return lambda n: Plain(n)")
    assert type(slot(space["make"])(1)) is space["Plain"]


def test_an_exception_of_the_program(slot: Slot) -> None:
    space = main_module(KINDS + "def fail(): raise Odd(1, 2)")
    for _ in range(2):
        with pytest.raises(space["Odd"], match="1 0") as caught:
            slot(space["fail"])
        assert caught.value.n == 1


def test_the_results_of_a_chunk(slot: Slot) -> None:
    space = main_module(KINDS + "def make(n):\n if n == 2: raise Odd(n, 0)\n return Plain(n)")
    chunk = slot(call_each, space["make"], [(0,), (1,), (2,)])
    results = each_of(iter([chunk]))
    assert [type(next(results)) for _ in range(2)] == [space["Plain"]] * 2
    with pytest.raises(space["Odd"]):
        next(results)


def test_a_class_defined_again_under_its_name(slot: Slot) -> None:
    """As in a notebook: what was submitted before belongs to the old class, what comes later to the new."""
    space = main_module("def make(): return K()\ndef ask(x): return isinstance(x, K), x.n")
    exec("class K: n = 1", space)
    old, old_job = space["K"], slot.job(space["make"])
    old_instance = old()
    old_ask = slot.job(space["ask"], old_instance)
    exec("class K: n = 2", space)
    new = space["K"]
    for _ in range(2):
        assert type(slot(space["make"])) is new
        assert type(slot.run(old_job)) is old
        assert slot(space["ask"], new()) == (True, 2)
        assert slot(space["ask"], old_instance) == (False, 1)
        assert slot.run(old_ask) == (True, 1)


def test_a_result_whose_class_is_gone_says_so(slot: Slot) -> None:
    space = main_module("class K: pass\ndef make(): return K()")
    job = slot.job(space["make"])
    space.clear()
    gc.collect()
    _, data = slot.answer(job)
    with pytest.raises(LookupError, match="class does not exist any more"):
        payload.load_value(data)


def test_two_clients_of_one_slot(slot: Slot) -> None:
    """Their classes have the same names, and nothing else in common."""
    spaces = [main_module(f"class K:\n n = {n}\ndef same(x): return K() if x is None else x") for n in (1, 2)]
    dumpers = [FunctionDumper(), FunctionDumper()]
    for _ in range(3):
        for space, slot.dumper in zip(spaces, dumpers):
            assert type(slot(space["same"], None)) is space["K"]
            assert type(slot(space["same"], space["K"]())) is space["K"]


def test_users_own_pickles_still_work(slot: Slot) -> None:
    """A job may write with cloudpickle, another may read."""
    space = main_module(
        KINDS + "import cloudpickle\ndef write(): return cloudpickle.dumps(Plain(3))\n"
        "def read(data):\n p = cloudpickle.loads(data)\n return isinstance(p, Plain), p"
    )
    data = slot(space["write"])
    assert type(cloudpickle.loads(data)) is space["Plain"]
    for _ in range(3):
        found, plain = slot(space["read"], data)
        assert found
        assert plain == space["Plain"](3)


# --- what changes between two submits -------------------------------------------------------

CHANGING = """
import abc, dataclasses, enum, functools
N = 1
TABLE = {"a": 1}
def helper(): return N
class Far: far = 1
class Base:
    base = 1
    def inherited(self): return 1
class OtherBase:
    base = 7
    def inherited(self): return 7
class K(Base):
    '''doc'''
    n = 1
    items = [1]
    table = {"a": [1]}
    def method(self, a=1, *, b=1): return a, b
    @property
    def prop(self): return 1
    @staticmethod
    def static(): return 1
    @classmethod
    def of_class(cls): return 1
    def uses(self): return helper(), Far.far, TABLE["a"]
    class Inner:
        x = 1
@dataclasses.dataclass
class D:
    x: int = 1
    y: list = dataclasses.field(default_factory=lambda: [1])
class C(enum.Enum):
    RED = 1
    def shade(self): return 1
class A(abc.ABC):
    pass
def annotated(x: K = None) -> D: pass
def f(annotations=False):
    k = K()
    seen = [k.n, k.items, k.table, k.method(), k.prop, k.static(), k.of_class(), k.uses(), k.Inner.x]
    seen += [k.base, k.inherited(), getattr(k, "new", None), K.__doc__, D().x, D().y, C.RED.shade()]
    seen += [isinstance(k, A), K.__name__, Far.far, TABLE, N, len(TABLE)]
    seen += [D.__dataclass_fields__["x"].default, sorted(annotated.__annotations__, key=str), f.__doc__]
    return seen
"""
CHANGES = """
K.n = K.n + 1
K.items.append(2)
K.items[0] = 5
K.table["a"].append(2)
K.table["b"] = [2]
K.method.__defaults__ = (K.n + 3,)
K.method.__kwdefaults__["b"] = K.n + 2
K.method = lambda self: 9
K.prop = property(lambda self: 2)
K.static = staticmethod(lambda: 2)
K.of_class = classmethod(lambda cls: cls.n)
K.Inner.x += 1
K.Inner = type("Inner", (), {"x": 50, "__module__": "__main__"})
Base.base += 1
Base.inherited = lambda self: self.n
K.__bases__ = (OtherBase,)
K.__bases__ = (Base,)
K.new = K.n
K.new = [K.n]
K.__dict__.get("new") is not None and delattr(K, "new")
K.__doc__ = f"doc {K.n}"
K.__name__ = "K" + str(K.n)
Far.far += 1
Far = type("Far", (), {"far": 20, "__module__": "__main__"})
N += 1
TABLE["a"] += 1
TABLE[N] = 1
TABLE = dict(TABLE)
helper = lambda: -N
D.__init__.__defaults__ = (N + 1, *D.__init__.__defaults__[1:])
D.__dataclass_fields__["x"].default = N
D = dataclasses.make_dataclass("D", [("x", int, N), ("y", int, 2)])
D.__init__ = lambda self, x=6: self.__dict__.update(x=x, y=N)
C.shade = lambda self: N
annotated.__annotations__["z"] = N
f.__doc__ = str(N)
class K(K): n = 5; items = []
""".strip().split("\n")


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_unnoticed(slot: Slot, change: str) -> None:
    space = main_module(CHANGING)
    before = slot.job(space["f"])
    then = copy.deepcopy(space["f"]())
    exec(change, space)
    after = slot.job(space["f"])
    now = copy.deepcopy(space["f"]())
    assert [slot.run(job) for job in (before, after, before, after)] == [then, now, then, now]


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What the call returns, or the type of what it raises: changes may break what came before."""
    try:
        return copy.deepcopy(call(*args))
    except Exception as error:
        return type(error)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(CHANGES), st.none()), max_size=12), st.randoms())
def test_every_job_sees_the_classes_as_they_were_at_its_submit(
    steps: List[Any], chance: random.Random
) -> None:
    """Whatever changes in between, in whatever order the jobs are run, and however often."""
    slot = Slot()
    try:
        space = main_module(CHANGING)
        jobs = []
        for change in [*steps, None]:
            if change is not None:
                with contextlib.suppress(Exception):  # what it would change may be gone by now
                    exec(change, space)
            jobs.append((slot.job(space["f"]), outcome(space["f"])))
        for _ in range(2):
            chance.shuffle(jobs)
            for job, expected in jobs:
                assert outcome(slot.run, job) == expected
    finally:
        slot.close()


# --- what jobs change -----------------------------------------------------------------------

JOB_CHANGES = {
    "attribute": "K.n += 1\n return K.n",
    "setattr": "setattr(K, 'n', K.n + 1)\n return K.n",
    "new attribute": "K.new = getattr(K, 'new', 1) + 1\n return K.new",
    "list": "K.items.append(1)\n return len(K.items) + 1",
    "dict": "K.table['n'] = K.table.get('n', 1) + 1\n return K.table['n']",
    "through an instance": "K().items.append(1)\n return len(K.items) + 1",
    "through the argument": "type(x).n += 1\n return K.n",
    "method": "before = K().get()\n K.get = lambda self: before + 5\n return before + 1",
    "in a method": "return K().grow()",
    "in a base": "Base.n += 1\n return Base.n",
    "default": "before = K.get.__defaults__[0]\n K.get.__defaults__ = (before + 1,)\n return before + 1",
    "enum member": "C.RED.n = getattr(C.RED, 'n', 1) + 1\n return C.RED.n",
    "dataclass field": "F = D.__dataclass_fields__['x']\n F.default += 1\n return F.default",
    "global by a method": "return K().count()",
    "global container": "SEEN.append(1)\n return len(SEEN) + 1",
    "function attribute": "f.n = getattr(f, 'n', 1) + 1\n return f.n",
    "deleted": "n = K.own\n del K.own\n return n + 1",
    "own pickle": "import cloudpickle\n K.n += 1\n cloudpickle.loads(cloudpickle.dumps(K))\n return K.n",
}


@pytest.mark.parametrize("body", JOB_CHANGES.values(), ids=JOB_CHANGES)
def test_no_job_sees_what_another_has_changed(slot: Slot, body: str) -> None:
    space = main_module(f"""
import dataclasses, enum
COUNT = 1
SEEN = []
class Base: n = 1
class K(Base):
    n = 1  # as in its base
    own = 1
    items = []
    table = {{}}
    def get(self, n=1): return n
    def grow(self):
        type(self).n += 1
        return self.n
    def count(self):
        global COUNT
        COUNT += 1
        return COUNT
class C(enum.Enum):
    RED = 1
@dataclasses.dataclass
class D:
    x: int = 1
def f(x):
 {body}
def look(x):
    extra = hasattr(K, "new"), hasattr(C.RED, "n")
    return K.n, K.own, K.items, K.table, K().get(), Base.n, COUNT, SEEN, extra
""")
    shown = space["look"](None)
    for _ in range(6):
        assert slot(space["f"], space["K"]()) == 2
        assert slot(space["look"], space["K"]()) == shown
    assert [slot.run(slot.job(space["f"], space["K"]())) for _ in range(40)] == [2] * 40
    assert space["look"](None) == shown


def test_functions_that_share_a_class_and_globals(slot: Slot) -> None:
    """A function that rebinds a global shows it to the methods of its class, and to nobody else."""
    space = main_module("""
SCALE = 1
class K:
    def get(self): return SCALE
def writes(n):
    global SCALE
    SCALE = n
    return K().get()
def reads(): return K().get()
""")
    for n in range(2, 8):
        assert slot(space["writes"], n) == n
        assert slot(space["reads"]) == 1


# --- what is kept alive ---------------------------------------------------------------------


def test_the_dumper_keeps_no_class_alive(slot: Slot) -> None:
    for source in (
        KINDS + "def f(x): return Plain, Data, Colour, Pair, Square, x",
        """
def make():
    class K:
        def m(self): return f, K
    def f(x): return K, x
    return f, K
f, Plain = make()
""",
        "def f(x): return x\nclass Plain:\n def m(self: 'Plain'): return f",
    ):
        space = main_module(source)
        memories = [weakref.ref(space["f"]), weakref.ref(space["Plain"])]
        for _ in range(2):
            slot.job(space["f"], space["Plain"])
        space.clear()
        gc.collect()
        assert [memory() for memory in memories] == [None, None]
        assert not slot.dumper._known
    assert len(references.registry._keys) < 1000


def test_ids_that_are_used_again(slot: Slot) -> None:
    for n in range(60):
        space = main_module(f"class K: n = {n}\ndef f(x): return K.n, x.n, x")
        seen, own, back = slot(space["f"], space["K"]())
        assert (seen, own, type(back)) == (n, n, space["K"])
        if n % 10 == 0:
            del back
            gc.collect()


# --- what cannot be known -------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [iter([]), types.SimpleNamespace(n=1), bytearray(b"1"), [[bytearray()]], list(range(1000))],
    ids=["iterator", "namespace", "bytearray", "deep", "long"],
)
def test_a_class_with_an_attribute_of_another_kind_is_dumped_each_time(value: Any) -> None:
    space = main_module("class K: pass\ndef f(): return K")
    space["K"].value = value
    assert Captures.of(space["f"]) is None


def test_such_classes_travel_all_the_same(slot: Slot) -> None:
    space = main_module("class K: buffer = bytearray(b'1')\ndef f(x): return x, len(K.buffer)")
    for length in range(1, 5):
        back, seen = slot(space["f"], space["K"]())
        assert (type(back), seen) == (space["K"], length)
        space["K"].buffer += b"1"
    assert type(slot(space["K"])) is space["K"]


def test_bound_methods_and_partials_bring_their_classes(slot: Slot) -> None:
    space = main_module(KINDS)
    assert type(slot(space["Rich"]().of_class, 1)) is space["Rich"]
    assert slot(space["Plain"](3).scaled) == 3
    space["SCALE"] = 2
    assert slot(space["Plain"](3).scaled) == 6


def test_what_cannot_be_pickled_is_named_as_before() -> None:
    space = main_module("class K: pass\ndef f(x): return K")
    space["K"].file = sys.stdin.buffer if sys.stdin else None
    space["K"].frame = sys._getframe()
    with pytest.raises(PayloadError, match="function f: cannot pickle"):
        FunctionDumper().dump(space["f"])
    with pytest.raises(PayloadError, match="argument 1: cannot pickle"):
        FunctionDumper().dump_job(len, (space["K"](),), {})


def test_modules_registered_by_value(slot: Slot, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kind_by_value.py").write_text("class K:\n n = 1\ndef f(x): return K.n, x")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("kind_by_value")
    cloudpickle.register_pickle_by_value(module)
    try:
        for module.K.n in (1, 2):
            seen, back = slot(module.f, module.K())
            assert (seen, type(back)) == (module.K.n, module.K)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["kind_by_value"]


def test_a_plain_function_is_one_plain_pickle() -> None:
    data, _, keys = FunctionDumper().dump_job(len, ((),), {})
    assert pickle.loads(functions.open_function(data).pickle) is len
    assert not keys
