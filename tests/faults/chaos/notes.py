"""What a client program writes down of each of its jobs, and reads back when it is all over.

A file of lines, each written in one piece, so that a program that is killed leaves whole ones:

    begin JOB TIME          it is about to be submitted
    end JOB TIME KIND       it has this outcome: `ok`, `wrong` (another value), or the name of an error
    abandon KIND JOB…       these will have none: one of them ended the whole `map_unordered` with that error
    finished                the program has all outcomes and ends
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Set, Tuple

from tests.faults.chaos.jobs import append


class End(NamedTuple):
    """One outcome of one job, and when it came (time.monotonic)."""

    job: str
    at_s: float
    kind: str


@dataclass
class History:
    """All that one program noted. `killed` is whether that was done to it: then it owes nothing more."""

    client: str
    killed: bool = False
    finished: bool = False
    begun: Dict[str, float] = field(default_factory=dict)
    ends: List[End] = field(default_factory=list)
    abandoned: List[Tuple[str, List[str]]] = field(default_factory=list)

    def open(self) -> Set[str]:
        """The jobs that have no outcome yet."""
        return self.begun.keys() - {end.job for end in self.ends}

    @classmethod
    def read(cls, client: str, path: Path, killed: bool = False) -> History:
        """From the program's file; that of one that did not even begin is empty."""
        history = cls(client, killed)
        for line in path.read_text().splitlines() if path.exists() else ():
            word, *rest = line.split()
            if word == "begin":
                history.begun[rest[0]] = float(rest[1])
            elif word == "end":
                history.ends.append(End(rest[0], float(rest[1]), rest[2]))
            elif word == "abandon":
                history.abandoned.append((rest[0], rest[1:]))
            else:
                history.finished = True
        return history


class Notes:
    """The program's side of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def begin(self, job: str) -> None:
        """To be called before the job is submitted, so that one that is lost on its way is missed."""
        append(self._path, f"begin {job} {time.monotonic():.3f}")

    def end(self, job: str, kind: str) -> None:
        """To be called for each outcome, also the second one of a job."""
        append(self._path, f"end {job} {time.monotonic():.3f} {kind}")

    def fail(self, job: str, error: BaseException) -> None:
        """To be called where the outcome is an error; what that says is printed."""
        print(f"{job}: {error!r}: {error}", flush=True)
        self.end(job, type(error).__name__)

    def abandon(self, jobs: Iterable[str], error: BaseException) -> None:
        """These will have no outcome, because of that error."""
        print(f"a map: {error!r}: {error}", flush=True)
        append(self._path, " ".join(["abandon", type(error).__name__, *jobs]))

    def finished(self) -> None:
        """Nothing is open any more."""
        append(self._path, "finished")
