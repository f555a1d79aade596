"""What workers know of their time on a real SLURM."""

from __future__ import annotations

import pytest

from tests.slurm.users import User
from tests.waiting import wait_until


@pytest.mark.parametrize("layout", ["array", "job"])
def test_workers_know_when_their_time_is_up(user: User, layout: str) -> None:
    user.start("--time", 30, "--layout", layout, workers=1)
    wait_until(
        lambda: user.workers()[0]["ends_in_s"] is not None, timeout_s=30, describe=lambda: str(user.workers())
    )
    assert 1700 < user.workers()[0]["ends_in_s"] <= 1800
    user.stop()
