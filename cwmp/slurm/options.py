"""All that can be chosen about a cluster on SLURM, checked before anything is submitted.

Defaults stand in `$CWMP_HOME/slurm.toml` or in the environment (`CWMP_SLURM_PARTITION`); the
environment wins over the file, and what is given outright over both.

    partition = "short"                          # every long flag, without its dashes; also n and c
    setup = ["module load python", "source ~/env/bin/activate"]
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Dict, Mapping, Optional, Tuple

from ..encryption import AUTO, Encryption
from ..errors import UsageError
from ..home import home
from ..rendezvous import cluster_name

LAYOUTS = ("array", "job")
PLACES = ("job", "here")
WAIT_S = 600.0
"""How long `start` waits for the master, unless told otherwise: queues are long. Shorter: a start on a busy
cluster is given up, and with it its place in the queue."""

_TIME = re.compile(r"(\d+|\d+-\d+)(:\d\d){0,2}", re.ASCII)
_NO_LIMIT = ("UNLIMITED", "INFINITE")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+,:/-]*")

# What would take away what we rely on; the value is what to use instead.
_OURS = {
    "array": "-n N says how many workers there are",
    "output": "use --log-dir",
    "error": "use --log-dir: errors are looked for in the log",
    "wrap": "use the --wrap of cwmp-slurm",
    "wait": "use the --wait of cwmp-slurm",
    "parsable": "it is used already",
    "test-only": "use the action `script` to see what would be submitted",
    "clusters": "set SLURM_CONF to that cluster's configuration",
    "job-name": "use --name",
    "ntasks": "use -n and -c",
    "cpus-per-task": "use -c",
    "help": "ask sbatch itself",
    "version": "ask sbatch itself",
}
_SHORT = {
    "a": "array",
    "c": "cpus-per-task",
    "e": "error",
    "h": "help",
    "J": "job-name",
    "M": "clusters",
    "n": "ntasks",
    "o": "output",
    "V": "version",
    "W": "wait",
}


@dataclass(frozen=True)
class Options:
    """One cluster on SLURM: what the flags of `cwmp-slurm`, its defaults and `SlurmCluster` say.

    What SLURM would choke on is a UsageError here already; it names the flag.

    >>> Options(workers=4, time="90").limit_s
    5400.0
    """

    name: str = "default"
    workers: int = 1
    slots: int = 1
    layout: str = "array"  # or "job": one job of many nodes, with one agent each
    master: str = "job"  # or "here": a process on this host
    time: Optional[str] = None
    partition: Optional[str] = None
    account: Optional[str] = None
    mem_per_cpu: Optional[str] = None
    gpus_per_worker: Optional[str] = None  # "2" or "a100:2"
    setup: Tuple[str, ...] = ()  # shell lines before master and workers start
    wrap: str = ""  # a command in front of theirs
    sbatch: Tuple[str, ...] = ()  # more options of sbatch, for the workers
    sbatch_master: Tuple[str, ...] = ()  # and for the master
    log_dir: Optional[str] = None  # absolute; None: $CWMP_HOME/logs
    host: Optional[str] = None  # where the master listens
    interface: Optional[str] = None  # or on which network interface
    encrypt: str = AUTO  # see Encryption, also for the next three, which are absolute paths
    tls_cert: Optional[str] = None
    tls_key: Optional[str] = None
    tls_ca: Optional[str] = None
    wait_s: float = WAIT_S  # for the master to answer; 0: do not wait

    def __post_init__(self) -> None:
        cluster_name(self.name)
        _check_count("-n", self.workers)
        _check_count("-c", self.slots)
        _check_choice("--layout", self.layout, LAYOUTS)
        _check_choice("--master", self.master, PLACES)
        for flag, value, check in (
            ("--time", self.time, _check_time),
            ("--partition", self.partition, _check_word),
            ("--account", self.account, _check_word),
            ("--mem-per-cpu", self.mem_per_cpu, _check_memory),
            ("--gpus-per-worker", self.gpus_per_worker, _check_gpus),
            ("--host", self.host, _check_word),
            ("--interface", self.interface, _check_word),
            ("--log-dir", self.log_dir, _check_path),
            ("--tls-cert", self.tls_cert, _check_path),
            ("--tls-key", self.tls_key, _check_path),
            ("--tls-ca", self.tls_ca, _check_path),
        ):
            if value is not None:
                check(flag, _text(flag, value))
        for flag, lines in (("--setup", self.setup), ("--wrap", (self.wrap,) if self.wrap else ())):
            for line in lines:
                _check_shell(flag, _text(flag, line))
        for flag, words in (("--sbatch", self.sbatch), ("--sbatch-master", self.sbatch_master)):
            for option in words:
                _check_sbatch(flag, _text(flag, option))
        if self.host is not None and self.interface is not None:
            raise UsageError("--host and --interface both say where the master listens: give one of them")
        Encryption(self.encrypt, self.tls_cert, self.tls_key, self.tls_ca)  # all three paths or none
        if not 0 <= self.wait_s < float("inf"):
            raise UsageError(f"--wait {self.wait_s!r} is not a number of seconds")

    @property
    def encryption(self) -> Encryption:
        """The setting of encryption."""
        return Encryption(self.encrypt, self.tls_cert, self.tls_key, self.tls_ca)

    @property
    def limit_s(self) -> Optional[float]:
        """The time limit in seconds; None when it is the partition's own, or none."""
        return None if self.time is None else limit_s(self.time)


def choose(given: Mapping[str, Any], last: Mapping[str, Any] = MappingProxyType({})) -> Options:
    """Options from what is given (None: not given), else the environment, the file, `last`, the defaults.

    The keys are those of Options. A bad value is a UsageError that says where it stands.
    """
    values: Dict[str, Any] = dict(last)
    for where, defaults in (("slurm.toml", _from_file()), ("the environment", _from_environment())):
        try:
            Options(**{**defaults, "name": "default"})
        except UsageError as error:
            raise UsageError(f"in {where}: {error}") from None
        values.update(defaults)
    values.update({key: value for key, value in given.items() if value is not None})
    values["name"] = cluster_name(values.get("name"))
    for key in ("setup", "sbatch", "sbatch_master"):
        values[key] = tuple(values.get(key, ()))
    for key in _PATHS:
        if values.get(key) is not None:
            values[key] = _absolute(key, values[key])
    return Options(**values)


def limit_s(time: str) -> Optional[float]:
    """Seconds in a time limit as sbatch takes it; None for no limit.

    >>> limit_s("10"), limit_s("1:30"), limit_s("1-12"), limit_s("0")
    (600.0, 90.0, 129600.0, None)
    """
    if time in _NO_LIMIT:
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        total = ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    else:
        hours, minutes, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: parts}[len(parts)]
        total = (hours * 60 + minutes) * 60 + seconds
    return float(total) or None


# --- defaults -------------------------------------------------------------------------------


def _from_file() -> Dict[str, Any]:
    """What `$CWMP_HOME/slurm.toml` says, as values of Options."""
    path = home() / "slurm.toml"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    try:
        toml = importlib.import_module("tomllib")
    except ImportError:
        raise UsageError(
            f"{path} cannot be read by this Python, which is older than 3.11: move it away, and set "
            "CWMP_SLURM_PARTITION and its like instead"
        ) from None
    try:
        table = toml.loads(data.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} is not TOML: {error}") from None
    return {_known(str(path), key): _typed(f"{key} in {path}", key, value) for key, value in table.items()}


def _from_environment() -> Dict[str, Any]:
    """What CWMP_SLURM_* say; those that take several values have one a line.

    Of encryption also what is said to all of cwmp, in CWMP_ENCRYPT and CWMP_TLS_*.
    """
    found: Dict[str, Any] = {}
    for key in ("encrypt", "tls_cert", "tls_key", "tls_ca"):
        if os.environ.get(f"CWMP_{key.upper()}"):
            found[key] = _typed(f"CWMP_{key.upper()}", key, os.environ[f"CWMP_{key.upper()}"])
    for variable, text in os.environ.items():
        if not variable.startswith("CWMP_SLURM_") or not text.strip():
            continue
        key = _known("the environment", variable[len("CWMP_SLURM_") :].lower())
        value: Any = text
        if key in ("setup", "sbatch", "sbatch_master"):
            value = [line for line in text.splitlines() if line.strip()]
        elif key in ("workers", "slots", "wait_s"):
            if not re.fullmatch(r"\d+(\.\d+)?", text.strip()):
                raise UsageError(f"{variable}={text} is not a number")
            value = float(text) if key == "wait_s" else int(float(text))
        found[key] = _typed(variable, key, value)
    return found


_PATHS = ("log_dir", "tls_cert", "tls_key", "tls_ca")
_SPELLINGS = {"n": "workers", "c": "slots", "wait": "wait_s"}


def _known(where: str, key: str) -> str:
    """The field of Options that a default is for."""
    name = key.replace("-", "_")
    names = {item.name for item in fields(Options)} - {"name", *_SPELLINGS.values()}
    if name not in names | _SPELLINGS.keys():
        known = ", ".join(sorted(names | _SPELLINGS.keys())).replace("_", "-")
        raise UsageError(f"{where} sets {key!r}, which is no option of cwmp-slurm: use {known}")
    return _SPELLINGS.get(name, name)


def _typed(what: str, key: str, value: Any) -> Any:
    """A default as Options has it."""
    name = _SPELLINGS.get(key, key).replace("-", "_")
    if name in ("setup", "sbatch", "sbatch_master"):
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(lines)
        raise UsageError(f"{what} must be a text, or a list of texts")
    if type(value) in (int, float) and name not in ("workers", "slots", "wait_s"):
        return str(value)  # time = 30
    if name in ("workers", "slots", "wait_s"):
        if type(value) not in (int, float):
            raise UsageError(f"{what} must be a number, not {value!r}")
    elif not isinstance(value, str):
        raise UsageError(f"{what} must be a text in quotes, not {value}")
    return _absolute(name, value) if name in _PATHS else value


def _absolute(key: str, value: Any) -> str:
    """A path as Options has it."""
    return os.path.abspath(os.path.expanduser(_text(f"--{key.replace('_', '-')}", value)))


# --- checks ---------------------------------------------------------------------------------


def _text(flag: str, value: Any) -> str:
    """`value`, when it is a text that can stand in one line of a script."""
    if not isinstance(value, str):
        raise UsageError(f"{flag} must be a text, not {value!r}")
    if not value.strip():
        raise UsageError(f"{flag} is empty")
    if any(ord(letter) < 32 and letter != "\t" or ord(letter) == 127 for letter in value):
        raise UsageError(f"{flag} {value!r} must be one line without control characters")
    return value


def _check_count(flag: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise UsageError(f"{flag} {value!r} is not a whole number from 1 up")


def _check_choice(flag: str, value: str, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{flag} {value!r} is none of {', '.join(choices)}")


def _check_time(flag: str, value: str) -> None:
    if value not in _NO_LIMIT and not _TIME.fullmatch(value):
        raise UsageError(f"{flag} {value!r} is no time of SLURM's: use minutes, HH:MM:SS, or D-HH:MM:SS")


def _check_word(flag: str, value: str) -> None:
    if not _WORD.fullmatch(value):
        raise UsageError(f"{flag} {value!r} has letters in it that SLURM does not take")


def _check_memory(flag: str, value: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]*[KMGTkmgt]?", value):
        raise UsageError(f"{flag} {value!r} is no size of SLURM's: use megabytes, or a unit as in 4G")


def _check_gpus(flag: str, value: str) -> None:
    if not re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]*:)?[1-9][0-9]*", value):
        raise UsageError(f"{flag} {value!r} is not a number such as 1, or a kind and a number such as a100:1")


def _check_path(flag: str, value: str) -> None:
    if not os.path.isabs(value) or "\\" in value:
        raise UsageError(f"{flag} {value!r} must be an absolute path without backslashes")


def _check_shell(flag: str, value: str) -> None:
    if value.endswith("\\"):
        raise UsageError(f"{flag} {value!r} ends in a backslash, which would join it with the next line")
    try:
        shlex.split(value, comments=True)
    except ValueError as error:
        raise UsageError(f"{flag} {value!r} is no complete line for a shell: {error}") from None
    if flag == "--wrap" and "=" in value.split()[0]:
        raise UsageError(f"{flag} {value!r} begins with no command: use --setup 'export {value.split()[0]}'")


def _check_sbatch(flag: str, value: str) -> None:
    """Each word that is an option must be one that does not take away what we rely on."""
    _check_shell(flag, value)
    words = shlex.split(value)
    if not words or not words[0].startswith("-"):
        raise UsageError(f"{flag} {value!r} is no option of sbatch: write it as {flag} '--constraint=fast'")
    for word in words:
        name = word[2:].partition("=")[0] if word.startswith("--") else _SHORT.get(word[1:2], "")
        # sbatch takes "--out" for --output.
        meant = [ours for ours in _OURS if name and ours.startswith(name)]
        if word.startswith("-") and meant:
            raise UsageError(f"{flag} {value!r} would break what cwmp-slurm relies on: {_OURS[meant[0]]}")


