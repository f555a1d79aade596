"""`cwmp-master`: the process that routes jobs."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import sys
import threading
from typing import Iterator, List, Optional

from .. import addresses, defaults, descriptors, home, rendezvous
from ..errors import UsageError
from ..shortage import STACK_BYTES
from . import common

_ABOUT = """\
Start a master: the process that takes jobs from clients and hands them to workers.
It runs no jobs itself. One line on standard output tells when it accepts connections."""

_EXAMPLES = f"""\
examples:
  cwmp-master                            port {defaults.PORT}, found by workers and clients of this user
  cwmp-master --name night --port 0      a second cluster, on a free port; use it with --name night
  cwmp-master --host 127.0.0.1           for this machine only

SIGTERM and Ctrl-C stop it. Exit status: 0 stopped, 1 failure (port in use, name taken), 2 bad arguments."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    return common.run(_parser(), _serve, argv)


def _parser() -> common.Parser:
    parser = common.Parser("cwmp-master", description=_ABOUT, epilog=_EXAMPLES)
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--host",
        metavar="ADDR",
        default="",
        help="listen on this address only (default: on every interface, and publish all their addresses)",
    )
    places.add_argument(
        "--interface",
        metavar="NAME",
        help="listen on the address of this network interface only, for example ib0",
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=common.checked(lambda text: rendezvous.check_port(text, lowest=0)),
        default=defaults.PORT,
        help=f"listen on this port; 0 takes a free one (default: {defaults.PORT})",
    )
    common.add_cluster_options(parser, what_name_does="publish the cluster under this name")
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="first replace the key in $CWMP_HOME/authkey by a new one, and use that. Masters that run keep "
        "theirs until they are started anew",
    )
    parser.add_argument(
        "--unlisted",
        action="store_true",
        help="publish nothing: whoever is to find this master is told its address and key",
    )
    common.add_encryption_options(parser)
    common.add_blob_options(parser, what_dir_does="keep large values in DIR")
    common.add_launcher_options(parser)
    return parser


def _serve(args: argparse.Namespace) -> int:
    from ..master import Master

    name = rendezvous.cluster_name(args.name)
    leash_fd = common.leash_fd(args)
    key = _key(args, name)
    encrypt = common.encryption(args)
    bind = args.host
    if args.interface is not None:
        bind = addresses.address_of(args.interface, addresses.interfaces())
    try:
        master = Master(
            bind,
            args.port,
            key,
            name=name,
            encrypt=encrypt,
            leash_fd=leash_fd,
            blob_dir=args.blob_dir,
            blob_limit=args.blob_limit,
            listed_in=None if args.unlisted else str(home.home()),
        )
    except OSError as error:
        raise common.Failed(error.strerror or str(error)) from None  # which names the address
    common.on_stop_signals(master.stop)
    threading.stack_size(STACK_BYTES)
    _relax_collector()
    host, port = master.address
    with contextlib.ExitStack() as cleanup:
        if not args.unlisted:
            cluster = rendezvous.Cluster.of_this_process(name, host, port, key, master.nonce, encrypt)
            try:
                cleanup.enter_context(_published(cluster))
            except BaseException:
                master.stop()
                master.serve()  # which closes what it has opened
                raise
        shown = platform.node() if host in rendezvous.EVERY_INTERFACE else host
        place = rendezvous.format_address(shown, port)
        caution = encrypt.caution(host)
        if caution is not None:
            print(f"cwmp-master: {caution}", file=sys.stderr, flush=True)
        if leash_fd is None:
            for line in (master.depot, descriptors.what_it_allows()):
                print(f"cwmp-master: {line}", file=sys.stderr, flush=True)
        common.announce(args, f"cwmp-master: listening on {place} (cluster {name}, pid {os.getpid()})")
        master.serve()
    return 0


def _relax_collector() -> None:
    """Let Python look for reference cycles less often: a queue of jobs is large, and has none."""
    gc.freeze()
    gc.set_threshold(defaults.COLLECT_EVERY, 50, 100)


def _key(args: argparse.Namespace, name: str) -> bytes:
    """The key to serve with, a new one if that is asked for."""
    if not args.new_key:
        return rendezvous.find_key(args.authkey, args.authkey_file, name=name)
    given = {"--authkey": args.authkey, "--authkey-file": args.authkey_file}
    given.update({name: os.environ.get(name) for name in ("CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE")})
    for source, value in given.items():
        if value is not None:
            path = home.home() / "authkey"
            raise UsageError(f"--new-key changes the key in {path}, but {source} gives another")
    if rendezvous.find_cluster(name) is not None:
        raise UsageError(f"cluster {name!r} runs with the old key: stop it first")
    return home.new_home_key()


@contextlib.contextmanager
def _published(cluster: rendezvous.Cluster) -> Iterator[None]:
    """The rendezvous file, for as long as this master runs."""
    from .. import dial

    try:
        rendezvous.publish(cluster, dial.answers)
    except UsageError as error:
        raise common.Failed(str(error)) from None  # the arguments are fine, the name is taken
    try:
        yield
    finally:
        rendezvous.withdraw(cluster)
