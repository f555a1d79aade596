"""Which of a worker's GPUs a slot sees: its share, so that jobs side by side do not all take the first."""

from __future__ import annotations

import os
from typing import Optional

VARIABLE = "CUDA_VISIBLE_DEVICES"


def share(visible: Optional[str], slot: int, slots: int) -> Optional[str]:
    """What slot number `slot` of `slots` sees where its worker sees `visible`; None where nothing was said.

    With fewer GPUs than slots some slots share one.

    >>> [share("0,1,2,3", slot, 2) for slot in range(2)]
    ['0,1', '2,3']
    >>> [share("4,7", slot, 3) for slot in range(3)]
    ['4', '4', '7']
    """
    if visible is None:
        return None
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    first, end = slot * len(devices) // slots, (slot + 1) * len(devices) // slots
    return ",".join(devices[first : max(end, first + 1)])


def keep_share(slot: int, slots: int) -> None:
    """In a slot: see no more of the worker's GPUs than that."""
    mine = share(os.environ.get(VARIABLE), slot, slots)
    if mine is not None:
        os.environ[VARIABLE] = mine
