"""How the master shares what is queued among its workers: two of them with 4 slots, as bare connections."""

from __future__ import annotations

import gc
import threading
from typing import Iterator, List

import pytest

from cwmp.master import Master
from cwmp.messages import JOB_QUEUE, this_side
from cwmp.transport import Wire, connect, introduce

pytestmark = pytest.mark.core

KEY = b"k" * 32
SLOTS = 4


@pytest.fixture
def master() -> Iterator[Master]:
    thresholds = gc.get_threshold()
    master = Master("127.0.0.1", 0, KEY)
    thread = threading.Thread(target=master.serve)
    thread.start()
    yield master
    master.stop()
    thread.join(10)
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def wires() -> Iterator[List[Wire]]:
    """What a test opens; closed at its end."""
    wires: List[Wire] = []
    yield wires
    for wire in wires:
        wire.close()


def joined(master: Master, wires: List[Wire], role: str) -> int:
    """A new member over a new connection, the last of `wires`; its id."""
    wires.append(connect(*master.address, KEY, timeout_s=10))
    member: int = introduce(wires[-1], this_side(role, slots=SLOTS))["member"]
    return member


def shares(master: Master, wires: List[Wire], room: int, jobs: int) -> List[int]:
    """How many leases come in the first message to each of two workers that have this `room`."""
    for _ in range(2):
        worker = joined(master, wires, "worker")
        wires[-1].request(JOB_QUEUE, "take", worker, room)
    client = joined(master, wires, "client")
    wires[-1].call(JOB_QUEUE, "put", client, [(number, b"f", b"x") for number in range(jobs)])
    found: List[int] = []
    for worker_wire in wires[:2]:
        if sum(found) < jobs:
            found.append(len(worker_wire.reply()))
    return found


def test_jobs_that_may_be_long_are_spread(master: Master, wires: List[Wire]) -> None:
    assert shares(master, wires, room=SLOTS, jobs=4) == [2, 2]


def test_few_short_jobs_are_one_message(master: Master, wires: List[Wire]) -> None:
    """A worker asks for more than it has slots when jobs are so short that a job a slot is nothing."""
    assert shares(master, wires, room=100, jobs=4) == [4]


def test_many_short_jobs_are_shared_by_room(master: Master, wires: List[Wire]) -> None:
    assert shares(master, wires, room=100, jobs=80) == [40, 40]
