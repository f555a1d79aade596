"""Large values as files: directories that only their owner can read, in memory where there is enough.

A *shelf* is such a directory. Each blob on it is a file that never changes once it has its name. The
owner of a shelf keeps its lock for as long as it lives, so whoever finds one unlocked may remove it.
Who can read the token on a shelf is on the same machine, and uses the files without any transfer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import tempfile
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from . import defaults
from .errors import BlobLost, UsageError
from .messages import Ref

_SHM = "/dev/shm"
_OWNER = "owner"  # locked by the process whose shelf it is; holds the token
_MEMBERS = ".members"  # locked, together, by those who use it and wait for another owner if this one dies
_MARK = ".mark"  # tells an heir of the owner that the shelf is its own now
_TRIES, _MOMENT_S = 10, 0.02  # to get the lock of a shelf that is ours
_NAME = re.compile(r"[0-9a-z][0-9a-z.]{0,79}")

Buffer = Union[bytes, bytearray, memoryview]


class Shelf:
    """A directory of blobs that this process owns, from `Shelf()` to `close()`.

    `parent` is where to make it: by default in memory (/dev/shm) if there is room, else where temporary
    files go. Raises UsageError where that is not possible.
    """

    def __init__(self, parent: Optional[str] = None, mark: str = "") -> None:
        parent = parent or default_parent()
        try:
            self.path = tempfile.mkdtemp(prefix=_prefix(), dir=parent)
        except OSError as error:
            raise UsageError(f"cannot keep large values in {parent}: {error.strerror}") from None
        self.token = os.urandom(16).hex()
        self._lock = -1
        try:
            self._take_possession(mark)
        except OSError as error:
            if self._lock >= 0:
                os.close(self._lock)
            shutil.rmtree(self.path, ignore_errors=True)
            raise UsageError(f"cannot keep large values in {parent}: {error.strerror}") from None

    def _take_possession(self, mark: str) -> None:
        for name, text in ((_MEMBERS, ""), (_MARK, mark)):
            with open(os.path.join(self.path, name), "x", opener=_private) as file:
                file.write(text)
        # It gets its name when it is locked already, so that nobody takes us for dead in between.
        aside = os.path.join(self.path, ".owner")
        self._lock = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(self._lock, self.token.encode())
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(aside, os.path.join(self.path, _OWNER))

    @classmethod
    def taken_over(cls, path: str, lock: int) -> Shelf:
        """The shelf of an owner that has died, whose lock we hold now."""
        shelf = cls.__new__(cls)
        shelf.path, shelf._lock = path, lock
        shelf.token = os.pread(lock, 100, 0).decode()
        return shelf

    def facts(self) -> Dict[str, str]:
        """What a process on the same machine needs to use this shelf; see `reachable`."""
        return {"path": self.path, "token": self.token}

    def close(self) -> None:
        """Remove the shelf with all that is on it. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def inherit(parent: Optional[str], mark: str) -> Optional[Shelf]:
    """The shelf of this mark whose owner has died, if there is one: from now on it is ours."""
    for path in _shelves((parent,) if parent else (_SHM, tempfile.gettempdir())):
        with contextlib.suppress(OSError), open(os.path.join(path, _MARK)) as file:
            if os.lstat(path).st_uid == os.geteuid() and file.read(100) == mark:
                for _ in range(_TRIES):
                    lock = _locked(os.path.join(path, _OWNER), fcntl.LOCK_EX)
                    if lock is not None:
                        return Shelf.taken_over(path, lock)
                    time.sleep(_MOMENT_S)  # somebody may only be looking whether it is deserted
    return None


class Stay:
    """Keeps another process's shelf from being removed when its owner dies: an heir may come."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = _locked(os.path.join(path, _MEMBERS), fcntl.LOCK_SH)

    def end(self) -> None:
        """We need it no longer; if nobody does, it is removed. Idempotent."""
        self.forget()
        sweep_one(self._path)

    def forget(self) -> None:
        """In a process that was forked from the one that stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sizes(directory: str) -> Dict[str, int]:
    """What is on a shelf: names of blobs, complete or not, and their sizes."""
    found = {name: size_of(directory, name) for name in os.listdir(directory)}
    return {name: size for name, size in found.items() if _NAME.fullmatch(name) and name != _OWNER and size}


def default_parent() -> str:
    """Where shelves are made: in memory where that offers enough room."""
    with contextlib.suppress(OSError):
        if os.access(_SHM, os.W_OK | os.X_OK) and room(_SHM) >= defaults.SHELF_MIN_BYTES:
            return _SHM
    return tempfile.gettempdir()


def room(path: str) -> int:
    """Bytes that can still be written at `path`. Raises OSError."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def default_limit(path: str) -> int:
    """How many bytes a shelf at `path` should hold: a quarter of the memory, half of the room there."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1 << 20, min(memory // 4, room(path) // 2))


def reachable(facts: Any) -> Optional[str]:
    """The path of another process's shelf, if this process can use its files; None elsewhere."""
    if not isinstance(facts, dict):
        return None
    path, token = facts.get("path"), facts.get("token")
    if not (isinstance(path, str) and isinstance(token, str)):
        return None
    with contextlib.suppress(OSError), open(os.path.join(path, _OWNER), "rb") as file:
        if file.read(100) == token.encode() and os.access(path, os.W_OK | os.X_OK):
            return path
    return None


def sweep() -> List[str]:
    """Remove the shelves of this user whose owners have died; returns their paths."""
    removed = []
    for path in _shelves({_SHM, tempfile.gettempdir()}):
        if sweep_one(path):
            removed.append(path)
    return removed


def _shelves(parents: Iterable[str]) -> List[str]:
    """The directories there that may be shelves of this user."""
    found = []
    for parent in parents:
        with contextlib.suppress(OSError):
            found += [os.path.join(parent, name) for name in os.listdir(parent) if name.startswith(_prefix())]
    return found


def sweep_one(path: str) -> bool:
    """Remove this shelf if it is deserted; whether it was."""
    with _closed_if_deserted(path) as deserted:
        if deserted:
            shutil.rmtree(path, ignore_errors=True)
        return deserted


def _prefix() -> str:
    return f"cwmp-{os.geteuid()}-"


def is_deserted(path: str) -> bool:
    """Whether a shelf is this user's, no living process owns it, and none waits for an heir."""
    with _closed_if_deserted(path) as deserted:
        return deserted


@contextlib.contextmanager
def _closed_if_deserted(path: str) -> Iterator[bool]:
    """Whether a shelf is deserted. If so nobody can take it over meanwhile."""
    locks: List[Optional[int]] = []
    with contextlib.suppress(OSError):
        if os.lstat(path).st_uid == os.geteuid():
            locks.append(_locked(os.path.join(path, _OWNER), fcntl.LOCK_EX))
    if locks and locks[0] is not None:  # else its members must not be disturbed
        locks.append(_locked(os.path.join(path, _MEMBERS), fcntl.LOCK_EX))
    try:
        yield len(locks) == 2 and locks[1] is not None
    finally:
        for lock in locks:
            if lock is not None:
                os.close(lock)


def _locked(path: str, kind: int) -> Optional[int]:
    """A descriptor of this file that holds its lock; None where others have that, or there is no file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _private(path: str, flags: int) -> int:
    """Opens a file that only its owner can read."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


# --- files ----------------------------------------------------------------------------------


def check_name(name: Any) -> str:
    """The name, if a blob can have it. Raises UsageError."""
    if type(name) is str and _NAME.fullmatch(name) and name != _OWNER:
        return name
    raise UsageError(f"no large value can be called {name!r}")


def write(directory: str, name: str, pieces: Sequence[Buffer]) -> int:
    """Make the file `name` of these pieces; returns its size. Raises OSError, leaving nothing."""
    path = os.path.join(directory, name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        size = 0
        for piece in pieces:
            size += write_all(fd, piece)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return size


def write_all(fd: int, piece: Buffer) -> int:
    """Write the whole piece; returns its size."""
    view = memoryview(piece).cast("B")
    done = 0
    while done < len(view):
        done += os.write(fd, view[done:] if done else view)
    return done


def size_of(directory: str, name: str) -> Optional[int]:
    """The size of a blob's file; None if there is none."""
    try:
        return os.stat(os.path.join(directory, name)).st_size
    except OSError:
        return None


def remove(directory: str, names: Iterable[str]) -> None:
    """Remove these files, those that are there."""
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


class Ages:
    """For how long files have been as they are, on the clock of who looks: that of the disk may jump."""

    def __init__(self) -> None:
        self._seen: Dict[str, Tuple[Tuple[int, int], float]] = {}  # size and time of change; since when

    def look(self, directory: str, names: Iterable[str], now: float) -> Dict[str, float]:
        """Seconds since each of these was first seen as it is now; to be asked for all of them each time."""
        before, self._seen = self._seen, {}
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(directory, name))
                stamp = status.st_size, status.st_mtime_ns
                found = before.get(name, (None, now))
                self._seen[name] = (stamp, found[1] if found[0] == stamp else now)
        return {name: now - since for name, (_, since) in self._seen.items()}


def begun_by(directory: str, prefix: str) -> List[str]:
    """The names on a shelf that start with `prefix`."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(directory) if name.startswith(prefix)]
    return []


def view(directory: str, ref: Ref, *, private: bool = False) -> memoryview:
    """The bytes of a blob, mapped; read-only, or with `private` a copy on write. Raises BlobLost."""
    name, size = ref
    fd = _open(directory, ref)
    try:
        if private:
            mapped = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BlobLost(f"a large value of {size} bytes cannot be mapped: {error}") from error
    finally:
        os.close(fd)
    return memoryview(mapped)


def read(directory: str, ref: Ref) -> memoryview:
    """The bytes of a blob, copied into memory of our own. Raises BlobLost."""
    fd = _open(directory, ref)
    try:
        data = memoryview(bytearray(ref[1]))
        done = 0
        while done < len(data):
            count = os.readv(fd, [data[done:]])
            if not count:
                raise BlobLost(f"a large value of {ref[1]} bytes has only {done} in {directory}")
            done += count
    finally:
        os.close(fd)
    return data


class Source:
    """A blob's file as a source of bytes, read where they are needed."""

    def __init__(self, directory: str, ref: Ref) -> None:
        self._fd = _open(directory, ref)
        self._size = ref[1]

    def read_into(self, target: memoryview, at: int) -> None:
        """Fill `target` with the bytes from `at` on. Raises BlobLost."""
        done = 0
        os.lseek(self._fd, at, os.SEEK_SET)
        while done < len(target):
            count = os.readv(self._fd, [target[done:] if done else target])
            if not count:
                raise BlobLost(f"a large value of {self._size} bytes ends after {at + done}")
            done += count

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


def _open(directory: str, ref: Ref) -> int:
    """A descriptor of a blob's file that has the size it should have. Raises BlobLost."""
    name, size = ref
    try:
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise BlobLost(
            f"a large value of {size} bytes cannot be read from {directory}: {error.strerror}"
        ) from error
    found = os.fstat(fd).st_size
    if found != size:
        os.close(fd)
        raise BlobLost(f"a large value of {size} bytes has {found} in {directory}")
    return fd


# --- digests --------------------------------------------------------------------------------


def digest_of(data: Buffer) -> str:
    """The name of these bytes: their SHA-256."""
    return hashlib.sha256(data).hexdigest()


def digest_of_all(pieces: Sequence[Buffer]) -> str:
    """The name of these pieces as one."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def is_digest(name: str) -> bool:
    """Whether a blob of this name is named by its bytes."""
    return len(name) == 64 and "." not in name
