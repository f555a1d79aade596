"""A cluster in an allocation that we are in already (salloc, a batch script): nothing is submitted.

The master runs on this node, or on the first of the allocation where this is none of them; `srun` starts
an agent on each node. All of it hangs on pipes whose other ends only this process has, so it ends with us
even when we are killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from .. import encryption
from ..children import FOREIGN, START_S, STOP_S, Child, end_children, spawn, wait_ready
from ..errors import CwmpError, SlurmError
from ..program import Program, program_arguments, program_environment
from . import commands, masters
from .waiting import Say

GRACE_S = 0.5
"""What running jobs get when the program is done: nobody wants their results any more."""

_LEASH = ("--leash", "--authkey-file", "-")
_LOOK_S = 0.1  # between two questions to the master
_MAIN = Path(__file__).resolve().parent.parent / "__main__.py"

# What the allocation was asked for in tasks, which our steps must not be asked for again.
_OF_OTHER_STEPS = (
    "SLURM_CPUS_PER_TASK SLURM_DISTRIBUTION SLURM_EXACT SLURM_EXCLUSIVE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU "
    "SLURM_MEM_PER_NODE SLURM_NPROCS SLURM_NTASKS SLURM_NTASKS_PER_CORE SLURM_NTASKS_PER_NODE "
    "SLURM_NTASKS_PER_SOCKET SLURM_TASKS_PER_NODE SLURM_CPU_BIND SLURM_STEP_ID SLURM_STEPID"
).split()


def inside(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is in an allocation of SLURM's."""
    return bool(environ.get("SLURM_JOB_ID") and environ.get("SLURM_JOB_NODELIST"))


def run(command: Sequence[str], name: Optional[str], say: Say) -> int:
    """Run `command` against all nodes of the allocation that we are in; returns its exit status.

    Signals that reach us meanwhile are for the program.
    """
    arguments = program_arguments(command)
    cluster = Allocation(name or f"run-{os.urandom(4).hex()}", say)
    with Program() as program, cluster:
        return program.run(arguments, program_environment(CWMP_NAME=cluster.name))


class Allocation:
    """A master and an agent on each node of the allocation, for as long as the `with` block."""

    def __init__(self, name: str, say: Say) -> None:
        self.name = name
        self._say = say
        self._key = os.urandom(32).hex().encode()
        self._master: List[Child] = []  # where it runs on this node,
        self._steps: List[_Step] = []  # the agents', then that of a master elsewhere

    def __enter__(self) -> Allocation:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of it: the agents, then the master."""
        while self._steps:
            self._steps.pop(0).end()
        end_children(self._master, os.getpid(), 0.0)

    def _start(self) -> None:
        nodes = allocated_nodes()
        if not _is_this(nodes):
            encryption.choose().require("what goes from node to node")
        # What jobs print is for our user. The ready lines are not; the master tells who has joined.
        options = ["-", "--grace", f"{GRACE_S:g}", "--wait", f"{START_S:g}", "--ready-fd", "3"]
        agents = _Step(nodes, "worker", options, 2)  # they import while the master does
        self._steps.append(agents)
        address = self._start_master(nodes)
        agents.tell(address.encode(), self._key)
        joined = self._wait_joined(agents, len(nodes))
        if joined < len(nodes):
            self._say(f"only {joined} of {len(nodes)} nodes joined within {START_S:g} s: going on")

    def _start_master(self, nodes: Sequence[str]) -> str:
        """Start it where the program is, else on the first node; returns its address."""
        first = nodes[0]
        options = ["--host", "0.0.0.0", "--port", "0", "--name", self.name, *_LEASH]
        here = os.environ.get("SLURMD_NODENAME")  # set on the nodes, and not on the host where salloc runs
        if here:
            spawn([], master=options, worker=[], outputs=(2, 2), into=self._master)
            port = wait_ready(self._master, [self._key])
            return f"127.0.0.1:{port}" if _is_this(nodes) else f"{here}:{port}"
        step = _Step([first], "master", options, subprocess.PIPE)
        self._steps.append(step)
        step.tell(self._key)
        match = re.search(r"listening on \S+:(\d+)", step.line())
        if match is None:
            raise CwmpError(f"the master did not start on {first}; what it said is above")
        return f"{first}:{match[1]}"

    def _wait_joined(self, agents: _Step, count: int) -> int:
        """Wait until that many workers are here; returns how many are when time is up, at least one."""
        deadline = time.monotonic() + START_S
        joined = 0
        while joined < count and time.monotonic() < deadline:
            joined = len(masters.status(self.name)["workers"])
            if agents.process.poll() is not None:
                raise CwmpError(f"srun ended with status {agents.process.returncode}; what it said is above")
            time.sleep(_LOOK_S)
        if not joined:
            raise CwmpError(f"no worker joined within {START_S:g} s; what they said is above")
        return joined


class _Step:
    """A master or agents that srun started, one a node, on a leash."""

    def __init__(self, nodes: Sequence[str], role: str, arguments: Sequence[str], output: int) -> None:
        program = [sys.executable, str(_MAIN), role, *arguments, *(_LEASH if role == "worker" else ())]
        shell = ["/bin/sh", "-c", 'exec "$@" 3>/dev/null', "sh"]  # srun hands on no descriptor but 0, 1, 2
        self.process = subprocess.Popen(
            [*step_command(nodes), *shell, *program],
            stdin=subprocess.PIPE,
            stdout=output,
            env=step_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for the program
        )

    def tell(self, *lines: bytes) -> None:
        """Send lines to the standard input of each of them."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: somebody will notice
            self.process.stdin.write(b"".join(line + b"\n" for line in lines))
            self.process.stdin.flush()

    def line(self) -> str:
        """The next line that one of them prints; empty when they have ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode(errors="replace")

    def end(self) -> None:
        """Let go of the leash; who does not end is killed by srun, and srun by us."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for harder in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(GRACE_S + STOP_S)
            except subprocess.TimeoutExpired:
                harder()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _is_this(nodes: Sequence[str]) -> bool:
    """Whether the allocation is the node that we are on, so that nothing leaves it."""
    return list(nodes) == [os.environ.get("SLURMD_NODENAME")]


def allocated_nodes(environ: Mapping[str, str] = os.environ) -> List[str]:
    """The names of the allocation's nodes. Raises SlurmError."""
    nodes = commands.run(["scontrol", "show", "hostnames", environ["SLURM_JOB_NODELIST"]]).split()
    if not nodes:
        raise SlurmError(f"scontrol made no node names of SLURM_JOB_NODELIST={environ['SLURM_JOB_NODELIST']}")
    return nodes


def step_command(nodes: Sequence[str]) -> List[str]:
    """What starts one process on each of these nodes, each by itself: one that ends takes no other along.

    >>> " ".join(step_command(["n1", "n2"])[:4])
    'srun --quiet --nodes=2 --ntasks=2'
    """
    count = len(nodes)
    return [
        *("srun", "--quiet", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        *(f"--nodelist={','.join(nodes)}", "--mem=0", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
    ]


def step_environment(environ: Mapping[str, str]) -> Dict[str, str]:
    """The environment for a step that has all of its nodes, beside whatever else runs there.

    By variables and not by options, which older versions of srun would refuse.

    >>> step_environment({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_CPU_BIND": "map_cpu:0"})
    {'SLURM_JOB_ID': '7', 'SLURM_OVERLAP': '1', 'SLURM_WHOLE': '1', 'SLURM_CPU_BIND': 'none'}
    """
    dropped = {*_OF_OTHER_STEPS, *FOREIGN}
    kept = {name: value for name, value in environ.items() if name not in dropped and name[:5] != "SRUN_"}
    return {**kept, "SLURM_OVERLAP": "1", "SLURM_WHOLE": "1", "SLURM_CPU_BIND": "none"}
