"""`cwmp-worker`: run jobs on this node's cores."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, List, Optional, Tuple

from .. import cpus, defaults, patience, rendezvous
from ..home import stdin_line
from . import common

if TYPE_CHECKING:
    from ..joining import Find

_ABOUT = """\
Start a worker: it takes jobs from a master and runs them in slots, one process each.
Workers may join and leave a running cluster at any moment."""

_EXAMPLES = f"""\
examples:
  cwmp-worker                      join this user's cluster with every usable core
  cwmp-worker node7                join the master on node7, port {defaults.PORT}
  cwmp-worker node7:6000 --procs 4 --authkey-file ~/team.key

SIGTERM and Ctrl-C drain it: running jobs may finish within the grace time, the rest goes back to the master;
a second signal ends it at once. In a SLURM job it drains by itself before the time limit.
Exit status: 0 drained or let go, 1 failure (master lost or not found, wrong key), 2 bad arguments."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    return common.run(_parser(), _work, argv)


def _parser() -> common.Parser:
    parser = common.Parser("cwmp-worker", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument(
        "master",
        metavar="HOST[:PORT]",
        nargs="?",
        help="where the master is (default: $CWMP_MASTER, else where the cluster called NAME is published); "
        "- reads it from a line of standard input, before the key",
    )
    parser.add_argument(
        "--procs",
        metavar="auto|N",
        type=common.checked(_procs),
        default="auto",
        help="slots; auto is the minimum of CPU affinity, cgroup CPU quota and SLURM_CPUS_*, printed with "
        "the reason (default: auto)",
    )
    common.add_cluster_options(parser, what_name_does="join the cluster of this name")
    parser.add_argument(
        "--wait",
        metavar="S",
        type=common.checked(common.seconds),
        default=defaults.WAIT_S,
        help=f"seconds to wait for a master that is not up yet (default: {defaults.WAIT_S:g})",
    )
    parser.add_argument(
        "--master-timeout",
        metavar="S",
        type=common.checked(common.seconds),
        help="seconds to wait for the master when it is gone, and slots go on with what they run: it may "
        "come back, or be started anew (default: $CWMP_MASTER_TIMEOUT, else "
        f"{defaults.MASTER_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=common.checked(common.seconds),
        default=defaults.GRACE_S,
        help=f"seconds that running jobs get to finish when told to stop (default: {defaults.GRACE_S:g})",
    )
    common.add_encryption_options(parser)
    common.add_blob_options(
        parser,
        what_dir_does="keep this node's copies of large values in DIR, also on the master's machine, where "
        "none are needed",
    )
    common.add_launcher_options(parser)
    return parser


def _procs(text: str) -> str:
    return text if text == "auto" else str(common.positive_count(text))


def _work(args: argparse.Namespace) -> int:
    from ..agent import Agent
    from ..echo import say_without_waiting
    from ..larder import Place

    leash_fd = common.leash_fd(args)
    address = stdin_line().decode(errors="replace") if args.master == "-" else args.master
    find, wanted = _finder(args, address)

    def say(line: str) -> None:
        if line.startswith("connected to "):
            common.announce(args, f"cwmp-worker: {line}")
        else:
            say_without_waiting(f"cwmp-worker: {line}")

    agent = Agent(
        find,
        wanted,
        slots=_slots(args.procs),
        grace_s=args.grace,
        wait_s=args.wait,
        master_timeout_s=patience.master_timeout_s(args.master_timeout),
        say=say,
        leash_fd=leash_fd,
        place=Place(args.blob_dir, args.blob_limit),
    )
    common.on_stop_signals(agent.drain)
    try:
        agent.run()
    except MemoryError as error:
        raise common.Failed("out of memory: this worker ends, and what it had runs on others") from error
    return 0


def _finder(args: argparse.Namespace, address: Optional[str]) -> Tuple[Find, str]:
    """How to look up the master, and what to call it: an address stays as it is, a name is looked up anew."""
    key = None if args.authkey_file is None else rendezvous.read_key_file(args.authkey_file)
    key = key if args.authkey is None else args.authkey.encode()
    encrypt = common.encryption(args)
    if address is not None or os.environ.get("CWMP_MASTER"):
        where = rendezvous.find(address, authkey=key, encrypt=encrypt)
        return (lambda: where), f"at {where}"
    name = rendezvous.cluster_name(args.name)
    return (lambda: rendezvous.find(name=name, authkey=key, encrypt=encrypt)), f"of cluster {name!r}"


def _slots(procs: str) -> int:
    if procs != "auto":
        return int(procs)
    count, reason = cpus.usable_cpus()
    _tell(f"--procs auto: {reason}")
    return count


def _tell(line: str) -> None:
    print(f"cwmp-worker: {line}", file=sys.stderr, flush=True)
