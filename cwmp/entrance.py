"""Which connections a master takes, and which of them with TLS: the same rule as at their other ends."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING, Optional

from . import encryption
from .encryption import Encryption
from .transport import TlsWire, Wire

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger("cwmp.master")

_TELL_S = 10.0  # between two lines on who was turned away


class Entrance:
    """The door of a master that listens on `host`, an address as the kernel writes it.

    Raises UsageError where it is to encrypt and has no means, or its certificates cannot be used.
    """

    def __init__(self, host: str, authkey: bytes, setting: Encryption) -> None:
        self.setting = setting
        self._context: Optional[SSLContext] = None
        self._told = float("-inf")
        if setting.mode == encryption.ALWAYS:
            setting.require("every connection")
        elif encryption.is_loopback(host):
            return
        if setting.way in (encryption.PSK, encryption.CERT):
            from . import tls  # OpenSSL takes 10 ms to load

            self._context = tls.context(setting, authkey, server_side=True)

    @property
    def has_shortcut(self) -> bool:
        """Whether processes on this machine may come without TCP."""
        return self.setting.mode != encryption.ALWAYS

    def admit(self, sock: socket.socket, address: str) -> Optional[Wire]:
        """The connection of one who comes from `address` ("": by the shortcut), or None after closing it."""
        sock.setblocking(True)
        if not address or not self.setting.covers(address):
            return Wire(sock)
        if self._context is not None:
            return TlsWire(sock, self._context, server_side=True)
        sock.close()
        now = time.monotonic()
        if now - self._told > _TELL_S:
            self._told = now
            log.warning("%s was turned away: connections are taken from this machine only", address)
        return None
