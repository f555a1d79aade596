"""Values taken apart and put together again: the same value, large pieces once, nothing copied."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any, Dict, List, Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwmp import defaults, functions, packing, payload
from cwmp.errors import PayloadError
from cwmp.messages import Ref

pytestmark = pytest.mark.core

LARGE = defaults.INLINE_MAX


class Memory:
    """A lot and a fetch that keep blobs in memory, by their digest."""

    def __init__(self) -> None:
        self.blobs: Dict[str, bytes] = {}
        self.kept = 0
        self.fetched: List[Ref] = []
        self.abandoned = 0

    def keep(self, pieces: Sequence[Any]) -> Ref:
        data = b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces)
        self.kept += 1
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name, len(data)

    def refer(self, handle: Any) -> Sequence[Ref]:
        raise AssertionError("there is no handle here")

    def abandon(self) -> None:
        self.abandoned += 1

    def fetch(self, ref: Ref, lasting: bool) -> memoryview:
        self.fetched.append(ref)
        return memoryview(self.blobs[ref[0]])


@pytest.fixture
def memory() -> Memory:
    return Memory()


def pack(value: Any, memory: Memory) -> Any:
    return payload.pack(value, lambda: memory)


def again(value: Any, memory: Memory) -> Any:
    return packing.put_together(pack(value, memory), memory.fetch)


class Plain:
    """A class of a module that every process can import."""

    def __init__(self, data: Any) -> None:
        self.data = data


@pytest.mark.parametrize(
    "value",
    [1, "text", b"bytes", [1, {2: (3,)}], b"x" * (LARGE - 100), numpy.arange(10), [b"x" * 1000] * 60],
    ids=lambda value: type(value).__name__,
)
def test_small_values_stay_inline(value: Any, memory: Memory) -> None:
    packed = pack(value, memory)
    assert type(packed) is bytes
    assert memory.kept == 0
    assert repr(pickle.loads(packed)) == repr(value)


@pytest.mark.parametrize("size", [LARGE, LARGE + 1, 5 * LARGE])
@pytest.mark.parametrize("make", [bytes, bytearray, lambda size: "é" * size, lambda size: numpy.ones(size)])
def test_large_pieces_become_blobs(make: Any, size: int, memory: Memory) -> None:
    value = make(size)
    packed = pack([1, value, "behind"], memory)
    assert type(packed) is tuple
    assert len(packed[0]) < 1000, "the rest is small"
    assert memory.kept == len(packed[1]) == 1
    first, found, last = packing.put_together(packed, memory.fetch)
    assert (first, last, type(found)) == (1, "behind", type(value))
    assert (found == value).all() if isinstance(value, numpy.ndarray) else found == value


def test_the_same_piece_in_different_values_is_the_same_blob(memory: Memory) -> None:
    array = numpy.random.random(LARGE)
    refs = {pack((array, n), memory)[1] for n in range(10)}
    assert len(refs) == len(memory.blobs) == 1
    text = b"long" * LARGE
    refs = {pack(((text, n), {"more": text}), memory)[1] for n in range(10)}
    assert len(refs) == 1


def test_arrays_are_views_of_what_was_fetched(memory: Memory) -> None:
    array = numpy.arange(LARGE)
    found = again({"array": array}, memory)["array"]
    assert not found.flags.writeable
    assert not found.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found += 1
    [blob] = memory.blobs.values()
    assert numpy.shares_memory(found, numpy.frombuffer(blob, dtype=found.dtype))


def test_arrays_that_are_not_in_one_piece(memory: Memory) -> None:
    array = numpy.arange(4 * LARGE).reshape(4, -1)
    for view in (array[:, ::2], array.T, numpy.asfortranarray(array)):
        assert (again(view, memory) == view).all()


def test_many_pieces_share_one_blob(memory: Memory) -> None:
    arrays = [numpy.full(LARGE // 8 + n, n) for n in range(100)]
    found = again(arrays, memory)
    assert memory.kept == 1
    assert all((one == other).all() for one, other in zip(found, arrays))
    assert all(one.ctypes.data % 8 == 0 for one in found)


def test_a_large_value_of_small_pieces(memory: Memory) -> None:
    numbers = list(range(10 * LARGE))
    packed = pack(numbers, memory)
    assert len(packed[0]) < 1000 and len(packed[1]) == 1
    assert packing.put_together(packed, memory.fetch) == numbers


def test_pieces_of_all_sizes_keep_their_order(memory: Memory) -> None:
    value = [b"a" * 10, b"b" * LARGE, "c" * 30, "d" * (2 * LARGE), [b"e" * LARGE], {}, b"f"]
    assert again(value, memory) == value


def test_one_object_twice_is_one_object_again(memory: Memory) -> None:
    data = b"x" * LARGE
    first, second = again([data, data], memory)
    assert first is second
    assert memory.kept == 1


def test_values_that_only_cloudpickle_can_do(memory: Memory) -> None:
    data = numpy.arange(LARGE)
    found = again({"function": lambda n: data[n]}, memory)
    assert found["function"](5) == 5
    assert memory.kept == 1


def test_a_function_with_a_large_capture(memory: Memory) -> None:
    data = numpy.arange(LARGE)
    dumper = functions.FunctionDumper(lambda: memory)
    packed = dumper.dump(lambda n: int(data[n]))
    assert type(packed) is tuple and len(packed[0]) < 5000
    function = functions.open_function(packed)
    assert payload.load_packed(function.pickle, memory.fetch)(7) == 7
    data[7] = 3
    function = functions.open_function(dumper.dump(lambda n: int(data[n])))
    assert payload.load_packed(function.pickle, memory.fetch)(7) == 3


def test_what_cannot_be_pickled_is_abandoned(memory: Memory) -> None:
    import threading

    with pytest.raises(PayloadError, match="lock"):
        pack([numpy.arange(LARGE), threading.Lock()], memory)
    assert memory.abandoned == 1


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.integers(),
            st.text(max_size=20),
            st.integers(0, 3 * LARGE).map(lambda n: b"%d" % n * (n // 5)),
            st.integers(0, 2 * LARGE).map(lambda n: f"t{n}" * (n // 5)),
            st.integers(0, LARGE).map(lambda n: bytearray(n)),
        ),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
        max_leaves=12,
    )
)
def test_any_value_comes_back(value: Any) -> None:
    memory = Memory()
    assert again(value, memory) == value
