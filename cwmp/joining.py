"""How an agent gets to its master: look it up, try, wait, and try again until its patience ends."""

from __future__ import annotations

import os
import random
import time
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional

from . import defaults
from .addresses import LOOPBACK, format_address
from .dial import reach
from .errors import ConnectError, VersionMismatch, WrongKey
from .rendezvous import Destination
from .transfers import Transfer
from .transport import Wire, connect, introduce

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0

Find = Callable[[], Destination]
"""Looks up where the master is; ConnectError while nobody knows."""


class Joined(NamedTuple):
    """A place at a master."""

    ident: int
    cluster: str
    place: str  # host and port of the master
    followed: bool  # it was looked up by name, so it may be looked up again
    store: Dict[str, Any]  # what it keeps large values in
    transfer: Transfer  # the way for those
    take: Wire
    report: Wire


class Approach:
    """The way of one agent to its master.

    `wanted` is what to call the master while it is waited for. `pause(seconds)` waits; it returns False
    when the agent is told to leave. `say` gets a line when there is something to wait for.
    """

    def __init__(
        self,
        find: Find,
        wanted: str,
        *,
        say: Callable[[str], None],
        pause: Callable[[float], bool],
    ) -> None:
        self._find = find
        self._wanted = wanted
        self._say = say
        self._pause = pause

    def join(self, hello: Dict[str, Any], wait_s: float, *, again: bool = False) -> Optional[Joined]:
        """Become a member; None when told to leave before. `again`: the master that we had is gone.

        Raises ConnectError after `wait_s`; WrongKey, unless `again`, and VersionMismatch at once.
        """
        deadline = time.monotonic() + wait_s
        told = False
        spread: Optional[float] = random.random() * spread_s(os.environ)
        for pause_s in pauses():
            try:
                where = self._find()
                if spread and where.hosts[0] not in LOOPBACK:  # that one is not everybody's
                    if not self._pause(spread):
                        return None
                spread = None
                return _enter(where, hello)
            except ConnectError as error:
                left_s = deadline - time.monotonic()
                final = isinstance(error, VersionMismatch) or (isinstance(error, WrongKey) and not again)
                if final or left_s <= 0:
                    raise
                if not told:
                    self._say(f"waiting up to {left_s:.0f} s for a master {self._wanted}: {error}")
                    told = True
            if not self._pause(min(pause_s, left_s)):
                break
        return None


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts: more and more, and not the same for every agent."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.5)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)


def spread_s(environ: Mapping[str, str]) -> float:
    """Over how many seconds the agents of our SLURM job should spread their coming.

    >>> spread_s({}), spread_s({"SLURM_ARRAY_TASK_COUNT": "1064"})
    (0.0, 3.0)
    """
    counts = [environ.get(name, "") for name in ("SLURM_ARRAY_TASK_COUNT", "SLURM_STEP_NUM_TASKS")]
    agents = max(int(count) if count.isdecimal() else 1 for count in counts)
    return min(defaults.SPREAD_MAX_S, max(0, agents - defaults.SPREAD_FROM) * defaults.SPREAD_S)


def _enter(where: Destination, hello: Dict[str, Any]) -> Joined:
    """Make both connections and introduce ourselves."""
    host, take = reach(where)
    wires = [take]
    try:
        welcome = introduce(take, hello)
        wires.append(connect(host, where.port, where.authkey))
        introduce(wires[1], {**hello, "member": welcome["member"]})
    except BaseException as error:
        for wire in wires:
            wire.close()
        if isinstance(error, (OSError, EOFError)) and not isinstance(error, ConnectError):
            place = format_address(host, where.port)
            raise ConnectError(f"{place} was reached and then did not answer: {error}") from error
        raise
    place = format_address(host, where.port)
    return Joined(
        welcome["member"],
        welcome["name"],
        place,
        where.name is not None,
        welcome["store"],
        Transfer((host, where.port), where.authkey, {**hello, "member": welcome["member"]}),
        take,
        wires[1],
    )
