"""A connection to the master on an event loop: requests out, replies in, nobody waits."""

from __future__ import annotations

from typing import Any, Callable, List

from .errors import MasterLost
from .loop import Channel, Loop
from .transport import RETURN, Wire, dump_message, failure, load_message

_FAREWELL = failure(MasterLost(""))


class Line:
    """One connection to the master: `on_reply(value)` is called for each reply that comes."""

    def __init__(
        self, loop: Loop, wire: Wire, on_reply: Callable[[Any], None], on_lost: Callable[[str], None]
    ) -> None:
        self.dismissed = False
        """Whether the master has said that it ends."""
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._channel = Channel(loop, wire.sock, self._on_frames, on_lost, wire.release())

    def request(self, target: str, method: str, *args: Any) -> None:
        """Send a request."""
        self._channel.send(dump_message((target, method, args, {})))

    def hear_out(self) -> None:
        """Take the replies that have come, before hanging up."""
        self._channel.hear_out()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _on_frames(self, frames: List[bytes]) -> None:
        for frame in frames:
            try:
                kind, value = load_message(frame)
            except Exception as error:  # whatever a confused master sends
                self._on_lost(f"it sent something that is no reply ({type(error).__name__}: {error})")
                return
            if kind != RETURN:
                self.dismissed = str(value).startswith(_FAREWELL)
                self._on_lost(value[len(_FAREWELL) :] if self.dismissed else f"it answered: {value}")
                return
            self._on_reply(value)
