"""`$CWMP_HOME`: the directory of this user's clusters, and the files there that nobody else may read.

What others could have written, or can read, is refused rather than trusted, and the error says
what to type.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from pathlib import Path
from typing import Iterator, Optional, Union

from .errors import KeyFileError, UsageError

_KEY_BYTES = 32
_MAX_FILE_BYTES = 64 << 10  # what we read of a file that should hold a few hundred bytes


def home() -> Path:
    """`$CWMP_HOME` or `~/.cwmp`, made 0700 when missing; UsageError when others could write in it."""
    path = Path(os.environ.get("CWMP_HOME") or "~/.cwmp")
    try:
        path = Path(os.path.abspath(path.expanduser()))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, target = path.lstat(), path.stat()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot use {path}: {reason}: set CWMP_HOME to a directory of yours") from None
    if {link.st_uid, target.st_uid} != {os.geteuid()}:
        raise UsageError(f"{path} belongs to another user: set CWMP_HOME to a directory of yours")
    if target.st_mode & 0o022:
        raise UsageError(f"others can write in {path}: chmod 700 {shlex.quote(str(path))}")
    return path


def home_exists() -> bool:
    """Whether there is such a directory that can be used; none is made."""
    path = os.environ.get("CWMP_HOME") or "~/.cwmp"
    if not os.path.isdir(os.path.expanduser(path)):
        return False
    try:
        home()
    except UsageError:
        return False
    return True


def private_directory(name: str) -> Path:
    """The directory `home()/name`, made 0700 when missing."""
    path = home() / name
    path.mkdir(mode=0o700, exist_ok=True)
    link, target = path.lstat(), path.stat()
    if {link.st_uid, target.st_uid} != {os.geteuid()}:
        raise UsageError(f"{path} belongs to another user: remove it")
    if target.st_mode & 0o077:
        path.chmod(0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Make or replace the 0600 file `path` in one step."""
    aside = _write_aside(path, data)
    try:
        os.rename(aside, path)
    except BaseException:
        aside.unlink()
        raise


def _write_aside(path: Path, data: bytes) -> Path:
    """A new 0600 file with `data` in the directory of `path`, under a name of its own."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        aside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk: say which
    except BaseException:
        aside.unlink()
        raise
    return aside


def read_private(path: Path) -> Optional[bytes]:
    """The bytes of a file that only we can read or write; None if there is none, else UsageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        what = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UsageError(f"{path} {what}: remove it") from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise UsageError(f"{path} is not a file of yours: remove it")
        if facts.st_mode & 0o077:
            raise UsageError(f"others can read {path}: chmod 600 {shlex.quote(str(path))}")
        return file.read(_MAX_FILE_BYTES)


@contextlib.contextmanager
def exclusive(what: str) -> Iterator[None]:
    """Keep this user's other processes from changing `what` meanwhile."""
    import fcntl

    descriptor = os.open(home() / f"{what}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # Some network file systems have no locks. There only two processes that start in the same
        # millisecond can get into each other's way.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- keys -----------------------------------------------------------------------------------


def read_key_file(path: Union[str, os.PathLike[str]]) -> bytes:
    """The key in the file `path`: 32 bytes as they are, else without the newline at the end.

    "-" is the first line of standard input. KeyFileError when it is missing, empty, another
    user's, or open to others.
    """
    text = os.fspath(path)
    if text == "-":
        key = stdin_line()
        if not key:
            raise KeyFileError("no key came on standard input")
        return key
    quoted = shlex.quote(text)
    try:
        with open(text, "rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_uid != os.geteuid():
                raise KeyFileError(f"key file {text} belongs to another user: copy it to a file of yours")
            if facts.st_mode & 0o077:
                raise KeyFileError(f"key file {text} is open to others: chmod 600 {quoted}")
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(f"cannot read key file {text}: {error.strerror}") from None
    key = data if len(data) == _KEY_BYTES else data.rstrip(b"\r\n")
    if not key:
        raise KeyFileError(f"key file {text} is empty: fill it with head -c 32 /dev/urandom > {quoted}")
    return key


def stdin_line() -> bytes:
    """The next line of standard input without its end; nothing behind it is read away."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line.rstrip(b"\r\n")


def new_home_key() -> bytes:
    """Replace the key in `home()/authkey` by a new one, and return that."""
    key = os.urandom(_KEY_BYTES)
    write_private(home() / "authkey", key)
    return key


def home_key() -> bytes:
    """The key in `home()/authkey`: 32 random bytes, made on first use."""
    path = home() / "authkey"
    if not path.exists():
        aside = _write_aside(path, os.urandom(_KEY_BYTES))
        try:
            os.link(aside, path)  # not rename: of two processes that get here, the first wins
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return read_key_file(path)
