"""The 0600 file that says where a cluster's master is, and the key that opens it.

A master publishes `$CWMP_HOME/clusters/NAME.json` and withdraws it when it stops; workers and
clients find it by name. Files are written aside and then renamed, so nobody reads half a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, Union

from . import defaults, encryption, messages
from .addresses import EVERY_INTERFACE as EVERY_INTERFACE
from .addresses import LOOPBACK as LOOPBACK
from .addresses import check_port as check_port
from .addresses import format_address as format_address
from .addresses import interfaces, reachable
from .addresses import parse_address as parse_address
from .encryption import DEFAULT, Encryption
from .errors import ConnectError, UsageError
from .home import exclusive, home_exists, private_directory, read_private, write_private
from .home import home as home  # for those who ask here where things are
from .home import home_key as home_key
from .home import read_key_file as read_key_file
from .place import slurm_job

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Cluster:
    """One running master as its file tells it: where it listens, and the key (never in the repr)."""

    name: str
    host: str  # as bound: may mean every interface
    node: str
    port: int
    pid: int
    birth: float  # with the pid: which process that is, see process_birth
    authkey: bytes = field(repr=False)
    protocol: int
    python: str
    nonce: str  # random: tells this master from every other, also from one that got its address
    addresses: Tuple[str, ...] = ()  # where other nodes may reach it, if it is bound to every interface
    slurm_job: str = ""  # the SLURM job that it runs in
    encrypt: str = encryption.AUTO  # its setting,
    encryption: str = encryption.PSK  # and what that comes to with its Python

    @classmethod
    def of_this_process(
        cls, name: str, host: str, port: int, authkey: bytes, nonce: str = "", encrypt: Encryption = DEFAULT
    ) -> Cluster:
        """The entry for a master that runs in the calling process; `nonce` is random unless given."""
        pid = os.getpid()
        return cls(
            name=name,
            host=host,
            node=platform.node(),
            port=port,
            pid=pid,
            birth=process_birth(pid) or 0.0,
            authkey=authkey,
            protocol=messages.PROTOCOL,
            python=messages.python_minor(),
            nonce=nonce or os.urandom(8).hex(),
            addresses=reachable(host, interfaces()) if host in EVERY_INTERFACE else (),
            slurm_job=slurm_job() or "",
            encrypt=encrypt.mode,
            encryption=encrypt.way,
        )

    def is_live(self) -> bool:
        """Whether its process still runs; of another node's that is taken on trust."""
        return self.node != platform.node() or process_birth(self.pid) == self.birth

    def is_here(self) -> bool:
        """Whether its master runs on this node."""
        return self.node == platform.node()

    def hosts(self) -> Tuple[str, ...]:
        """Where this process may reach that master: addresses, all as good, and the node's name last."""
        here = self.is_here()
        if self.host in LOOPBACK and not here:
            raise UsageError(
                f"cluster {self.name!r} listens on {self.node} for that node only: "
                f"start its master with --host {self.node}"
            )
        if self.host in LOOPBACK or (self.host in EVERY_INTERFACE and here):
            return ("::1" if ":" in self.host else "127.0.0.1",)
        return (*self.addresses, self.node) if self.host in EVERY_INTERFACE else (self.host,)

    def destination(
        self, key: Optional[bytes] = None, encrypt: Optional[Encryption] = None, *, known_here: bool = False
    ) -> Destination:
        """The way there, with another key or setting of encryption than its own and the environment's.

        `known_here`: on this node its process was seen to live. Elsewhere another may have got its address.
        """
        nonce = None if known_here and self.is_here() else self.nonce
        followed = (encrypt or encryption.choose()).following(self.encrypt, self.encryption)
        return Destination(self.hosts(), self.port, key or self.authkey, self.name, nonce, followed)

    def address(self) -> Tuple[str, int]:
        """Where this process most likely reaches that master, in one word for people: (host, port)."""
        return self.hosts()[-1], self.port


@dataclass(frozen=True)
class Destination:
    """Where to look for a master, and what to know it by."""

    hosts: Tuple[str, ...]
    port: int
    authkey: bytes = field(repr=False)
    name: Optional[str] = None  # of the cluster that was looked up; None: the address was given
    nonce: Optional[str] = None  # of the master that it must be; None: whoever is there
    encryption: Encryption = field(default_factory=encryption.choose)

    def __str__(self) -> str:
        return format_address(self.hosts[0], self.port)


# --- clusters by name -----------------------------------------------------------------------


def cluster_name(name: Optional[str] = None) -> str:
    """`name`, else `$CWMP_NAME`, else "default", checked: letters, digits, `.`, `_`, `-`; 64 at most.

    >>> cluster_name("night-run.2")
    'night-run.2'
    """
    if name is None:
        name = os.environ.get("CWMP_NAME") or defaults.CLUSTER_NAME
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"bad cluster name {name!r}: use up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name


def publish(cluster: Cluster, answers: Callable[[Cluster], bool] = Cluster.is_live) -> None:
    """Say where `cluster` is; UsageError when a living master already holds its name.

    `answers` finds out whether another one lives. If SLURM has started the job of `cluster` anew, what was
    published from that job before is replaced without asking.
    """
    path = _path(cluster.name)
    with exclusive("clusters"):
        _sweep()
        other = read(cluster.name)
        if other is not None and not _is_former(other, cluster) and answers(other):
            raise UsageError(
                f"cluster {other.name!r} already runs on {other.node} (port {other.port}, pid {other.pid}): "
                "stop it, or choose another --name"
            )
        record = {**asdict(cluster), "authkey": cluster.authkey.hex()}
        write_private(path, json.dumps(record, indent=1).encode())


def withdraw(cluster: Cluster) -> None:
    """Remove what `publish(cluster)` wrote, and nothing that another master wrote since."""
    with exclusive("clusters"), contextlib.suppress(UsageError, FileNotFoundError):
        published = read(cluster.name)
        if published is not None and published.nonce == cluster.nonce:
            _path(cluster.name).unlink()


def sweep() -> None:
    """Remove the files of this node's masters that died without withdrawing them."""
    with exclusive("clusters"):
        _sweep()


def read(name: str) -> Optional[Cluster]:
    """What is published under `name`, dead or alive; None if nothing is, UsageError if it is damaged."""
    name = cluster_name(name)
    path = _path(name)
    os.listdir(path.parent)  # or a network file system tells for a minute what it knew before
    data = read_private(path)
    if data is None:
        return None
    try:
        record = {**_BEFORE_ENCRYPTION, **json.loads(data)}
        values = {key: _typed(record[key], kind) for key, kind in _KINDS.items()}
        if values["name"] != name:
            raise ValueError("it was copied from another cluster's")
        addresses = tuple(_typed(address, str) for address in record["addresses"])
        return Cluster(authkey=bytes.fromhex(record["authkey"]), addresses=addresses, **values)
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path} is not a cwmp rendezvous file: remove it") from None


def clusters() -> List[Cluster]:
    """Every published cluster, by name; damaged files are left out."""
    found = []
    for path in sorted(private_directory("clusters").glob("[A-Za-z0-9]*.json")):
        with contextlib.suppress(UsageError):
            cluster = read(path.name[: -len(".json")])
            if cluster is not None:
                found.append(cluster)
    return found


def find_cluster(name: Optional[str] = None) -> Optional[Cluster]:
    """The published cluster of that name (default: see `cluster_name`) unless its master is dead."""
    cluster = read(cluster_name(name))
    return cluster if cluster is not None and cluster.is_live() else None


_KINDS = {
    "name": str,
    "host": str,
    "node": str,
    "port": int,
    "pid": int,
    "birth": float,
    "protocol": int,
    "python": str,
    "nonce": str,
    "slurm_job": str,
    "encrypt": str,
    "encryption": str,
}
_BEFORE_ENCRYPTION = {"encrypt": encryption.NEVER, "encryption": encryption.CLEAR}  # what older masters write


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def _path(name: str) -> Path:
    return private_directory("clusters") / f"{name}.json"


def _sweep() -> None:
    for cluster in clusters():
        if not cluster.is_live():
            _path(cluster.name).unlink()


def _is_former(other: Cluster, cluster: Cluster) -> bool:
    """Whether `other` is an earlier word of `cluster`, or of the same SLURM job before its restart."""
    same_job = bool(cluster.slurm_job) and other.slurm_job == cluster.slurm_job
    return other.nonce == cluster.nonce or (same_job and not other.is_here())


def process_birth(pid: int) -> Optional[float]:
    """When process `pid` began, on a clock of this machine; None when no such process runs.

    Two processes that had the same pid differ in this. On Linux it counts from boot, because
    the wall-clock start that psutil computes there moves whenever the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


# --- finding the master ----------------------------------------------------------------------


def find(
    host: Optional[str] = None,
    port: Optional[int] = None,
    *,
    name: Optional[str] = None,
    authkey: Union[str, bytes, None] = None,
    authkey_file: Optional[str] = None,
    encrypt: Optional[Encryption] = None,
) -> Destination:
    """Where the master is and its key: see `find_master` and `find_key`.

    `encrypt` is the setting of the caller, else the environment's; what is published goes before it.
    """
    given = _given_address(host, port)
    cluster = find_cluster(name) if given is None else None
    if cluster is None:
        address = given or find_master(name=name)
        key = find_key(authkey, authkey_file, host=address[0], port=address[1])
        encrypt = encrypt or encryption.choose()
        cluster = _listening_at(*address) if home_exists() else None
        if cluster is not None:
            encrypt = encrypt.following(cluster.encrypt, cluster.encryption)
        return Destination((address[0],), address[1], key, encryption=encrypt)
    return cluster.destination(_given_key(authkey, authkey_file), encrypt, known_here=True)


def find_master(
    host: Optional[str] = None, port: Optional[int] = None, *, name: Optional[str] = None
) -> Tuple[str, int]:
    """Where the master is: `host`, else `$CWMP_MASTER`, else as published, else localhost:5494.

    `host` may carry the port ("node:port"). A cluster that was asked for by name (`name` or
    `$CWMP_NAME`) and is not published is a ConnectError; a bad address is a UsageError.
    """
    given = _given_address(host, port)
    if given is not None:
        return given
    cluster = find_cluster(name)
    if cluster is not None:
        return cluster.address()
    if name is not None or os.environ.get("CWMP_NAME"):
        raise ConnectError(
            f"no cluster named {cluster_name(name)!r} is running ({_path(cluster_name(name))})"
        )
    return "127.0.0.1", defaults.PORT


def _given_address(host: Optional[str], port: Optional[int]) -> Optional[Tuple[str, int]]:
    """The address that the caller or the environment states outright; None if neither does."""
    text = host if host is not None else os.environ.get("CWMP_MASTER") or None
    if text is None:
        return None if port is None else ("127.0.0.1", check_port(port))
    node, its_port = parse_address(text)
    if port is not None and check_port(port) != (its_port or port):
        raise UsageError(f"two ports for one master: {its_port} in {text!r}, and {port}")
    return ("127.0.0.1" if node == "localhost" else node), its_port or port or defaults.PORT


# --- the key --------------------------------------------------------------------------------


def find_key(
    authkey: Union[str, bytes, None] = None,
    authkey_file: Optional[str] = None,
    *,
    name: Optional[str] = None,
    host: Optional[str] = None,
    port: Optional[int] = None,
) -> bytes:
    """The cluster's key: the arguments, `$CWMP_AUTHKEY`, `$CWMP_AUTHKEY_FILE`, as published, `home_key()`.

    With an address (arguments or `$CWMP_MASTER`) the published cluster is the one that listens
    there; without, it is the one named `name`.
    """
    key = _given_key(authkey, authkey_file)
    if key is not None:
        return key
    given = _given_address(host, port)
    cluster = find_cluster(name) if given is None else _listening_at(*given)
    return home_key() if cluster is None else cluster.authkey


def _given_key(authkey: Union[str, bytes, None], authkey_file: Optional[str]) -> Optional[bytes]:
    """The key that the caller or the environment states outright; None if neither does."""
    if authkey is None and authkey_file is None:
        authkey = os.environ.get("CWMP_AUTHKEY")
        authkey_file = os.environ.get("CWMP_AUTHKEY_FILE")
    if authkey is not None:
        key = authkey.encode() if isinstance(authkey, str) else bytes(authkey)
        if not key:
            raise UsageError("the key is empty")
        return key
    if authkey_file is not None:
        return read_key_file(authkey_file)
    return None


def _listening_at(host: str, port: int) -> Optional[Cluster]:
    """The live published cluster at that address, if there is one."""
    for cluster in clusters():
        if cluster.port == port and _is_place_of(host, cluster) and cluster.is_live():
            return cluster
    return None


def _is_place_of(host: str, cluster: Cluster) -> bool:
    """Whether `host` means the node, or the bound address, of that cluster's master."""
    if host in LOOPBACK:
        return cluster.node == platform.node()
    if host in (cluster.host, cluster.node, *cluster.addresses):
        return True
    # "node7" and "node7.example.org" are one node.
    return host.startswith(cluster.node + ".") or cluster.node.startswith(host + ".")
