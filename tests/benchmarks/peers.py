"""The same work on cwmp and its peers: `python -m tests.benchmarks.peers --help`.

Each peer that is installed (`pip install -e '.[bench]'`) runs by its own best idiom (see `idioms`) with two
worker processes, in a program of its own, one after the other, for several rounds; the table shows medians
over the rounds. Whatever a peer leaves running is ended before the next one starts.
`python -m tests.benchmarks.chart` draws what `--json` has written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional

from . import peers_report
from .machine import facts
from .peer import ROOT_VARIABLE
from .report import Rounds, bar_lines
from .runner import ContenderFailed, Runner

ONCE_FROM_S = 2.0  # a single measurement that takes longer is not repeated in later rounds

DISTRIBUTIONS = {
    "cwmp": "cwmp", "loky": "loky", "dask": "distributed", "ray": "ray", "parsl": "parsl",
    "ipyparallel": "ipyparallel", "mpi4py": "mpi4py",
}  # fmt: skip
"""What has to be installed for a peer; the others come with Python."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "IPYTHONDIR": "ipython", "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf",
    # Two workers and their master on this machine only, whoever we are, with one core each or not:
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,sm",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip
"""Settings of the peers: no reports to their makers, nothing written outside the scratch directory, and
what Dask advises for short tasks (more of them at a worker than it has threads)."""


def main() -> int:
    """Measure, print, and return the exit status."""
    args = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    about = {**facts(), "versions": ", ".join(_versions(args.names))}
    for key, value in about.items():
        print(f"{key:>8}: {value}", flush=True)
    failures: Dict[str, str] = {}
    try:
        rounds = _measure(args.names, args.rounds, failures)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    bars = peers_report.bars(rounds)
    lines = [f"\nTwo worker processes each, medians of {args.rounds} round(s)", *peers_report.table(rounds)]
    lines += [f"FAILED  {name}: {reason}" for name, reason in failures.items()]
    print("\n".join(lines + bar_lines(bars)))
    if args.json:
        shown = [vars(bar) for bar in bars]
        answer = {"machine": about, "rounds": rounds, "bars": shown, "failures": failures}
        args.json.write_text(json.dumps(answer, indent=1) + "\n")
    return 1 if args.check and (failures or not all(bar.met for bar in bars)) else 0


def _parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers", description="The same work on cwmp and its peers."
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there, too")
    known = ", ".join(peers_report.LABELS)
    parser.add_argument("--only", metavar="NAMES", help=f"of {known} (default: those that are installed)")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is not met")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be positive")
    names = args.only.split(",") if args.only else list(peers_report.LABELS)
    unknown = sorted(set(names) - set(peers_report.LABELS))
    if unknown:
        parser.error(f"--only: unknown: {', '.join(unknown)} (known: {known})")
    args.names = [name for name in names if _installed(name)]
    absent = [name for name in names if name not in args.names]
    if absent:
        print(f"not installed: {', '.join(absent)}", file=sys.stderr)
    return args


def _installed(name: str) -> bool:
    package = DISTRIBUTIONS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        return False
    return name != "mpi4py" or _mpiexec() is not None


def _mpiexec() -> Optional[str]:
    """The one that came with our Python, where MPI was installed as a wheel; else the one on the path."""
    ours = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    return ours if os.access(ours, os.X_OK) else shutil.which("mpiexec")


def _versions(names: List[str]) -> List[str]:
    found = []
    for name in names:
        if name == "cwmp":
            import cwmp

            found.append(f"cwmp {cwmp.__version__}")
        elif name in DISTRIBUTIONS:
            found.append(f"{DISTRIBUTIONS[name]} {metadata.version(DISTRIBUTIONS[name])}")
    return found


def _measure(names: List[str], count: int, failures: Dict[str, str]) -> Rounds:
    """Run everything, interleaved; what fails is noted and not tried again."""
    measured: Rounds = {name: [] for name in names}
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    environment = {**QUIET, "PATH": path, ROOT_VARIABLE: str(os.getpid())}  # Parsl starts scripts by name
    with Runner(environment, adopt=True) as runner:
        for number in range(count):
            for name in names:
                if name in failures:
                    continue
                begin_s = time.monotonic()
                try:
                    measured[name].append(runner.run(_argv(name, measured[name])))
                    _check_left_behind(name, runner.left_behind)
                    shown = peers_report.one_line(measured[name][-1])
                except ContenderFailed as error:
                    shown = failures[name] = str(error)
                took_s = time.monotonic() - begin_s
                print(f"round {number + 1} of {count}  {name:<12} {took_s:4.1f} s  {shown}", file=sys.stderr)
    return measured


def _argv(name: str, so_far: List[Dict[str, float]]) -> List[str]:
    """The command that measures a peer, without what took too long in earlier rounds."""
    omit = [key for key in ("shared_s", "shared_plainly_s") for m in so_far if m.get(key, 0.0) > ONCE_FROM_S]
    program = ["-m", "tests.benchmarks.peer", name, repr(time.monotonic()), ",".join(omit)]
    if name != "mpi4py":
        return [sys.executable, *program]
    return [str(_mpiexec()), "-n", "3", sys.executable, "-m", "mpi4py.futures", *program]


def _check_left_behind(name: str, count: int) -> None:
    """Ours must end by itself; others are only told. Raises ContenderFailed."""
    if count and name == "cwmp":
        raise ContenderFailed(f"left {count} processes behind")
    if count:
        print(f"{name} left {count} processes running; they have been ended", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
