"""`cwmp-slurm`: a cluster whose master and workers are SLURM jobs."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List, Optional

from ..errors import UsageError
from . import common

_ABOUT = """\
A cluster on SLURM: one job for the master, and N workers with C slots each.

actions:
  start          submit master and workers; ready when the command returns
  stop           end all of it: asked first, then cancelled
  status         SLURM's view and the master's, joined; [--json]
  scale M        have M workers: submit more, or let idle ones go first, never a running job
  keep           replace workers that end, as long as this command runs; with [--min A] [--max B] grow
                 with the queue and shrink after idleness
  script         print what `start` would submit, and submit nothing
  run COMMAND …  start, run a program here against the cluster with its exit status, stop whatever happens.
                 Inside an allocation (salloc, a batch script) it uses that and submits nothing"""

_EXAMPLES = """\
examples:
  cwmp-slurm -n 32 -c 4 --time 2:00:00 start
  python3 program.py                          programs find the cluster by themselves
  cwmp-slurm stop
  cwmp-slurm -n 8 --setup 'module load python' --sbatch --qos=high run program.py 10
  cwmp-slurm --name night start               a second one: use it with CWMP_NAME=night

Defaults for all options stand in $CWMP_HOME/slurm.toml (partition = "short") or in the environment
(CWMP_SLURM_PARTITION=short).
Exit status: of `run`, the program's (128+n when signal n ended it); else 0 done, 1 failure (runs already,
not running, SLURM does not answer), 2 bad arguments."""

_VALUE_OPTIONS = {
    "-n": ("N", "workers", "workers (default: 1)"),
    "-c": ("C", "slots", "slots of each worker: cores, and jobs at a time (default: 1)"),
    "--name": ("NAME", "name", "which cluster (default: $CWMP_NAME, else 'default'; `run`: a random one)"),
    "--time": ("T", "time", "time limit: minutes, HH:MM:SS or D-HH:MM:SS (default: the partition's)"),
    "--partition": ("P", "partition", "where to run"),
    "--account": ("A", "account", "who pays"),
    "--mem-per-cpu": ("SIZE", "mem_per_cpu", "memory for each core, as in 4G"),
    "--gpus-per-worker": ("G", "gpus_per_worker", "GPUs of each worker, which its slots share: 2, a100:2"),
    "--setup": (
        "LINE",
        "setup",
        "a shell line before either starts: 'module load python'; again for more. They must succeed",
    ),
    "--wrap": ("CMD", "wrap", "what to run master and workers with, as in 'apptainer exec img.sif'"),
    "--sbatch": ("OPT", "sbatch", "an option of sbatch for the workers: --constraint=fast; again for more"),
    "--sbatch-master": ("OPT", "sbatch_master", "the same for the master"),
    "--log-dir": ("DIR", "log_dir", "where jobs write their logs (default: $CWMP_HOME/logs)"),
    "--layout": ("array|job", "layout", "an array with an element a worker (default), or a job of N nodes"),
    "--master": ("job|here", "master", "run the master in a job (default), or on this host"),
    "--host": ("ADDR", "host", "the address that the master listens on (default: every one)"),
    "--interface": ("IF", "interface", "the network interface that it listens on, as in ib0"),
    "--encrypt": ("MODE", "encrypt", "auto (default), always or never: see cwmp-master --help"),
    "--tls-cert": ("FILE", "tls_cert", "use TLS with this certificate, and not with the cluster's key"),
    "--tls-key": ("FILE", "tls_key", "the private key of it"),
    "--tls-ca": ("FILE", "tls_ca", "the certificate of the CA that has signed those of all nodes"),
    "--wait": (
        "S",
        "wait_s",
        "start: how long to wait for the master before all is cancelled (default: 600; 0: do not wait)",
    ),
}
_LISTS = ("setup", "sbatch", "sbatch_master")
_NUMBERS = {"workers": common.positive_count, "slots": common.positive_count, "wait_s": common.seconds}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    ours, program = common.split_program(sys.argv[1:] if argv is None else argv, list(_VALUE_OPTIONS))
    return common.run(_parser(), lambda args: _act(args, program), join_values(ours))


def _act(args: argparse.Namespace, program: List[str]) -> int:
    if args.count is not None and args.action != "scale":
        raise UsageError(f"{args.action} {args.count}? Only `scale` takes a number: use -n N")
    return _ACTIONS[args.action](args, program)


def join_values(argv: List[str]) -> List[str]:
    """Options that take a value with it in one word: argparse takes no value that begins with a dash.

    >>> join_values(["--sbatch", "--qos=high", "start"])
    ['--sbatch=--qos=high', 'start']
    """
    joined: List[str] = []
    words = iter(argv)
    for word in words:
        value = next(words, None) if word.startswith("--") and word in _VALUE_OPTIONS else None
        joined.append(word if value is None else f"{word}={value}")
    return joined


def _parser() -> common.Parser:
    parser = common.Parser(
        "cwmp-slurm",
        usage="cwmp-slurm [-n N] [-c C] [OPTION …] ACTION …",
        description=_ABOUT,
        epilog=_EXAMPLES,
    )
    parser.add_argument("action", choices=list(_ACTIONS), metavar="ACTION", help=argparse.SUPPRESS)
    parser.add_argument("count", nargs="?", type=common.checked(_whole), help=argparse.SUPPRESS)
    for flag, (metavar, dest, help_text) in _VALUE_OPTIONS.items():
        settings: Dict[str, Any] = {"action": "append"} if dest in _LISTS else {}
        if dest in _NUMBERS:
            settings["type"] = common.checked(_NUMBERS[dest])
        parser.add_argument(flag, metavar=metavar, dest=dest, help=help_text, **settings)
    for flag, which in (("--min", "fewest"), ("--max", "most")):
        parser.add_argument(
            flag,
            metavar="K",
            type=common.checked(_whole),
            help=f"keep: the {which} workers that there may be",
        )
    common.add_launcher_options(parser)
    parser.add_argument("--json", action="store_true", help="status: print one JSON object")
    return parser


def _whole(text: str) -> int:
    """A whole number from 0 up."""
    if text.isdecimal():
        return int(text)
    raise UsageError(f"{text!r} is not a whole number")


def _options(args: argparse.Namespace, **others: Any) -> Any:
    """The cluster that the flags and the defaults describe."""
    from ..slurm import options

    given = {dest: getattr(args, dest) for _, dest, _ in _VALUE_OPTIONS.values()}
    return options.choose({**given, **others})


def _start(args: argparse.Namespace, _program: List[str]) -> int:
    from ..slurm import launcher

    options = _options(args)
    with common.signals_as_exit():
        pool = launcher.start(options, _say)
    jobs = ", ".join(pool.jobs())
    if options.wait_s == 0:
        print(f"cwmp-slurm: cluster {options.name} is submitted (jobs {jobs}): look at it with status")
    else:
        print(f"cwmp-slurm: cluster {options.name} is ready (jobs {jobs}); workers join as SLURM starts them")
    return 0


def _stop(args: argparse.Namespace, _program: List[str]) -> int:
    from ..slurm import launcher, records

    name = _name(args)
    if args.leash:
        _wait_for_end_of_input(args)
        if records.load(name) is not None:
            launcher.stop(name, lambda line: None, grace_s=launcher.RUN_GRACE_S)
        return 0
    launcher.stop(name, _say)
    print(f"cwmp-slurm: cluster {name} has ended")
    return 0


def _wait_for_end_of_input(args: argparse.Namespace) -> None:
    """Wait until the program that holds the leash is gone; signals that end a session are not for us."""
    import os
    import signal

    leash_fd = common.leash_fd(args)
    assert leash_fd is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(leash_fd, 4096):
        pass


def _scale(args: argparse.Namespace, _program: List[str]) -> int:
    from ..slurm import sizing

    if args.count is None:
        raise UsageError("scale to how many workers? Give their number behind `scale`")
    sizing.scale(_name(args), args.count, _say)
    return 0


def _status(args: argparse.Namespace, _program: List[str]) -> int:
    import json

    from ..slurm import launcher, look, view

    seen = view.join(look.look_at(launcher.pool_of(_name(args)), patience_s=_PATIENCE_S))
    print(json.dumps(seen, indent=1) if args.json else view.report(seen))
    return 1 if seen["slurm_error"] else 0


def _keep(args: argparse.Namespace, _program: List[str]) -> int:
    import threading

    from ..slurm.holding import Holding, bounds_of

    holding = Holding(_name(args), bounds_of(args.min, args.max), _say)
    stop = threading.Event()
    common.on_stop_signals(stop.set)
    holding.run(stop)
    return 0


def _script(args: argparse.Namespace, _program: List[str]) -> int:
    from ..slurm import scripts, submission

    options = _options(args)
    place = submission.place(options.name)
    texts = [scripts.master_script(options, place)] if options.master == "job" else []
    print("\n".join([*texts, scripts.workers_script(options, place, options.workers)]), end="")
    return 0


def _run(args: argparse.Namespace, program: List[str]) -> int:
    import os

    from ..slurm import allocation, launcher

    if not program:
        raise UsageError("run what? Give a script or a command behind `run`")
    if allocation.inside():
        unused = [flag for flag, (_, dest, _) in _VALUE_OPTIONS.items() if getattr(args, dest) is not None]
        unused = [flag for flag in unused if flag != "--name"]
        if unused:
            job = os.environ["SLURM_JOB_ID"]
            _say(f"job {job} that this is typed in has its nodes already: {', '.join(unused)} has no effect")
        return allocation.run(program, args.name, _say)
    return launcher.run(_options(args, name=args.name or f"run-{os.urandom(4).hex()}"), program, _say)


def _name(args: argparse.Namespace) -> str:
    from ..rendezvous import cluster_name

    return cluster_name(args.name)


def _say(line: str) -> None:
    print(f"cwmp-slurm: {line}", file=sys.stderr, flush=True)


_PATIENCE_S = 5.0  # of `status`, with a SLURM that does not answer

_ACTIONS = {
    "start": _start,
    "stop": _stop,
    "status": _status,
    "scale": _scale,
    "keep": _keep,
    "script": _script,
    "run": _run,
}
