"""How many slots a worker should have here: what this process may really use, and why."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Iterator, List, Mapping, NamedTuple, Optional, Tuple

_CGROUP_ROOT = Path("/sys/fs/cgroup")


class CpuCount(NamedTuple):
    """A number of CPUs and the terms that it is the minimum of, for people to read."""

    count: int  # type: ignore[assignment]  # tuples have a method of that name
    reason: str


def usable_cpus() -> CpuCount:
    """The CPUs that this process may use: minimum of affinity, cgroup quota and SLURM's share.

    The reason reads like "affinity 16, cgroup quota 8, SLURM_CPUS_PER_TASK 4 -> 4".
    """
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        groups = ""
    return least(_affinity(), cgroup_quota(groups, _CGROUP_ROOT), os.environ)


def least(affinity: Tuple[str, int], quota: Optional[float], environ: Mapping[str, str]) -> CpuCount:
    """The minimum of the terms given, with the reason.

    >>> least(("affinity", 16), 7.5, {"SLURM_CPUS_PER_TASK": "4"})
    CpuCount(count=4, reason='affinity 16, cgroup quota 8, SLURM_CPUS_PER_TASK 4 -> 4')
    """
    terms: List[Tuple[str, int]] = [affinity]
    if quota is not None:
        # Half a CPU of quota is still worth one slot, and 7.5 are best used by eight.
        terms.append(("cgroup quota", max(1, math.ceil(quota))))
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        value = environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            terms.append((variable, int(value)))
            break
    count = min(number for _, number in terms)
    return CpuCount(count, ", ".join(f"{term} {number}" for term, number in terms) + f" -> {count}")


def cgroup_quota(groups: str, root: Path) -> Optional[float]:
    """The tightest CPU quota on the way from this process's cgroups up to `root`, in CPUs.

    `groups` is the text of `/proc/self/cgroup`; None when there is no quota. Inside a container
    the path named there may not exist, but the mount's top then is the container's own group.
    """
    quotas = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts, read = (root, root / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = (root / controllers, root / "cpu"), _quota_v1
        else:
            continue
        for mount in mounts:
            quotas += [
                quota for group in _upward(mount, path) for quota in [read(group)] if quota is not None
            ]
    return min(quotas, default=None)


def _affinity() -> Tuple[str, int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return "affinity", len(os.sched_getaffinity(0))
    return "cores", os.cpu_count() or 1


def _upward(mount: Path, path: str) -> Iterator[Path]:
    """The directory of cgroup `path` below `mount`, its parent, and so on to `mount` itself."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _quota_v2(group: Path) -> Optional[float]:
    words = _words(group / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(group: Path) -> Optional[float]:
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _words(path: Path) -> List[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
