"""The batch scripts: texts that depend on nothing but the options and the place that they are for.

A script is complete: its `#SBATCH` lines hold every option, so that what `cwmp-slurm script` prints is what
`start` submits. It carries no key; master and workers find that in $CWMP_HOME.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import List, Optional, Sequence

from ..defaults import GRACE_S
from .options import Options

WORKER_WAIT_S = 300
"""How long a worker looks for its master. Shorter: workers that SLURM starts well before the master are lost.
Longer: they hold their nodes that long when there is no master any more."""

_AHEAD_S = int(GRACE_S) + 5  # SIGTERM comes this long before the time limit: the grace time, and leaving
_SHORT_LIMIT_S = 180  # SLURM counts in half minutes: in a shorter job that would be most of its time


@dataclass(frozen=True)
class Place:
    """What the scripts need to know of where we are: absolute paths, the same on all nodes."""

    python: str  # the interpreter
    main: str  # cwmp/__main__.py: a checkout works without being installed
    home: str  # $CWMP_HOME
    key_file: Optional[str] = None  # $CWMP_AUTHKEY_FILE


def master_script(options: Options, place: Place) -> str:
    """The batch script of the master."""
    asked = [f"--job-name={job_name(options.name)}-master", "--nodes=1", "--ntasks=1", "--cpus-per-task=1"]
    asked += _asked_of_both(options)
    asked.append(f"--output={_pattern(options, place, 'master-%j')}")
    program = _program(options, place, ["master", *master_arguments(options, place)])
    about = f"The master of the cwmp cluster {options.name}"
    return _script(about, [*asked, *options.sbatch_master], options, place, program)


def master_arguments(options: Options, place: Place) -> List[str]:
    """The arguments of `cwmp-master`, in a job or out of one."""
    arguments = [*_finding(options, place), "--port", "0"]
    for flag, value in (("--host", options.host), ("--interface", options.interface)):
        arguments += [flag, value] if value is not None else []
    return arguments


def workers_script(options: Options, place: Place, count: int, avoid: Sequence[str] = ()) -> str:
    """The batch script of `count` workers, which are not to run on the nodes `avoid`."""
    command = ["worker", *_finding(options, place), "--procs", str(options.slots)]
    command += ["--wait", str(WORKER_WAIT_S), "--grace", f"{_ahead_s(options) - 5}"]
    program = _program(options, place, command)
    asked = [f"--job-name={job_name(options.name)}"]
    if options.layout == "job":
        asked += [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
        # The signal goes to what srun started. One node that fails takes none of the others along.
        asked += [f"--cpus-per-task={options.slots}", "--no-kill", f"--signal=TERM@{_ahead_s(options)}"]
        program = f"{_srun(options, count)} {program}"
        log = "workers-%j"
    else:
        asked += [f"--array=0-{count - 1}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={options.slots}"]
        asked.append(f"--signal=B:TERM@{_ahead_s(options)}")
        log = "worker-%A_%a"
    if options.gpus_per_worker is not None:
        asked.append(f"--gres=gpu:{options.gpus_per_worker}")
    if avoid:
        asked.append(f"--exclude={','.join(avoid)}")
    asked += _asked_of_both(options)
    asked.append(f"--output={_pattern(options, place, log)}")
    about = f"{count} worker{'s' if count > 1 else ''} of the cwmp cluster {options.name}"
    return _script(about, [*asked, *options.sbatch], options, place, program)


def job_name(name: str) -> str:
    """How the workers' jobs of a cluster are called; the master's has "-master" behind it."""
    return f"cwmp-{name}"


def log_directory(options: Options, home: str) -> str:
    """The absolute directory of the logs; `home` is $CWMP_HOME."""
    return options.log_dir or f"{home}/logs"


def log_path(options: Options, home: str, job: str, *, master: bool = False) -> str:
    """Where the job or element of that id ("17", "17_3") writes."""
    role = "master" if master else "workers" if options.layout == "job" else "worker"
    return f"{log_directory(options, home)}/{options.name}-{role}-{job}.log"


def _asked_of_both(options: Options) -> List[str]:
    """The options of sbatch that master and workers have in common."""
    asked = [
        f"{flag}={value}"
        for flag, value in (
            ("--time", options.time),
            ("--partition", options.partition),
            ("--account", options.account),
            ("--mem-per-cpu", options.mem_per_cpu),
        )
        if value is not None
    ]
    # A node that fails, or a job that is preempted, is begun again under the same id, in the same log.
    return [*asked, "--requeue", "--open-mode=append"]


def _ahead_s(options: Options) -> int:
    """How long before the time limit the workers are told."""
    limit_s = options.limit_s
    return 10 if limit_s is not None and limit_s < _SHORT_LIMIT_S else _AHEAD_S


def _finding(options: Options, place: Place) -> List[str]:
    """How master and workers find each other, their key, and what they encrypt."""
    key = [] if place.key_file is None else ["--authkey-file", place.key_file]
    encryption = ["--encrypt", options.encrypt]
    for flag, path in (
        ("--tls-cert", options.tls_cert),
        ("--tls-key", options.tls_key),
        ("--tls-ca", options.tls_ca),
    ):
        encryption += [flag, path] if path is not None else []
    return ["--name", options.name, *key, *encryption]


def _program(options: Options, place: Place, command: Sequence[str]) -> str:
    """The command line of a master or worker."""
    words = shlex.join([place.python, place.main, *command])
    return f"{options.wrap} {words}" if options.wrap else words


def _srun(options: Options, count: int) -> str:
    """What starts one agent on each node of a job, and goes on when some of them end."""
    return (
        f"srun --ntasks={count} --ntasks-per-node=1 --cpus-per-task={options.slots} "
        "--kill-on-bad-exit=0 --wait=0 --no-kill --label"
    )


def _pattern(options: Options, place: Place, ending: str) -> str:
    """The log as sbatch takes it: `ending` has its %-signs, those of the directory are doubled."""
    directory = log_directory(options, place.home).replace("%", "%%")
    return _quoted(f"{directory}/{options.name}-{ending}.log")


def _quoted(text: str) -> str:
    """`text` for an #SBATCH line, which has quotes of its own kind."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _script(about: str, asked: Sequence[str], options: Options, place: Place, program: str) -> str:
    lines = ["#!/bin/bash", f"# {about}, as submitted by cwmp-slurm."]
    lines += [f"#SBATCH {option}" for option in asked]
    lines += ["", f"export CWMP_HOME={shlex.quote(place.home)}"]
    lines += ["unset CWMP_MASTER CWMP_NAME  # those of another cluster"]
    lines += ['echo "cwmp-slurm: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $(hostname), $(date)"']
    if options.setup:
        lines += ["", _CHECK]
    for line in options.setup:
        lines += [line, f"cwmp_check $? {shlex.quote(line)}"]
    lines += ["", "# The submitting host's may not exist here."]
    lines += ['[ -z "$TMPDIR" ] || [ -d "$TMPDIR" ] || unset TMPDIR']
    lines += ["# What SLURM signals must be the program itself, not a shell around it."]
    return "\n".join([*lines, f"exec {program}", ""])


_CHECK = """\
cwmp_check() {
    [ "$1" -eq 0 ] && return
    printf 'cwmp-slurm: --setup failed with status %s: %s\\n' "$1" "$2" >&2
    exit 1
}"""
