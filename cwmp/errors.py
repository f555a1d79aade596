"""Every error that cwmp raises itself, sorted by who can do something about it.

A job that raises comes back with its *own* exception; the classes below are for what
went wrong around it. All of them survive pickling, and all derive from `CwmpError`.

    CwmpError
    ├── UsageError           you: a wrong argument, name or setting
    │   ├── DuplicateJob     you: this job id is still open
    │   ├── KeyFileError     you: a key file is missing, empty or readable by others
    │   └── UnknownMember    a peer: it is no member of this cluster, or no longer
    ├── PayloadError         your data: cannot be turned into bytes, or back
    ├── ConnectError         the way to the master: refused, timed out, not found
    │   ├── WrongKey         the master answered, and our key is not its key
    │   └── VersionMismatch  the master answered, and speaks another version
    ├── SlurmError           SLURM's commands: missing, failing, or not understood
    └── JobError             a job ended without an outcome of its own
        ├── RemoteError      it raised something that cannot travel
        ├── WorkerLost       what ran it died, too often
        ├── BlobLost         a large value of it vanished or was damaged
        └── MasterLost       the master went away before the outcome came
"""

from __future__ import annotations

import pickle
from typing import Any, Dict, List, Sequence


class CwmpError(Exception):
    """Base of all errors that cwmp raises itself."""


class UsageError(CwmpError, ValueError):
    """An argument, name or setting that cannot work; the message says which and why."""


class DuplicateJob(UsageError):
    """A job id was submitted again while the job of that id was still open."""


class KeyFileError(UsageError):
    """A key file that is missing, empty, or open to others; the message says what to type."""


class UnknownMember(UsageError):
    """A client or worker that never joined, has left, or was given up for lost."""


class PayloadError(CwmpError, pickle.PicklingError, TypeError):
    """Something that must cross the wire cannot be turned into bytes, or back from them."""


class ConnectError(CwmpError, ConnectionError):
    """The master could not be reached: not found, refused, or no answer in time."""


class WrongKey(ConnectError):
    """The master was reached, but the two sides do not hold the same key."""


class VersionMismatch(ConnectError):
    """The two sides run another Python minor version or speak another protocol version."""


class SlurmError(CwmpError):
    """SLURM's commands are missing, fail, or say what cannot be understood; its view is not known then."""


class JobError(CwmpError):
    """Base of the outcomes that stand in for a job's own result or exception."""


class RemoteError(JobError):
    """A job raised an exception that cannot be pickled; this carries what can be told of it.

    `type_name`, `message` and `traceback` (text) are attributes.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class WorkerLost(JobError):
    """What ran the job died each time it was tried.

    `attempts` holds one dict an attempt: `attempt`, `node`, `pid`, `cause` (a sentence such as
    "killed by SIGKILL"), `signal`, `exit_code`, `peak_rss_bytes`, `oom` (whether that was the kernel, for
    lack of memory) and `stderr` (the last lines that came from it); each None where not known.
    """

    def __init__(self, attempts: Sequence[Dict[str, Any]]) -> None:
        super().__init__(list(attempts))
        self.attempts: List[Dict[str, Any]] = list(attempts)

    def __str__(self) -> str:
        count = len(self.attempts)
        lines = [f"the process that ran this job died ({count} attempt{'s' * (count != 1)})"]
        for attempt in self.attempts:
            lines.append("  " + _attempt_line(attempt))
            lines += ["    | " + line for line in (attempt.get("stderr") or "").splitlines()]
        return "\n".join(lines)


class BlobLost(JobError):
    """A large argument, function or result of the job vanished, or arrived damaged, twice."""


class MasterLost(JobError):
    """The master went away while the job was open, so its outcome is not known."""


class RemoteTraceback(Exception):
    """The text of a traceback from a worker: the `__cause__` of a job's own exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def _attempt_line(attempt: Dict[str, Any]) -> str:
    """One attempt as people read it."""
    line = f"attempt {attempt.get('attempt')} on {attempt.get('node')}"
    if attempt.get("pid"):
        line += f" pid {attempt['pid']}"
    line += f": {attempt.get('cause')}"
    if attempt.get("peak_rss_bytes"):
        line += f", peak memory {attempt['peak_rss_bytes'] / 2**20:.0f} MiB"
    return line
