"""Connections break, or stand still, between a master that lives and the others: nobody notices."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from cwmp import ClusterExecutor, MasterLost, defaults
from tests.faults.by_hand import KEY, HandMadeCluster
from tests.faults.chaos.relay import Link, Relay
from tests.faults.processes import SOON_S, wait_for_lines, wait_gone
from tests.faults.test_master_restart import note_and_wait, runs
from tests.waiting import wait_until

pytestmark = pytest.mark.core


def doubled(data: bytes) -> bytes:
    """Twice as many bytes."""
    return data + data


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[HandMadeCluster]:
    with HandMadeCluster(tmp_path) as cluster:
        cluster.start_master()
        yield cluster


@pytest.fixture
def link(cluster: HandMadeCluster) -> Iterator[Link]:
    """A way to the master that can be broken."""
    with Relay() as relay:
        yield relay.link(cluster.port)


def executor_over(link: Link, **options: Any) -> ClusterExecutor:
    return ClusterExecutor(f"127.0.0.1:{link.port}", authkey=KEY, **options)


def test_a_client_whose_connections_break_again_and_again(cluster: HandMadeCluster, link: Link) -> None:
    cluster.start_worker(slots=2)
    told: List[int] = []
    with executor_over(link) as executor:
        futures = []
        for n in range(10_000):
            futures.append(executor.submit(abs, -n))
            futures[-1].add_done_callback(lambda future: told.append(future.result()))
            if n % 1500 == 1000:
                link.drop()
        assert [future.result(timeout=SOON_S) for future in futures] == list(range(10_000))
    assert sorted(told) == list(range(10_000))
    status = cluster.status()
    assert status is not None and status["jobs"]["done"] == 10_000, "nothing was run twice"


def test_who_leaves_is_not_waited_for(cluster: HandMadeCluster) -> None:
    """Neither a program that is done nor one that was interrupted."""
    with cluster.executor():
        pass
    with pytest.raises(KeyboardInterrupt), cluster.executor() as executor:
        executor.submit(time.sleep, 60)
        raise KeyboardInterrupt
    status = cluster.status()
    assert status is not None and status["clients"] == []


def test_cancelling_over_connections_that_break(cluster: HandMadeCluster, link: Link, tmp_path: Path) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    with executor_over(link) as executor:
        blocking = executor.submit(note_and_wait, str(notes), 0, str(gate))
        wait_for_lines(notes)
        queued = [executor.submit(note_and_wait, str(notes), 1 + n, str(gate)) for n in range(20)]
        cancelled = []
        for future in queued[:10]:
            link.drop()
            cancelled.append(future.cancel())
        gate.touch()
        assert cancelled == [True] * 10
        assert [future.result(timeout=SOON_S) for future in (blocking, *queued[10:])] == [0, *range(11, 21)]
    assert runs(notes) == Counter([0, *range(11, 21)])


def test_a_job_was_withdrawn_and_the_answer_got_lost(
    cluster: HandMadeCluster, link: Link, tmp_path: Path
) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    assert cluster.master is not None
    with executor_over(link) as executor, ThreadPoolExecutor() as threads:
        blocking = executor.submit(note_and_wait, str(notes), 0, str(gate))
        wait_for_lines(notes)
        queued = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in (1, 2)]
        wait_until(lambda: cluster.counts()["queued"] == 2, timeout_s=SOON_S)
        cluster.master.send_signal(signal.SIGSTOP)
        cancelled = threads.submit(queued[0].cancel)
        wait_until(lambda: executor._session._outbox.holds("cancel"), timeout_s=SOON_S)
        time.sleep(0.2)  # until the request has passed the link, where nobody can see it
        link.freeze()
        cluster.master.send_signal(signal.SIGCONT)
        wait_until(lambda: cluster.counts()["cancelled"] == 1, timeout_s=SOON_S)
        link.drop()
        link.thaw()
        assert cancelled.result(timeout=SOON_S)
        gate.touch()
        assert [future.result(timeout=SOON_S) for future in (blocking, queued[1])] == [0, 2]
    assert runs(notes) == Counter([0, 2])


def test_large_values_over_connections_that_break(
    cluster: HandMadeCluster, link: Link, tmp_path: Path
) -> None:
    """Between machines they have connections of their own, which break as well."""
    cluster.start_worker("--blob-dir", str(tmp_path), address=f"127.0.0.1:{link.port}")
    with executor_over(link) as executor:
        data = [os.urandom(3_000_000) for _ in range(10)]
        futures = []
        for piece in data:
            futures.append(executor.submit(doubled, piece))
            time.sleep(0.05)  # so that it breaks in different phases
            link.drop()
        for piece, future in zip(data, futures):
            assert future.result(timeout=SOON_S) == piece + piece


def test_a_worker_whose_connections_break_goes_on(
    cluster: HandMadeCluster, link: Link, tmp_path: Path
) -> None:
    cluster.start_worker(slots=2, address=f"127.0.0.1:{link.port}")
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    with cluster.executor() as executor:
        long = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in range(2)]
        queued = [executor.submit(abs, -n) for n in range(100)]
        wait_for_lines(notes, 2)
        for _ in range(5):
            link.drop()
            cluster.wait_for_workers(1)
        gate.touch()
        assert [future.result(timeout=SOON_S) for future in long] == [0, 1]
        assert [future.result(timeout=SOON_S) for future in queued] == list(range(100))
    assert runs(notes) == Counter([0, 1])


def test_outcomes_over_connections_that_break(cluster: HandMadeCluster, link: Link, tmp_path: Path) -> None:
    cluster.start_worker(slots=2, address=f"127.0.0.1:{link.port}")
    cluster.wait_for_workers(1)
    with cluster.executor() as executor:
        futures = [executor.submit(time.sleep, 0.001) for _ in range(3000)]
        for future in futures[::600]:
            future.result(timeout=SOON_S)
            link.freeze()
            time.sleep(0.02)  # it reports, and nothing arrives
            link.drop()
            link.thaw()
        assert [future.result(timeout=SOON_S) for future in futures] == [None] * 3000
    assert cluster.counts()["done"] == 3000


def silent_worker(cluster: HandMadeCluster, link: Link, tmp_path: Path) -> Tuple[int, Any]:
    """A worker at a link, and how to have it silent: (its pid, gate, notes)."""
    worker = cluster.start_worker(slots=1, address=f"127.0.0.1:{link.port}")
    cluster.wait_for_workers(1)
    return worker.pid, (tmp_path / "gate", tmp_path / "notes")


@pytest.mark.patient
@pytest.mark.parametrize("how", ["stopped", "cut off"])
def test_a_worker_that_was_silent_for_too_long_comes_back(
    cluster: HandMadeCluster, link: Link, tmp_path: Path, how: str
) -> None:
    pid, (gate, notes) = silent_worker(cluster, link, tmp_path)
    with cluster.executor() as executor:
        future = executor.submit(note_and_wait, str(notes), 0, str(gate))
        wait_until(future.running, timeout_s=SOON_S)
        cluster.start_worker(slots=1)
        cluster.wait_for_workers(2)
        begun = time.monotonic()
        if how == "stopped":
            os.kill(pid, signal.SIGSTOP)
        else:
            link.freeze()
        wait_for_lines(notes, 2, timeout_s=2 * defaults.SILENT_S)  # it runs elsewhere
        assert time.monotonic() - begun < defaults.SILENT_S + 3.0
        if how == "stopped":
            os.kill(pid, signal.SIGCONT)
        else:
            link.thaw()
        cluster.wait_for_workers(2)
        gate.touch()
        assert future.result(timeout=SOON_S) == 0
        assert list(executor.map(abs, range(50), timeout=SOON_S)) == list(range(50))
        wait_until(lambda: all(worker["done"] for worker in cluster.workers_seen()), timeout_s=SOON_S)
    assert runs(notes) == Counter({0: 2})


@pytest.mark.patient
def test_a_client_that_was_cut_off_for_longer_than_every_timeout(
    cluster: HandMadeCluster, link: Link, tmp_path: Path
) -> None:
    cluster.start_worker(slots=1)
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    with executor_over(link) as executor:
        futures = [executor.submit(note_and_wait, str(notes), n, str(gate)) for n in range(3)]
        wait_for_lines(notes)
        link.freeze()
        late = executor.submit(abs, -7)
        gate.touch()
        time.sleep(defaults.POLL_S + defaults.REPLY_S + 2.0)
        link.thaw()
        assert [future.result(timeout=SOON_S) for future in (*futures, late)] == [0, 1, 2, 7]


def test_who_waits_for_a_master_in_vain_is_told(cluster: HandMadeCluster) -> None:
    worker = cluster.start_worker("--master-timeout", "1", slots=1)
    cluster.wait_for_workers(1)
    with cluster.executor(master_timeout=1) as executor:
        future = executor.submit(time.sleep, 60)
        wait_until(future.running, timeout_s=SOON_S)
        begun = time.monotonic()
        cluster.kill_master()
        with pytest.raises(MasterLost, match=f"master at {cluster.address} is gone.* within 1 s.*refused"):
            future.result(timeout=SOON_S)
        with pytest.raises(MasterLost):
            executor.submit(abs, 1)
        wait_gone(worker.pid)
        assert 0.5 < time.monotonic() - begun < 10.0
    assert "there was" not in cluster.log.read_text()


def test_an_orderly_end_of_the_master_is_told_at_once(cluster: HandMadeCluster) -> None:
    worker = cluster.start_worker(slots=1)
    cluster.wait_for_workers(1)
    with cluster.executor() as executor:
        future = executor.submit(time.sleep, 60)
        wait_until(future.running, timeout_s=SOON_S)
        assert cluster.master is not None
        cluster.master.terminate()
        with pytest.raises(MasterLost, match="is gone: the master was stopped"):
            future.result(timeout=SOON_S)
    wait_gone(worker.pid)
