"""A private SLURM of several nodes on this machine, up in a second and gone without a trace.

Each node is a host with an own name, address and process tree (see hosts.py). The users' commands run on the
host `login`, where the controller is. The file system is the machine's, so it is shared as on a real cluster.

    lab = Lab.up(3)
    lab.run("login", ["srun", "-N3", "hostname"]).stdout   # n1 n2 n3
    lab.down()
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from cwmp.encryption import psk_is_possible
from tests.hosts import Host, HostFailed, Network, Process, end
from tests.slurm.config import CONTROLLER, addresses, cgroup_conf, gres_conf, slurm_conf
from tests.waiting import wait_until

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "ip", "unshare", "nsenter")
_SEARCHED = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_DAEMONS = re.compile(r"(: slurmscriptd|(\S*/)?(munged|slurmctld|slurmd))( |$)")
_NOISE = re.compile(r"pmi|debug levels|signature plugin|Unauthorized credential")
_PLACE, _PREFIX = Path("/tmp"), "slurm-lab-"
_FREEZER = Path("/sys/fs/cgroup/freezer")
_PRIVILEGED = os.geteuid() == 0


class Unavailable(Exception):
    """This machine cannot have a lab; the text says why."""


class Job(NamedTuple):
    """One line of squeue: a job, or one element of an array that has been started."""

    id: str
    name: str
    state: str
    node: str
    reason: str


class Lab:
    """The running cluster. `up` makes one; `down` is to be called whatever happens."""

    def __init__(self, nodes: int, proctrack: str) -> None:
        # A short path that all may enter: munge and SLURM keep sockets in it, and other users use them, too.
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PLACE))
        self.directory.chmod(0o755)
        self._lock = open(self.directory / "lock", "w")  # held as long as the lab is up
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.addresses = addresses(nodes)
        self.nodes = [name for name in self.addresses if name != CONTROLLER]
        self.proctrack = proctrack
        self.hosts: Dict[str, Host] = {}
        self._hosts_file = self.directory / "hosts"
        self._network: Optional[Network] = None
        self._freezer = _FREEZER / self.directory.name

    # --- up and down ------------------------------------------------------------------------

    @classmethod
    def up(cls, nodes: int, *, proctrack: Optional[str] = None) -> Lab:
        """Start one and wait until all nodes are idle.

        proctrack: how SLURM finds a job's processes; "cgroup" as in production where this machine lets us.
        Raises `Unavailable` where there can be none, and what went wrong where there should be one.
        """
        missing = [name for name in NEEDED if not shutil.which(name, path=_SEARCHED)]
        if missing:
            packages = "slurmctld slurmd slurm-client munge iproute2"
            raise Unavailable(f"no {', '.join(missing)} here (Debian has them in {packages})")
        sweep()
        lab = cls(nodes, proctrack or ("cgroup" if _freezer_is_ours() else "pgid"))
        try:
            lab._start()
        except BaseException:
            lab.down()
            raise
        return lab

    def _start(self) -> None:
        self._write_configuration()
        try:
            login = self.hosts[CONTROLLER] = Host(CONTROLLER, self._hosts_file)
            self._network = Network(login, self.addresses)
        except HostFailed as error:
            raise Unavailable(f"no namespaces for hosts here: {error}") from None
        self._start_munge()
        self.start_controller()
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(self.boot, self.nodes))
        wait_until(self._all_idle, timeout_s=30, describe=self.report)

    def _write_configuration(self) -> None:
        directory = self.directory
        for name in ("state", "spool", "log", "run"):
            (directory / name).mkdir()
        for name in self.nodes:
            (directory / "spool" / name).mkdir()
        hosts = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        self._hosts_file.write_text(f"127.0.0.1 localhost\n{hosts}")
        user = pwd.getpwuid(os.geteuid()).pw_name
        (directory / "slurm.conf").write_text(slurm_conf(directory, self.addresses, user, self.proctrack))
        (directory / "gres.conf").write_text(gres_conf())
        if self.proctrack == "cgroup":
            # Paths below a freezer are machine-wide. A part of its own keeps labs apart.
            self._freezer.mkdir()
            (directory / "cgroup").mkdir()
            (directory / "cgroup" / "freezer").symlink_to(self._freezer)
            (directory / "cgroup.conf").write_text(cgroup_conf(directory / "cgroup"))

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {
            "socket": "run/munge.sock",
            "key-file": "munge.key",
            "log-file": "log/munged.log",
            "pid-file": "run/munged.pid",
            "seed-file": "run/munged.seed",
        }
        options = [f"--{option}={self.directory / file}" for option, file in files.items()]
        self._daemon(CONTROLLER, "munged", "--force", *options)

    def down(self) -> None:
        """End every process of the lab and remove its directory. Its network goes with its last process."""
        for name in reversed(list(self.hosts)):  # the first holds the others
            self.hosts.pop(name).kill()
        _remove(self.directory)
        self._lock.close()

    def boot(self, node: str) -> None:
        """Start a node, or start it again after `crash`."""
        assert self._network and node not in self.hosts, node
        host = Host(node, self._hosts_file, base=self.hosts[CONTROLLER])
        self.hosts[node] = host
        self._network.plug(host)
        self._daemon(node, "slurmd", "-N", node)

    def crash(self, node: str) -> None:
        """Power a node off: nobody is told."""
        self.cut(node)
        self.shut_down(node)

    def shut_down(self, node: str) -> None:
        """Kill all that runs on a node. Its peers see their connections closed."""
        self.hosts.pop(node).kill()

    def cut(self, node: str) -> None:
        """Pull a node's network cable. What runs on it goes on."""
        assert self._network
        self._network.switch(self.hosts[node], "down")

    def mend(self, node: str) -> None:
        """Plug the cable in again."""
        assert self._network
        self._network.switch(self.hosts[node], "up")

    def stop_controller(self) -> None:
        """SLURM's commands have nobody to talk to; nodes and jobs go on."""
        self.slurm("scontrol", "shutdown", "slurmctld")
        controller = self.hosts[CONTROLLER]
        wait_until(lambda: not any(p.command.startswith("slurmctld") for p in controller.processes()))

    def start_controller(self) -> None:
        """It goes on from what it saved."""
        self._daemon(CONTROLLER, "slurmctld")

    # --- running commands -------------------------------------------------------------------

    def environment(self, extra: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
        """This process's environment, as a user of the lab would have it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        if not psk_is_possible():
            kept["CWMP_ENCRYPT"] = "never"
        return {**kept, "PATH": _SEARCHED, "SLURM_CONF": str(self.directory / "slurm.conf"), **(extra or {})}

    def start(
        self,
        host: str,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[Path] = None,
        user: Optional[str] = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command on a host, as that user (the one who runs the tests). `hosts.end` kills it."""
        account = None if user is None else pwd.getpwnam(user)
        return self.hosts[host].start(argv, env=self.environment(env), cwd=cwd, account=account, **options)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[Path] = None,
        user: Optional[str] = None,
        status: Optional[int] = 0,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, within `timeout_s`, with that exit status (None: any)."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(host, argv, env=env, cwd=cwd, user=user, **streams)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            end(process)
            raise
        what = f"{' '.join(argv)}\n{output}\n{errors}"
        assert status is None or process.returncode == status, f"exit {process.returncode}: {what}"
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def _daemon(self, host: str, command: str, *arguments: str) -> None:
        """Start a program that goes to the background by itself."""
        process = self.start(
            host,
            [command, *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        status = process.wait(20)
        assert status == 0, f"{command} on {host}: exit {status}\n{self.report()}"

    # --- asking and telling SLURM -----------------------------------------------------------

    def slurm(self, *argv: str) -> str:
        """What one of SLURM's commands prints on the login host."""
        return self.run(CONTROLLER, argv).stdout

    def queue(self, *options: str) -> List[Job]:
        """Every job that has not ended, or those that the options of squeue select."""
        lines = self.slurm("squeue", "-h", "-r", "-o", "%i|%j|%T|%N|%r", *options).splitlines()
        return [Job(*line.split("|")) for line in lines]

    def submit(self, script: str, *options: str, env: Optional[Mapping[str, str]] = None) -> str:
        """Submit a batch script by its text; its id. Its output goes to log/ID.out of the lab's directory."""
        file = self.directory / "script.sh"
        file.write_text(script)
        output = f"--output={self.directory}/log/%j.out"
        argv = ["sbatch", "--parsable", output, *options, str(file)]
        return self.run(CONTROLLER, argv, env=env, cwd=self.directory).stdout.strip()

    def set_end_time(self, job: str, in_s: int) -> None:
        """Let a running job's time be over in so many seconds. SLURM looks only every 30 s."""
        self.slurm("scontrol", "update", f"jobid={job}", f"EndTime=now+{in_s}")

    def declare_dead(self, node: str) -> None:
        """Let SLURM notice now that a node is gone; by itself it does after minutes."""
        self.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def states(self) -> Dict[str, str]:
        """Each node's state in small letters, such as `idle`, `mixed` or `down*`."""
        lines = self.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    # --- between tests ----------------------------------------------------------------------

    def leftovers(self) -> List[str]:
        """Jobs in the queue and processes on the hosts that are not the lab's own."""
        return [str(job) for job in self.queue()] + [str(process) for process in self.strays()]

    def strays(self) -> List[Process]:
        """Every process of the lab that is neither SLURM's nor munge's daemon."""
        hosts = list(self.hosts.values())
        own = {pid for host in hosts for pid in host.own}
        running = [process for host in hosts for process in host.processes()]
        return [process for process in running if process.pid not in own and not _is_daemon(process)]

    def reset(self) -> None:
        """As after `up`: no job, no process of one, every node idle."""
        self.slurm("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
        for node in self.nodes:
            if node not in self.hosts:
                self.declare_dead(node)
                self.boot(node)
            self.mend(node)
        for process in self.strays():
            if "slurmstepd" not in process.command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, 9)
        for node, state in self.states().items():
            if state.startswith(("down", "drain")):
                self.slurm("scontrol", "update", f"nodename={node}", "state=resume")
        wait_until(lambda: self._all_idle() and not self.leftovers(), timeout_s=30, describe=self.report)

    def _all_idle(self) -> bool:
        with contextlib.suppress(AssertionError):  # the controller does not answer yet
            return self.states() == dict.fromkeys(self.nodes, "idle")
        return False

    def report(self) -> str:
        """What to look at when something is wrong: queue, nodes, and the ends of the daemons' logs."""
        parts = []
        if CONTROLLER in self.hosts:
            for argv in (["squeue", "-r", "-t", "all", "-S", "i"], ["sinfo", "-N", "-p", "main"]):
                done = self.run(CONTROLLER, argv, status=None)
                parts.append(done.stdout + done.stderr)
            parts.append("\n".join(map(str, self.strays())))
        for log in sorted((self.directory / "log").glob("slurm*.log")):
            lines = [line for line in log.read_text(errors="replace").splitlines() if not _NOISE.search(line)]
            parts.append("\n".join([f"--- {log.name}", *lines[-12:]]))
        return "\n".join(parts)


def _is_daemon(process: Process) -> bool:
    return bool(_DAEMONS.match(process.command))


def _freezer_is_ours() -> bool:
    """Whether jobs can be tracked as in production: by the freezer of cgroups v1, which root may divide."""
    return _PRIVILEGED and os.access(_FREEZER / "tasks", os.W_OK)


def sweep() -> None:
    """Remove what labs have left on disk whose test runs were killed."""
    for lock in _PLACE.glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError), open(lock) as file:  # another user's, or another sweep is faster
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.parent)


def _remove(directory: Path) -> None:
    """Remove a lab's directory and control groups, whose files cannot be removed."""
    for group, _, _ in os.walk(_FREEZER / directory.name, topdown=False):
        wait_until(partial(_is_blank, Path(group, "tasks")))
        os.rmdir(group)
    shutil.rmtree(directory)


def _is_blank(file: Path) -> bool:
    return not file.read_text().strip()
