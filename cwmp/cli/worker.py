"""`cwmp-worker`: run jobs on this node's cores."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import List, Optional, Tuple

from .. import cpus, defaults, rendezvous
from ..errors import ConnectError
from ..home import home, stdin_line
from . import common

_ABOUT = """\
Start a worker: it takes jobs from a master and runs them in slots, one process each.
Workers may join and leave a running cluster at any moment."""

_EXAMPLES = f"""\
examples:
  cwmp-worker                      join this user's cluster with every usable core
  cwmp-worker node7                join the master on node7, port {defaults.PORT}
  cwmp-worker node7:6000 --procs 4 --authkey-file ~/team.key

SIGTERM and Ctrl-C drain it: running jobs may finish within the grace time, the rest goes back to the master;
a second signal ends it at once.
Exit status: 0 drained, 1 failure (master lost or not found, wrong key), 2 bad arguments."""

_LOOK_AGAIN_S = 0.1


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
        "--grace",
        metavar="S",
        type=common.checked(common.seconds),
        default=defaults.GRACE_S,
        help=f"seconds that running jobs get to finish when told to stop (default: {defaults.GRACE_S:g})",
    )
    common.add_launcher_options(parser)
    return parser


def _procs(text: str) -> str:
    return text if text == "auto" else str(common.positive_count(text))


def _work(args: argparse.Namespace) -> int:
    from ..worker import Worker

    leash_fd = common.leash_fd(args)
    address = stdin_line().decode(errors="replace") if args.master == "-" else args.master
    deadline = time.monotonic() + args.wait
    host, port = _find_master(address, args.name, deadline, args.wait)
    key = rendezvous.find_key(args.authkey, args.authkey_file, name=args.name, host=host, port=port)

    def say(line: str) -> None:
        if line.startswith("connected to "):
            common.announce(args, f"cwmp-worker: {line}")
        else:
            _tell(line)

    worker = Worker(
        host,
        port,
        key,
        slots=_slots(args.procs),
        grace_s=args.grace,
        wait_s=max(0.0, deadline - time.monotonic()),
        say=say,
        leash_fd=leash_fd,
    )
    common.on_stop_signals(worker.drain)
    worker.run()
    return 0


def _find_master(
    address: Optional[str], name: Optional[str], deadline: float, wait_s: float
) -> Tuple[str, int]:
    """As `rendezvous.find_master`, but a cluster that is not published yet is waited for."""
    if address is not None or os.environ.get("CWMP_MASTER"):
        return rendezvous.find_master(address)
    told = False
    while True:
        cluster = rendezvous.find_cluster(name)
        if cluster is not None:
            return cluster.address()
        if time.monotonic() >= deadline:
            place = home() / "clusters"
            wanted = rendezvous.cluster_name(name)
            raise ConnectError(f"no master of cluster {wanted!r} appeared in {place} within {wait_s:g} s")
        if not told:
            _tell(f"waiting up to {wait_s:g} s for a master of cluster {rendezvous.cluster_name(name)!r}")
            told = True
        time.sleep(_LOOK_AGAIN_S)


def _slots(procs: str) -> int:
    if procs != "auto":
        return int(procs)
    count, reason = cpus.usable_cpus()
    _tell(f"--procs auto: {reason}")
    return count


def _tell(line: str) -> None:
    print(f"cwmp-worker: {line}", file=sys.stderr, flush=True)
