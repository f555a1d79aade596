"""What peers say, taken only if it is of the kind that the protocol says."""

from __future__ import annotations

from typing import Any, List

from .errors import UsageError


def whole_number(value: Any) -> int:
    """The value, if it is one. Raises UsageError."""
    if type(value) is not int:
        raise UsageError(f"a message holds {value!r} where a whole number belongs")
    return value


def whole_numbers(values: Any) -> List[int]:
    """The values, if they are whole numbers. Raises UsageError."""
    return [whole_number(value) for value in values]
