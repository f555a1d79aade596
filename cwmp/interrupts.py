"""What an interrupt (Ctrl-C, as an exception) may leave behind, and how to clear that away."""

from __future__ import annotations

from typing import Any


def let_go(lock: Any, error: BaseException) -> None:
    """Release a re-entrant lock if `error` is an interrupt, and this thread still holds it.

    In Python 3.9 one may come between the last step inside a `with` and the release of its lock.
    """
    if not isinstance(error, Exception) and lock._is_owned():  # which `threading.Condition` asks it, too
        lock.release()
