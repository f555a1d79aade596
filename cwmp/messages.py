"""What crosses the wire between client, master and worker.

The envelope is that of `multiprocessing.managers`: a pickled `(object, method, args, kwargs)`
one way, `(kind, value)` back. Everything inside is made of tuples, lists, dicts, str, bytes,
int, float, bool and None, so that either side can refuse to unpickle anything else, and because
plain tuples are what a batch of many small jobs can afford. What users send stays bytes here.

Methods of `JobQueue`
    cluster() -> {name, nonce}                      anyone: who this is
    join(hello) -> welcome                          a client or worker introduces itself, or comes back
    put(client, jobs, prompt)                       client: queue these
    cancel(client, numbers) -> numbers              client: of these, the ones withdrawn
    alive(client, numbers) -> numbers               client: of these, the ones that it will hear of
    take(worker, limit) -> leases ...               worker: send work, `limit` leases in all; None: drain
    drain(workers) -> workers                       anyone: these get no more jobs, and leave when done
    status() -> dict                                anyone: what `cwmp-status` shows
Methods of `BlobStore`, for values too large for a message
    offer(client, arrivals, released, forgotten, prompt) -> names  client: these are there, those not needed
    transfer()                                      member: this connection carries bytes from now on
Methods of `ResultQueue`
    report(worker, report, prompt) -> origins       worker: outcomes, a new limit, a sign of life
    collect(client, after) -> (seq, events) ...     client: send events; acknowledges up to `after`
    leave()                                         client or worker: goodbye

`take` and `collect` are standing requests: they are answered once whenever there is something, for as
long as the connection lasts. `put` and `report` that are not `prompt` are acknowledged at leisure,
several at a time. A report that says which jobs run is answered with what they are called by everybody.

A hello with `member` alone is that of a further connection. With `back` as well, the member comes back after
its connections broke; `back` says where it was (`cluster`, `nonce` of the master), and of a worker what it
is `holding` (a list of `Held`). The welcome then says whether the master still knew it (`known`), and how
many of its requests or reports it had `taken`: those are not sent again, later ones are.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, Dict, Optional, Tuple, Union

PROTOCOL = 3
"""Raised whenever a message changes; two sides with different numbers refuse each other."""

JOB_QUEUE = "JobQueue"
RESULT_QUEUE = "ResultQueue"
BLOB_STORE = "BlobStore"

Ref = Tuple[str, int]
"""(name, size) of a *blob*: large bytes that travel apart from what they are part of."""

Packed = Union[bytes, Tuple[bytes, Tuple[Ref, ...]]]
"""A pickled value; of a large one (layout, refs), see `packing`."""

Job = Tuple[int, Packed, Packed]
"""(number, function, call). The number is the client's own; equal functions are the same object,
so a batch carries each of them once."""

Lease = Tuple[int, int, Packed, Packed]
"""(ticket, attempt, function, call): one hand-out of a job to a worker."""

Outcome = Tuple[int, int, Packed]
"""(ticket, kind, data): how an attempt ended, from the worker."""

Origin = Tuple[int, int]
"""(client, number): which job an attempt is of, in words that mean the same to every master."""

Held = Tuple[int, Optional[Origin], int]
"""(ticket, origin, attempt): what a worker says of a lease when it comes back. Without an origin it has not
begun, or nobody has told."""

Event = Tuple[int, int, Any]
"""(number, kind, data): what became of a job, to its client."""

# Kinds of outcome and event. RUNNING is the only one that does not end the job.
RESULT = 0  # data: the pickled return value
ERROR = 1  # data: the pickled error, see payload.dump_error
LOST = 2  # data: list of dicts, one an attempt, see errors.WorkerLost
RUNNING = 3  # data: None
VANISHED = 4  # data: which large value of the job could not be had, as a sentence
GRANTED = 5  # number 0, data: so many more bytes of the client's large values have found room


def this_side(role: str, **facts: Any) -> Dict[str, Any]:
    """The hello of this process: its role, its versions, where it is, and `facts` such as slots."""
    return {
        "role": role,
        "protocol": PROTOCOL,
        "python": python_minor(),
        "node": platform.node(),
        "pid": os.getpid(),
        **facts,
    }


_SAID: Dict[str, Tuple[type, ...]] = {
    "pid": (int,),
    "slots": (int,),
    "busy": (int,),
    "done": (int,),
    "rss_bytes": (int,),
    "draining": (bool,),
    "ends_in_s": (float, type(None)),  # until the worker's time is up
    "slurm_job": (str,),
    "restarts": (int,),
    "max_attempts": (int,),
}


def said_of_itself(facts: Dict[str, Any]) -> Dict[str, Any]:
    """What a member may say of itself, or of its `place`, as far as it is of the right kind.

    >>> said_of_itself({"pid": 5, "slots": "many", "place": {"slurm_job": "17"}})
    {'pid': 5, 'slurm_job': '17'}
    """
    place = facts.get("place")
    every = {**place, **facts} if type(place) is dict else facts
    said = [name for name in _SAID if name in every and type(every[name]) in _SAID[name]]
    return {name: every[name] for name in said}


def python_minor() -> str:
    """The running Python as "3.11": pickles of code do not travel between minor versions."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def refusal(mine: Dict[str, Any], theirs: Dict[str, Any]) -> Optional[str]:
    """Why the two sides cannot work together, in one sentence; None if they can.

    >>> print(refusal({"protocol": 3}, {"protocol": 1, "role": "worker"}))
    this worker speaks cwmp protocol 1 and the cluster speaks 3: install the same cwmp on both sides
    """
    role = theirs.get("role")
    if theirs.get("protocol") != mine["protocol"]:
        return (
            f"this {role} speaks cwmp protocol {theirs.get('protocol')} and the cluster speaks "
            f"{mine['protocol']}: install the same cwmp on both sides"
        )
    if theirs.get("python") != mine["python"]:
        return (
            f"this {role} runs Python {theirs.get('python')} and the cluster runs Python "
            f"{mine['python']}: start both with the same Python minor version"
        )
    return None


Report = Dict[str, Any]
"""What a worker reports, each key only when there is something: `outcomes` (list of Outcome),
`running` and `returned` (tickets), `unfit` (tickets: it has no time left for their functions), `died` (list
of (ticket, cause), see `errors.WorkerLost`), `limit` (how many leases the master may send in all, counted
from the `take`) and `facts` (what `said_of_itself` lets through)."""
