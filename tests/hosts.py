"""Hosts on one machine: a process holds the namespaces of each, and a bridge joins them.

All in an unprivileged user namespace where this process is not root. Everything is anonymous: it has no
name on the machine, so any number of labs run side by side, and it goes when its processes do.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

import psutil

_INIT = Path(__file__).with_name("host_init.py")
_READY_S = 10.0
_PRIVILEGED = os.geteuid() == 0


class HostFailed(Exception):
    """A host could not be made; the text says what the system answered."""


class Process(NamedTuple):
    """One process of a host, as seen from outside."""

    host: str
    pid: int
    command: str


class Host:
    """One host. The first is made from the machine, the others from the first: it sees their processes.

    With `own_memory` its /dev/shm is its own, so that nothing passes between hosts but over the network.
    """

    def __init__(
        self, name: str, hosts_file: Path, *, base: Optional[Host] = None, own_memory: bool = False
    ) -> None:
        self.name = name
        unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--uts", "--mount"]
        if base is None and not _PRIVILEGED:
            unshare += ["--user", "--map-root-user"]
        self.pid = 0
        enter = base.entering(as_root=True) if base else []
        init = [sys.executable, "-I", "-S", str(_INIT), name, str(hosts_file)]
        self._holder = subprocess.Popen(
            [*enter, *unshare, *init, *(["own-memory"] if own_memory else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        self.pid = psutil.Process(self._holder.pid).children(recursive=True)[-1].pid
        self._namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        self.own = {process.pid for process in descendants(self._holder)}
        """The processes that hold this host (some of them on the first one)."""

    def _wait_until_ready(self) -> None:
        assert self._holder.stdout is not None and self._holder.stderr is not None
        deadline = time.monotonic() + _READY_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._holder.stdout, selectors.EVENT_READ)
            while not selector.select(deadline - time.monotonic()):
                if time.monotonic() > deadline:
                    raise HostFailed(f"host {self.name} was not ready within {_READY_S:g} s")
        if self._holder.stdout.readline() != b"ready\n":
            raise HostFailed(f"host {self.name}: {self._holder.stderr.read().decode().strip()}")

    def entering(self, *, as_root: bool = False, account: Optional[pwd.struct_passwd] = None) -> List[str]:
        """The command that runs the rest of its arguments on this host.

        Who is not root on this machine stays itself there, unless `as_root` (which may set up networks).
        """
        enter = ["nsenter", "--target", str(self.pid), "--pid", "--net", "--uts", "--mount"]
        if _PRIVILEGED:
            return enter + ([f"--setuid={account.pw_uid}", f"--setgid={account.pw_gid}"] if account else [])
        enter += ["--user", "--preserve-credentials"]
        if not as_root:
            enter += ["unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
        return enter

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[Path] = None,
        as_root: bool = False,
        account: Optional[pwd.struct_passwd] = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Run a command on this host. The process returned is the one that waits for it, here: see `end`."""
        enter = self.entering(as_root=as_root, account=account)
        command = [*enter, "env", f"--chdir={cwd or Path.cwd()}", *argv]
        return subprocess.Popen(command, env=env, text=True, start_new_session=True, **options)

    def processes(self) -> Iterator[Process]:
        """What runs on this host, but its process 1."""
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError, psutil.Error):  # it has just ended
                if pid != self.pid and os.readlink(f"/proc/{pid}/ns/pid") == self._namespace:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        yield Process(self.name, pid, " ".join(process.cmdline()) or process.name())

    def kill(self) -> None:
        """End the host as a power cut does: the kernel kills all that runs there, at once."""
        # Process 1 first: with it goes the whole host in one go, so that nobody there sees others die.
        for process in sorted(descendants(self._holder), key=lambda process: process.pid != self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._holder.kill()
        self._holder.wait()
        for stream in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            assert stream is not None
            stream.close()


def descendants(process: subprocess.Popen) -> List[psutil.Process]:  # type: ignore[type-arg]
    """What a process started and what these started; none where it has ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command that was started on a host, and what it started there."""
    for child in descendants(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.communicate()


class Network:
    """The bridge on the first host that the others hang on; each has one link, 10.77.0.x, by name."""

    def __init__(self, base: Host, addresses: Dict[str, str]) -> None:
        self._base = base
        self._addresses = addresses
        self._ip("link", "add", "lan", "type", "bridge")
        self._ip("addr", "add", f"{addresses[base.name]}/24", "dev", "lan")
        self._ip("link", "set", "lan", "up")

    def plug(self, host: Host) -> None:
        """Give a host that has none its link."""
        wire = f"to-{host.name}"
        # A move by pid: the host's network has no name. The pid is one of the base's, where `ip` runs.
        self._ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", self._pid_inside(host))
        self._ip("link", "set", wire, "master", "lan", "up")
        self._ip("addr", "add", f"{self._addresses[host.name]}/24", "dev", "eth0", on=host)
        self._ip("link", "set", "eth0", "up", on=host)

    def switch(self, host: Host, state: str) -> None:
        """Take a host's link `up` or `down`, at the bridge: the host itself sees only silence."""
        self._ip("link", "set", f"to-{host.name}", state)

    def _ip(self, *arguments: str, on: Optional[Host] = None) -> None:
        enter = (on or self._base).entering(as_root=True)
        done = subprocess.run([*enter, "ip", *arguments], capture_output=True, text=True, timeout=_READY_S)
        if done.returncode:
            raise HostFailed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    @staticmethod
    def _pid_inside(host: Host) -> str:
        """The host's process 1 as the base numbers it: the last but one of its pids."""
        for line in Path(f"/proc/{host.pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-2]
        raise HostFailed("the kernel does not tell the pids of a namespace")
