"""A user's program that goes on until it is told to stop, and notes what became of each job.

    python -m tests.faults.chaos.client FORM --name c0.0 --notes FILE --runs FILE --stop FILE [--jobs N]

FORM is how it uses cwmp: `callbacks` (ClientThread), `futures` (submit) or `stream` (map_unordered). It names
no host. What a program's n-th job is follows from the program's name. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
import zlib
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

from cwmp import ClientThread, ClusterExecutor, ConnectError, shelf
from tests.faults.chaos.jobs import filler, work
from tests.faults.chaos.notes import Notes

CONNECT_S = 90.0
"""How long a program that begins while there is no master tries to find one."""
STREAM_JOBS = 60
"""Jobs of one `map_unordered`."""


class Spec(NamedTuple):
    """What one job is to do."""

    job: str
    seconds: float = 0.0
    argument_size: int = 100
    result_size: int = 100

    def call(self, runs: str) -> Tuple[str, str, float, bytes, int]:
        """The arguments for `work`."""
        return runs, self.job, self.seconds, filler(self.job, self.argument_size), self.result_size

    def verdict(self, result: Any) -> str:
        """`ok` for the value that the job must have."""
        argument = filler(self.job, self.argument_size)
        right = (self.job, zlib.crc32(argument), filler(f"result of {self.job}", self.result_size))
        return "ok" if result == right else "wrong"


def _large(chance: random.Random) -> int:
    return chance.randrange(200_000, 2_000_000)


KINDS: Dict[str, Callable[[str, random.Random], Spec]] = {
    "small": lambda job, chance: Spec(job),
    "nap": lambda job, chance: Spec(job, seconds=chance.uniform(0.05, 2.0)),
    "argument": lambda job, chance: Spec(job, argument_size=_large(chance)),
    "result": lambda job, chance: Spec(job, result_size=_large(chance)),
    "vast-argument": lambda job, chance: Spec(job, argument_size=100_000_000),
    "vast-result": lambda job, chance: Spec(job, result_size=100_000_000),
}
USUAL = ("small", "nap", "argument", "result")


def specs(args: argparse.Namespace) -> Iterator[Spec]:
    """The jobs to submit, until there are enough or the file `args.stop` is there."""
    chance = random.Random(args.name)
    number = 0
    while number < args.jobs or (args.jobs == 0 and not os.path.exists(args.stop)):
        yield KINDS[chance.choice(args.kinds)](f"{args.name}:{number}", chance)
        number += 1


def by_callbacks(args: argparse.Namespace, notes: Notes) -> None:
    """Each outcome as a callback gets it."""
    open_specs: Dict[str, Spec] = {}

    def done(job: str, result: Any) -> None:
        spec = open_specs.pop(job, None)  # none at a second outcome, which is to be noted all the same
        notes.end(job, "twice" if spec is None else spec.verdict(result))

    def failed(job: str, error: BaseException) -> None:
        open_specs.pop(job, None)
        notes.fail(job, error)

    client = patiently(lambda: _started(ClientThread(done, on_error=failed, max_pending=args.open)))
    try:
        for spec in specs(args):
            open_specs[spec.job] = spec
            notes.begin(spec.job)
            client.submit(spec.job, work, *spec.call(args.runs))
        client.wait()
    finally:
        client.stop()


def _started(client: ClientThread) -> ClientThread:
    client.start()
    return client


def by_futures(args: argparse.Namespace, notes: Notes) -> None:
    """Each outcome as its future tells it."""
    room = threading.Semaphore(args.open)

    def done(spec: Spec, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            notes.end(spec.job, spec.verdict(future.result()))
        else:
            notes.fail(spec.job, error)
        room.release()

    with patiently(ClusterExecutor) as executor:
        futures: List[Future[Any]] = []
        for spec in specs(args):
            room.acquire()
            notes.begin(spec.job)
            future = executor.submit(work, *spec.call(args.runs))
            future.add_done_callback(partial(done, spec))
            futures = [future, *(other for other in futures if not other.done())]
        wait(futures)


def by_stream(args: argparse.Namespace, notes: Notes) -> None:
    """Each outcome as the iterator gives it. An error ends the iterator, and then the next one begins."""
    open_specs: Dict[str, Spec] = {}

    def calls(batch: List[Spec]) -> Iterator[Tuple[Any, ...]]:
        for spec in batch:
            open_specs[spec.job] = spec
            notes.begin(spec.job)
            yield spec.call(args.runs)

    with patiently(ClusterExecutor) as executor:
        for batch in _batches(specs(args)):
            results = executor.map_unordered(_work_on, calls(batch), buffersize=args.open)
            try:
                for result in results:
                    spec = open_specs.pop(result[0], None)
                    notes.end(result[0], "twice" if spec is None else spec.verdict(result))
            except Exception as error:
                notes.abandon(open_specs, error)
                open_specs.clear()


def _work_on(call: Tuple[str, str, float, bytes, int]) -> Tuple[str, int, bytes]:
    return work(*call)


def _batches(every: Iterator[Spec]) -> Iterator[List[Spec]]:
    batch: List[Spec] = []
    for spec in every:
        batch.append(spec)
        if len(batch) == STREAM_JOBS:
            yield batch
            batch = []
    if batch:
        yield batch


def patiently(connect: Callable[[], Any]) -> Any:
    """What `connect` returns, once it finds a master."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return connect()
        except ConnectError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def end_with_standard_input() -> None:
    """So that nothing is left of a harness that was killed."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos.client")
    parser.add_argument("form", choices=FORMS)
    for name in ("name", "notes", "runs", "stop"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--jobs", type=int, default=0, help="end after so many (default: when told)")
    parser.add_argument("--open", type=int, default=16, help="jobs that are submitted and not ended, at most")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=USUAL)
    parser.add_argument("--far", action="store_true", help="take the master for one of another machine")
    args = parser.parse_args()
    if args.far:
        shelf.reachable = lambda facts: None
    end_with_standard_input()
    notes = Notes(args.notes)
    FORMS[args.form](args, notes)
    notes.finished()


FORMS = {"callbacks": by_callbacks, "futures": by_futures, "stream": by_stream}

if __name__ == "__main__":
    main()
