"""`cwmp-status`: what a cluster is doing."""

from __future__ import annotations

import argparse
import json
import operator
from typing import Any, Callable, Dict, List, Optional, Sequence

from .. import defaults, messages, rendezvous
from ..encryption import ALWAYS, CERT, CLEAR, LOCAL, PSK, Encryption
from . import common

_ABOUT = "Show a cluster: its workers, clients and jobs."

_EXAMPLES = """\
examples:
  cwmp-status                    this user's cluster
  cwmp-status --name night       another one of this user
  cwmp-status node7:6000 --json  for programs: one JSON object

Exit status: 0 shown, 1 no cluster there or wrong key, 2 bad arguments."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    return common.run(_parser(), _show, argv)


def _parser() -> common.Parser:
    parser = common.Parser("cwmp-status", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument(
        "master",
        metavar="HOST[:PORT]",
        nargs="?",
        help="where the master is (default: $CWMP_MASTER, else where the cluster called NAME is published, "
        f"else localhost:{defaults.PORT})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    common.add_cluster_options(parser, what_name_does="show the cluster of this name")
    common.add_encryption_options(parser)
    return parser


def _show(args: argparse.Namespace) -> int:
    from .. import dial

    encrypt = common.encryption(args)

    def find() -> rendezvous.Destination:
        return rendezvous.find(
            args.master,
            name=args.name,
            authkey=args.authkey,
            authkey_file=args.authkey_file,
            encrypt=encrypt,
        )

    status = ask(*dial.locate(find))
    print(json.dumps(status, indent=1) if args.json else report(status))
    return 0


def ask(host: str, port: int, authkey: bytes, encrypt: Encryption) -> Dict[str, Any]:
    """The status that the master at that address tells. Raises ConnectError and WrongKey."""
    from .. import transport

    wire = transport.connect(host, port, authkey, encrypt, timeout_s=defaults.CONNECT_S)
    try:
        status: Dict[str, Any] = wire.call(messages.JOB_QUEUE, "status")
        return status
    finally:
        wire.close()


def report(status: Dict[str, Any]) -> str:
    """A status as people read it."""
    place = rendezvous.format_address(status["host"], status["port"])
    workers, clients = status["workers"], status["clients"]
    slots, busy = (sum(worker[what] for worker in workers) for what in ("slots", "busy"))
    uptime = duration(status["uptime_s"])
    versions = f"cwmp {status['version']}, Python {status['python']}"
    lines = [
        f"cluster  {status['name']} on {place}, pid {status['pid']}, up {uptime}, {versions}",
        f"network  {encrypted(**status['encryption'])}",
        "jobs     " + ", ".join(f"{count} {state}" for state, count in status["jobs"].items()),
        f"workers  {len(workers)} with {slots_text(slots)}, {busy} busy",
    ]
    if workers:
        lines += workers_table(workers)
    lines.append(f"clients  {len(clients)}")
    if clients:
        titles = ("id", "node", "pid", "queued", "running")
        lines += table(titles, [[client[title] for title in titles] for client in clients])
    return "\n".join(lines)


def encrypted(mode: str, way: str) -> str:
    """Which connections are encrypted, and how.

    >>> encrypted("auto", "psk")
    "what leaves the machine is encrypted (TLS 1.3 with the cluster's key)"
    """
    if way == CLEAR:
        return "nothing is encrypted (--encrypt never)"
    if way == LOCAL:
        return "connections from this machine only: there is nothing to encrypt others with"
    what = "everything" if mode == ALWAYS else "what leaves the machine"
    return f"{what} is encrypted ({_HOW[way]})"


_HOW = {PSK: "TLS 1.3 with the cluster's key", CERT: "TLS with certificates"}


def workers_table(workers: List[Dict[str, Any]]) -> List[str]:
    """A line for each worker; what none of them has gets no column."""
    columns: Dict[str, Callable[[Dict[str, Any]], Any]] = {
        title: operator.itemgetter(title) for title in ("id", "node", "pid", "slots", "busy", "done")
    }
    columns["memory"] = lambda worker: size(worker["rss_bytes"])
    if any(worker["slurm_job"] for worker in workers):
        columns["SLURM job"] = lambda worker: worker["slurm_job"] or "-"
    if any(worker["ends_in_s"] is not None for worker in workers):
        columns["time left"] = time_left
    columns["heard"] = heard
    if any(worker["draining"] for worker in workers):
        columns["leaves"] = lambda worker: "when done" if worker["draining"] else "-"
    return table(list(columns), [[cell(worker) for cell in columns.values()] for worker in workers])


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> List[str]:
    """Lines of aligned columns: text to the left, numbers and sizes to the right."""
    cells = [[str(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    left = [title == "node" for title in titles]
    return [
        "  " + "  ".join(c.ljust(w) if at_left else c.rjust(w) for c, w, at_left in zip(line, widths, left))
        for line in cells
    ]


def duration(seconds: float) -> str:
    """Seconds as "4.2 s", "3:20 min", "2:03:20 h" or "3 d 2:03:20 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}:{second:02} min"
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02} h"
    return f"{days} d {clock}" if days else clock


def size(count: float) -> str:
    """Bytes as "12 MiB" or "3.4 GiB"."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def slots_text(count: int) -> str:
    """ "1 slot", "2 slots"."""
    return "1 slot" if count == 1 else f"{count} slots"


def time_left(worker: Dict[str, Any]) -> str:
    """How long the worker has until its time is up; "-" where it has no limit."""
    left_s = worker["ends_in_s"]
    return "-" if left_s is None else duration(max(0.0, left_s))


def heard(worker: Dict[str, Any]) -> str:
    """How long ago the worker was last heard."""
    return f"{worker['silent_s']:.1f} s ago"
