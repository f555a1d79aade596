"""A slot in a forked child: its answers, its claims, and what a job cannot do to it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from cwmp import functions, payload, slot
from cwmp.errors import PayloadError, RemoteError
from cwmp.frames import FrameReader, header
from cwmp.messages import ERROR, RESULT, Lease
from tests.waiting import wait_until

pytestmark = pytest.mark.core


class Harness:
    """One slot in a child process, and the worker's ends of what joins them."""

    def __init__(self, stdout: int = 1) -> None:
        self.socket, theirs = socket.socketpair()
        self.claims_in, self.claims_out = os.pipe()
        self.answers_in, answers_out = os.pipe()
        os.set_blocking(self.claims_in, False)
        self.generation = 0
        self.tickets = 0
        self.dumper = functions.FunctionDumper()
        self.reader = FrameReader()
        self.got: List[Tuple[int, int, float, bytes]] = []
        self.status: Optional[int] = None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(stdout, 1)
            forget_pytest()
            slot.main(theirs.detach(), self.claims_in, answers_out)
        theirs.close()
        os.close(answers_out)

    # --- what a worker does ------------------------------------------------------------------

    def lease(self, function: Callable[..., Any], *args: Any) -> Lease:
        self.tickets += 1
        return self.tickets, 1, self.dumper.dump(function), payload.dump_call(args, {})

    def feed(self, *leases: Lease) -> None:
        """One message with these leases, and their claims."""
        os.write(self.claims_out, bytes([self.generation]) * len(leases))
        self.write(pickle.dumps((self.generation, list(leases)), 4))

    def write(self, body: bytes) -> None:
        self.socket.sendall(header(len(body)) + body)

    def take_back(self) -> int:
        try:
            count = len(os.read(self.claims_in, 65536))
        except BlockingIOError:
            return 0
        self.generation = (self.generation + 1) % 256
        return count

    def answers(self, count: int, timeout_s: float = 20.0) -> List[Tuple[int, int, bytes]]:
        """The next answers: (ticket, kind, data)."""
        deadline = time.monotonic() + timeout_s
        while len(self.got) < count:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"only {self.got}"
            if not select.select([self.answers_in], [], [], left_s)[0]:
                continue
            data = os.read(self.answers_in, 1 << 20)
            assert data, f"the slot has died: status {self.wait()}"
            for frame in self.reader.feed(data):
                self.got.append((*slot.OUTCOME.unpack_from(frame), frame[slot.OUTCOME.size :]))
        taken, self.got = self.got[:count], self.got[count:]
        return [(ticket, kind, data) for ticket, kind, _, data in taken]

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """One job: its result, or its error raised."""
        lease = self.lease(function, *args)
        self.feed(lease)
        [(ticket, kind, data)] = self.answers(1)
        assert ticket == lease[0]
        if kind == ERROR:
            raise payload.load_error(data)
        return payload.load_value(data)

    def wait(self) -> int:
        """The exit status of the slot."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def hang_up(self) -> int:
        self.socket.close()
        return self.wait()

    def close(self) -> None:
        self.socket.close()
        if self.status is None:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        for fd in (self.claims_in, self.claims_out, self.answers_in):
            try:
                os.close(fd)
            except OSError:
                pass


def forget_pytest() -> None:
    """In the child: be a fresh process as a worker's child is."""
    atexit._clear()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, closefd=False) for fd, mode in enumerate("rww"))


@pytest.fixture
def child() -> Iterator[Harness]:
    child = Harness()
    yield child
    child.close()


class Gate:
    """A place where a job waits until the test lets it pass."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)

    def wait_for_job(self) -> None:
        """Block until a job stands at the gate."""
        self.fd = os.open(self.path, os.O_WRONLY)

    def open(self) -> None:
        os.close(self.fd)


def wait_at(path: str) -> str:
    """A job: wait until the gate opens."""
    with open(path) as gate:
        gate.read()
    return "passed"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def by_value(source: str) -> Any:
    """The function `f` of a source, as if it stood in `__main__`."""
    space: Dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


# --- jobs -----------------------------------------------------------------------------------


def double(n: int) -> int:
    return 2 * n


def fail(text: str) -> None:
    raise ValueError(text)


def test_results_come_back_in_order(child: Harness) -> None:
    leases = [child.lease(double, n) for n in range(500)]
    child.feed(*leases[:300])
    child.feed(*leases[300:])
    answers = child.answers(500)
    assert [ticket for ticket, _, _ in answers] == [lease[0] for lease in leases]
    assert {kind for _, kind, _ in answers} == {RESULT}
    assert [payload.load_value(data) for _, _, data in answers] == [2 * n for n in range(500)]


def test_an_error_names_node_pid_and_attempt(child: Harness) -> None:
    with pytest.raises(ValueError, match="oops") as caught:
        child.run(fail, "oops")
    text = str(caught.value.__cause__)
    assert f"pid {child.pid}, attempt 1" in text
    assert "in fail" in text and "cwmp/slot.py" not in text


def test_the_time_that_a_job_took_is_told(child: Harness, gate: Gate) -> None:
    child.feed(child.lease(wait_at, gate.path))
    gate.wait_for_job()
    threading.Event().wait(0.05)
    gate.open()
    wait_until(lambda: select.select([child.answers_in], [], [], 0)[0])
    frame = FrameReader().feed(os.read(child.answers_in, 65536))[0]
    assert 0.04 < slot.OUTCOME.unpack_from(frame)[2] < 20


def test_each_answer_is_written_before_the_next_job_begins(child: Harness, gate: Gate) -> None:
    """So that nothing finished waits behind something that is not, or dies with it."""
    child.feed(child.lease(double, 1), child.lease(wait_at, gate.path))
    gate.wait_for_job()
    assert payload.load_value(child.answers(1)[0][2]) == 2
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    gate.open()


def test_what_cannot_be_loaded_is_that_jobs_error(child: Harness) -> None:
    good, bad_function, bad_call = (child.lease(double, n) for n in range(3))
    bad_function = (*bad_function[:2], b"garbage", bad_function[3])
    bad_call = (*bad_call[:3], b"garbage")
    child.feed(bad_function, bad_call, good)
    answers = child.answers(3)
    assert [kind for _, kind, _ in answers] == [ERROR, ERROR, RESULT]
    assert all(isinstance(payload.load_error(data), Exception) for _, _, data in answers[:2])


# --- what a job cannot do -------------------------------------------------------------------


class OwnBase(BaseException):
    """Derived from what hardly anybody catches."""


class ExitingReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(9)


class ExitingStr(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class NoAttributes:
    """A stream with nothing of a stream but this."""

    def write(self, text: str) -> None:
        pass


class Odd(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("do not look at me")


def raise_it(error: BaseException) -> None:
    raise error


def raise_unpicklable_reduce() -> None:
    raise ExitingReduce("m")


def raise_bad_str() -> None:
    raise ExitingStr("m")


def exit_program() -> None:
    sys.exit(7)


def recurse() -> int:
    return recurse() + 1


def raise_limit() -> None:
    sys.setrecursionlimit(5000)


def close_fds() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def print_garbage() -> None:
    os.write(1, os.urandom(10_000))


def replace_stdout() -> None:
    sys.stdout = io.StringIO()


def replace_stderr() -> None:
    sys.stderr = NoAttributes()  # type: ignore[assignment]


def no_streams() -> None:
    sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]


def delete_streams() -> None:
    del sys.stdin, sys.stdout, sys.stderr


def detach_stdout() -> None:
    sys.stdout.detach()


def move_away() -> None:
    os.chdir("/")


def stand_on_nothing(path: str) -> None:
    os.mkdir(path)
    os.chdir(path)
    os.rmdir(path)


def spoil_path() -> None:
    sys.path[:] = []


def replace_path() -> None:
    sys.path = ("a", "tuple")  # type: ignore[assignment]


def delete_path() -> None:
    del sys.path


def odd_modules() -> None:
    sys.modules["odd_1"] = types.SimpleNamespace(__file__=5)  # type: ignore[assignment]
    sys.modules["odd_2"] = types.SimpleNamespace(__file__=Path("x.py"))  # type: ignore[assignment]
    sys.modules["odd_3"] = None  # type: ignore[assignment]
    sys.modules["odd_4"] = Odd("odd_4")


def leave_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()


def no_collector() -> None:
    gc.disable()


def signal_itself() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)


def large_result() -> str:
    return "x" * 20_000_000


def fork_and_return() -> int:
    return os.fork() and 1


def fork_and_raise() -> None:
    if os.fork() == 0:
        raise ValueError("in the copy")
    os.wait()


def ok(*args: Any) -> str:
    return "ok"


NASTY: Dict[str, Tuple[Callable[..., Any], Tuple[Any, ...], Optional[type]]] = {
    "SystemExit": (exit_program, (), SystemExit),
    "KeyboardInterrupt": (raise_it, (KeyboardInterrupt(),), KeyboardInterrupt),
    "GeneratorExit": (raise_it, (GeneratorExit(),), GeneratorExit),
    "StopIteration": (raise_it, (StopIteration(3),), StopIteration),
    "own BaseException": (raise_it, (OwnBase("b"),), OwnBase),
    "error that exits when pickled": (raise_unpicklable_reduce, (), RemoteError),
    "error that exits when printed": (raise_bad_str, (), None),
    "recursion": (recurse, (), RecursionError),
    "recursion limit": (raise_limit, (), None),
    "unpicklable result": (threading.Lock, (), PayloadError),
    "closed descriptors": (close_fds, (), None),
    "closed streams": (close_streams, (), None),
    "garbage printed": (print_garbage, (), None),
    "stdout replaced": (replace_stdout, (), None),
    "stderr replaced": (replace_stderr, (), None),
    "no streams": (no_streams, (), None),
    "streams deleted": (delete_streams, (), None),
    "stdout detached": (detach_stdout, (), None),
    "moved away": (move_away, (), None),
    "path emptied": (spoil_path, (), None),
    "path replaced": (replace_path, (), None),
    "path deleted": (delete_path, (), None),
    "odd modules": (odd_modules, (), None),
    "thread left": (leave_a_thread, (), None),
    "SIGTERM and SIGINT": (signal_itself, (), None),
    "large result": (large_result, (), None),
    "fork that raises": (fork_and_raise, (), None),
}


@pytest.mark.parametrize(("job", "args", "error"), NASTY.values(), ids=NASTY)
def test_whatever_a_job_does_is_its_own_outcome_only(
    child: Harness, job: Callable[..., Any], args: Tuple[Any, ...], error: Optional[type]
) -> None:
    """The next job runs in the same process, and finds everything as it should be."""
    before = child.run(surroundings)
    try:
        child.run(job, *args)
        assert error is None, "it did not fail"
    except BaseException as caught:
        if isinstance(caught, AssertionError):
            raise
        assert error is None or type(caught) is error
        if error is PayloadError:
            assert "the result of this job" in str(caught) and "lock" in str(caught)
    assert child.run(ok) == "ok"
    assert child.run(surroundings) == before
    assert child.run(os.getpid) == child.pid
    assert child.hang_up() == 0


def surroundings() -> Dict[str, Any]:
    """What a job finds."""
    print("the streams can be used", file=sys.stdout)
    print("the streams can be used", file=sys.stderr, flush=True)
    return {
        "cwd": os.getcwd(),
        "path": list(sys.path),
        "limit": sys.getrecursionlimit(),
        "stdin": os.read(0, 10),
        "files": [os.fstat(fd).st_ino for fd in (0, 1, 2)],
        "numbers": (sys.stdout.fileno(), sys.stderr.fileno()) if sys.stdout.fileno() == 1 else None,
    }


def test_a_directory_that_vanished_under_a_job(child: Harness, tmp_path: Path) -> None:
    before = child.run(os.getcwd)
    child.run(stand_on_nothing, str(tmp_path / "nothing"))
    assert child.run(os.getcwd) == before


def test_a_job_that_forks_and_returns_twice_is_answered_once(child: Harness) -> None:
    leases = [child.lease(fork_and_return), child.lease(ok), child.lease(os.getpid)]
    child.feed(*leases)
    answers = child.answers(3)
    assert [payload.load_value(data) for _, _, data in answers] == [1, "ok", child.pid]
    child.run(reap_children)
    assert child.hang_up() == 0
    assert os.read(child.answers_in, 10) == b"", "somebody answered twice"


def reap_children() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


# --- where a job finds itself ---------------------------------------------------------------


def test_a_job_sees_the_clients_directory_and_path(
    child: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = os.getcwd()
    (tmp_path / "only_there.py").write_text("VALUE = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    f = by_value("def f():\n import only_there, os\n return only_there.VALUE, os.getcwd()")
    assert child.run(f) == (5, str(tmp_path))
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", sys.path[1:])
    found = child.run(surroundings)
    assert found["cwd"] == home
    assert str(tmp_path) not in found["path"]


def test_a_directory_that_is_not_here_is_replaced_by_our_own(
    child: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = os.getcwd()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    lease = child.lease(os.getcwd)
    monkeypatch.chdir(home)
    (tmp_path / "gone").rmdir()
    child.feed(lease)
    assert payload.load_value(child.answers(1)[0][2]) == home


def test_an_edited_module_is_imported_anew_by_the_next_program(
    child: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "edited_module.py"
    source.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    f = by_value("def f():\n import edited_module\n return edited_module.VALUE")
    assert child.run(f) == 1
    child.run(ok)  # by now the slot has looked at the file
    source.write_text("VALUE = 22\n")
    assert child.run(f) == 1, "within one program a module stays what it is"
    child.dumper = functions.FunctionDumper()
    assert child.run(f) == 22


def list_descriptors() -> Dict[int, str]:
    """The descriptors of this process, and the files behind them where the system tells."""
    found = {}
    for name in os.listdir("/dev/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            found[int(name)] = ""
    return found


def test_a_slot_holds_no_descriptor_of_its_parent(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as file:
        child = Harness()
        try:
            found = child.run(list_descriptors)
            assert file.name not in found.values()
            assert len(found) <= 3 + 3 + 3 + 1  # streams, ours, their copies, the directory itself
            assert child.run(os.getpgid, 0) == child.pid
        finally:
            child.close()


def test_programs_that_a_job_starts_can_be_terminated(child: Harness) -> None:
    """What the slot does about SIGTERM and SIGINT is not passed on."""
    assert child.run(terminate_a_program) == [-signal.SIGTERM, -signal.SIGINT]


def terminate_a_program() -> List[int]:
    codes = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(["sleep", "60"]) as program:
            program.send_signal(number)
            codes.append(program.wait(10))
    return codes


def test_a_slot_is_not_ended_by_sigterm_or_sigint(child: Harness) -> None:
    """SLURM and terminals signal everybody; the worker decides."""
    child.run(ok)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(child.pid, number)
    assert child.run(os.getpid) == child.pid


# --- what is kept between jobs --------------------------------------------------------------


def test_jobs_do_not_see_what_others_have_rebound(child: Harness) -> None:
    counting = "N = 0\ndef f():\n global N\n N += 1\n return N"
    in_class = "class K:\n n = 0\ndef f():\n K.n += 1\n return K.n"
    in_list = "L = []\ndef f():\n L.append(1)\n return len(L)"
    for source in (counting, in_class, in_list):
        f = by_value(source)
        assert [child.run(f) for _ in range(3)] == [1, 1, 1], source


def test_each_job_sees_what_its_function_captured_at_submit(child: Harness) -> None:
    value = 0

    def f() -> int:
        return value

    leases = []
    for value in range(5):  # noqa: B007
        leases.append(child.lease(f))
    child.feed(*leases)
    assert [payload.load_value(data) for _, _, data in child.answers(5)] == [0, 1, 2, 3, 4]


def test_more_functions_than_are_kept(child: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = [by_value(f"def f(): return {n}") for n in range(300)]
    child.feed(*[child.lease(f) for f in functions + functions])
    assert [payload.load_value(data) for _, _, data in child.answers(600)] == [*range(300), *range(300)]


class Mortal:
    """Leaves a note, in the process where it dies."""

    def __init__(self, notes: str) -> None:
        self.notes = notes

    def __del__(self) -> None:
        Path(self.notes, str(os.getpid())).touch()


def give_back(thing: Mortal) -> Mortal:
    return thing


def test_arguments_and_results_are_dropped_before_the_next_job_begins(
    child: Harness, gate: Gate, tmp_path: Path
) -> None:
    child.feed(child.lease(give_back, Mortal(str(tmp_path))), child.lease(wait_at, gate.path))
    gate.wait_for_job()
    assert (tmp_path / str(child.pid)).exists()
    gate.open()
    child.answers(2)


# --- claims ---------------------------------------------------------------------------------


def tickets(answers: List[Tuple[int, int, bytes]]) -> List[int]:
    return [ticket for ticket, _, _ in answers]


def test_what_is_taken_back_does_not_run(child: Harness, gate: Gate) -> None:
    long, *others = child.lease(wait_at, gate.path), child.lease(ok), child.lease(ok)
    child.feed(long, *others)
    gate.wait_for_job()
    assert child.take_back() == 2
    assert child.take_back() == 0
    gate.open()
    assert tickets(child.answers(1)) == [long[0]]
    last = child.lease(ok)
    child.feed(last)
    assert tickets(child.answers(1)) == [last[0]]


def begin_a_line_at(path: str) -> None:
    print("begun", end="")
    wait_at(path)


def test_what_a_job_printed_comes_out_where_the_next_one_was_taken_back(gate: Gate) -> None:
    printed, stdout = os.pipe()
    with contextlib.closing(Harness(stdout)) as child, open(printed, "rb", buffering=0) as output:
        os.close(stdout)
        child.feed(child.lease(begin_a_line_at, gate.path), child.lease(ok))
        gate.wait_for_job()
        assert child.take_back() == 1
        gate.open()
        assert len(child.answers(1)) == 1
        assert select.select([output], [], [], 20.0)[0]
        assert output.read(100) == b"begun"


def test_new_leases_may_come_before_the_slot_has_seen_the_taking_back(child: Harness, gate: Gate) -> None:
    """The claim for them is found first, while the slot is still at the old message."""
    long, old_1, old_2 = child.lease(wait_at, gate.path), child.lease(ok), child.lease(ok)
    child.feed(long, old_1)
    child.feed(old_2)
    gate.wait_for_job()
    assert child.take_back() == 2
    new = [child.lease(ok) for _ in range(3)]
    child.feed(*new)
    gate.open()
    assert tickets(child.answers(4)) == [long[0], *[lease[0] for lease in new]]


def test_taking_back_again_and_again(child: Harness, gate: Gate) -> None:
    long = child.lease(wait_at, gate.path)
    child.feed(long)
    gate.wait_for_job()
    for n in range(100):
        child.feed(*[child.lease(ok) for _ in range(n % 3 + 1)])
        assert child.take_back() == n % 3 + 1
    new = [child.lease(ok), child.lease(ok)]
    child.feed(*new)
    gate.open()
    assert tickets(child.answers(3)) == [long[0], new[0][0], new[1][0]]


def test_a_slot_that_is_slow_to_come_by_can_lose_everything(child: Harness) -> None:
    child.run(ok)
    os.kill(child.pid, signal.SIGSTOP)
    child.feed(child.lease(ok), child.lease(ok))
    assert child.take_back() == 2
    new = child.lease(ok)
    child.feed(new)
    os.kill(child.pid, signal.SIGCONT)
    assert tickets(child.answers(1)) == [new[0]]


def test_after_a_death_the_claims_tell_what_had_begun(child: Harness, gate: Gate) -> None:
    child.feed(child.lease(ok), child.lease(wait_at, gate.path), child.lease(ok), child.lease(ok))
    gate.wait_for_job()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    gate.open()
    assert len(child.answers(1)) == 1
    assert child.take_back() == 2, "two have begun: one answered, one is to blame"


def test_random_taking_back_loses_and_repeats_nothing(child: Harness) -> None:
    """Ten thousand tiny jobs, fed and taken back at random while the slot runs."""
    import random

    rng = random.Random(3)
    waiting = [child.lease(double, n) for n in range(2000)]
    all_tickets = {lease[0] for lease in waiting}
    handed: List[Lease] = []  # in the order in which the slot has them
    done: List[int] = []

    def gather() -> None:
        while select.select([child.answers_in], [], [], 0)[0]:
            for frame in child.reader.feed(os.read(child.answers_in, 65536)):
                ticket = slot.OUTCOME.unpack_from(frame)[0]
                assert handed.pop(0)[0] == ticket, "answered in another order, or what was taken back"
                done.append(ticket)

    deadline = time.monotonic() + 30
    while len(done) < len(all_tickets):
        assert time.monotonic() < deadline, f"{len(done)} done, {len(handed)} handed, {len(waiting)} waiting"
        if waiting and len(handed) < 60:
            count = rng.randint(1, 30)
            message, waiting = waiting[:count], waiting[count:]
            handed += message
            child.feed(*message)
        gather()
        if rng.random() < 0.3:
            count = child.take_back()
            if count:
                waiting = handed[-count:] + waiting
                del handed[-count:]
    assert set(done) == all_tickets
    assert len(done) == len(set(done))


# --- the end --------------------------------------------------------------------------------


def test_a_slot_ends_when_its_worker_hangs_up(child: Harness) -> None:
    assert child.hang_up() == 0


def test_a_slot_ends_in_the_middle_of_a_message(child: Harness) -> None:
    child.run(ok)
    child.socket.sendall(header(1000) + b"half of it")
    assert child.hang_up() == 0


def test_a_slot_ends_when_nobody_takes_its_answers(child: Harness) -> None:
    child.run(ok)
    os.close(child.answers_in)
    child.feed(child.lease(ok))
    assert child.wait() == 0


def test_a_slot_ends_when_there_are_no_claims_any_more(child: Harness) -> None:
    """A worker that was killed between the claims and the message, or was confused."""
    child.run(ok)
    os.close(child.claims_out)
    child.write(pickle.dumps((0, [child.lease(ok)])))
    assert child.wait() == 0


def test_what_jobs_have_registered_runs_at_the_end(child: Harness, tmp_path: Path) -> None:
    child.run(register, str(tmp_path / "ended"))
    assert not (tmp_path / "ended").exists()
    assert child.hang_up() == 0
    assert (tmp_path / "ended").exists()


def register(path: str) -> None:
    atexit.register(Path(path).touch)


def test_killing_a_slot_is_seen_as_its_death(child: Harness) -> None:
    child.feed(child.lease(os._exit, 5))
    assert child.wait() == 5
    assert os.read(child.answers_in, 10) == b""
