"""The lab itself: what the other tests of this directory take for granted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Set

import psutil
import pytest

from tests.slurm.config import CONTROLLER, CPUS, GPUS
from tests.slurm.conftest import unavailable
from tests.slurm.lab import Lab, Unavailable, sweep
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SLEEPS = "#!/bin/sh\nexec sleep 600\n"
SLEEPS_AND_NOTES = "#!/bin/sh\nhostname >> {notes}\nexec sleep 600\n"


def state_of(lab: Lab, job: str) -> str:
    """That job's state, also when it has ended."""
    return lab.queue("-t", "all", "-j", job)[0].state


def wait_for_state(lab: Lab, job: str, state: str) -> None:
    """Until SLURM says so."""
    wait_until(lambda: state_of(lab, job) == state, timeout_s=40, describe=lab.report)


# --- a cluster like a real one --------------------------------------------------------------


def test_every_node_is_idle_and_has_its_own_name_and_address(lab: Lab) -> None:
    assert lab.states() == dict.fromkeys(lab.nodes, "idle")
    names = lab.slurm("srun", f"-N{len(lab.nodes)}", "hostname").split()
    assert sorted(names) == lab.nodes
    for node in lab.nodes:
        assert lab.addresses[node] in lab.run(node, ["ip", "-o", "addr", "show", "eth0"]).stdout
        assert lab.addresses[node] in lab.run(CONTROLLER, ["getent", "hosts", node]).stdout


def test_a_job_has_the_cpus_that_it_asked_for(lab: Lab) -> None:
    script = "#!/bin/sh\necho $SLURM_CPUS_PER_TASK on $(hostname)\n"
    job = lab.submit(script, f"-c{CPUS}", "-wn2")
    wait_for_state(lab, job, "COMPLETED")
    assert (lab.directory / "log" / f"{job}.out").read_text() == f"{CPUS} on n2\n"


def test_a_job_is_told_which_gpus_it_has(lab: Lab) -> None:
    script = "#!/bin/sh\nsrun -N1 -n1 --gres=gpu:1 --exact sh -c 'echo step $CUDA_VISIBLE_DEVICES'\n"
    job = lab.submit(script + "echo job $CUDA_VISIBLE_DEVICES\n", f"--gres=gpu:{GPUS}")
    wait_for_state(lab, job, "COMPLETED")
    assert (lab.directory / "log" / f"{job}.out").read_text().splitlines() == ["step 0", "job 0,1"]


def test_a_job_sees_no_process_of_another_node(lab: Lab) -> None:
    job = lab.submit(SLEEPS, "-wn1")
    wait_until(lambda: "sleep 600" in lab.run("n1", ["ps", "ax"]).stdout, describe=lab.report)
    assert "sleep 600" not in lab.run("n2", ["ps", "ax"]).stdout
    lab.slurm("scancel", job)


def test_cancelling_ends_also_what_left_its_session(lab: Lab) -> None:
    if lab.proctrack != "cgroup":
        pytest.skip("takes proctrack/cgroup, which takes root and cgroups v1")
    job = lab.submit("#!/bin/sh\nsetsid sleep 601 &\nsleep 602\n")
    wait_until(lambda: {"sleep 601", "sleep 602"} <= {p.command for p in lab.strays()}, describe=lab.report)
    lab.slurm("scancel", job)
    wait_until(lambda: not lab.leftovers(), describe=lab.report)


# --- things that happen ---------------------------------------------------------------------


def test_a_job_of_a_crashed_node_is_run_again_elsewhere_once_slurm_notices(lab: Lab, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    job = lab.submit(SLEEPS_AND_NOTES.format(notes=notes), "--requeue")
    first = wait_until(lambda: notes.read_text().strip(), describe=lab.report)
    lab.crash(first)
    assert state_of(lab, job) == "RUNNING", "SLURM does not know yet"
    lab.declare_dead(first)
    wait_until(lambda: len(notes.read_text().split()) == 2, timeout_s=30, describe=lab.report)
    assert notes.read_text().split()[1] != first
    lab.slurm("scancel", job)


def test_a_crashed_node_boots_again(lab: Lab) -> None:
    lab.crash("n3")
    lab.declare_dead("n3")
    assert lab.states()["n3"].startswith("down")
    lab.boot("n3")
    wait_until(lambda: lab.states()["n3"] == "idle", describe=lab.report)


def test_a_cut_node_runs_on_in_silence(lab: Lab, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    job = lab.submit(f"#!/bin/sh\nwhile :; do echo >> {ticks}; sleep 0.1; done\n", "-wn1")
    wait_until(ticks.exists, describe=lab.report)
    lab.cut("n1")
    seen = ticks.stat().st_size
    wait_until(lambda: ticks.stat().st_size > seen, describe=lab.report)
    ping = [sys.executable, "-c", "import socket; socket.create_connection(('n1', 6818), 1)"]
    assert lab.run(CONTROLLER, ping, status=None).returncode != 0
    lab.mend("n1")
    wait_until(lambda: lab.run(CONTROLLER, ping, status=None).returncode == 0, describe=lab.report)
    lab.slurm("scancel", job)


@pytest.mark.limits
def test_a_time_limit_ends_a_job(lab: Lab) -> None:
    job = lab.submit(SLEEPS, "--time=1")
    wait_until(lambda: state_of(lab, job) == "TIMEOUT", timeout_s=100, describe=lab.report)


@pytest.mark.limits
def test_an_end_time_that_is_set_ends_a_job(lab: Lab) -> None:
    job = lab.submit(SLEEPS, "--time=10")
    wait_for_state(lab, job, "RUNNING")
    lab.set_end_time(job, in_s=2)
    wait_for_state(lab, job, "TIMEOUT")


def test_the_controller_goes_and_comes_back(lab: Lab) -> None:
    lab.stop_controller()
    assert lab.run(CONTROLLER, ["squeue"], status=None).returncode != 0
    lab.start_controller()
    wait_until(lambda: lab.run(CONTROLLER, ["squeue"], status=None).returncode == 0, describe=lab.report)


# --- nothing is left ------------------------------------------------------------------------


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A second lab, beside the one that the tests share."""
    try:
        lab = Lab.up(1)
    except Unavailable as reason:
        unavailable(reason)
    yield lab
    if lab.directory.exists():
        lab.down()


def namespaces() -> Set[str]:
    """The network and process namespaces that any process here is in."""
    found = set()
    for pid in psutil.pids():
        for kind in ("net", "pid"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue  # it has just ended, or is another user's
    return found


def test_nothing_is_left_after_down(own_lab: Lab) -> None:
    own_lab.submit("#!/bin/sh\nsetsid sleep 603 &\nexec sleep 604\n")
    sleeping = {"sleep 603", "sleep 604"}
    wait_until(lambda: sleeping <= {p.command for p in own_lab.strays()}, describe=own_lab.report)
    pids = {process.pid for host in own_lab.hosts.values() for process in host.processes()}
    inside = {os.readlink(f"/proc/{host.pid}/ns/net") for host in own_lab.hosts.values()}
    assert len(pids) > 5 and inside <= namespaces()
    own_lab.down()
    assert pids & {p.pid for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE} == set()
    assert inside & namespaces() == set()
    assert not own_lab.directory.exists()


HOLDS_A_LAB = """
import sys
from tests.slurm.lab import Lab
lab = Lab.up(1)
lab.submit("#!/bin/sh\\nexec sleep 605\\n")
print(lab.directory, *[host.pid for host in lab.hosts.values()], flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_after_the_test_run_was_killed(lab: Lab) -> None:
    command = [sys.executable, "-c", HOLDS_A_LAB]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as run:
        assert run.stdout is not None
        directory, *pids = run.stdout.readline().split()
        run.kill()
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids))
    sweep()  # as the next one does
    assert not Path(directory).exists() and lab.directory.exists()
