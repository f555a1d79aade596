"""Clusters whose large values travel, what is on their shelves, and what is left of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List

from cwmp import LocalCluster
from tests.faults import processes as see
from tests.waiting import wait_until

PREFIX = f"cwmp-{os.geteuid()}-"


class LimitedCluster(LocalCluster):
    """A LocalCluster that keeps at most `limit` bytes of large values."""

    def __init__(self, n: int, limit: int) -> None:
        super().__init__(n)
        self._limit = limit

    def _listing(self) -> List[str]:
        return [*super()._listing(), "--blob-limit", str(self._limit)]


def store(cluster: LocalCluster) -> Dict[str, Any]:
    """What the master says of its large values."""
    answer: Dict[str, Any] = see.status(cluster)["blobs"]
    return answer


def files(directory: str) -> List[str]:
    """The blobs on a shelf."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(n for n in os.listdir(directory) if n != "owner" and not n.startswith("."))
    return []


def shelves(parent: str = "") -> List[str]:
    """The shelves of this user, in the usual places or in `parent`."""
    found = []
    for place in [parent] if parent else ["/dev/shm", tempfile.gettempdir()]:
        with contextlib.suppress(FileNotFoundError):
            found += [os.path.join(place, name) for name in os.listdir(place) if name.startswith(PREFIX)]
    return found


def wait_for_no_shelf(*paths: str) -> None:
    """Until none of these is there."""
    wait_until(
        lambda: not any(os.path.exists(path) for path in paths),
        timeout_s=see.SOON_S,
        describe=lambda: str([(path, files(path)) for path in paths]),
    )


@contextlib.contextmanager
def worker_away(
    cluster: LocalCluster, directory: Path, *, slots: int = 2, grace_s: float = 0.5
) -> Iterator[int]:
    """A worker that keeps large values of its own in `directory`, as on another machine; yields its pid."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cwmp", "worker", cluster.address, "--procs", str(slots)]
    environment = {**os.environ, "CWMP_AUTHKEY": cluster.authkey.decode()}
    worker = subprocess.Popen(
        [*command, "--grace", str(grace_s), "--blob-dir", str(directory)],
        env=environment,
        cwd=see.ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: worker.pid in [known["pid"] for known in see.status(cluster)["workers"]],
            timeout_s=see.SOON_S,
        )
        yield worker.pid
    finally:
        worker.terminate()
        try:
            worker.wait(see.SOON_S)
        finally:
            worker.kill()
            worker.wait()
