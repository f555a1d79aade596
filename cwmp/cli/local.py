"""`cwmp-local`: a whole cluster on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import List, Optional

from .. import cpus, dial, rendezvous
from . import common
from .status import ask, report, slots_text

_ABOUT = """\
A whole cluster on this machine: one master and one worker with N slots, on 127.0.0.1.

actions:
  start   start it in the background; ready when the command returns (the default)
  stop    end what `start` began, nothing else
  status  show its worker, clients and jobs
  run     start a private cluster, run a program against it with its exit status, and
          stop the cluster whatever happens; SCRIPT is a Python script or any command"""

_EXAMPLES = """\
examples:
  cwmp-local -n 4                     a cluster with 4 slots; programs find it by themselves
  cwmp-local stop
  cwmp-local --name night start       a second one: use it with CWMP_NAME=night
  cwmp-local -n 2 run script.py 10    what follows `run SCRIPT` belongs to the script

Exit status: of `run`, the program's (128+n when signal n ended it); else 0 done, 1 failure (runs already,
not running), 2 bad arguments."""

_VALUE_OPTIONS = ("-n", "--name")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    ours, program = common.split_program(sys.argv[1:] if argv is None else argv, _VALUE_OPTIONS)
    parser = _parser()
    return common.run(parser, lambda args: _ACTIONS[args.action](args, program), ours)


def _parser() -> common.Parser:
    parser = common.Parser(
        "cwmp-local",
        usage="cwmp-local [-n N] [--name NAME] [start | stop | status [--json] | run SCRIPT_OR_COMMAND …]",
        description=_ABOUT,
        epilog=_EXAMPLES,
    )
    parser.add_argument("action", nargs="?", default="start", choices=list(_ACTIONS), help=argparse.SUPPRESS)
    parser.add_argument(
        "-n",
        metavar="N",
        dest="slots",
        type=common.checked(common.positive_count),
        help="slots (default: the usable cores)",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        type=common.checked(rendezvous.cluster_name),
        help="which of this user's clusters (default: $CWMP_NAME, else 'default'; a random name for `run`)",
    )
    parser.add_argument("--json", action="store_true", help="status: print one JSON object")
    return parser


def _start(args: argparse.Namespace, _program: List[str]) -> int:
    from .. import background

    name = rendezvous.cluster_name(args.name)
    slots = args.slots or cpus.usable_cpus().count
    master, worker = background.start(name, slots)
    cluster = rendezvous.find_cluster(name)
    if cluster is None:
        raise common.Failed(f"cluster {name!r} ended as soon as it was ready")
    print(
        f"cwmp-local: cluster {name} is ready on {rendezvous.format_address(*cluster.address())} "
        f"with {slots_text(slots)} (master pid {master.pid}, worker pid {worker.pid})"
    )
    return 0


def _stop(args: argparse.Namespace, _program: List[str]) -> int:
    from .. import background

    for line in background.stop(rendezvous.cluster_name(args.name)):
        print(f"cwmp-local: {line}")
    return 0


def _status(args: argparse.Namespace, _program: List[str]) -> int:
    name = rendezvous.cluster_name(args.name)
    cluster = rendezvous.find_cluster(name)
    if cluster is None:
        raise common.Failed(f"cluster {name!r} is not running")
    status = ask(*dial.locate(lambda: cluster.destination(known_here=True)))
    print(json.dumps(status, indent=1) if args.json else report(status))
    return 0


def _run(args: argparse.Namespace, program: List[str]) -> int:
    from .. import local
    from ..errors import UsageError

    if not program:
        raise UsageError("run what? Give a script or a command behind `run`")
    return local.run_program(program, args.slots, args.name)


_ACTIONS = {"start": _start, "stop": _stop, "status": _status, "run": _run}
