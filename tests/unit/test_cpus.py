"""How many CPUs are usable: the minimum of several limits, told with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

import pytest

from cwmp import cpus


@pytest.mark.parametrize(
    ("affinity", "quota", "environ", "count", "reason"),
    [
        (16, None, {}, 16, "affinity 16 -> 16"),
        (16, 8.0, {}, 8, "affinity 16, cgroup quota 8 -> 8"),
        (16, 7.2, {}, 8, "affinity 16, cgroup quota 8 -> 8"),
        (16, 0.1, {}, 1, "affinity 16, cgroup quota 1 -> 1"),
        (2, 8.0, {}, 2, "affinity 2, cgroup quota 8 -> 2"),
        (
            16,
            8.0,
            {"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "2"},
            4,
            "affinity 16, cgroup quota 8, SLURM_CPUS_PER_TASK 4 -> 4",
        ),
        (16, None, {"SLURM_CPUS_ON_NODE": "6"}, 6, "affinity 16, SLURM_CPUS_ON_NODE 6 -> 6"),
        (16, None, {"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "6(x2)"}, 16, "affinity 16 -> 16"),
        (16, None, {"SLURM_CPUS_PER_TASK": "0"}, 16, "affinity 16 -> 16"),
    ],
)
def test_least_of_all_limits(
    affinity: int, quota: Optional[float], environ: Dict[str, str], count: int, reason: str
) -> None:
    assert cpus.least(("affinity", affinity), quota, environ) == (count, reason)


def write_tree(root: Path, files: Dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("", {}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "250000 100000\n"}, 2.5),
        # a parent's quota binds its children too
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        # in a container the path is the host's, and the mount's top is the group
        ("0::/docker/0123\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "4:cpu,cpuacct:/job\n0::/\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "4:cpuacct,cpu:/job\n",  # mounted under the short name
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/\n", {"cpu.max": "100000 100000\n"}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, groups: str, files: Dict[str, str], quota: Optional[float]) -> None:
    write_tree(tmp_path, files)
    assert cpus.cgroup_quota(groups, tmp_path) == quota


def test_of_this_machine() -> None:
    count, reason = cpus.usable_cpus()
    assert count >= 1
    assert reason.endswith(f"-> {count}")
