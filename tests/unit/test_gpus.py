"""How the slots of a worker share its GPUs."""

from __future__ import annotations

from typing import List, Optional

import pytest

from cwmp import gpus

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("visible", "shares"),
    [
        (None, [None, None]),
        ("", ["", ""]),
        ("0", ["0", "0"]),
        ("0,1", ["0", "1"]),
        ("0,1,2", ["0", "1,2"]),
        ("4, 5,6,7", ["4,5", "6,7"]),
        ("GPU-aa,MIG-bb", ["GPU-aa", "MIG-bb"]),
        ("1", ["1", "1", "1"]),
        ("0,1", ["0", "0", "1"]),
        ("0,1", ["0", "0", "1", "1"]),
        ("0,1,2,3,4", ["0", "1,2", "3,4"]),
        ("NoDevFiles", ["NoDevFiles", "NoDevFiles"]),
    ],
)
def test_shares(visible: Optional[str], shares: List[Optional[str]]) -> None:
    assert [gpus.share(visible, slot, len(shares)) for slot in range(len(shares))] == shares


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("slots", range(1, 9))
def test_every_gpu_is_used_and_no_slot_has_none(count: int, slots: int) -> None:
    every = [str(number) for number in range(count)]
    shares = [str(gpus.share(",".join(every), slot, slots)).split(",") for slot in range(slots)]
    assert sorted({gpu for mine in shares for gpu in mine}) == every
    sizes = [len(mine) for mine in shares]
    assert max(sizes) - min(sizes) <= 1
    if count >= slots:
        assert sum(sizes) == count, "nobody shares without need"
