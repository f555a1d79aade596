"""What a job sees of its function and arguments, and what comes back of it, whatever it does."""

from __future__ import annotations

import os
import platform
import signal
from functools import partial
from typing import Any, Callable, Iterator, List

import pytest

from cwmp import ClusterExecutor, LocalCluster, PayloadError, RemoteError, RemoteTraceback, WorkerLost
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0
MB = 1 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        wait_until(lambda: see.slots_of(cluster.pids["workers"][0]), timeout_s=WAIT_S)
        yield cluster


@pytest.fixture
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with cluster.executor() as executor:
        yield executor


@pytest.fixture
def mortal() -> Iterator[ClusterExecutor]:
    """An executor on a cluster of the test's own, the slot of which may die."""
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        yield executor


@pytest.fixture
def same_slot(cluster: LocalCluster, executor: ClusterExecutor) -> Iterator[ClusterExecutor]:
    """An executor whose jobs must all leave the slot alive, and in good order."""
    before = executor.submit(jobs.pid).result(WAIT_S)
    yield executor
    assert executor.submit(jobs.standard_streams).result(WAIT_S) == []
    assert executor.submit(jobs.pid).result(WAIT_S) == before


# --- functions ------------------------------------------------------------------------------


class Counter:
    """State that a bound method takes along."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def more(self, by: int = 1) -> int:
        self.count += by
        return self.count

    @classmethod
    def made(cls, count: int) -> Counter:
        return cls(count)

    @staticmethod
    def twice(n: int) -> int:
        return 2 * n

    def __call__(self, n: int) -> int:
        return self.count + n


def make_closure(n: int) -> Callable[[int], int]:
    def closure(m: int) -> int:
        return n + m

    return closure


def test_whatever_can_be_called(executor: ClusterExecutor) -> None:
    calls: List[Any] = [
        (lambda n: n + 1, 2),
        (make_closure(1), 2),
        (Counter(1).more, 2),
        (Counter(1), 2),
        (Counter.twice, 1.5),
        (partial(jobs.add, 1), 2),
        (partial(lambda a, b: a + b, b=1), 2),
        (len, "abc"),
        ("abc".find, "d"),
        (int, "3"),
        (max, [3, 1]),
    ]
    futures = [executor.submit(function, argument) for function, argument in calls]
    assert [future.result(WAIT_S) for future in futures] == [3, 3, 3, 3, 3, 3, 3, 3, -1, 3, 3]
    assert executor.submit(Counter.made, 4).result(WAIT_S).count == 4


def test_recursive_and_mutually_recursive_closures(executor: ClusterExecutor) -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert executor.submit(even, 10).result(WAIT_S) is True


def test_classes_made_in_a_function(executor: ClusterExecutor) -> None:
    class Local:
        def __init__(self, n: int) -> None:
            self.n = n

        def next(self) -> Local:
            return Local(self.n + 1)

    result = executor.submit(Local(1).next).result(WAIT_S)
    assert isinstance(result, Local)
    assert result.n == 2
    assert isinstance(executor.submit(Local, 5).result(WAIT_S), Local)


def test_what_is_not_callable_is_that_jobs_error(same_slot: ClusterExecutor) -> None:
    with pytest.raises(TypeError, match="not callable"):
        same_slot.submit(5).result(WAIT_S)  # type: ignore[arg-type]


# --- what functions capture -----------------------------------------------------------------


def test_a_captured_value_that_changes_between_two_submits(executor: ClusterExecutor) -> None:
    n = 1

    def captured() -> int:
        return n

    first = executor.submit(captured)
    n = 2
    second = executor.submit(captured)
    n = 3
    assert (first.result(WAIT_S), second.result(WAIT_S)) == (1, 2)
    assert executor.submit(captured).result(WAIT_S) == 3


def test_a_captured_container_that_changes_between_two_submits(executor: ClusterExecutor) -> None:
    values = [1]
    nested = {"inner": (values,)}
    functions = [lambda: sum(values), lambda: sum(nested["inner"][0]), partial(sum, values)]
    first = [executor.submit(function) for function in functions]
    values.append(2)
    second = [executor.submit(function) for function in functions]
    values.clear()
    assert [future.result(WAIT_S) for future in first] == [1, 1, 1]
    assert [future.result(WAIT_S) for future in second] == [3, 3, 3]


def test_a_captured_object_and_a_default_that_change(executor: ClusterExecutor) -> None:
    counter = Counter(1)

    def captured(default: int = 10) -> int:
        return counter.count + default

    first = [executor.submit(captured), executor.submit(counter.more)]
    counter.count = 2
    captured.__defaults__ = (20,)
    second = [executor.submit(captured), executor.submit(counter.more)]
    assert [future.result(WAIT_S) for future in first] == [11, 2]
    assert [future.result(WAIT_S) for future in second] == [22, 3]


def test_a_captured_function_that_changes(executor: ClusterExecutor) -> None:
    helper = make_closure(1)

    def captured() -> int:
        return helper(0)

    first = executor.submit(captured)
    helper = make_closure(2)
    second = executor.submit(captured)
    helper.__closure__[0].cell_contents = 3  # type: ignore[index]
    third = executor.submit(captured)
    assert [future.result(WAIT_S) for future in (first, second, third)] == [1, 2, 3]


def test_captured_state_is_not_carried_from_job_to_job(executor: ClusterExecutor) -> None:
    values: List[int] = []
    total = 0

    def grow() -> int:
        nonlocal total
        values.append(1)
        total += 1
        return len(values) + total

    def default(memo: List[int] = []) -> int:  # noqa: B006
        memo.append(1)
        return len(memo)

    counter = Counter()
    futures = [executor.submit(f) for f in (grow, default, counter.more) for _ in range(5)]
    assert [future.result(WAIT_S) for future in futures] == [2] * 5 + [1] * 10
    assert (values, total, counter.count) == ([], 0, 0)


def test_function_attributes_are_not_carried_either(executor: ClusterExecutor) -> None:
    def counting() -> int:
        counting.calls = getattr(counting, "calls", 0) + 1  # type: ignore[attr-defined]
        return counting.calls  # type: ignore[attr-defined, no-any-return]

    assert [executor.submit(counting).result(WAIT_S) for _ in range(3)] == [1] * 3


def test_arguments_are_those_of_the_moment_of_submit(executor: ClusterExecutor) -> None:
    argument = [1]
    future = executor.submit(jobs.nap, 0.05, argument)
    argument.append(2)
    assert future.result(WAIT_S) == [1]


# --- exceptions -----------------------------------------------------------------------------


def test_an_exception_is_of_its_own_type_and_tells_where_it_was_raised(same_slot: ClusterExecutor) -> None:
    slot = same_slot.submit(jobs.pid).result(WAIT_S)
    error = same_slot.submit(jobs.raise_own, 7).exception(WAIT_S)
    assert type(error) is jobs.OwnError
    assert (error.code, error.hint, str(error)) == (7, "look here", "code 7")
    assert isinstance(error.__cause__, RemoteTraceback)
    text = str(error.__cause__)
    assert f"node {platform.node()}, pid {slot}, attempt 1" in text
    assert "in raise_own" in text
    assert 'raise OwnError(code, hint="look here")' in text
    assert "slot.py" not in text, "nobody wants to read cwmp's own frames"


def test_the_remote_traceback_shows_the_chain(same_slot: ClusterExecutor) -> None:
    error = same_slot.submit(jobs.raise_chained).exception(WAIT_S)
    assert isinstance(error, ValueError)
    assert "the inner" in str(error.__cause__)
    assert "direct cause" in str(error.__cause__)


@pytest.mark.parametrize(
    ("job", "type_name", "message"),
    [
        (jobs.raise_unpicklable, "tests.faults.jobs.Unpicklable", "it holds a lock"),
        (jobs.raise_not_rebuilt, "tests.faults.jobs.NotRebuilt", "one"),
    ],
)
def test_an_exception_that_cannot_travel(
    same_slot: ClusterExecutor, job: Callable[[], Any], type_name: str, message: str
) -> None:
    error = same_slot.submit(job).exception(WAIT_S)
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.message) == (type_name, message)
    assert f"in {job.__name__}" in error.traceback
    assert str(error) == f"{type_name}: {message}"
    assert "pid" in str(error.__cause__)


def test_an_exception_without_a_text(same_slot: ClusterExecutor) -> None:
    assert isinstance(same_slot.submit(jobs.raise_without_text).exception(WAIT_S), jobs.NoText)


@pytest.mark.parametrize(
    ("job", "arguments", "kind"),
    [
        (jobs.leave, (3,), SystemExit),
        (jobs.leave, (None,), SystemExit),
        (jobs.interrupt, (), KeyboardInterrupt),
        (jobs.recurse, (), RecursionError),
        (jobs.raise_value_error, ("x" * MB,), ValueError),
    ],
)
def test_each_ending_is_only_that_jobs(
    same_slot: ClusterExecutor, job: Callable[..., Any], arguments: Any, kind: type
) -> None:
    error = same_slot.submit(job, *arguments).exception(WAIT_S)
    assert type(error) is kind
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_generator_result_names_its_type(same_slot: ClusterExecutor) -> None:
    with pytest.raises(PayloadError, match="the result of this job: cannot pickle generator object"):
        same_slot.submit(lambda: (n for n in ())).result(WAIT_S)


def test_an_unpicklable_result_names_its_type(same_slot: ClusterExecutor) -> None:
    with pytest.raises(
        PayloadError, match="the result of this job: cannot pickle _thread.lock object"
    ) as caught:
        same_slot.submit(jobs.return_a_lock).result(WAIT_S)
    assert "attempt 1" in str(caught.value.__cause__)


def test_a_result_that_is_nested_too_deeply(same_slot: ClusterExecutor) -> None:
    with pytest.raises(PayloadError, match="cannot pickle list object"):
        same_slot.submit(jobs.nested_list, 100_000).result(WAIT_S)


def test_exceptions_as_results(executor: ClusterExecutor) -> None:
    result = executor.submit(jobs.echo, ValueError("a value")).result(WAIT_S)
    assert isinstance(result[0][0], ValueError)


# --- deaths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "argument", "number", "code", "sentence"),
    [
        (jobs.end_process, 7, None, 7, "exited with status 7"),
        (jobs.end_process, 0, None, 0, "exited with status 0"),
        (jobs.raise_signal, signal.SIGKILL, signal.SIGKILL, None, "killed by SIGKILL"),
        (jobs.raise_signal, signal.SIGSEGV, signal.SIGSEGV, None, "killed by SIGSEGV"),
        (jobs.raise_signal, signal.SIGABRT, signal.SIGABRT, None, "killed by SIGABRT"),
    ],
)
def test_a_job_that_ends_its_process_is_tried_three_times(
    mortal: ClusterExecutor, job: Callable[..., Any], argument: int, number: Any, code: Any, sentence: str
) -> None:
    doomed = mortal.submit(job, argument)
    others = [mortal.submit(jobs.add, n) for n in range(50)]
    error = doomed.exception(WAIT_S)
    assert isinstance(error, WorkerLost)
    assert len(error.attempts) == 3
    numbers = [attempt["attempt"] for attempt in error.attempts]
    assert numbers == sorted(set(numbers)), "each hand-out has a number of its own"
    assert len({attempt["pid"] for attempt in error.attempts}) == 3
    for attempt in error.attempts:
        assert (attempt["signal"], attempt["exit_code"]) == (number, code)
        assert attempt["node"] == platform.node()
        assert attempt["cause"] == sentence
        assert attempt["peak_rss_bytes"] > MB
    assert f"attempt {numbers[2]} on {platform.node()} pid {error.attempts[2]['pid']}: {sentence}" in str(
        error
    )
    assert "3 attempts" in str(error)
    assert [future.result(WAIT_S) for future in others] == list(range(1, 51))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_are_for_the_worker_do_not_end_a_job(same_slot: ClusterExecutor, number: int) -> None:
    assert same_slot.submit(jobs.raise_signal, number).result(WAIT_S) is None


# --- large ----------------------------------------------------------------------------------


def test_a_result_of_100_mb(same_slot: ClusterExecutor) -> None:
    assert len(same_slot.submit(jobs.text_of, 100 * MB).result(60)) == 100 * MB


def test_an_argument_of_30_mb_among_small_ones(same_slot: ClusterExecutor) -> None:
    large = "x" * (30 * MB)
    futures = [same_slot.submit(len, argument) for argument in ["", large, "a", large, "ab"]]
    assert [future.result(60) for future in futures] == [0, 30 * MB, 1, 30 * MB, 2]


def test_a_function_that_captured_much(same_slot: ClusterExecutor) -> None:
    large = b"x" * (5 * MB)
    futures = [same_slot.submit(lambda n: len(large) + n, n) for n in range(5)]
    assert [future.result(60) for future in futures] == [5 * MB + n for n in range(5)]


# --- misuse of the slot ---------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(1,), (2,), (0,), (0, 1, 2)])
def test_a_job_that_closes_descriptors(same_slot: ClusterExecutor, numbers: Any) -> None:
    assert same_slot.submit(jobs.close_descriptors, *numbers).result(WAIT_S) == "closed"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_job_that_closes_a_stream(same_slot: ClusterExecutor, name: str) -> None:
    assert same_slot.submit(jobs.close_stream, name).result(WAIT_S) == "closed"
    assert same_slot.submit(jobs.close_stream, name).result(WAIT_S) == "closed"


@pytest.mark.parametrize("value", [None, 5])
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_job_that_replaces_a_stream(same_slot: ClusterExecutor, name: str, value: Any) -> None:
    assert same_slot.submit(jobs.replace_stream, name, value).result(WAIT_S) == "replaced"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_job_that_removes_a_stream(same_slot: ClusterExecutor, name: str) -> None:
    assert same_slot.submit(jobs.remove_stream, name).result(WAIT_S) == "removed"


def test_a_job_that_prints_what_is_no_text(same_slot: ClusterExecutor) -> None:
    assert same_slot.submit(jobs.print_much).result(WAIT_S) is None


def test_a_job_that_forks_and_returns_twice(cluster: LocalCluster, same_slot: ClusterExecutor) -> None:
    slot = same_slot.submit(jobs.pid).result(WAIT_S)
    for _ in range(5):
        assert same_slot.submit(jobs.fork_and_return).result(WAIT_S) == ("original", slot)
        assert same_slot.submit(jobs.fork_and_raise).result(WAIT_S) == "original"
    assert see.slots_of(cluster.pids["workers"][0]) == [slot]


def test_a_job_that_leaves_a_thread_behind(mortal: ClusterExecutor) -> None:
    assert mortal.submit(jobs.leave_a_thread).result(WAIT_S) == "left"
    assert mortal.submit(jobs.add, 1).result(WAIT_S) == 2


def test_a_job_may_use_processes_of_its_own(same_slot: ClusterExecutor) -> None:
    assert same_slot.submit(jobs.square_in_processes, [-1, 2]).result(WAIT_S) == [1, 2]


def test_programs_that_jobs_start_can_be_interrupted(same_slot: ClusterExecutor) -> None:
    assert same_slot.submit(jobs.subprocess_output).result(WAIT_S) == "True\n"


def test_what_a_job_has_started_ends_with_its_slot(mortal: ClusterExecutor) -> None:
    slot = mortal.submit(jobs.pid).result(WAIT_S)
    sleeper = mortal.submit(jobs.start_a_sleeper).result(WAIT_S)
    assert mortal.submit(jobs.add, 1).result(WAIT_S) == 2
    assert not see.is_gone(sleeper)
    os.kill(slot, signal.SIGKILL)
    see.wait_gone(slot, sleeper)
    assert mortal.submit(jobs.add, 1).result(WAIT_S) == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_job_has_started_ends_with_its_worker(how: int) -> None:
    with LocalCluster(1) as own, own.executor() as executor:
        sleeper = executor.submit(jobs.start_a_sleeper).result(WAIT_S)
        [worker] = own.pids["workers"]
        os.kill(worker, how)
        see.wait_gone(worker, sleeper)


def test_what_a_job_has_started_ends_with_its_cluster() -> None:
    with LocalCluster(1) as own, own.executor() as executor:
        sleeper = executor.submit(jobs.start_a_sleeper).result(WAIT_S)
        assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    see.wait_gone(sleeper)


def test_thousands_of_exceptions_in_a_row(same_slot: ClusterExecutor) -> None:
    futures = [same_slot.submit(jobs.raise_value_error, str(n)) for n in range(2000)]
    assert [str(future.exception(WAIT_S)) for future in futures] == [str(n) for n in range(2000)]
