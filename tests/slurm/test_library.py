"""`SlurmCluster` and its kin in programs on the login host: what they offer, and that they end with these."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.hosts import Process, end
from tests.slurm.lab import Lab
from tests.slurm.users import SOON_S, User
from tests.waiting import wait_until

HEAD = """\
import os, sys, time
import cwmp

def node(number, seconds=0.0):
    time.sleep(seconds)
    return os.uname().nodename

def rows(cluster):
    return [row for row in cluster.status()["workers"] if not row["leaves"]]

def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)

"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a test's program goes."""
    return tmp_path / "program.py"


def run(user: User, source: Path, text: str, status: int = 0, **env: str) -> List[str]:
    """What a program prints that runs to its end."""
    source.write_text(HEAD + textwrap.dedent(text))
    return user.type(user.python, str(source), status=status, **env).stdout.splitlines()


@contextlib.contextmanager
def running(user: User, source: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has printed `ready` and stays."""
    source.write_text(HEAD + textwrap.dedent(text))
    process = user.lab.start(
        user.host,
        [user.python, str(source)],
        env=user.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        while said[-1] not in ("ready\n", ""):
            said.append(process.stdout.readline())
        assert said[-1], "".join(said)
        yield process
    finally:
        end(process)


def program_of(lab: Lab, source: Path) -> Process:
    """The program itself, and not what entered the host for it."""
    [found] = [process for process in lab.strays() if process.command.endswith(str(source))]
    return found


# --- what it offers -------------------------------------------------------------------------


def test_a_cluster_for_the_length_of_a_block(lab: Lab, user: User, source: Path) -> None:
    said = run(
        user,
        source,
        """
        with cwmp.SlurmCluster(n=2, cpus_per_worker=3, time="00:10:00") as cluster:
            with cluster.executor() as executor:
                print(*sorted(set(executor.map(node, range(60), [0.05] * 60))))
            results = {}
            with cluster.client(results.__setitem__) as client:
                client.submit("job", node, 1)
            print(len(results), cluster.status()["wanted"], sorted(row["slots"] for row in rows(cluster)))
            assert cwmp.slurm_master_host(cluster.name) == cluster.address
        try:
            cluster.executor()
        except cwmp.UsageError as error:
            print(error)
        """,
    )
    assert said == [
        "n1 n2",
        "1 2 [3, 3]",
        "this cluster is not running: use it in a `with` block, or call start()",
    ]
    assert lab.queue() == []
    assert not list((user.home / "slurm").glob("*.json"))


def test_its_size_is_changed_by_hand_and_by_itself(user: User, source: Path) -> None:
    run(
        user,
        source,
        """
        from cwmp.slurm import keeper
        keeper.GROW_S, keeper.IDLE_S = 1.0, 5.0
        with cwmp.SlurmCluster(n=1) as cluster:
            cluster.scale(3)
            wait_for(lambda: len(rows(cluster)) == 3)
            cluster.scale(1)
            wait_for(lambda: len(rows(cluster)) == 1)
            cluster.adapt(1, 4)
            with cluster.executor() as executor:
                futures = [executor.submit(node, number, 0.2) for number in range(100)]
                wait_for(lambda: len(rows(cluster)) == 4)
                assert {future.result() for future in futures} <= {"n1", "n2", "n3", "n4"}
            wait_for(lambda: len(rows(cluster)) == 1)
        """,
    )


def test_a_running_cluster_is_found(user: User, source: Path) -> None:
    user.start("--name", "night", workers=1)
    text = """
        with cwmp.SlurmExecutor("night") as executor:
            print(executor.submit(node, 1).result())
        with cwmp.ClusterExecutor(cwmp.slurm_master_host("night")) as executor:
            print(executor.submit(node, 1).result())
        with cwmp.SlurmExecutor() as executor:
            print(executor.submit(node, 1).result())
    """
    assert len(run(user, source, text, CWMP_NAME="night")) == 3
    user.stop("--name", "night")


def test_where_none_runs_the_error_says_what_slurm_says_and_what_to_type(
    lab: Lab, user: User, source: Path
) -> None:
    text = """
        try:
            cwmp.slurm_master_host()
        except cwmp.ConnectError as error:
            print(error)
    """
    [said] = run(user, source, text)
    assert said == (
        f"no master of cluster 'default' is published in {user.home}/clusters; "
        "cwmp-slurm has not started one: type cwmp-slurm --name default start"
    )
    blocker = lab.submit("#!/bin/sh\nexec sleep 600\n", "-N4", "--exclusive")
    wait_until(lambda: [job.state for job in lab.queue()] == ["RUNNING"], describe=lab.report)
    user.slurm("--wait", 0, "start")
    wait_until(lambda: "Resources" in str(lab.queue()), describe=lab.report)
    [said] = run(user, source, text)
    assert "PENDING (Resources: no node is free for it yet): wait for it" in said
    user.stop()
    lab.slurm("scancel", blocker)


def test_bad_options_are_refused_before_anything_is_submitted(lab: Lab, user: User, source: Path) -> None:
    said = run(
        user,
        source,
        """
        for options in ({"n": 0}, {"time": "soon"}, {"walltime": "1:00"}, {"setup": "a 'b"}, {"name": "-"}):
            for make in (cwmp.SlurmCluster, cwmp.allocate):
                try:
                    make(**{"n": 1, **options})
                except cwmp.UsageError as error:
                    print(error)
        """,
    )
    assert len(said) == 10, said
    assert "no option 'walltime' of a cluster on SLURM: use one of account, encrypt, gpus" in said[4]
    assert lab.queue() == []


def test_allocate_takes_slurm_where_there_is_one(user: User, source: Path) -> None:
    text = """
        for path in (os.environ["PATH"], "/nowhere"):
            os.environ["PATH"] = path
            with cwmp.allocate(2) as cluster, cluster.executor() as executor:
                print(type(cluster).__name__, executor.submit(node, 1).result())
    """
    assert run(user, source, text) == ["SlurmCluster n1", "LocalCluster login"]


# --- how it ends ----------------------------------------------------------------------------

STAYS = """
with cwmp.SlurmCluster(2, master="{master}") as cluster, cluster.executor() as executor:
    executor.submit(node, 1).result()
    executor.submit(time.sleep, 600)
    if {fork} and os.fork() == 0:
        time.sleep(600)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("master", ["here", "job"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_ends_with_its_program(lab: Lab, user: User, source: Path, master: str, number: int) -> None:
    with running(user, source, STAYS.format(master=master, fork=False)):
        os.kill(program_of(lab, source).pid, number)
        wait_until(lambda: not lab.leftovers(), timeout_s=SOON_S, describe=lab.report)
    assert not list((user.home / "slurm").glob("*.json"))


def test_a_fork_of_the_program_does_not_keep_it_alive(lab: Lab, user: User, source: Path) -> None:
    with running(user, source, STAYS.format(master="here", fork=True)):
        both = [process for process in lab.strays() if process.command.endswith(str(source))]
        assert len(both) == 2
        os.kill(min(process.pid for process in both), signal.SIGKILL)
        wait_until(lambda: not lab.queue(), timeout_s=SOON_S, describe=lab.report)
        os.kill(max(process.pid for process in both), signal.SIGKILL)


def test_the_master_ends_with_its_program_even_if_its_guardian_does(
    lab: Lab, user: User, source: Path
) -> None:
    with running(user, source, STAYS.format(master="here", fork=False)):
        [guardian] = [process for process in lab.strays() if "stop" in process.command.split()]
        os.kill(guardian.pid, signal.SIGKILL)
        os.kill(program_of(lab, source).pid, signal.SIGKILL)
        wait_until(
            lambda: not [process for process in lab.strays() if process.host == user.host],
            timeout_s=SOON_S,
            describe=lab.report,
        )
        [record] = (user.home / "slurm").glob("*.json")
        user.stop("--name", record.stem)  # else the workers would look for another master for a while


def test_an_interrupted_start_leaves_nothing(lab: Lab, user: User, source: Path) -> None:
    blocker = lab.submit("#!/bin/sh\nexec sleep 600\n", "-N4", "--exclusive")
    wait_until(lambda: [job.state for job in lab.queue()] == ["RUNNING"], describe=lab.report)
    text = """
        print("ready", flush=True)
        cwmp.SlurmCluster(2, master="job").start()
    """
    with running(user, source, text):
        wait_until(lambda: len(lab.queue()) == 4, describe=lab.report)
        os.kill(program_of(lab, source).pid, signal.SIGINT)
        wait_until(lambda: len(lab.queue()) == 1, timeout_s=SOON_S, describe=lab.report)
    lab.slurm("scancel", blocker)


def test_a_program_that_gets_no_worker_is_told_why(lab: Lab, user: User, source: Path) -> None:
    text = """
        from cwmp.slurm import cluster
        cluster.EXPLAIN_S = (3.0, 300.0)
        with cwmp.SlurmCluster(1, setup="module load nonesuch"):
            print("ready", flush=True)
            time.sleep(600)
    """
    with running(user, source, text) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(6)]
        assert "no worker of cluster program-" in said[0] and "1 wanted, 0 joined" in said[0]
        assert any("module load nonesuch" in line for line in said), said
        os.kill(program_of(lab, source).pid, signal.SIGKILL)
        wait_until(lambda: not lab.leftovers(), timeout_s=SOON_S, describe=lab.report)
