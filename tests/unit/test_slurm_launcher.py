"""Starting and stopping, with a SLURM in memory that does what it is told to, or not."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import pytest

from cwmp import encryption, rendezvous
from cwmp.errors import ConnectError, CwmpError, SlurmError, UsageError
from cwmp.slurm import allocation, commands, ending, launcher, masters, records, submission, waiting
from cwmp.slurm.commands import SlurmJob
from cwmp.slurm.options import Options

pytestmark = pytest.mark.core

OPTIONS = Options(name="x", workers=2, wait_s=5.0, encrypt="never")


class FakeSlurm:
    """Holds jobs in a dictionary; each new one begins in `state` for the reason `reason`."""

    def __init__(self) -> None:
        self.jobs: Dict[str, SlurmJob] = {}
        self.scripts: List[str] = []
        self.state, self.reason = "PENDING", "Resources"
        self.refuse_after = 99  # submissions
        self.deaf = 0  # questions that fail
        self.stuck = ""  # the state of what was cancelled and stays
        self.signals: List[str] = []
        self.on_queue: List[object] = []  # raised at the next questions

    def submit(self, script: str, options: Sequence[str] = ()) -> str:
        if len(self.scripts) >= self.refuse_after:
            raise SlurmError("sbatch failed with status 1: Invalid account")
        self.scripts.append(script)
        job = str(100 + len(self.scripts))
        [count] = [line for line in script.splitlines() if "--array" in line] or [""]
        name = script.partition("--job-name=")[2].partition("\n")[0]
        tasks: List[Optional[int]] = list(range(int(count.rpartition("-")[2]) + 1)) if count else [None]
        for task in tasks:
            node = "n1" if self.state == "RUNNING" else ""
            one = SlurmJob(job, task, self.state, self.reason, node=node, name=name)
            self.jobs[one.id] = one
        return job

    def queue(self, jobs: Sequence[str], **_: float) -> List[SlurmJob]:
        if self.on_queue:
            raise self.on_queue.pop()  # type: ignore[misc]
        if self.deaf:
            self.deaf -= 1
            raise SlurmError("squeue timed out after 60 s")
        return [job for job in self.jobs.values() if job.job in jobs or job.id in jobs]

    def ended(self, job: str) -> Optional[SlurmJob]:
        return self.jobs.get(job)

    def cancel(self, jobs: Sequence[str]) -> None:
        for job in self.queue(jobs):
            if self.stuck:
                self.jobs[job.id] = replace(job, state=self.stuck, nodes="n7")
            else:
                del self.jobs[job.id]

    def cancel_waiting(self, jobs: Sequence[str]) -> None:
        for job in self.queue(jobs):
            if job.waits:
                del self.jobs[job.id]

    def signal(self, jobs: Sequence[str], name: str = "TERM", *, steps: bool = False) -> None:
        self.signals += jobs


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM in memory instead of on the PATH, and no long waits for it."""
    fake = FakeSlurm()
    for name in ("submit", "queue", "ended", "cancel", "cancel_waiting", "signal"):
        monkeypatch.setattr(commands, name, getattr(fake, name))
    monkeypatch.setattr(commands, "available", lambda: True)
    for name in ("LEAVE_S", "MASTER_S", "COMPLETING_S", "GONE_S"):
        monkeypatch.setattr(ending, name, 0.2)
    monkeypatch.setattr(waiting, "_ASK_S", (0.05, 0.05))
    return fake


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that is published as soon as its job was submitted, and answers."""
    submit_master = submission.submit_master

    def publishing(pool: records.Pool) -> str:
        job = submit_master(pool)
        rendezvous.publish(rendezvous.Cluster.of_this_process("x", "127.0.0.1", 4711, b"k"))
        return job

    monkeypatch.setattr(submission, "submit_master", publishing)
    monkeypatch.setattr(masters, "call", lambda cluster, method, *args: {"workers": []})


def silent(line: str) -> None:
    """Says nothing."""


# --- start ----------------------------------------------------------------------------------


def test_the_master_comes_first_and_all_is_recorded(slurm: FakeSlurm, answering: None) -> None:
    said: List[str] = []
    pool = launcher.start(OPTIONS, said.append)
    assert [script.splitlines()[1] for script in slurm.scripts] == [
        "# The master of the cwmp cluster x, as submitted by cwmp-slurm.",
        "# 2 workers of the cwmp cluster x, as submitted by cwmp-slurm.",
    ]
    assert records.load("x") == pool
    assert (pool.master_job, [group.job for group in pool.groups], pool.wanted) == ("101", ["102"], 2)
    assert said[:2] == ["submitted the master: job 101", "submitted 2 workers of 1 slot: job array 102"]
    assert said[-1] == "the master answers on 127.0.0.1:4711"


@pytest.mark.parametrize("layout", ["array", "job"])
def test_what_cannot_be_encrypted_is_not_submitted(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)
    with pytest.raises(UsageError, match="Python 3.13 or newer .*--tls-cert.* CWMP_ENCRYPT=never"):
        launcher.start(replace(OPTIONS, encrypt="auto", layout=layout), silent)
    assert (slurm.scripts, records.load("x")) == ([], None)


def test_nor_is_it_begun_in_an_allocation_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the only node of one, nothing leaves it."""
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)
    monkeypatch.setattr(allocation, "allocated_nodes", lambda: ["n1", "n2"])
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    begun: List[object] = []
    monkeypatch.setattr(allocation, "_Step", lambda *given: begun.append(given))
    with pytest.raises(UsageError, match="what goes from node to node must be encrypted"):
        allocation.Allocation("x", silent).__enter__()
    assert begun == []
    assert allocation._is_this(["n1"]) and not allocation._is_this(["n2"])


def test_certificates_and_a_trusted_network_will_do(
    slurm: FakeSlurm, answering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)
    paths = {"tls_cert": "/c", "tls_key": "/k", "tls_ca": "/a"}
    launcher.start(replace(OPTIONS, encrypt="auto", **paths), silent)
    assert "--encrypt auto --tls-cert /c --tls-key /k --tls-ca /a" in slurm.scripts[0]
    slurm.jobs.clear()
    rendezvous.withdraw(rendezvous.clusters()[0])
    launcher.start(replace(OPTIONS, name="y", encrypt="never", wait_s=0.0), silent)
    assert all("--encrypt never" in script for script in slurm.scripts[2:])


def test_not_waiting(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    assert len(slurm.jobs) == 3


def test_a_second_start_is_refused_with_what_runs(slurm: FakeSlurm) -> None:
    slurm.state = "RUNNING"
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    with pytest.raises(CwmpError, match="'x' runs already: master job 101 RUNNING on n1, 2 workers RUNNING"):
        launcher.start(OPTIONS, silent)
    assert len(slurm.scripts) == 2


def test_what_has_ended_is_no_obstacle(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    slurm.jobs = {name: replace(job, state="CANCELLED") for name, job in slurm.jobs.items()}
    pool = launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    assert pool.jobs() == ["103", "104"]


def test_who_cannot_ask_slurm_does_not_start_again(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    slurm.deaf = 1
    with pytest.raises(SlurmError, match="timed out"):
        launcher.start(OPTIONS, silent)
    assert len(slurm.scripts) == 2 and records.load("x") is not None


def test_a_cluster_of_another_kind_has_the_name(slurm: FakeSlurm) -> None:
    rendezvous.publish(rendezvous.Cluster.of_this_process("x", "127.0.0.1", 4711, b"k"))
    with pytest.raises(CwmpError, match=f"was not started by cwmp-slurm: .* pid {os.getpid()}"):
        launcher.start(OPTIONS, silent)
    assert slurm.scripts == []


def test_refused_workers_take_the_master_along(slurm: FakeSlurm) -> None:
    slurm.refuse_after = 1
    with pytest.raises(CwmpError, match=r"'x' did not start: sbatch failed .* Invalid account$"):
        launcher.start(OPTIONS, silent)
    assert slurm.jobs == {} and records.load("x") is None


def test_a_start_that_waits_too_long_says_for_what_and_leaves_nothing(slurm: FakeSlurm) -> None:
    said: List[str] = []
    with pytest.raises(CwmpError, match=r"no master within 0\.5 s: job 101 is PENDING \(Resources: no node"):
        launcher.start(replace(OPTIONS, wait_s=0.5), said.append)
    waits = "waiting for the master: job 101 is PENDING (Resources: no node is free for it yet)"
    assert said.count(waits) == 1, "once, until it changes"
    assert slurm.jobs == {} and records.load("x") is None


def test_a_master_that_fails_is_told_with_its_log(slurm: FakeSlurm, cwmp_home: Path) -> None:
    slurm.state, slurm.reason = "FAILED", "NonZeroExitCode"
    logs = cwmp_home / "logs"
    logs.mkdir(mode=0o700, parents=True)
    cwmp_home.chmod(0o700)
    (logs / "x-master-101.log").write_text("first\nmodule: command not found\n")
    with pytest.raises(CwmpError) as caught:
        launcher.start(OPTIONS, silent)
    assert str(caught.value) == (
        "cluster 'x' did not start: the master's job 101 ended as FAILED (NonZeroExitCode) on "
        f"nowhere (its log {logs}/x-master-101.log ends: | first | module: command not found)"
    ).replace(" on nowhere", "")
    assert records.load("x") is None


def test_a_squeue_that_fails_is_no_end_of_the_master(slurm: FakeSlurm) -> None:
    said: List[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            slurm.deaf = 1

    with pytest.raises(CwmpError, match="no master within 1 s"):
        launcher.start(replace(OPTIONS, wait_s=1.0), say)
    assert any("SLURM does not tell: squeue timed out" in line for line in said)


def test_what_cannot_be_cancelled_is_told_and_stays_recorded(slurm: FakeSlurm) -> None:
    slurm.state, slurm.stuck = "RUNNING", "RUNNING"
    stays = r"may still be there \(.*101 \(RUNNING on n7\).*cwmp-slurm --name x stop"
    with pytest.raises(CwmpError, match=stays):
        launcher.start(replace(OPTIONS, wait_s=0.3), silent)
    pool = records.load("x")
    assert pool is not None and pool.stopping


def test_ctrl_c_while_waiting_leaves_nothing(slurm: FakeSlurm) -> None:
    said: List[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.start(OPTIONS, say)
    assert said[-1] == "cluster 'x' was not started, and nothing of it stays"
    assert slurm.jobs == {} and records.load("x") is None


def test_a_signal_during_a_submission_waits_until_it_is_recorded(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = slurm.submit

    def interrupted(script: str, options: Sequence[str] = ()) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return submit(script, options)

    monkeypatch.setattr(commands, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launcher.start(OPTIONS, silent)
    assert len(slurm.scripts) == 1, "the master was submitted, and found again to be cancelled"
    assert slurm.jobs == {} and records.load("x") is None


def test_other_threads_than_the_main_one_can_start(slurm: FakeSlurm) -> None:
    thread = threading.Thread(target=launcher.start, args=(replace(OPTIONS, wait_s=0.0), silent))
    thread.start()
    thread.join()
    assert len(slurm.jobs) == 3


def test_a_submission_of_unknown_outcome_says_where_to_look(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(script: str, options: Sequence[str] = ()) -> str:
        raise SlurmError("sbatch --parsable timed out after 60 s")

    monkeypatch.setattr(commands, "submit", unsure)
    with pytest.raises(CwmpError, match="queue all the same: look with squeue --me --name=cwmp-x-master"):
        launcher.start(OPTIONS, silent)


# --- stop -----------------------------------------------------------------------------------


def test_stop_goes_by_the_recorded_ids(slurm: FakeSlurm) -> None:
    slurm.submit("#SBATCH --array=0-4\n")
    slurm.state = "RUNNING"
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    launcher.stop("x", silent)
    assert slurm.signals == ["103", "102"], "the workers are asked first, then the master"
    assert {job.job for job in slurm.jobs.values()} == {"101"}, "somebody else's"
    assert records.load("x") is None


def test_jobs_that_have_only_inherited_an_id_are_left_alone(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    slurm.jobs = {"102": SlurmJob("102", None, "RUNNING", name="precious")}
    said: List[str] = []
    launcher.stop("x", said.append)
    assert said == ["SLURM has another job under the id 102 by now: that is left alone"]
    assert list(slurm.jobs) == ["102"] and slurm.signals == [] and records.load("x") is None


def test_nothing_is_submitted_for_a_cluster_that_is_being_stopped(slurm: FakeSlurm) -> None:
    pool = launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    pool.stopping = True
    with pytest.raises(CwmpError, match="is being stopped"):
        submission.submit_workers(pool, 1)


def test_what_does_not_go_is_named(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    slurm.jobs = {name: replace(job, state="RUNNING") for name, job in slurm.jobs.items()}
    slurm.stuck = "RUNNING"
    with pytest.raises(CwmpError, match="still has .* 101 .RUNNING on n7., 102_0 .*; stop it again"):
        launcher.stop("x", silent)
    slurm.stuck = ""
    launcher.stop("x", silent)
    assert slurm.jobs == {} and records.load("x") is None


def test_a_node_that_does_not_confirm_holds_nobody_up(slurm: FakeSlurm) -> None:
    slurm.state, slurm.stuck = "RUNNING", "COMPLETING"
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    said: List[str] = []
    launcher.stop("x", said.append)
    assert said[-1] == "SLURM has cancelled 3 jobs and waits for n7 to confirm (COMPLETING)"
    assert records.load("x") is None


def test_a_slurm_that_does_not_answer_is_not_taken_for_an_end(slurm: FakeSlurm) -> None:
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    slurm.deaf = 1
    with pytest.raises(SlurmError):
        launcher.stop("x", silent)
    assert records.load("x") is not None
    launcher.stop("x", silent)
    assert slurm.jobs == {}


def test_busy_workers_get_their_time_and_lost_ones_are_not_waited_for(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.state = "RUNNING"
    pool = launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    status = {"workers": [{"slurm_job": "102_0"}]}
    monkeypatch.setattr(masters, "status", lambda name: status)
    assert ending._at_work(pool, [slurm.jobs["102_0"], slurm.jobs["102_1"]])
    assert not ending._at_work(pool, [slurm.jobs["102_1"]])

    def unreachable(name: str) -> None:
        raise ConnectError("refused")

    monkeypatch.setattr(masters, "status", unreachable)
    assert not ending._at_work(pool, [slurm.jobs["102_0"]])


def test_stopping_what_is_not_there(slurm: FakeSlurm) -> None:
    with pytest.raises(CwmpError, match="no cluster 'y' was started .*: cwmp-slurm --name y start"):
        launcher.stop("y", silent)
    launcher.start(replace(OPTIONS, wait_s=0.0), silent)
    with pytest.raises(CwmpError, match="there is x: --name x"):
        launcher.stop("y", silent)
