"""What becomes of open sessions when the interpreter ends or the process forks."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Optional, Protocol


class Session(Protocol):
    """What this needs of `cwmp.session.Session`."""

    place: str

    def wait_idle(self, timeout_s: Optional[float] = None) -> bool:
        """Wait until no job is open."""

    def open_jobs(self) -> int:
        """How many are."""

    def close(self) -> None:
        """Leave the cluster at once."""

    def abandon(self) -> None:
        """This process is a copy: let go of everything."""


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_hooked = False


def finish(session: Session) -> None:
    """Have the interpreter's end wait for this session's jobs, as `concurrent.futures` does."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_finish_sessions)
        os.register_at_fork(after_in_child=_forget_sessions)
    _sessions.add(session)


def _forget_sessions() -> None:
    """In a copy of the client that it forked: the sessions stay the original's."""
    for session in list(_sessions):
        session.abandon()
    _sessions.clear()


def _finish_sessions() -> None:
    """Wait for open jobs, saying so; after Ctrl-C or an error, drop them instead."""
    failed = getattr(sys, "last_type", None) is not None
    for session in list(_sessions):
        try:
            if not failed and not session.wait_idle(2.0):
                count = session.open_jobs()
                print(
                    f"cwmp: waiting for {count} open job{'s' * (count != 1)} at {session.place} before exit "
                    "(Ctrl-C drops them)",
                    file=sys.stderr,
                )
                session.wait_idle()
        except KeyboardInterrupt:
            failed = True
        session.close()
