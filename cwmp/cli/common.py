"""What the commands share: options, one-line errors, exit statuses, and the ready line.

Exit status: 0 done, 2 bad arguments (before anything was started), 1 any other failure. Either
comes with one line on standard error that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import stat
import sys
from types import FrameType
from typing import Any, Callable, Iterator, List, NoReturn, Optional, Sequence, Tuple

from .. import rendezvous
from ..encryption import MODES, Encryption, choose
from ..errors import CwmpError, UsageError

NEEDED = ("cloudpickle", "psutil")  # what cwmp imports and Python does not bring


class Failed(CwmpError):
    """The command cannot go on; nothing is wrong with its arguments."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the help as written and complains in one line."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(
            prog=prog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )
        self.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line, without the usage that argparse puts before it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from cwmp import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


def run(parser: Parser, command: Callable[[argparse.Namespace], int], argv: Optional[List[str]]) -> int:
    """Parse `argv`, run `command` and return its exit status; failures become one line."""
    args = parser.parse_args(argv)
    try:
        _check_installed()
        status = command(args)
        if sys.stdout is not None:  # it is where it was closed
            sys.stdout.flush()  # now, while we can say what went wrong
        return status
    except UsageError as error:
        return _complain(parser.prog, args, str(error), 2)
    except CwmpError as error:
        return _complain(parser.prog, args, str(error), 1)
    except BrokenPipeError:  # whoever read our output left, as `head` does
        _forget_output()
        return 1
    except OSError as error:
        _forget_output()
        place = f"{error.filename}: " if error.filename else ""
        return _complain(parser.prog, args, f"{place}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _complain(parser.prog, args, "interrupted", 130)


def _forget_output() -> None:
    """Have Python not complain again at exit of what could not be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _check_installed() -> None:
    """Tell now what a checkout may lack, and not when it is first used."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    install = f"pip install {' '.join(NEEDED)}"
    if sys.prefix != sys.base_prefix:
        advice = f"{sys.executable} -m {install}"
    else:  # many systems do not let pip install for all of their users
        advice = f"{sys.executable} -m venv env && env/bin/{install}, then use env/bin/python"
    raise Failed(f"{sys.executable} lacks {' and '.join(missing)}: {advice}")


def _complain(prog: str, args: argparse.Namespace, message: str, status: int) -> int:
    line = f"{prog}: {' '.join(message.split())}\n"
    if getattr(args, "ready_fd", None) is None:
        sys.stderr.write(line)
    else:
        _send_ready(args, line)
    return status


# --- options --------------------------------------------------------------------------------


def add_cluster_options(parser: Parser, *, what_name_does: str) -> None:
    """--name, --authkey and --authkey-file."""
    parser.add_argument(
        "--name",
        metavar="NAME",
        type=checked(rendezvous.cluster_name),
        help=f"{what_name_does} (default: $CWMP_NAME, else 'default')",
    )
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--authkey",
        metavar="KEY",
        help="the cluster's key. Every user of this machine can see it in `ps`: prefer a file",
    )
    keys.add_argument(
        "--authkey-file",
        metavar="FILE",
        help="take the key from FILE, which must be yours alone (chmod 600); - is the first line of "
        "standard input. Without either: $CWMP_AUTHKEY, $CWMP_AUTHKEY_FILE, the running cluster's own "
        "key file, then $CWMP_HOME/authkey, which is made on first use",
    )


def add_encryption_options(parser: Parser) -> None:
    """--encrypt and --tls-cert, --tls-key, --tls-ca."""
    parser.add_argument(
        "--encrypt",
        metavar="|".join(MODES),
        choices=MODES,
        help="auto encrypts what leaves this machine, always also what does not. Without certificates that "
        "takes Python 3.13 or newer (default: $CWMP_ENCRYPT, else auto; who finds a cluster by its name does "
        "as its master does)",
    )
    for flag, what in (
        ("--tls-cert", "use TLS with this certificate, and not with the cluster's key"),
        ("--tls-key", "the private key of it, which must be yours alone (chmod 600)"),
        ("--tls-ca", "the certificate of the CA that has signed those of all sides"),
    ):
        variable = "CWMP" + flag.replace("-", "_").upper()[1:]
        parser.add_argument(flag, metavar="FILE", help=f"{what} (default: ${variable})")


def encryption(args: argparse.Namespace) -> Encryption:
    """What those options and the environment say. Raises UsageError."""
    return choose(args.encrypt, args.tls_cert, args.tls_key, args.tls_ca)


def add_blob_options(parser: Parser, *, what_dir_does: str) -> None:
    """--blob-dir and --blob-limit."""
    parser.add_argument(
        "--blob-dir",
        metavar="DIR",
        help=f"{what_dir_does} (default: /dev/shm where that is large enough, else the directory for "
        "temporary files)",
    )
    parser.add_argument(
        "--blob-limit",
        metavar="SIZE",
        type=checked(size),
        help="keep at most SIZE bytes of large values, for example 500M or 8G (default: a quarter of the "
        "memory, and no more than half of what is free in that directory)",
    )


def size(text: str) -> int:
    """Bytes in "500M", "8G" or "1000000". Raises UsageError.

    >>> size("2k"), size("1.5G")
    (2048, 1610612736)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    count = int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")) if match else 0
    if count < 1:
        raise UsageError(f"{text!r} is not a size: write for example 500M or 8G")
    return count


def add_launcher_options(parser: Parser) -> None:
    """--leash and --ready-fd: for programs that start this command."""
    parser.add_argument(
        "--leash",
        action="store_true",
        help="stop when standard input ends: for a program that holds the other end of the pipe, so that "
        "nothing outlives it even when it is killed",
    )
    parser.add_argument(
        "--ready-fd",
        metavar="N",
        type=checked(_open_descriptor),
        help="write the line that tells that all is ready, or why not, to descriptor N instead",
    )


def checked(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """`convert` for argparse, which shows the reason of a UsageError only in this form."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def positive_count(text: str) -> int:
    """A whole number from 1 up."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"{text!r} is not a whole number from 1 up")


def seconds(text: str) -> float:
    """A finite number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < float("inf"):
        return value
    raise UsageError(f"{text!r} is not a number of seconds")


def _open_descriptor(text: str) -> int:
    try:
        os.set_inheritable(int(text), False)
        return int(text)
    except (ValueError, OSError, OverflowError):
        raise UsageError(f"{text!r} is not an open descriptor") from None


def split_program(argv: List[str], value_options: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Our own arguments, and the program's: all from the first word after `run` on.

    `value_options` are those of ours that take the next word with them.

    >>> split_program(["run", "-n", "2", "job.py", "-n", "7"], ["-n"])
    (['run', '-n', '2'], ['job.py', '-n', '7'])
    """
    words: List[str] = []
    skip = False
    for place, word in enumerate(argv):
        if skip or (word.startswith("-") and word != "--"):
            skip = not skip and word in value_options
            continue
        if words == ["run"]:
            return argv[:place], argv[place + (word == "--") :]
        words.append(word)
    return argv, []


# --- life -----------------------------------------------------------------------------------


def leash_fd(args: argparse.Namespace) -> Optional[int]:
    """The descriptor whose end means stop; None without --leash."""
    if not args.leash:
        return None
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        mode = 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0)):
        raise UsageError("--leash needs a pipe as standard input")
    return 0


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM, SIGINT, and SIGHUP unless that is ignored (nohup)."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stop())


@contextlib.contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit meanwhile, so that what was begun is undone on the way out."""

    def leave(number: int, _frame: Optional[FrameType]) -> None:
        raise SystemExit(128 + number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def announce(args: argparse.Namespace, line: str) -> None:
    """Print the ready line, at once and whole; to --ready-fd where given."""
    if args.ready_fd is None:
        print(line, flush=True)
    else:
        _send_ready(args, line + "\n")


def _send_ready(args: argparse.Namespace, line: str) -> None:
    """Whoever waits for the line reads one; later ones go where everybody can see them."""
    descriptor, args.ready_fd = args.ready_fd, None
    try:
        os.write(descriptor, line.encode())
        os.close(descriptor)
    except OSError:
        sys.stderr.write(line)  # nobody waits any more
