"""What peers say, taken only if it is of the kind that the protocol says."""

from __future__ import annotations

from typing import Any, Dict, List

from .errors import UsageError


def whole_number(value: Any) -> int:
    """The value, if it is one. Raises UsageError."""
    if type(value) is not int:
        raise UsageError(f"a message holds {value!r} where a whole number belongs")
    return value


def whole_numbers(values: Any) -> List[int]:
    """The values, if they are whole numbers. Raises UsageError."""
    return [whole_number(value) for value in values]


_LONGEST_TEXT = 4096  # characters that are kept of a text in a cause of death
_LARGEST = 1 << 62
_CAUSE: Dict[str, type] = {
    "pid": int,
    "cause": str,
    "signal": int,
    "exit_code": int,
    "peak_rss_bytes": int,
    "oom": bool,
    "stderr": str,
}


def cause_of_death(cause: Any) -> Dict[str, Any]:
    """What a worker says of a slot that died: what `WorkerLost` knows of, and no more than is worth keeping.

    Raises UsageError.

    >>> cause_of_death({"cause": "killed by SIGKILL", "signal": 9, "node": "elsewhere"})["signal"]
    9
    """
    if type(cause) is not dict:
        raise UsageError(f"a message holds {type(cause).__name__} where dict belongs")
    kept: Dict[str, Any] = {}
    for name, kind in _CAUSE.items():
        value = cause.get(name)
        if value is not None and type(value) is not kind:
            raise UsageError(f"the cause of a death has {type(value).__name__} as its {name}")
        if type(value) is int and abs(value) > _LARGEST:
            raise UsageError(f"the cause of a death has no number as its {name}")
        kept[name] = value[:_LONGEST_TEXT] if type(value) is str else value
    return kept
