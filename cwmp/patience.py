"""How long, and how often, to try to get back to a master."""

from __future__ import annotations

import os
import random
from typing import Any, Iterator, Optional

from . import defaults
from .errors import UsageError

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def master_timeout_s(given: Optional[float] = None) -> float:
    """How long to wait for a master that is gone: `given`, else `$CWMP_MASTER_TIMEOUT`, else 300 seconds.

    >>> master_timeout_s(7)
    7.0
    """
    text: Any = os.environ.get("CWMP_MASTER_TIMEOUT") or defaults.MASTER_TIMEOUT_S if given is None else given
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    raise UsageError(f"{text!r} is no time to wait for a master (CWMP_MASTER_TIMEOUT): it is in seconds")


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts: more and more, and not the same for everybody."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.5)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
