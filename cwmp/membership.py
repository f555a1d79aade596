"""How a client becomes a member of its cluster."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from . import defaults
from .messages import this_side
from .transport import Wire, connect, introduce


def join(host: str, port: int, authkey: bytes) -> Tuple[Dict[str, Any], Dict[str, Any], Wire, Wire]:
    """Who we are at the master, what it keeps large values in, and two connections that it knows as ours."""
    wires: List[Wire] = []
    try:
        hello = this_side("client")
        for _ in ("submit", "collect"):
            wires.append(connect(host, port, authkey))
            welcome = introduce(wires[-1], hello)
            hello["member"] = welcome["member"]
    except BaseException:
        for wire in wires:
            wire.close()
        raise
    wires[1].deadline(defaults.POLL_S + defaults.REPLY_S)
    return hello, welcome["store"], wires[0], wires[1]
