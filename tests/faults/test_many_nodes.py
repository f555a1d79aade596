"""Half of many nodes die in the same instant: simulated nodes around a real master and a real client."""

from __future__ import annotations

import signal

import pytest

from tests.benchmarks import scale
from tests.benchmarks.swarm import Swarm

pytestmark = pytest.mark.core


def test_losing_half_of_many_nodes_at_once_loses_no_job() -> None:
    with Swarm(nodes=60, slots=8, drivers=2) as swarm:
        swarm.join()
        loss = scale.lose(swarm, swarm.drivers[:1], signal.SIGKILL, job_s=1.0)
        swarm.check_log()
        assert len(swarm.status()["workers"]) == 30
    assert loss["held"] > 0
    assert (loss["lost"], loss["twice"]) == (0, 0)
