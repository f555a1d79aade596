"""What can be told of a slot that has died: how it ended, and the last that it wrote to standard error."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

LAST_LINES = 20
"""Lines of standard error in the report of a death."""

_LINES_BEFORE = 5  # a crash
_LAST_CHARS = 2000
_LINE_CHARS = 300
_FATAL = "Fatal Python error: "
_OUR_FRAME = re.compile(r'  File ".*[/\\]cwmp[/\\]slot\.py", line \d+ in _work')
_FRAME = ("  File ", "  ...")


class Death(NamedTuple):
    """A slot that is gone: how many of its leases it had not begun, and why it died."""

    unclaimed: int
    cause: Dict[str, Any]


def was_killed(status: int) -> bool:
    """Whether a process that ended with this wait status died of SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def cause_of(
    pid: int,
    status: int,
    peak_rss: int,
    *,
    given_up: bool,
    oom: Tuple[Optional[bool], str],
    printed: bytes,
) -> Dict[str, Any]:
    """Why a slot died, as `WorkerLost` tells it.

    `status` and `peak_rss` are what wait4 says, `given_up` that its worker has killed it, `oom` is the
    verdict of `oom.Watch`, and `printed` the end of what came from it on standard error.
    """
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else None
    if given_up:
        sentence = "ended by its worker, because the job had closed the connection to it"
    elif number is not None:
        sentence = f"killed by {_signal_name(number)}{oom[1]}"
    else:
        sentence = f"exited with status {code}"
    return {
        "pid": pid,
        "cause": sentence,
        "signal": number,
        "exit_code": code if code >= 0 else None,
        "peak_rss_bytes": peak_rss * (1 if sys.platform == "darwin" else 1024),
        "oom": oom[0],
        "stderr": last_lines(printed),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_lines(printed: bytes) -> str:
    """The end of what was printed, as a few lines of plain text; of a crash, how it begins.

    >>> last_lines(b"one\\n\\x1b[31mtwo\\x1b[0m\\r\\n\\nthree")
    'one\\n?[31mtwo?[0m\\nthree'
    """
    lines = [_plain(line) for line in printed.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    crashes = [number for number, line in enumerate(lines) if line.startswith(_FATAL)]
    if crashes:  # the most recent call comes first there, and what the library said about it before
        lines = _without_our_frames(lines[max(0, crashes[-1] - _LINES_BEFORE) :])
        return "\n".join(lines[:LAST_LINES])[:_LAST_CHARS]
    return "\n".join(lines[-LAST_LINES:])[-_LAST_CHARS:]


def _plain(line: str) -> str:
    """The line without what could confuse a terminal, and not too long."""
    shown = "".join(char if char.isprintable() or char == "\t" else "?" for char in line[: _LINE_CHARS + 1])
    return (shown if len(shown) <= _LINE_CHARS else shown[:_LINE_CHARS] + "…").rstrip()


def _without_our_frames(lines: List[str]) -> List[str]:
    """A traceback of `faulthandler` without the calls that led to the job, in slot and worker."""
    kept: List[str] = []
    ours = False
    for line in lines:
        ours = line.startswith(_FRAME) and (ours or _OUR_FRAME.match(line) is not None)
        if not ours:
            kept.append(line)
    return kept
