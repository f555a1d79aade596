"""ClientThread: what its callbacks see, what wait() tells, and which uses are refused."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Tuple

import pytest

from cwmp import (
    ClientThread,
    ConnectError,
    DuplicateJob,
    LocalCluster,
    PayloadError,
    VersionMismatch,
    WrongKey,
    messages,
)
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture
def gate(cluster: LocalCluster, tmp_path: Path) -> Iterator[see.Gate]:
    """What ends the jobs that tests leave running."""
    with see.Gate(cluster, tmp_path) as gate:
        yield gate


class Outcomes:
    """Callbacks that record."""

    def __init__(self) -> None:
        self.results: Dict[Any, Any] = {}
        self.errors: Dict[Any, BaseException] = {}
        self.calls: Counter[Any] = Counter()
        self.threads: List[threading.Thread] = []

    def done(self, jobid: Any, result: Any) -> None:
        self.results[jobid] = result
        self._note(jobid)

    def failed(self, jobid: Any, error: BaseException) -> None:
        self.errors[jobid] = error
        self._note(jobid)

    def _note(self, jobid: Any) -> None:
        self.calls[jobid] += 1
        self.threads.append(threading.current_thread())


@pytest.fixture
def seen() -> Outcomes:
    return Outcomes()


# --- callbacks ------------------------------------------------------------------------------


def test_each_job_calls_back_once_in_the_dispatcher_thread(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client:
        assert isinstance(client, threading.Thread)
        for n in range(500):
            client.submit(n, jobs.add, n, b=n)
    assert seen.results == {n: 2 * n for n in range(500)}
    assert set(seen.calls.values()) == {1}
    assert set(seen.threads) == {client}
    assert not client.is_alive()


def test_the_original_calling_sequence(cluster: LocalCluster, seen: Outcomes) -> None:
    client = ClientThread(seen.done, cluster.address, authkey=cluster.authkey)
    client.start()
    client.submit("job", jobs.add, 1, 2)
    client.wait()
    client.stop()
    assert seen.results == {"job": 3}


def test_host_and_port_apart_and_a_key_as_text(cluster: LocalCluster, seen: Outcomes) -> None:
    host, port = cluster.address.split(":")
    with ClientThread(seen.done, host, int(port), authkey=cluster.authkey.decode()) as client:
        client.submit("job", jobs.add, 1, 2)
    assert seen.results == {"job": 3}


def test_the_cluster_and_its_key_are_found_in_the_environment(
    cluster: LocalCluster, seen: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWMP_MASTER", cluster.address)
    monkeypatch.setenv("CWMP_AUTHKEY", cluster.authkey.decode())
    with ClientThread(seen.done) as client:
        client.submit("job", jobs.add, 1, 2)
    assert seen.results == {"job": 3}


def test_keyword_arguments_may_have_any_name(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client:
        client.submit(1, jobs.echo, 1, timeout=2, args=3, kwargs=4)
    assert seen.results == {1: ((1,), {"timeout": 2, "args": 3, "kwargs": 4})}


def test_failures_go_to_on_error(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done, on_error=seen.failed) as client:
        client.submit("good", jobs.add, 1)
        client.submit("bad", jobs.raise_value_error, "wrong")
        client.submit("worse", jobs.leave, 3)
    assert seen.results == {"good": 2}
    assert isinstance(seen.errors["bad"], ValueError)
    assert isinstance(seen.errors["worse"], SystemExit)
    assert set(seen.threads) == {client}
    assert set(seen.calls.values()) == {1}


def test_the_first_failure_is_raised_by_wait_after_all_have_ended(
    cluster: LocalCluster, seen: Outcomes
) -> None:
    with cluster.client(seen.done) as client:
        client.submit("first", jobs.raise_value_error, "first")
        client.submit("long", jobs.nap, 0.5, "slept")
        wait_until(lambda: client._first_failure is not None, timeout_s=WAIT_S)
        client.submit("second", jobs.raise_own, 2)
        client.submit("last", jobs.add, 1)
        with pytest.raises(ValueError, match="first"):
            client.wait(WAIT_S)
        assert seen.results == {"long": "slept", "last": 2}
        client.wait(WAIT_S)  # told once
        client.submit("after", jobs.add, 2)
        client.wait(WAIT_S)
        assert seen.results["after"] == 3


def test_leaving_the_block_raises_the_first_failure(cluster: LocalCluster, seen: Outcomes) -> None:
    with pytest.raises(ValueError, match="wrong"), cluster.client(seen.done) as client:
        client.submit("bad", jobs.raise_value_error)
        client.submit("good", jobs.nap, 0.1, "slept")
    assert seen.results == {"good": "slept"}
    assert not client.is_alive()


def test_wait_without_any_job_returns(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client:
        client.wait()
        client.wait(0)


def test_wait_with_a_timeout(cluster: LocalCluster, seen: Outcomes, gate: see.Gate) -> None:
    with cluster.client(seen.done) as client:
        client.submit(1, jobs.begin_and_wait, *gate.paths)
        with pytest.raises(TimeoutError, match="1 job still open after 0.2 s"):
            client.wait(0.2)
        assert seen.results == {}
        gate.open()
        client.wait(WAIT_S)
        assert len(seen.results) == 1


def test_wait_returns_after_the_last_callback_has(cluster: LocalCluster) -> None:
    order: List[str] = []

    def slow(jobid: Any, result: Any) -> None:
        time.sleep(0.2)
        order.append("callback")

    with cluster.client(slow) as client:
        client.submit(1, jobs.nothing)
        client.wait(WAIT_S)
        order.append("wait")
    assert order == ["callback", "wait"]


def test_wait_inside_a_callback_is_refused(cluster: LocalCluster) -> None:
    refusals: List[BaseException] = []

    def waits(jobid: Any, result: Any) -> None:
        client.wait()

    with cluster.client(waits, on_error=lambda _, error: refusals.append(error)) as client:
        client.submit(1, jobs.nothing)
    assert [type(error) for error in refusals] == [RuntimeError]


def test_a_callback_may_submit(cluster: LocalCluster) -> None:
    results: List[int] = []

    def again(jobid: int, result: int) -> None:
        results.append(result)
        if jobid < 50:
            client.submit(jobid + 1, jobs.add, result, 1)

    with cluster.client(again) as client:
        client.submit(0, jobs.add, 0, 0)
    assert results == list(range(51))


def test_a_callback_may_stop_the_client(cluster: LocalCluster, seen: Outcomes, gate: see.Gate) -> None:
    submitted = threading.Event()

    def stop(jobid: Any, result: Any) -> None:
        submitted.wait(WAIT_S)
        client.stop()

    with cluster.client(stop, on_error=seen.failed) as client:
        client.submit("first", jobs.nothing)
        client.submit("long", jobs.begin_and_wait, *gate.paths)
        submitted.set()
        client.wait(WAIT_S)
    assert isinstance(seen.errors["long"], CancelledError)
    see.wait_for_clients(cluster, 0)


# --- callbacks that raise -------------------------------------------------------------------


def give_up() -> NoReturn:
    sys.exit("from a callback")


def interrupted() -> NoReturn:
    raise KeyboardInterrupt


RAISES: List[Tuple[Callable[[], Any], type]] = [
    (jobs.raise_value_error, ValueError),
    (give_up, SystemExit),
    (interrupted, KeyboardInterrupt),
]


@pytest.mark.parametrize(("raises", "kind"), RAISES)
def test_a_callback_that_raises_is_told_to_on_error(
    cluster: LocalCluster, seen: Outcomes, raises: Callable[[], Any], kind: type
) -> None:
    def done(jobid: int, result: Any) -> None:
        seen.done(jobid, result)
        if jobid == 3:
            raises()

    with cluster.client(done, on_error=lambda jobid, error: seen.errors.update({jobid: error})) as client:
        for n in range(20):
            client.submit(n, jobs.add, n)
        client.wait(WAIT_S)
        assert client.is_alive()
        client.submit("after", jobs.add, 1)
        client.wait(WAIT_S)
    assert seen.results == {**{n: n + 1 for n in range(20)}, "after": 2}
    assert {jobid: type(error) for jobid, error in seen.errors.items()} == {3: kind}


@pytest.mark.parametrize("raises", [raises for raises, _ in RAISES])
def test_a_callback_that_raises_is_logged_where_nobody_takes_errors(
    cluster: LocalCluster, seen: Outcomes, raises: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def done(jobid: int, result: Any) -> None:
        seen.done(jobid, result)
        raises()

    with caplog.at_level(logging.ERROR), cluster.client(done) as client:
        for n in range(5):
            client.submit(n, jobs.add, n)
        client.wait(WAIT_S)
        assert client.is_alive()
    assert seen.results == {n: n + 1 for n in range(5)}
    assert len([record for record in caplog.records if "callback" in record.getMessage()]) == 5


@pytest.mark.parametrize("raises", [raises for raises, _ in RAISES])
def test_an_on_error_that_raises_is_logged(
    cluster: LocalCluster, seen: Outcomes, raises: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        with cluster.client(seen.done, on_error=lambda jobid, error: raises()) as client:
            for n in range(5):
                client.submit(n, jobs.raise_value_error)
            client.submit("good", jobs.add, 1)
            client.wait(WAIT_S)
            assert client.is_alive()
    assert seen.results == {"good": 2}
    assert len([record for record in caplog.records if "on_error" in record.getMessage()]) == 5


def test_a_result_that_ends_the_thread_that_loads_it_is_only_that_jobs_error(
    cluster: LocalCluster, seen: Outcomes
) -> None:
    with cluster.client(seen.done, on_error=seen.failed) as client:
        for kind in (jobs.Exits, jobs.Interrupts, jobs.FailsWhereLoaded):
            client.submit(kind, jobs.make, kind)
        client.submit("good", jobs.add, 1)
        client.wait(WAIT_S)
    assert seen.results == {"good": 2}
    assert all(isinstance(error, PayloadError) for error in seen.errors.values())
    assert len(seen.errors) == 3


# --- ids ------------------------------------------------------------------------------------


def test_any_hashable_is_an_id(cluster: LocalCluster, seen: Outcomes) -> None:
    ids = [None, 0, "", b"", (), (1, ("a",)), frozenset([1]), 1.5, len, object(), Ellipsis]
    with cluster.client(seen.done) as client:
        for n, jobid in enumerate(ids):
            client.submit(jobid, jobs.add, n)
    assert seen.results == {jobid: n + 1 for n, jobid in enumerate(ids)}


def test_what_is_not_hashable_is_refused_at_submit(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client, pytest.raises(TypeError, match="unhashable"):
        client.submit([], jobs.nothing)  # type: ignore[arg-type]


def test_an_id_is_free_again_once_its_job_has_ended(
    cluster: LocalCluster, seen: Outcomes, gate: see.Gate
) -> None:
    with cluster.client(seen.done) as client:
        client.submit("id", jobs.begin_and_wait, *gate.paths)
        with pytest.raises(DuplicateJob, match="'id'"):
            client.submit("id", jobs.nothing)
        with pytest.raises(DuplicateJob):
            client.submit("id", jobs.nothing)  # the refusal has not freed it
        gate.open()
        client.wait(WAIT_S)
        client.submit("id", jobs.add, 1)
        client.wait(WAIT_S)
    assert seen.results == {"id": 2}
    assert seen.calls == {"id": 2}


# --- submitting -----------------------------------------------------------------------------


def test_many_threads_may_submit(cluster: LocalCluster, seen: Outcomes) -> None:
    def submit_some(name: int) -> None:
        for n in range(200):
            client.submit((name, n), jobs.add, name, n)

    with cluster.client(seen.done) as client:
        threads = [threading.Thread(target=submit_some, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen.results == {(name, n): name + n for name in range(8) for n in range(200)}
    assert set(seen.calls.values()) == {1}


def test_what_cannot_be_pickled_is_told_at_submit(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client:
        with pytest.raises(PayloadError, match="argument 2: cannot pickle _thread.lock object"):
            client.submit(1, jobs.echo, "fine", threading.Lock())
        with pytest.raises(PayloadError, match="argument 'key'"):
            client.submit(1, jobs.echo, key=threading.Lock())
        client.submit(1, jobs.add, 1)  # the id is free
    assert seen.results == {1: 2}


def test_submit_before_start_and_after_stop(cluster: LocalCluster, seen: Outcomes) -> None:
    client = cluster.client(seen.done)
    with pytest.raises(RuntimeError, match="start"):
        client.submit(1, jobs.nothing)
    with pytest.raises(RuntimeError, match="start"):
        client.wait()
    client.stop()  # nothing to stop
    client.start()
    client.stop()
    with pytest.raises(RuntimeError):
        client.submit(1, jobs.nothing)
    client.wait(WAIT_S)
    client.stop()


def test_a_client_starts_once(cluster: LocalCluster, seen: Outcomes) -> None:
    with cluster.client(seen.done) as client:
        with pytest.raises(RuntimeError):
            client.start()
        client.submit(1, jobs.add, 1)
    assert seen.results == {1: 2}
    with pytest.raises(RuntimeError):
        client.start()


# --- stopping -------------------------------------------------------------------------------


def test_stop_cancels_what_is_open(
    cluster: LocalCluster, seen: Outcomes, gate: see.Gate, tmp_path: Path
) -> None:
    client = cluster.client(seen.done, on_error=seen.failed)
    client.start()
    for n in range(2):
        client.submit(("running", n), jobs.begin_and_wait, *gate.paths)
    gate.wait_for(2)
    for n in range(50):
        client.submit(n, jobs.note, str(tmp_path / "never"), "ran")
    wait_until(lambda: see.jobs(cluster)["queued"] == 50, timeout_s=WAIT_S)  # none waits in a slot
    client.stop()
    assert not client.is_alive()
    assert len(seen.errors) == 52
    assert {type(error) for error in seen.errors.values()} == {CancelledError}
    see.wait_for_clients(cluster, 0)
    assert see.jobs(cluster)["queued"] == 0
    gate.open()
    wait_until(lambda: see.jobs(cluster)["running"] == 0, timeout_s=WAIT_S)
    assert not (tmp_path / "never").exists()


def test_stop_wakes_those_who_wait(cluster: LocalCluster, seen: Outcomes, gate: see.Gate) -> None:
    outcome: List[BaseException] = []

    def waits() -> None:
        try:
            client.wait(WAIT_S)
        except BaseException as error:
            outcome.append(error)

    with cluster.client(seen.done) as client:
        client.submit(1, jobs.begin_and_wait, *gate.paths)
        thread = threading.Thread(target=waits)
        thread.start()
        client.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert [type(error) for error in outcome] == [CancelledError]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_the_block_passes_and_waits_for_nothing(
    cluster: LocalCluster, seen: Outcomes, gate: see.Gate, kind: type
) -> None:
    with pytest.raises(kind), cluster.client(seen.done, on_error=seen.failed) as client:
        client.submit(1, jobs.begin_and_wait, *gate.paths)
        raise kind("inside")
    assert not client.is_alive()
    assert isinstance(seen.errors[1], CancelledError)
    see.wait_for_clients(cluster, 0)


# --- no cluster -----------------------------------------------------------------------------


def test_nobody_there(seen: Outcomes) -> None:
    client = ClientThread(seen.done, "127.0.0.1:1", authkey=b"key")
    with pytest.raises(ConnectError, match="127.0.0.1:1"):
        client.start()
    assert not client.is_alive()


def test_another_key(cluster: LocalCluster, seen: Outcomes) -> None:
    with pytest.raises(WrongKey, match=cluster.address):
        ClientThread(seen.done, cluster.address, authkey=b"another").start()


def test_another_version_leaves_no_connection(
    cluster: LocalCluster, seen: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaks = messages.PROTOCOL
    monkeypatch.setattr(messages, "PROTOCOL", 99)  # here, not in the cluster's own processes
    with pytest.raises(VersionMismatch, match=f"protocol 99 and the cluster speaks {speaks}"):
        ClientThread(seen.done, cluster.address, authkey=cluster.authkey).start()
