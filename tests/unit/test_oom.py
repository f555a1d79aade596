"""The counters of the kernel's out-of-memory killer, on texts as kernels write them."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import pytest

from cwmp.oom import Counter, Watch, find_counter, read_count

pytestmark = pytest.mark.core

EVENTS_V2 = "low 0\nhigh 0\nmax 117\noom 3\noom_kill {}\noom_group_kill 0\n"
CONTROL_V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
VMSTAT = "nr_free_pages 12345\noom_kill {}\nunevictable_pgs_culled 7\n"

HYBRID = """\
9:name=systemd:/user.slice
4:memory:/slurm/uid_1000/job_17
3:cpuset,cpu:/slurm
0::/user.slice
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A /proc/vmstat."""
    return written(tmp_path / "vmstat", VMSTAT.format(5))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_version_2_counts_in_our_own_group(tmp_path: Path, machine: Path) -> None:
    own = written(tmp_path / "slice" / "job" / "memory.events", EVENTS_V2.format(2))
    written(tmp_path / "slice" / "memory.events", EVENTS_V2.format(9))
    assert find_counter("0::/slice/job\n", tmp_path, machine) == Counter(own, ours=True)
    assert read_count(own) == 2


def test_version_2_without_memory_in_our_group_counts_further_up(tmp_path: Path, machine: Path) -> None:
    (tmp_path / "slice" / "job").mkdir(parents=True)
    above = written(tmp_path / "slice" / "memory.events", EVENTS_V2.format(9))
    assert find_counter("0::/slice/job\n", tmp_path, machine) == Counter(above, ours=True)


def test_version_1_counts_in_our_own_group(tmp_path: Path, machine: Path) -> None:
    own = written(
        tmp_path / "memory" / "slurm" / "uid_1000" / "job_17" / "memory.oom_control", CONTROL_V1.format(1)
    )
    written(tmp_path / "memory" / "memory.oom_control", CONTROL_V1.format(0))
    assert find_counter(HYBRID, tmp_path, machine) == Counter(own, ours=True)
    assert read_count(own) == 1


def test_in_a_container_our_group_is_at_the_top(tmp_path: Path, machine: Path) -> None:
    top = written(tmp_path / "memory" / "memory.oom_control", CONTROL_V1.format(0))
    assert find_counter("4:memory:/docker/0123456789\n", tmp_path, machine) == Counter(top, ours=True)


@pytest.mark.parametrize("groups", ["", "0::/\n", "nonsense\n", "3:cpu:/a\n", "0::/../../x\n"])
def test_without_a_counter_of_ours_the_machine_gives_a_hint(
    tmp_path: Path, machine: Path, groups: str
) -> None:
    assert find_counter(groups, tmp_path, machine) == Counter(machine, ours=False)


def test_an_old_kernel_counts_nothing(tmp_path: Path) -> None:
    written(tmp_path / "memory" / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    nothing = written(tmp_path / "vmstat", "nr_free_pages 12345\n")
    assert find_counter("4:memory:/\n", tmp_path, nothing) is None
    assert find_counter("4:memory:/\n", tmp_path, tmp_path / "missing") is None
    assert Watch(None).verdict() == (None, "")


@pytest.mark.parametrize("text", ["", "oom_kill", "oom_kill x", "oom_kill -1", "oom 3", "oom_kills 3"])
def test_no_count(tmp_path: Path, text: str) -> None:
    assert read_count(written(tmp_path / "file", text)) is None


# --- verdicts -------------------------------------------------------------------------------


def watched(path: Path, count: int) -> Tuple[Path, Watch]:
    """A counter of our own, and who watches it."""
    written(path, EVENTS_V2.format(count))
    return path, Watch(Counter(path, ours=True))


def test_a_death_is_one_for_each_victim_counted(tmp_path: Path) -> None:
    path, watch = watched(tmp_path / "memory.events", 4)
    assert watch.verdict() == (False, "")
    written(path, EVENTS_V2.format(6))
    verdicts = [watch.verdict() for _ in range(3)]
    assert [verdict for verdict, _ in verdicts] == [True, True, False]
    assert verdicts[0][1] == ", by the kernel's out-of-memory killer"


def test_a_victim_that_takes_seconds_to_die_is_recognised(tmp_path: Path) -> None:
    path, watch = watched(tmp_path / "memory.events", 0)
    watch.look(0.0)
    written(path, EVENTS_V2.format(1))
    watch.look(5.0)  # counted, and not yet dead
    assert watch.verdict()[0] is True
    watch.look(10.0)
    watch.look(15.0)
    assert watch.verdict()[0] is False


def test_a_victim_that_was_no_slot_is_not_held_against_a_later_death(tmp_path: Path) -> None:
    path, watch = watched(tmp_path / "memory.events", 0)
    written(path, EVENTS_V2.format(1))
    for now in (0.0, 1.0, 5.0):
        watch.look(now)
    assert watch.verdict() == (False, "")


def test_what_the_machine_counts_is_only_a_hint(tmp_path: Path) -> None:
    path = written(tmp_path / "vmstat", VMSTAT.format(0))
    watch = Watch(Counter(path, ours=False))
    assert watch.verdict() == (False, "")
    written(path, VMSTAT.format(1))
    verdict, words = watch.verdict()
    assert verdict is None
    assert "perhaps" in words


def test_a_counter_that_vanishes_tells_of_no_victim(tmp_path: Path) -> None:
    path, watch = watched(tmp_path / "memory.events", 3)
    path.unlink()
    watch.look(0.0)
    assert watch.verdict() == (False, "")
