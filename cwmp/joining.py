"""How an agent gets to its master: look it up, try, wait, and try again until its patience ends."""

from __future__ import annotations

import os
import random
import time
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional

from . import defaults
from .addresses import LOOPBACK, format_address
from .dial import reach
from .errors import ConnectError, VersionMismatch, WrongKey
from .patience import pauses
from .rendezvous import Destination
from .transfers import Transfer
from .transport import Wire, connect, introduce

Hello = Callable[[], Dict[str, Any]]
"""What to introduce ourselves with, made anew for each attempt."""

Pause = Callable[[float], bool]
"""Waits for some seconds; returns False when the agent is told to leave."""

Find = Callable[[], Destination]
"""Looks up where the master is; ConnectError while nobody knows."""


class Joined(NamedTuple):
    """A place at a master."""

    ident: int
    cluster: str
    nonce: str  # of the master
    place: str  # host and port of the master
    followed: bool  # it was looked up by name, so it may be looked up again
    store: Dict[str, Any]  # what it keeps large values in
    transfer: Transfer  # the way for those
    take: Wire
    report: Wire
    known: bool  # whether the master knew us
    taken: int  # and how many of our reports it had taken, if we came back


class Approach:
    """The way of one agent to its master.

    `wanted` is what to call the master while it is waited for. `say` gets a line when there is something to
    wait for.
    """

    def __init__(self, find: Find, wanted: str, *, say: Callable[[str], None]) -> None:
        self._find = find
        self._wanted = wanted
        self._say = say

    def join(self, hello: Hello, wait_s: float, pause: Pause, *, again: bool = False) -> Optional[Joined]:
        """Become a member; None when told to leave before. `again`: the master that we had is gone.

        Raises ConnectError after `wait_s`; WrongKey, unless `again`, and VersionMismatch at once. Who was
        there before waits out errors of the home directory, too, and raises them as OSError.
        """
        deadline = time.monotonic() + wait_s
        told = False
        spread = None if again else random.random() * spread_s(os.environ)
        attempt_s = defaults.RETURN_TRY_S if again else defaults.CONNECT_S + defaults.HANDSHAKE_S
        for pause_s in pauses():
            try:
                where = self._find()
                if spread and where.hosts[0] not in LOOPBACK:  # that one is not everybody's
                    if not pause(spread):
                        return None
                spread = None
                return _enter(where, hello(), attempt_s)
            except OSError as error:
                left_s = deadline - time.monotonic()
                passing = isinstance(error, ConnectError) and not isinstance(error, WrongKey)
                final = isinstance(error, VersionMismatch) or not (passing or again)
                if final or left_s <= 0:
                    raise
                if not told:
                    self._say(f"waiting up to {left_s:.0f} s for a master {self._wanted}: {error}")
                    told = True
            if not pause(min(pause_s, left_s)):
                break
        return None


def spread_s(environ: Mapping[str, str]) -> float:
    """Over how many seconds the agents of our SLURM job should spread their coming.

    >>> spread_s({}), spread_s({"SLURM_ARRAY_TASK_COUNT": "1064"})
    (0.0, 3.0)
    """
    counts = [environ.get(name, "") for name in ("SLURM_ARRAY_TASK_COUNT", "SLURM_STEP_NUM_TASKS")]
    agents = max(int(count) if count.isdecimal() else 1 for count in counts)
    return min(defaults.SPREAD_MAX_S, max(0, agents - defaults.SPREAD_FROM) * defaults.SPREAD_S)


def _enter(where: Destination, hello: Dict[str, Any], timeout_s: float) -> Joined:
    """Make both connections and introduce ourselves."""
    host, take = reach(where, timeout_s)
    wires = [take]
    try:
        welcome = introduce(take, hello)
        further = {key: value for key, value in hello.items() if key != "back"}
        further["member"] = welcome["member"]
        wires.append(connect(host, where.port, where.authkey, where.encryption, timeout_s=timeout_s))
        introduce(wires[1], further)
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
        welcome["nonce"],
        place,
        where.name is not None,
        welcome["store"],
        Transfer((host, where.port), where.authkey, further, where.encryption),
        take,
        wires[1],
        welcome["known"],
        welcome["taken"],
    )
