"""Named job functions for the tests of what jobs do and of what is done to them.

This module imports little, because every slot that runs one of these imports it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple

# --- harmless -------------------------------------------------------------------------------


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def nothing() -> None:
    pass


def pid() -> int:
    return os.getpid()


def echo(*args: Any, **kwargs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    return args, kwargs


def nap(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def text_of(size: int) -> str:
    return "x" * size


def environment_variable(name: str) -> Optional[str]:
    return os.environ.get(name)


def surroundings() -> Tuple[str, List[str]]:
    return os.getcwd(), list(sys.path)


# --- with a trace in a file -----------------------------------------------------------------


def note(path: str, line: str) -> None:
    """Append a line, in one write."""
    with open(path, "a") as file:
        file.write(f"{line}\n")


def begin_and_wait(path: str, release: str) -> int:
    """Note that it runs, and by which process; end once the file `release` is there."""
    note(path, str(os.getpid()))
    while not os.path.exists(release):
        time.sleep(0.01)
    return os.getpid()


def variable_after(path: str, release: str, name: str) -> Optional[str]:
    """As `begin_and_wait`, then a variable of the environment."""
    begin_and_wait(path, release)
    return os.environ.get(name)


def begin_and_nap(path: str, seconds: float) -> int:
    note(path, str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def begin_and_hold_the_interpreter(path: str) -> None:
    """One C call that takes years and never lets go of the GIL."""
    note(path, str(os.getpid()))
    re.match(r"(a+)+$", "a" * 200 + "b")


def die_the_first_time(path: str, number: int) -> int:
    """Note each try; the first one is killed."""
    note(path, str(os.getpid()))
    if len(Path(path).read_text().split()) == 1:
        signal.raise_signal(number)
    return os.getpid()


# --- endings --------------------------------------------------------------------------------


class OwnError(Exception):
    """With a constructor that differs from its `args`, and an attribute."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Tuple[Any, ...]:
        return _own_error, (self.code, self.hint)


def _own_error(code: int, hint: str) -> OwnError:
    return OwnError(code, hint=hint)


class NotRebuilt(Exception):
    """Pickles, and cannot be loaded again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Unpicklable(Exception):
    """Holds a lock."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class NoText(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text today")


def raise_value_error(text: str = "wrong") -> NoReturn:
    raise ValueError(text)


def raise_own(code: int) -> NoReturn:
    raise OwnError(code, hint="look here")


def raise_not_rebuilt() -> NoReturn:
    raise NotRebuilt("one", "two")


def raise_unpicklable() -> NoReturn:
    raise Unpicklable("it holds a lock")


def raise_without_text() -> NoReturn:
    raise NoText


def raise_chained() -> NoReturn:
    try:
        raise KeyError("the inner")
    except KeyError as error:
        raise ValueError("the outer") from error


def leave(status: Any) -> NoReturn:
    sys.exit(status)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def end_process(status: int) -> NoReturn:
    os._exit(status)


def raise_signal(number: int) -> None:
    signal.raise_signal(number)


def send_itself_later(number: int, seconds: float) -> None:
    """Still runs when the signal comes, so that it was announced as running."""
    time.sleep(seconds)
    signal.raise_signal(number)


def return_a_lock() -> Any:
    return threading.Lock()


class Exits:
    """Calls sys.exit where it is loaded."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return sys.exit, ("loaded",)


class Interrupts:
    """Raises KeyboardInterrupt where it is loaded."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return interrupt, ()


class FailsWhereLoaded:
    """Cannot be loaded."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return raise_value_error, ("cannot be loaded",)


def make(kind: type) -> Any:
    return kind()


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


def nested_list(depth: int) -> List[Any]:
    value: List[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- what should not be done in a slot ------------------------------------------------------


def close_descriptors(*numbers: int) -> str:
    for number in numbers:
        os.close(number)
    return "closed"


def close_stream(name: str) -> str:
    getattr(sys, name).close()
    return "closed"


def replace_stream(name: str, value: Any) -> str:
    setattr(sys, name, value)
    return "replaced"


def remove_stream(name: str) -> str:
    delattr(sys, name)
    return "removed"


def standard_streams() -> List[Any]:
    """What is wrong with the standard streams and descriptors: nothing, if the list is empty."""
    wrong: List[Any] = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            wrong.append((number, str(error)))
    for name, number in (("stdout", 1), ("stderr", 2)):
        try:
            if getattr(sys, name).fileno() != number:
                wrong.append((name, "goes elsewhere"))
            print(end="", file=getattr(sys, name), flush=True)
        except (OSError, ValueError, AttributeError) as error:
            wrong.append((name, repr(error)))
    return wrong


def change_surroundings(directory: str) -> None:
    os.chdir(directory)
    sys.path.insert(0, directory)
    sys.setrecursionlimit(12_345)


def recursion_limit() -> int:
    return sys.getrecursionlimit()


def fork_and_return() -> Tuple[str, int]:
    """Comes back twice."""
    child = os.fork()
    if child == 0:
        return "copy", os.getpid()
    os.waitpid(child, 0)
    return "original", os.getpid()


def fork_and_raise() -> str:
    child = os.fork()
    if child == 0:
        raise ValueError("in the copy")
    os.waitpid(child, 0)
    return "original"


def start_a_sleeper() -> int:
    """A process that outlives its job; returns its pid."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def leave_a_thread() -> str:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return "left"


def print_much() -> None:
    for stream in (sys.stdout, sys.stderr):
        print("\x00\xff garbage " * 1000, file=stream)
    os.write(1, b"\x80\x81" * 1000)


def subprocess_output() -> str:
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def square_in_processes(numbers: List[int]) -> List[int]:
    """A process pool within a job."""
    from multiprocessing import get_context

    with get_context("fork").Pool(1) as pool:
        return pool.map(abs, numbers)


# --- last words -----------------------------------------------------------------------------


def print_and_die(words: str, number: int) -> None:
    """Print to standard error and die of a signal, while another process writes on."""
    print(words, file=sys.stderr)
    os.write(2, b"raw words\n")
    os.kill(os.getpid(), number)


def print_to_stderr(words: str) -> None:
    print(words, file=sys.stderr)


def read_address_zero() -> None:
    """What a library does that crashes."""
    import ctypes

    ctypes.string_at(0)


def flood_stderr(megabytes: int) -> int:
    """Write so much to standard error; returns the bytes."""
    line = b"flood " * 170 + b"\n"
    count = (megabytes << 20) // len(line)
    for _ in range(count):
        os.write(2, line)
    return count * len(line)


def fill_memory(megabytes: int) -> int:
    """Touch so much memory, a piece at a time."""
    pieces = [b"x" * (1 << 20) for _ in range(megabytes)]
    return len(pieces)
