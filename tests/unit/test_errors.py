"""The error tree: every class survives pickling, and says what it is about."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Dict, List

import pytest

import cwmp
from cwmp import errors

pytestmark = pytest.mark.core

ATTEMPTS: List[Dict[str, Any]] = [
    {"attempt": 1, "node": "n1", "pid": 17, "cause": "killed by SIGKILL", "signal": 9, "exit_code": None,
     "peak_rss_bytes": 3 << 30},
    {"attempt": 2, "node": "n2", "pid": None, "cause": "its whole worker was lost", "signal": None,
     "exit_code": None, "peak_rss_bytes": None},
]  # fmt: skip

SAMPLES: List[BaseException] = [
    errors.CwmpError("one"),
    errors.UsageError("no such name: 'x'"),
    errors.DuplicateJob("job 1 is still open"),
    errors.KeyFileError("chmod 600 key"),
    errors.UnknownMember("no client 7 is here"),
    errors.PayloadError("argument 1: cannot pickle"),
    errors.ConnectError("refused"),
    errors.WrongKey("another key"),
    errors.VersionMismatch("3.11 and 3.12"),
    errors.SlurmError("squeue failed"),
    errors.JobError("ended"),
    errors.RemoteError("mod.Kind", "the message", "In node n:\nTraceback ..."),
    errors.WorkerLost(ATTEMPTS),
    errors.BlobLost("it is gone"),
    errors.MasterLost("gone"),
    errors.RemoteTraceback("In node n:\nTraceback ..."),
]


def classes() -> List[type]:
    """Every exception class that the module defines."""
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, Exception) and kind.__module__ == errors.__name__]


def test_there_is_a_sample_of_every_class() -> None:
    assert {type(sample) for sample in SAMPLES} == set(classes())


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_error_survives_pickling(error: BaseException) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert repr(again) == repr(error)
        assert vars(again) == vars(error)


def test_errors_survive_copying() -> None:
    for error in SAMPLES:
        again = copy.copy(error)
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_remote_error_has_what_can_be_told() -> None:
    error = errors.RemoteError("mod.Kind", "the message")
    assert (error.type_name, error.message, error.traceback) == ("mod.Kind", "the message", "")
    assert str(error) == "mod.Kind: the message"


def test_worker_lost_tells_every_attempt() -> None:
    text = str(errors.WorkerLost(ATTEMPTS))
    assert "2 attempts" in text
    assert "attempt 1 on n1 pid 17: killed by SIGKILL, peak memory 3072 MiB" in text
    assert text.endswith("attempt 2 on n2: its whole worker was lost")
    assert "(1 attempt)" in str(errors.WorkerLost(ATTEMPTS[:1]))


def test_worker_lost_has_a_line_an_attempt_and_what_was_printed_beneath() -> None:
    attempts = [{**ATTEMPTS[0], "stderr": "one\ntwo"}, {**ATTEMPTS[1], "stderr": ""}, ATTEMPTS[0]]
    assert str(errors.WorkerLost(attempts)) == (
        "the process that ran this job died (3 attempts)\n"
        "  attempt 1 on n1 pid 17: killed by SIGKILL, peak memory 3072 MiB\n"
        "    | one\n"
        "    | two\n"
        "  attempt 2 on n2: its whole worker was lost\n"
        "  attempt 1 on n1 pid 17: killed by SIGKILL, peak memory 3072 MiB"
    )


def test_worker_lost_keeps_its_own_list() -> None:
    attempts = list(ATTEMPTS)
    error = errors.WorkerLost(attempts)
    attempts.clear()
    assert len(error.attempts) == 2
    assert len(pickle.loads(pickle.dumps(error)).attempts) == 2


def test_who_is_at_fault_can_be_caught_by_usual_names() -> None:
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.PayloadError, (pickle.PicklingError, TypeError))
    assert issubclass(errors.PayloadError, TypeError)
    assert issubclass(errors.ConnectError, ConnectionError)
    for kind in (errors.WrongKey, errors.VersionMismatch):
        assert issubclass(kind, errors.ConnectError)
    for kind in (errors.RemoteError, errors.WorkerLost, errors.MasterLost):
        assert issubclass(kind, errors.JobError)
    for kind in classes():
        assert issubclass(kind, errors.CwmpError) or kind is errors.RemoteTraceback


def test_the_package_exports_every_class() -> None:
    for kind in classes():
        assert getattr(cwmp, kind.__name__) is kind
        assert kind.__name__ in cwmp.__all__


def test_every_class_has_a_docstring() -> None:
    assert all(kind.__doc__ for kind in classes())
