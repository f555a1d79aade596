"""Whether the kernel killed a process for lack of memory: the counters in which it keeps account of that.

A process that the out-of-memory killer ended looks like any other that got SIGKILL. But the kernel counts
such a victim before it kills it, in the victim's own cgroup, so that a counter that has grown tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Tuple

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/vmstat")
_LOOK_S = 5.0
"""A death is held against what was counted one to two such spans ago. Shorter: a large process that takes
long to die is not recognised. Longer: a job's own child that was killed is mistaken for a later death."""

_BY_KERNEL = ", by the kernel's out-of-memory killer"
_PERHAPS = "; about then the kernel killed something on this machine for lack of memory, perhaps this"


class Counter(NamedTuple):
    """A file that counts victims: those of our own cgroup (`ours`), or of the whole machine."""

    path: Path
    ours: bool


def find_counter(groups: str, root: Path = _CGROUP_ROOT, machine: Path = _MACHINE) -> Optional[Counter]:
    """The counter that tells most; None where there is none. `groups` is the text of `/proc/self/cgroup`."""
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            files = _files_v2(root, path)
        elif "memory" in controllers.split(","):
            files = _files_v1(root, path)
        else:
            continue
        for file in files:
            if read_count(file) is not None:
                return Counter(file, ours=True)
    return None if read_count(machine) is None else Counter(machine, ours=False)


def _files_v2(root: Path, path: str) -> Iterator[Path]:
    """Our own group's file, or that of the nearest group above that has one: it counts all below, too."""
    parts = _parts(path)
    for mount in (root, root / "unified"):
        for length in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:length], "memory.events")


def _files_v1(root: Path, path: str) -> Iterator[Path]:
    """Our own group's file. In a container that is at the top: the path is one of the world outside."""
    yield root.joinpath("memory", *_parts(path), "memory.oom_control")
    yield root / "memory" / "memory.oom_control"


def _parts(path: str) -> Tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", ".."))


def read_count(path: Path) -> Optional[int]:
    """The number of victims in such a file; None if it does not tell."""
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdecimal():
                return int(value)
    except OSError:
        pass
    return None


class Watch:
    """Tells of each child that died of SIGKILL whether that was the kernel, for lack of memory."""

    def __init__(self, counter: Optional[Counter]) -> None:
        self._counter = counter
        self._accounted = self._latest = self._read()  # victims that are no news; what was counted last
        self._next_look = 0.0

    @classmethod
    def of_this_process(cls) -> Watch:
        """One that watches our own cgroup, in which our children are as well."""
        try:
            groups = Path("/proc/self/cgroup").read_text()
        except OSError:
            groups = ""
        return cls(find_counter(groups))

    def look(self, now: float) -> None:
        """Account for victims that were no children of ours; to be called every few seconds."""
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._accounted, self._latest = self._latest, max(self._latest, self._read())

    def verdict(self) -> Tuple[Optional[bool], str]:
        """Whether a child that has just died of SIGKILL was a victim (None: not known), in words, too."""
        if self._counter is None:
            return None, ""
        if self._read() <= self._accounted:
            return False, ""
        self._accounted += 1
        self._latest = max(self._latest, self._accounted)
        return (True, _BY_KERNEL) if self._counter.ours else (None, _PERHAPS)

    def _read(self) -> int:
        return (self._counter and read_count(self._counter.path)) or 0
