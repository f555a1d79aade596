"""The end of a job's log: what people need to see when a job failed."""

from __future__ import annotations

from typing import List

TAIL_LINES = 10
_TAIL_BYTES = 16 << 10  # of which the last lines are taken


def tail(path: str, lines: int = TAIL_LINES) -> List[str]:
    """The last lines of a log that are not empty; none when it is not there (yet)."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def told(path: str) -> str:
    """The path and the end of a log in one line, to be put behind an error."""
    end = tail(path)
    if not end:
        return f" (its log {path} is empty)"
    return f" (its log {path} ends:{''.join(f' | {line}' for line in end)})"
