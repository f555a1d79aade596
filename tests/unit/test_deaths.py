"""What is told of a slot that died."""

from __future__ import annotations

import signal
from typing import Any, Dict

import pytest

from cwmp.deaths import LAST_LINES, cause_of, last_lines, was_killed

pytestmark = pytest.mark.core

CRASH = """\
warming up
Fatal Python error: Segmentation fault

Current thread 0x00007f5c (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 517 in string_at
  File "/home/ann/model.py", line 12 in step
  File "/opt/cwmp/slot.py", line 149 in _work
  File "/opt/cwmp/slot.py", line 128 in run
  File "<frozen runpy>", line 88 in _run_code

Thread 0x00007f5d (most recent call first):
  File "/home/ann/model.py", line 40 in watch

Extension modules: numpy.core._multiarray_umath (total: 1)
"""


def cause(status: int, **changes: Any) -> Dict[str, Any]:
    details: Dict[str, Any] = {"given_up": False, "oom": (False, ""), "printed": b"", **changes}
    return cause_of(17, status, 2048, **details)


def test_a_signal() -> None:
    told = cause(signal.SIGSEGV)
    assert told["cause"] == "killed by SIGSEGV"
    assert (told["pid"], told["signal"], told["exit_code"]) == (17, signal.SIGSEGV, None)
    assert told["peak_rss_bytes"] > 0
    assert cause(63)["cause"] == "killed by signal 63"


def test_an_exit() -> None:
    told = cause(3 << 8)
    assert (told["cause"], told["signal"], told["exit_code"]) == ("exited with status 3", None, 3)


def test_the_kernel_for_lack_of_memory() -> None:
    told = cause(signal.SIGKILL, oom=(True, ", by the kernel"))
    assert (told["cause"], told["oom"]) == ("killed by SIGKILL, by the kernel", True)


def test_its_own_worker() -> None:
    assert cause(signal.SIGKILL, given_up=True)["cause"].startswith("ended by its worker")


def test_only_sigkill_may_have_been_the_kernel() -> None:
    assert was_killed(signal.SIGKILL)
    assert not was_killed(signal.SIGTERM)
    assert not was_killed(signal.SIGKILL << 8)  # exit status 9


# --- the last lines -------------------------------------------------------------------------


def test_nothing_printed() -> None:
    assert last_lines(b"") == last_lines(b"\n\n") == ""


def test_the_last_lines_of_many() -> None:
    lines = last_lines(b"".join(b"line %d\n" % n for n in range(1000))).splitlines()
    assert len(lines) == LAST_LINES
    assert lines[-1] == "line 999"


def test_what_is_no_text_stays_short_and_plain() -> None:
    told = last_lines(bytes(range(256)) * 400)
    assert len(told) <= 2000
    assert all(char.isprintable() or char in "\n\t" for char in told)


def test_one_endless_line_is_cut() -> None:
    assert len(last_lines(b"x" * 100_000)) < 310


def test_a_crash_shows_the_calls_of_the_job_and_none_of_ours() -> None:
    assert last_lines(CRASH.encode()).splitlines() == [
        "warming up",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f5c (most recent call first):",
        '  File "/usr/lib/python3.11/ctypes/__init__.py", line 517 in string_at',
        '  File "/home/ann/model.py", line 12 in step',
        "Thread 0x00007f5d (most recent call first):",
        '  File "/home/ann/model.py", line 40 in watch',
        "Extension modules: numpy.core._multiarray_umath (total: 1)",
    ]


def test_a_deep_crash_shows_its_latest_calls() -> None:
    frames = "".join(f'  File "a.py", line {n} in f\n' for n in range(100))
    told = last_lines(f"before\nFatal Python error: Aborted\n\nCurrent thread:\n{frames}  ...\n".encode())
    assert told.startswith('before\nFatal Python error: Aborted\nCurrent thread:\n  File "a.py", line 0 in f')
    assert len(told.splitlines()) == LAST_LINES
