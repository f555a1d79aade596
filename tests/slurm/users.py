"""A user of the lab: the commands and programs that somebody types on one of its hosts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from tests.hosts import end
from tests.slurm.config import CONTROLLER
from tests.slurm.lab import Lab
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30.0
"""A deadline for what takes a few seconds on an idle machine."""
SILENCE_S = 25.0
"""A deadline for noticing a machine that says no more: that takes 15 s."""


class User:
    """Somebody with a home of their own, at a terminal on a host of the lab."""

    def __init__(
        self,
        lab: Lab,
        home: Path,
        *,
        host: str = CONTROLLER,
        name: Optional[str] = None,
        python: str = sys.executable,
        modules: Sequence[Path] = (ROOT,),
    ) -> None:
        """`name` is the system's (None: who runs the tests), `home` their CWMP_HOME; `modules` hold cwmp."""
        self.lab = lab
        self.home = home
        self.host = host
        self.name = name
        self.python = python
        self.modules = modules
        self.programs: List[Program] = []

    def at(self, host: str) -> User:
        """The same one at another host."""
        twin = copy.copy(self)
        twin.host = host
        return twin

    def environment(self, cluster: Optional[str] = None) -> Dict[str, str]:
        """Theirs; `cluster` is the name of the one that they have chosen."""
        chosen = {} if cluster is None else {"CWMP_NAME": cluster}
        modules = os.pathsep.join(map(str, self.modules))
        return {"CWMP_HOME": str(self.home), "PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "1", **chosen}

    # --- commands ---------------------------------------------------------------------------

    def argv(self, command: str, *arguments: object) -> List[str]:
        """How one of our commands is called: `argv("slurm", "-n", 4, "start")`."""
        return [self.python, "-m", "cwmp", command, *map(str, arguments)]

    def type(self, *argv: str, status: Optional[int] = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with that exit status (None: any)."""
        variables = {**self.environment(), **env}
        return self.lab.run(self.host, argv, user=self.name, env=variables, cwd=self.home, status=status)

    def slurm(self, *arguments: object, status: Optional[int] = 0) -> subprocess.CompletedProcess[str]:
        """Run `cwmp-slurm`."""
        return self.type(*self.argv("slurm", *arguments), status=status)

    def start(self, *arguments: object, workers: int, slots: int = 1) -> None:
        """Start a cluster and wait until all of its workers have joined."""
        self.slurm("-n", workers, "-c", slots, *arguments, "start")
        cluster = str(arguments[arguments.index("--name") + 1]) if "--name" in arguments else "default"
        self.wait_for_workers(workers, cluster)

    def stop(self, *arguments: object) -> None:
        """Stop a cluster; then SLURM has no job left."""
        self.slurm(*arguments, "stop")

    def master_status(self, cluster: str = "default") -> Dict[str, Any]:
        """What the master tells of itself; {} where none answers."""
        done = self.type(*self.argv("status", "--json", "--name", cluster), status=None)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def workers(self, cluster: str = "default") -> List[Dict[str, Any]]:
        """Those that the master has now."""
        workers: List[Dict[str, Any]] = self.master_status(cluster).get("workers", [])
        return workers

    def wait_for_workers(self, count: int, cluster: str = "default", *, timeout_s: float = SOON_S) -> None:
        """Until the master has so many."""
        wait_until(
            lambda: len(self.workers(cluster)) == count,
            timeout_s=timeout_s,
            describe=lambda: str(self.workers(cluster)),
        )

    def wait_until_gone(self, worker: str, *, timeout_s: float = SOON_S) -> None:
        """Until the master has lost the worker of that SLURM job."""
        wait_until(
            lambda: worker not in {known["slurm_job"] for known in self.workers()},
            timeout_s=timeout_s,
            describe=lambda: str(self.workers()),
        )

    def logs(self) -> str:
        """What masters and workers have said."""
        files = sorted((self.home / "logs").glob("*"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')}" for file in files)

    # --- programs ---------------------------------------------------------------------------

    def program_argv(self, form: str, runs: Path, jobs: int, seconds: float) -> List[str]:
        """The command line of tests/slurm/program.py."""
        return [self.python, "-m", "tests.slurm.program", form, str(runs), str(jobs), str(seconds)]

    def program(
        self, form: str = "callbacks", *, jobs: int = 0, seconds: float, cluster: Optional[str] = None
    ) -> Program:
        """Start a program that names no host: so many jobs (0: until `finish`) that take that long each."""
        files = self.lab.directory / "programs"
        files.mkdir(exist_ok=True)
        files.chmod(0o777)
        stem = files / f"{self.home.parent.name}-{self.name}-{len(self.programs)}"
        self.programs.append(Program(self, form, stem, jobs, seconds, cluster))
        return self.programs[-1]

    def leave(self) -> None:
        """End the programs that still run."""
        for program in self.programs:
            program.end()


class Program:
    """A program that runs on the lab, and what it has got so far."""

    def __init__(
        self, user: User, form: str, stem: Path, jobs: int, seconds: float, cluster: Optional[str]
    ) -> None:
        self.runs_file, self._output = stem.with_suffix(".runs"), stem.with_suffix(".out")
        argv = user.program_argv(form, self.runs_file, jobs, seconds)
        with open(self._output, "w") as output:
            self._process = user.lab.start(
                user.host,
                argv,
                user=user.name,
                env=user.environment(cluster),
                cwd=user.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """All that it has printed."""
        return self._output.read_text()

    def _said(self, word: str) -> List[int]:
        lines = [line.split() for line in self.output().splitlines()]
        return [int(line[1]) for line in lines if line and line[0] == word]

    def results(self) -> List[int]:
        """The jobs whose results it got, in that order."""
        return self._said("result")

    def errors(self) -> List[int]:
        """The jobs that failed."""
        return self._said("error")

    def runs(self) -> List[List[str]]:
        """Number and host for each time that a worker began one of its jobs."""
        if not self.runs_file.exists():
            return []
        return [line.split() for line in self.runs_file.read_text().splitlines()]

    def hosts(self) -> Dict[str, int]:
        """On which hosts how many of its jobs were begun."""
        return Counter(host for _, host in self.runs())

    def wait_for_results(self, count: int, *, timeout_s: float = SOON_S) -> None:
        """Until it has got so many."""
        wait_until(lambda: len(self.results()) >= count, timeout_s=timeout_s, describe=self.output)

    def wait_for_runs_on(self, host: str, count: int = 1) -> None:
        """Until so many of its jobs were begun there."""
        wait_until(lambda: self.hosts().get(host, 0) >= count, timeout_s=SOON_S, describe=self.output)

    def finish(self, *, run_again: int = 0) -> None:
        """Let it come to its end. Every job has been delivered once, and no more than so many ran again."""
        assert self.wait() == 0, self.output()
        [jobs] = self._said("submitted")
        assert sorted(self.results()) == list(range(jobs)), self.output()
        runs = [int(number) for number, _ in self.runs()]
        assert set(runs) == set(range(jobs))
        assert len(runs) <= jobs + run_again, [number for number, count in Counter(runs).items() if count > 1]

    def end(self) -> None:
        """Kill it."""
        end(self._process)

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Let it come to its end, whatever has become of its jobs; its exit status."""
        self.runs_file.with_name(f"{self.runs_file.name}.stop").touch()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {timeout_s:g} s:\n{self.output()}") from None
