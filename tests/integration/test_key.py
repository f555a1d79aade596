"""The key of a cluster: nowhere but where it must be, and replaced when that is asked for."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import psutil
import pytest

from cwmp import ClientThread, ClusterExecutor, LocalCluster, WrongKey, home, rendezvous
from cwmp.slurm import commands, records, submission
from cwmp.slurm.options import Options

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
SECRET = "sesame-5f1e3a"
SHAPES = (SECRET, SECRET.encode().hex())
SOON_S = 30.0


def holds_key(text: str) -> bool:
    return any(shape in text for shape in SHAPES)


def environment_of_a_job() -> Tuple[Dict[str, str], str]:
    """Its own, and that of a program which it starts."""
    return dict(os.environ), subprocess.run(["env"], capture_output=True, text=True, check=True).stdout




def cwmp(*arguments: str, status: int = 0, **variables: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cwmp", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[rendezvous.Cluster]:
    """Started with the key in the environment, with a second worker that was started by hand."""
    monkeypatch.setenv("CWMP_AUTHKEY", SECRET)
    cwmp("local", "start", "-n", "1")
    worker = subprocess.Popen(
        [sys.executable, "-m", "cwmp", "worker", "--procs", "1"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and "connected to" in worker.stdout.readline()
        found = rendezvous.find_cluster()
        assert found is not None
        yield found
    finally:
        worker.terminate()
        said = worker.communicate(timeout=SOON_S)[0]
        cwmp("local", "stop")
    assert not holds_key(said)


def test_the_key_is_nowhere_to_be_seen(
    cluster: rendezvous.Cluster, cwmp_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ClusterExecutor() as executor:
        environments = [executor.submit(environment_of_a_job) for _ in range(8)]
        shown = [str(one.result(SOON_S)) for one in environments]
        shown += [repr(executor), str(vars(executor))]
    with pytest.raises(WrongKey) as caught, ClusterExecutor(authkey="another"):
        pass
    shown += [str(caught.getrepr(showlocals=False, style="native")), str(caught.value)]
    with ClientThread(print) as client:
        shown += [repr(client)]
    shown += [repr(cluster), repr(rendezvous.find())]
    shown += [cwmp("status"), cwmp("status", "--json"), cwmp("local", "status")]
    shown += [cwmp("status", status=1, CWMP_AUTHKEY=SECRET + "x")]
    for process in psutil.process_iter(["cmdline"]):
        shown += process.info["cmdline"] or []
    shown += [path.read_text() for path in (cwmp_home / "logs").iterdir()]
    shown += [caplog.text]
    assert [text for text in shown if holds_key(text)] == []
    keepers = [path.name for path in cwmp_home.rglob("*") if path.is_file() and holds_key(path.read_text())]
    assert keepers == ["default.json"]
    assert (cwmp_home / "clusters" / "default.json").stat().st_mode & 0o777 == 0o600


def test_the_key_of_a_local_cluster_is_nowhere_either() -> None:
    with LocalCluster(1) as cluster, cluster.executor() as executor:
        key = cluster.authkey.decode()
        shown = [repr(cluster), str(executor.submit(environment_of_a_job).result(SOON_S))]
        for process in psutil.process_iter(["cmdline"]):
            shown += process.info["cmdline"] or []
        for pid in (cluster.pids["master"], *cluster.pids["workers"]):
            shown += psutil.Process(pid).environ().values()
    assert [text for text in shown if key in text] == []


# --- SLURM ----------------------------------------------------------------------------------

SBATCH = """#!/bin/sh
{ echo "$@"; env; cat; } >> "$SEEN"
echo 17
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the sbatch on the path was given: arguments, environment and script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def test_slurm_never_gets_the_key(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_AUTHKEY", SECRET)
    pool = records.Pool(options=Options(name="c"), node="here", started_at=0.0, wanted=2)
    submission.submit_master(pool)
    submission.submit_workers(pool, 2)
    given = seen.read_text()
    assert given.count("exec ") == 2 and not holds_key(given)
    assert "CWMP_AUTHKEY" not in commands.environment()
    # But master and workers find it:
    path = records.key_path("c")
    assert given.count(f"--authkey-file {path}") == 2
    assert home.read_key_file(path) == SECRET.encode()
    assert path.stat().st_mode & 0o777 == 0o600
    records.remove(pool)
    assert not path.exists()


# --- a new key ------------------------------------------------------------------------------


def test_a_new_key() -> None:
    old = home.home_key()
    master = subprocess.Popen(
        [sys.executable, "-m", "cwmp", "master", "--host", "127.0.0.1", "--port", "0", "--new-key"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert master.stdout is not None and "listening on" in master.stdout.readline()
        new = home.home_key()
        assert new != old and len(new) == 32
        assert (home.home() / "authkey").stat().st_mode & 0o777 == 0o600
        cwmp("status")
        cluster: Any = rendezvous.find_cluster()
        assert cluster.authkey == new
        with pytest.raises(WrongKey):
            ClusterExecutor("127.0.0.1", cluster.port, authkey=old)
        assert "runs with the old key: stop it first" in cwmp("master", "--new-key", status=2)
        assert home.home_key() == new
    finally:
        master.send_signal(signal.SIGTERM)
        assert master.wait(SOON_S) == 0
        master.stdout.close()  # type: ignore[union-attr]


SOURCES: List[Tuple[List[str], Dict[str, str]]] = [
    (["--authkey", "x"], {}),
    (["--authkey-file", "x"], {}),
    ([], {"CWMP_AUTHKEY": "x"}),
    ([], {"CWMP_AUTHKEY_FILE": "x"}),
]


@pytest.mark.parametrize(("arguments", "variables"), SOURCES)
def test_a_new_key_beside_another_is_refused(arguments: List[str], variables: Dict[str, str]) -> None:
    old = home.home_key()
    said = cwmp("master", "--port", "0", "--new-key", *arguments, status=2, **variables)
    assert "--new-key changes the key in" in said
    assert home.home_key() == old
