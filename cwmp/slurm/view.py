"""What a cluster on SLURM is doing: SLURM's view joined with the master's. Pure; `look` gathers it.

`join` makes one dictionary of plain values (`cwmp-slurm status --json`), `report` the text of it. What could
not be learned is None there and said so, never shown as empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .commands import SlurmJob
from .reasons import explained
from .records import Pool
from .seats import end_text

FAILED = frozenset(("BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"))
"""Ends whose logs are worth reading."""

LOGS_SHOWN = 3
"""Failed workers whose logs are shown: of many, all have the same to say."""


@dataclass(frozen=True)
class Look:
    """One look at a cluster: what SLURM and the master said, or why they did not."""

    pool: Pool
    jobs: Optional[Sequence[SlurmJob]] = None  # None: SLURM did not answer
    slurm_error: str = ""
    status: Optional[Dict[str, Any]] = None  # None: the master did not
    master_error: str = ""
    address: str = ""  # of the master, as published
    logs: Dict[str, Tuple[str, List[str]]] = field(default_factory=dict)  # of failed jobs: path, last lines
    exit_codes: Dict[str, str] = field(default_factory=dict)  # of failed jobs

    def at_master(self, job: str) -> List[Dict[str, Any]]:
        """What the master says of the workers in that SLURM job."""
        return [worker for worker in self.every_worker() if worker.get("slurm_job") == job]

    def every_worker(self) -> List[Dict[str, Any]]:
        """All workers of the master; none where it did not answer."""
        workers: List[Dict[str, Any]] = [] if self.status is None else self.status["workers"]
        return workers


def failed(pool: Pool, jobs: Sequence[SlurmJob]) -> List[SlurmJob]:
    """The jobs whose logs should be read: of the master, and of the workers that ended last."""
    every = [job for job in jobs if job.state in FAILED and job.id not in pool.dismissed]
    masters = [job for job in every if job.job == pool.master_job]
    workers = [job for job in every if job.job != pool.master_job]
    workers.sort(key=lambda job: (int(job.job), job.task or 0))
    return masters + workers[-LOGS_SHOWN:]


def join(look: Look) -> Dict[str, Any]:
    """Everything as plain values: `master`, `workers`, `ended`, `jobs` and `clients`.

    `workers` wait or run, or are known to the master alone; `ended` are those that SLURM still remembers
    and nobody sent away.
    """
    status = look.status
    jobs = [job for job in look.jobs or () if job.job != look.pool.master_job]
    return {
        "name": look.pool.name,
        "wanted": look.pool.wanted,
        "stopping": look.pool.stopping,
        "slurm_error": look.slurm_error or None,
        "master_error": look.master_error or None,
        "master": _master(look),
        "workers": _workers(look, [job for job in jobs if not job.has_ended]),
        "ended": [_ended(look, job) for job in jobs if job.has_ended and job.id not in look.pool.dismissed],
        "jobs": None if status is None else status["jobs"],
        "clients": None if status is None else len(status["clients"]),
    }


def _master(look: Look) -> Dict[str, Any]:
    """The master's row; `answers` tells whether it did."""
    pool = look.pool
    job = next((job for job in look.jobs or () if job.job == pool.master_job), None)
    row = {
        "slurm_job": pool.master_job,
        "node": (job.node if job else "" if pool.master_job else pool.node) or None,
        "state": job.state if job else None,
        "reason": (job.reason or None) if job else None,
        "time_left_s": job.time_left_s if job else None,
        "address": look.address or None,
        "answers": look.status is not None,
    }
    return {**row, **_log(look, pool.master_job or "")}


def _workers(look: Look, jobs: Sequence[SlurmJob]) -> List[Dict[str, Any]]:
    """A row for each worker: those of SLURM in its order, then those that only the master knows."""
    rows = []
    for job in jobs:
        joined = look.at_master(job.id)
        rows += [_worker(look, job, worker) for worker in joined] or [_worker(look, job, None)]
    known = {job.id for job in jobs}
    rows += [_worker(look, None, w) for w in look.every_worker() if w.get("slurm_job") not in known]
    return rows


def _worker(look: Look, job: Optional[SlurmJob], worker: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """One row, from what either side has to say."""
    name = job.id if job is not None else worker and worker.get("slurm_job")
    at_master = worker or {}
    left_s = at_master.get("ends_in_s")
    return {
        "slurm_job": name or None,
        "node": at_master.get("node") or (job.node if job else "") or None,
        "state": job.state if job else None,
        "reason": (job.reason or None) if job else None,
        "worker": at_master.get("id"),
        "slots": at_master.get("slots"),
        "busy": at_master.get("busy"),
        "done": at_master.get("done"),
        "idle_s": at_master.get("idle_s"),
        "leaves": bool(at_master.get("draining")) or name in look.pool.dismissed,
        "time_left_s": left_s if left_s is not None else job.time_left_s if job and not job.waits else None,
    }


def _ended(look: Look, job: SlurmJob) -> Dict[str, Any]:
    row = {"slurm_job": job.id, "node": job.node or None, "state": job.state, "reason": job.reason or None}
    return {**row, "exit_code": look.exit_codes.get(job.id), **_log(look, job.id)}


def _log(look: Look, job: str) -> Dict[str, Any]:
    path, lines = look.logs.get(job, (None, None))
    return {"log": path, "log_tail": lines}


# --- as text --------------------------------------------------------------------------------


def report(view: Dict[str, Any]) -> str:
    """What `join` made, as people read it."""
    lines = [f"cluster  {view['name']}{', being stopped' if view['stopping'] else ''}"]
    lines.append(f"master   {_master_line(view['master'], told=not view['slurm_error'])}")
    lines += [f"         {line}" for line in _log_lines(view["master"])]
    for side, what in (
        ("slurm_error", "SLURM did not answer"),
        ("master_error", "the master did not answer"),
    ):
        if view[side]:
            lines.append(f"         {what}: {view[side]}")
    if view["jobs"] is not None:
        lines.append("jobs     " + ", ".join(f"{count} {state}" for state, count in view["jobs"].items()))
        lines.append(f"clients  {view['clients']}")
    lines.append(f"workers  {workers_text(view)}")
    return "\n".join(lines)


def workers_text(view: Dict[str, Any]) -> str:
    """The part of the text that is about workers: how many there are, where, and what ended."""
    lines = [_counts(view)]
    if view["workers"]:
        lines += _table(view["workers"])
    shown = 0
    for row in view["ended"]:
        log = _log_lines(row)
        if log or row["state"] not in FAILED:
            lines.append(f"  {_ended_line(row)}")
            lines += [f"    {line}" for line in log]
            shown += 1
    if shown < len(view["ended"]):
        lines.append(f"  and {len(view['ended']) - shown} more that failed before: --json lists them")
    return "\n".join(lines)


def _master_line(master: Dict[str, Any], *, told: bool) -> str:
    """One line; `told` is whether SLURM answered."""
    where = f" on {master['node']}" if master["node"] else ""
    if master["slurm_job"] is None:
        text = f"a process{where}, outside SLURM"
    else:
        unknown = "unknown to SLURM" if told else "in a state that is not known"
        state = explained(master["state"], master["reason"] or "") if master["state"] else unknown
        text = f"job {master['slurm_job']} {state}{where}"
    if master["time_left_s"] is not None:
        text += f", {time_text(master['time_left_s'])} left"
    if master["answers"]:
        return f"{text}, answers on {master['address']}"
    return text + (f", published on {master['address']}" if master["address"] else "")


def _counts(view: Dict[str, Any]) -> str:
    """How many there are and should be, and why those that wait do."""
    rows = view["workers"]
    if view["slurm_error"] and not rows:
        return f"{view['wanted']} wanted"
    joined = sum(row["worker"] is not None for row in rows)
    waiting = [row for row in rows if row["state"] == "PENDING"]
    starting = len(rows) - joined - len(waiting)
    slots, busy = (sum(row[what] or 0 for row in rows) for what in ("slots", "busy"))
    parts = [f"{view['wanted']} wanted", f"{joined} joined with {slots} slots, {busy} busy"]
    if starting:
        parts.append(f"{starting} running but not joined")
    if waiting:
        reasons = sorted({row["reason"] for row in waiting if row["reason"]})
        parts.append(
            f"{len(waiting)} {'; '.join(explained('PENDING', reason) for reason in reasons or [''])}"
        )
    return ", ".join(parts)


def _table(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """Lines of aligned columns."""
    titles = ("SLURM job", "node", "state", "worker", "slots", "busy", "done", "time left")
    cells = [list(titles)]
    for row in rows:
        state = "leaves when done" if row["leaves"] else row["state"] or "-"
        numbers = ["-" if row[key] is None else str(row[key]) for key in ("worker", "slots", "busy", "done")]
        left = "-" if row["time_left_s"] is None else time_text(row["time_left_s"])
        cells.append([row["slurm_job"] or "-", row["node"] or "-", state, *numbers, left])
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    return [
        "  " + "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
        for line in cells
    ]


def _ended_line(row: Dict[str, Any]) -> str:
    how = end_text(row["state"], row["reason"] or "", row["exit_code"] or "")
    return f"worker {row['slurm_job']} ended: {how}" + (f", on {row['node']}" if row["node"] else "")


def _log_lines(row: Dict[str, Any]) -> List[str]:
    """Where the log of what failed is, and how it ends."""
    if row["log"] is None:
        return []
    if not row["log_tail"]:
        return [f"its log is empty: {row['log']}"]
    return [f"its log {row['log']} ends:", *(f"| {line}" for line in row["log_tail"])]


def time_text(seconds: float) -> str:
    """Seconds as people read a limit.

    >>> time_text(59), time_text(3600), time_text(100000)
    ('0:59', '1:00:00', '1-03:46:40')
    """
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return f"{days}-{hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
