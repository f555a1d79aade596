"""Two thousand inputs that nobody meant; `python -m tests.faults.fuzz` sends more."""

from __future__ import annotations

import pytest

from tests.faults import fuzz

pytestmark = pytest.mark.core


@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_that_nobody_meant(seed: int) -> None:
    fuzz.run(1000, seed)
