"""What crosses the wire: the hello, who is refused, and plain values only."""

from __future__ import annotations

import inspect
import os
import pickle
import platform
import re
import sys
from typing import Any, Dict, List

import pytest

from cwmp import errors, messages, transport
from cwmp.depot import Depot
from cwmp.master import JobQueue, Master, ResultQueue
from cwmp.messages import (
    BLOB_STORE,
    JOB_QUEUE,
    PROTOCOL,
    RESULT_QUEUE,
    python_minor,
    refusal,
    this_side,
)

pytestmark = pytest.mark.core

MINE = {"protocol": PROTOCOL, "python": python_minor()}


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 7",)


# --- versions -------------------------------------------------------------------------------


def test_this_side_is_accepted_by_itself() -> None:
    hello = this_side("worker", slots=3)
    assert refusal(MINE, hello) is None
    assert hello["role"] == "worker"
    assert hello["slots"] == 3
    assert (hello["node"], hello["pid"]) == (platform.node(), os.getpid())


def test_python_minor_is_that_of_this_interpreter() -> None:
    assert python_minor() == ".".join(map(str, sys.version_info[:2]))


def test_another_python_is_refused_and_both_are_named() -> None:
    why = refusal({**MINE, "python": "3.11"}, {**MINE, "python": "3.9", "role": "worker"})
    assert why is not None
    assert "worker" in why and "3.11" in why and "3.9" in why
    assert "\n" not in why


def test_another_protocol_is_refused_and_both_are_named() -> None:
    why = refusal({**MINE, "protocol": 7}, {**MINE, "protocol": 12, "role": "client"})
    assert why is not None
    assert "client" in why and "12" in why and "7" in why


def test_protocol_is_told_before_python() -> None:
    why = refusal({**MINE, "protocol": 7}, {"protocol": 12, "python": "2.7", "role": "client"})
    assert why is not None and "protocol" in why and "2.7" not in why


def test_a_hello_without_versions_is_refused() -> None:
    assert refusal(MINE, {"role": "worker"}) is not None


def test_kinds_are_distinct() -> None:
    kinds = [messages.RESULT, messages.ERROR, messages.LOST, messages.RUNNING]
    assert len(set(kinds)) == len(kinds)


# --- plain values ---------------------------------------------------------------------------

PLAIN = [
    None, True, 0, -1, 2**70, 1.5, "", "é\udc80", b"", b"\x00" * 300, (), (1, (2, [3])), [], {},
    {"a": [(1, b"x")]}, ("JobQueue", "put", (1, [(1, b"f", b"c")]), {}),
]  # fmt: skip


def test_plain_values_survive() -> None:
    for value in PLAIN:
        again = transport.load_message(transport.dump_message(value))
        assert again == value
        assert type(again) is type(value)


def test_equal_functions_of_a_batch_are_sent_once() -> None:
    function = os.urandom(50_000)
    data = transport.dump_message([(n, function, b"call") for n in range(100)])
    assert len(data) < 60_000
    batch = transport.load_message(data)
    assert len({id(f) for _, f, _ in batch}) == 1


GLOBALS = [
    pickle.dumps(Boom(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
] + [
    pickle.dumps(os.system),
    pickle.dumps(ValueError("x")),
    pickle.dumps({1, 2}, 2),  # a set is a global of `builtins` in old protocols
    pickle.dumps(("an order", [Boom()])),
    b"cposix\nsystem\n(S'exit 7'\ntR.",
    b"(S'exit 7'\niposix\nsystem\n.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x06exit 7\x85R.",
    b"\x80\x02\x82\x01.",  # an extension code, which nobody has registered
    b"Psomething\n.",  # a persistent id
]  # fmt: skip


@pytest.mark.parametrize("data", GLOBALS, ids=range(len(GLOBALS)))
def test_nothing_but_plain_values_is_unpickled(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(Exception) as caught:
        transport.load_message(data)
    assert isinstance(caught.value, (pickle.UnpicklingError, ValueError))
    assert called == []


@pytest.mark.parametrize("data", [b"", b"\x80", b"garbage", b"\x80\x04]", b"\x80\xff."])
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(Exception):
        transport.load_message(data)


# --- errors in replies ----------------------------------------------------------------------


def raised_from(error: BaseException) -> BaseException:
    """What a caller sees of an error that the master reports."""
    with pytest.raises(Exception) as caught:
        transport._raise_failure(transport.failure(error))
    return caught.value


@pytest.mark.parametrize(
    "kind", [errors.VersionMismatch, errors.UsageError, errors.CwmpError, errors.MasterLost]
)
def test_our_errors_arrive_as_themselves(kind: type) -> None:
    seen = raised_from(kind("the reason: it rained"))
    assert type(seen) is kind
    assert str(seen) == "the reason: it rained"


@pytest.mark.parametrize("error", [KeyError("pickle"), OSError(5, "x"), ValueError("a: b"), SystemExit(3)])
def test_other_errors_arrive_as_ours_with_their_name(error: BaseException) -> None:
    seen = raised_from(error)
    assert type(seen) is errors.CwmpError
    assert str(seen) == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("text", [None, 5, "", "pickle: x", "annotations: y", ": z", ["a"]])
def test_any_failure_text_is_raised_as_our_error(text: Any) -> None:
    with pytest.raises(errors.CwmpError):
        transport._raise_failure(text)


# --- the documentation ----------------------------------------------------------------------


def documented() -> Dict[str, Dict[str, List[str]]]:
    """What the protocol's documentation says: object -> method -> names of the arguments."""
    found: Dict[str, Dict[str, List[str]]] = {}
    for line in (messages.__doc__ or "").splitlines():
        heading = re.match(r"Methods of `(\w+)`", line)
        method = re.match(r"    (\w+)\(([\w, ]*)\)", line)
        if heading:
            methods = found[heading[1]] = {}
        elif method:
            methods[method[1]] = [name for name in method[2].split(", ") if name]
    return found


def test_exactly_what_is_documented_can_be_called() -> None:
    offered: Dict[str, Dict[str, List[str]]] = {}
    for served, kind in ((JOB_QUEUE, JobQueue), (RESULT_QUEUE, ResultQueue), (BLOB_STORE, Depot)):
        methods = {name: list(inspect.signature(getattr(kind, name)).parameters) for name in kind.exposed}
        assert all(names[:2] == ["self", "peer"] for names in methods.values())
        offered[served] = {name: names[2:] for name, names in methods.items()}
    assert offered == documented()


def test_a_master_serves_nothing_else() -> None:
    master = Master("127.0.0.1", 0, b"key")
    served = {name: set(methods) for name, methods in master._server._exposed.items()}
    master.stop()
    master.serve()
    assert served == {name: set(methods) for name, methods in documented().items()}
