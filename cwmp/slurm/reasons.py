"""What SLURM's words for why a job waits mean, for those who did not write SLURM."""

from __future__ import annotations

from typing import Sequence, Tuple

_MEANINGS: Sequence[Tuple[str, str]] = (  # the first that the reason begins with
    ("Resources", "no node is free for it yet"),
    ("Priority", "others are before it in the queue"),
    ("None", "SLURM has not looked at it yet"),
    ("Dependency", "it waits for another job"),
    ("BeginTime", "it is begun again in a moment"),
    ("JobHeld", "it is held: scontrol release starts it"),
    ("launch failed requeued held", "its node could not start it: scontrol release tries again"),
    ("PartitionTimeLimit", "--time is longer than the partition allows"),
    ("PartitionNodeLimit", "it asks for more nodes than the partition allows"),
    ("PartitionConfig", "it asks for what the partition cannot give"),
    ("PartitionDown", "the partition is down"),
    ("PartitionInactive", "the partition is closed"),
    ("ReqNodeNotAvail", "the nodes that it could use are down, or reserved for others"),
    ("NodeDown", "a node that it needs is down"),
    ("BadConstraints", "no node has what it asks for"),
    ("Licenses", "it waits for a licence"),
    ("Reservation", "it waits for a reservation"),
    ("InvalidAccount", "the account is not valid: --account"),
    ("InvalidQOS", "the QOS is not valid"),
    ("JobArrayTaskLimit", "as many of the array run as may at once"),
    ("QOS", "a limit of its QOS is reached"),
    ("Assoc", "a limit of the account is reached"),
    ("MaxCpuPerAccount", "a limit of the account is reached"),
)


def explained(state: str, reason: str) -> str:
    """State and reason as people read them.

    >>> explained("PENDING", "Resources")
    'PENDING (Resources: no node is free for it yet)'
    >>> explained("RUNNING", "")
    'RUNNING'
    """
    if not reason:
        return state
    for beginning, meaning in _MEANINGS:
        if reason.lower().startswith(beginning.lower()) and state == "PENDING":
            return f"{state} ({reason}: {meaning})"
    return f"{state} ({reason})"
