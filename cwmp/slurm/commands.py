"""SLURM's own commands: the one place that runs them, and their output as plain data.

A command that fails is a SlurmError and never an empty answer, because "SLURM does not know" and
"SLURM has none" are different things. What passes, such as a controller that restarts, is
waited for.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal as signals
import subprocess
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

from ..errors import SlurmError

COMMAND_S = 60.0
"""How long one command may take: a busy controller answers after many seconds."""

PATIENCE_S = 30.0
"""How long a controller that cannot be reached is asked again: it restarts, or its backup takes over."""

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
    + ("REVOKED", "TIMEOUT")
)
"""States that a job does not leave again."""

WAITING = frozenset(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"))
"""States of a job that has not begun, or is to begin again."""

_AGAIN_S = 1.0  # between two tries
_PASSING = re.compile(
    r"(?i)unable to contact slurm controller|connect failure|connection refused|timed out"
    r"|temporarily (unable|unavailable)|zero bytes|backup controller|standby|communication connection"
)
# The only failures after which there is surely no job: else trying again could make two.
_NOT_REACHED = re.compile(r"(?i)unable to contact slurm controller|connect failure|connection refused")
_UNKNOWN_JOB = re.compile(r"(?i)invalid job id|unknown job|job not found")
_OVER = re.compile(r"(?i)already completing or completed|is pending execution")
_NOTHING = ("", "n/a", "(null)", "none", "not_set", "invalid", "unlimited")

_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SACCT_", "PMI_", "PMIX_")
_OF_ANOTHER_CLUSTER = ("CWMP_MASTER", "CWMP_NAME")
_SECRET = "CWMP_AUTHKEY"  # SLURM keeps the environment of a job, and every process of it would have it

# The name is last but one, for it may contain anything; the dot tells that the line is whole.
_FORMAT = "%F|%K|%T|%r|%B|%N|%L|%M|%j|."
_FIELDS = 8


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one element of an array, as SLURM tells it; `id` is "17" or "17_3"."""

    job: str
    task: Optional[int]
    state: str
    reason: str = ""
    node: str = ""  # where the batch script runs; empty while it waits
    nodes: str = ""  # all of them, as SLURM writes it: n[1-3]
    name: str = ""
    time_left_s: Optional[float] = None  # None: no limit, or not told
    ran_s: Optional[float] = None  # since its last start
    restarts: int = 0  # told by `ended` only
    exit_code: Optional[str] = None  # told by `ended` only: "status:signal"

    @property
    def id(self) -> str:
        """How SLURM's commands call it."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.state in WAITING

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in ENDED


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return all(shutil.which(command) for command in ("sbatch", "squeue", "scancel"))


def submit(script: str, options: Sequence[str] = ()) -> str:
    """Hand a batch script to SLURM; returns the job's id."""
    output = run(["sbatch", "--parsable", *options], stdin=script, passing=_NOT_REACHED)
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"\s*(\d+)\s*(;.*)?", line)
        if match:
            return match[1]
    raise SlurmError(f"sbatch did not say which job it made, but {output.strip()[:200]!r}")


def queue(
    jobs: Sequence[str], *, patience_s: float = PATIENCE_S, timeout_s: float = COMMAND_S
) -> List[SlurmJob]:
    """What SLURM knows of these jobs ("17", or "17_3" for one element), each element of an array by itself.

    That includes those that ended a moment ago; whatever SLURM does not know (any more) is missing.
    """
    if not jobs:
        return []
    arguments = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", "-o", _FORMAT]
    try:
        output = run(arguments, patience_s=patience_s, timeout_s=timeout_s)
    except SlurmError as error:
        if not _UNKNOWN_JOB.search(str(error)):
            raise
        if len(jobs) == 1:
            return []
        every = [queue([job], patience_s=patience_s, timeout_s=timeout_s) for job in jobs]
        return [found for each in every for found in each]
    every_job = [job for line in output.splitlines() for job in _parse_line(line)]
    return sorted(every_job, key=lambda job: (int(job.job), job.task or 0))


def ended(job: str) -> Optional[SlurmJob]:
    """One job or element with exit code and restarts, also when it ended; None when SLURM forgot it."""
    try:
        output = run(["scontrol", "--oneliner", "show", "job", job])
    except SlurmError as error:
        if not _UNKNOWN_JOB.search(str(error)):
            raise
        return None
    for line in output.splitlines():
        found = _parse_record(line)
        if found is not None and job in (found.id, found.job):
            return found
    return None


def cancel(jobs: Sequence[str]) -> None:
    """End these jobs; those that are unknown or have ended already are fine."""
    _scancel(["scancel", *jobs] if jobs else [])


def cancel_waiting(jobs: Sequence[str]) -> None:
    """End what has not begun of these jobs."""
    _scancel(["scancel", "--state=PENDING", *jobs] if jobs else [])


def signal(jobs: Sequence[str], name: str = "TERM", *, steps: bool = False) -> None:
    """Send a signal to the program that the batch script became, or with `steps` to what srun started.

    Jobs that do not run are left alone: scancel would wait for them to begin.
    """
    how = [f"--signal={name}", "--state=RUNNING", *([] if steps else ["--batch"])]
    _scancel(["scancel", *how, *jobs] if jobs else [])


def run(
    arguments: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float = COMMAND_S,
    patience_s: float = PATIENCE_S,
    passing: re.Pattern[str] = _PASSING,
) -> str:
    """What one of SLURM's commands prints; SlurmError when it fails.

    A failure that matches `passing` is one only when it still happens `patience_s` after the first.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _run_once(arguments, stdin, timeout_s)
        except SlurmError as error:
            if time.monotonic() + _AGAIN_S > deadline or not passing.search(str(error)):
                raise
        time.sleep(_AGAIN_S)


def environment() -> Dict[str, str]:
    """Ours, without the key, what SLURM gave to the job that we may run in, and settings for its commands.

    A job that is submitted from within a job would inherit that one's tasks, memory and array index.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}
    for name in (*_OF_ANOTHER_CLUSTER, _SECRET, "SLURM_CONF"):
        kept.pop(name, None)
    if "SLURM_CONF" in os.environ:
        kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return kept


def _run_once(arguments: Sequence[str], stdin: str, timeout_s: float) -> str:
    """The output of one run; SlurmError names the command, its exit status and what it complained about."""
    variables = environment()
    if arguments[0] != "sbatch":  # it hands its environment on to the job, whose language is the user's
        variables.update(LC_ALL="C", LANGUAGE="C")
    try:
        # In a session of its own, so that Ctrl-C in our terminal does not end it half-way, and so
        # that a site's wrapper scripts go with it when time is up.
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SlurmError(f"no {arguments[0]} on this machine: SLURM's commands are needed here") from None
    except OSError as error:
        raise SlurmError(f"cannot run {arguments[0]}: {error.strerror}") from None
    with process:
        try:
            output, complaint = process.communicate(stdin.encode(), timeout=timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signals.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SlurmError(f"{_shown(arguments)} timed out after {timeout_s:g} s") from None
            raise
    if process.returncode:
        said = " ".join((complaint or output).decode(errors="replace").split()) or "no word why"
        raise SlurmError(f"{_shown(arguments)} failed with status {process.returncode}: {said}")
    return output.decode(errors="replace")


def _shown(arguments: Sequence[str]) -> str:
    """A command line as people read it, without its long tail."""
    text = shlex.join(arguments)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _scancel(arguments: Sequence[str]) -> None:
    """Run it, taking for done what can no longer be done."""
    try:
        if arguments:
            run(arguments)
    except SlurmError as error:
        # One line for each job that has ended; any other line is a failure.
        complaints = re.split(r"scancel: error: ", str(error))[1:]
        if not complaints or not all(_UNKNOWN_JOB.search(line) or _OVER.search(line) for line in complaints):
            raise


# --- what they print ------------------------------------------------------------------------


def _parse_line(line: str) -> List[SlurmJob]:
    """One line of squeue; several elements where it does not expand an array."""
    fields = line.strip().split("|", _FIELDS)
    if len(fields) != _FIELDS + 1 or not fields[-1].endswith("|.") or not fields[0].isdecimal():
        raise SlurmError(f"squeue printed something that cannot be understood: {line.strip()[:200]!r}")
    job, tasks, state, reason, node, nodes, left, used, name = fields
    return [
        SlurmJob(
            job=job,
            task=task,
            state=state.partition(" ")[0].upper(),
            reason=_told(reason),
            node=_told(node),
            nodes=_told(nodes),
            name=name[:-2],
            time_left_s=duration_s(left),
            ran_s=duration_s(used),
        )
        for task in _tasks(tasks)
    ]


def _told(text: str) -> str:
    """`text`, or "" where it is one of SLURM's words for nothing."""
    return "" if text.strip().lower() in _NOTHING else text.strip()


def _tasks(text: str) -> List[Optional[int]]:
    """Array indices as SLURM writes them: "N/A", "3", "[1-3,7%2]".

    >>> _tasks("N/A"), _tasks("3"), _tasks("[1-3,7,10-14:2%4]")
    ([None], [3], [1, 2, 3, 7, 10, 12, 14])
    """
    if not _told(text):
        return [None]
    tasks: List[Optional[int]] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part.strip())
        if not match:
            raise SlurmError(f"squeue printed an array index that cannot be understood: {text[:200]!r}")
        first, last, step = (int(number) if number else None for number in match.groups())
        assert first is not None
        tasks += range(first, (first if last is None else last) + 1, step or 1)
    return tasks


def duration_s(text: str) -> Optional[float]:
    """Seconds in what SLURM prints for a time, such as "1-02:03:04"; None where it is no time.

    >>> duration_s("2:05"), duration_s("1-00:00:01"), duration_s("UNLIMITED")
    (125.0, 86401.0, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not match:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _parse_record(line: str) -> Optional[SlurmJob]:
    """One line of `scontrol --oneliner show job`; None where it is none."""
    values = dict(re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", line))
    if not values.get("JobId", "").isdecimal() or "JobState" not in values:
        return None
    task = values.get("ArrayTaskId", "")
    name = re.search(r"\bJobName=(.*?)(?: \w+=|$)", line)
    return SlurmJob(
        job=values.get("ArrayJobId") or values["JobId"],
        task=int(task) if task.isdecimal() else None,
        state=values["JobState"],
        reason=_told(values.get("Reason", "")),
        node=_told(values.get("BatchHost", "")),
        nodes=_told(values.get("NodeList", "")),
        name=name[1] if name else "",
        ran_s=duration_s(values.get("RunTime", "")),
        restarts=int(values.get("Restarts") or 0),
        exit_code=values.get("ExitCode"),
    )
