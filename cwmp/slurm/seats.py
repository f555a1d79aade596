"""The seats of a pool: who holds one, how that went, and how soon it is filled again. Pure rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Optional, Tuple

from .commands import ENDED, WAITING

YOUNG_S = 60.0
"""A member that ended sooner died young: its seat waits before it is filled again. Larger: a pool whose
workers crash now and then is refilled more slowly. Smaller: a crash loop costs more submissions."""

BACKOFF_S = 5.0
"""The pause after the first such death; it doubles with each further one."""

BACKOFF_MAX_S = 300.0
"""The longest pause."""

LOST = "LOST"
"""Not SLURM's word: the master no longer hears a worker that SLURM still takes for alive."""

BLAMELESS = frozenset({"CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", LOST})
"""Ends that say nothing about the worker itself: somebody, or a node, ended it."""

COMPLETING = "COMPLETING"  # SLURM is ending it; where its node does not answer, for minutes
_STILLBORN = "launch failed requeued held"  # SLURM could not start it, and holds it for ever


@dataclass(frozen=True)
class Member:
    """One worker of the pool, as SLURM and, once it has joined, the master tell of it."""

    job: str
    state: str  # SLURM's word; "" when SLURM has forgotten the job
    reason: str = ""
    node: str = ""
    exit_code: str = ""
    ran_s: Optional[float] = None
    worker: Optional[int] = None  # its id at the master; None: not connected
    busy: int = 0  # jobs that it holds
    idle_s: float = 0.0
    draining: bool = False
    dismissed: bool = False  # sent away, by us or by `scale`: it counts no more

    @property
    def alive(self) -> bool:
        """Whether it is one of the pool and SLURM still has it, waiting or at work."""
        return bool(self.state) and self.state not in ENDED and not self.dismissed

    @property
    def waits(self) -> bool:
        """Whether it has not begun, or is to begin again."""
        return self.state in WAITING

    @property
    def stillborn(self) -> bool:
        """Whether SLURM could not start it and holds it for ever."""
        return self.reason.replace("_", " ").lower() == _STILLBORN  # the spelling changed over the years


@dataclass(eq=False)
class Seat:
    """One place in the pool, and how it went with those who held it."""

    member: Optional[Member] = None  # who holds it, as last seen
    joined: bool = False  # the master has had it as a worker
    watched: bool = False  # the master was seen while it ran
    since: Optional[float] = None  # when it was first seen running
    missing_since: Optional[float] = None  # since when the master, which had it, has not; or it is completing
    leaving: bool = False  # it takes no more jobs, since its time is nearly up
    faults: int = 0  # members that died young in a row by their own fault,
    mishaps: int = 0  # and by no fault of theirs
    not_before: float = -math.inf
    failed: Optional[Member] = None  # the last one at fault
    given_up: bool = False

    @property
    def vacant(self) -> bool:
        """Whether somebody new could have it, now or later."""
        return self.member is None and not self.given_up

    def see(self, member: Member, now: float, *, master_seen: bool) -> None:
        """Its member is alive: remember how it is doing."""
        node = member.node or (self.member.node if self.member else "")
        self.member = replace(member, node=node)
        self.leaving = member.draining
        if member.waits:
            self._begin_anew()  # for the first time, or put back into SLURM's queue
        else:
            self.since = now if self.since is None else self.since
            self.watched = self.watched or master_seen
        gone = self.joined and member.worker is None and master_seen and not member.waits
        if not gone and member.state != COMPLETING:
            self.missing_since = None
        elif self.missing_since is None:
            self.missing_since = now
        if member.worker is not None:
            self.joined = True
            if self.age_s(member, now) >= YOUNG_S:
                self.faults = self.mishaps = 0

    def age_s(self, member: Member, now: float) -> float:
        """For how long that member has run: as far as we have seen it, or once it has ended as SLURM tells.

        What `squeue` tells of a running job goes by this machine's wall clock, which may be set meanwhile.
        """
        if member.ran_s is not None and member.state in ENDED:
            return member.ran_s
        return 0.0 if self.since is None else now - self.since

    def bury(self, member: Member, now: float) -> bool:
        """Its member has ended: empty the seat, for how long depends. Returns whether it was at fault."""
        troubled, at_fault = self._judge(member)
        if troubled:
            self.faults += at_fault
            self.mishaps += not at_fault
            doublings = self.faults - 1 if at_fault else self.mishaps - 2  # the first mishap costs nothing
            pause_s = BACKOFF_S * 2.0 ** min(doublings, 30) if doublings >= 0 else 0.0
            self.not_before = now + min(BACKOFF_MAX_S, pause_s)
        else:
            self.faults = self.mishaps = 0
        if at_fault:
            self.failed = member
        self.member = None
        self.leaving = False
        self._begin_anew()
        return at_fault

    def _begin_anew(self) -> None:
        self.since = self.missing_since = None
        self.joined = self.watched = False

    def _judge(self, member: Member) -> Tuple[bool, bool]:
        """Whether an ended member gives reason to wait before the next, and whether by its own fault."""
        assert self.member is not None
        young = (member.ran_s or 0.0) < YOUNG_S
        if self.member.stillborn:
            return True, True
        if member.dismissed:
            return False, False
        if member.state in BLAMELESS:
            return young, False
        if not self.joined and not young:
            # It never found its master, however long it tried; or we could not see that it did.
            return True, self.watched
        return young, young and not (self.joined and member.state in ("COMPLETED", "TIMEOUT"))


def how_it_ended(member: Member) -> str:
    """A sentence on an ended member, from what SLURM tells.

    >>> how_it_ended(Member("17_3", "FAILED", "NonZeroExitCode", "n2", "127:0", ran_s=1.2))
    'FAILED (NonZeroExitCode), exit code 127:0, after 1 s, on n2'
    """
    after = "" if member.ran_s is None else f", after {member.ran_s:.0f} s"
    place = f", on {member.node}" if member.node else ""
    return end_text(member.state, member.reason, member.exit_code) + after + place


def end_text(state: str, reason: str, exit_code: str) -> str:
    """How a job ended, in SLURM's words.

    >>> end_text("CANCELLED", "None", "0:15"), end_text("", "", "")
    ('CANCELLED, exit code 0:15', 'SLURM no longer knows it')
    """
    text = state or "SLURM no longer knows it"
    if reason not in ("", "None", state):
        text += f" ({reason})"
    return text + (f", exit code {exit_code}" if exit_code not in ("", "0:0") else "")
