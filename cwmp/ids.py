"""Job ids for those who need none of their own."""

from __future__ import annotations

import os


def randid() -> str:
    """A random job id of 16 hexadecimal digits, as in the original cluster-workers.

    >>> len(randid())
    16
    """
    return os.urandom(8).hex()
