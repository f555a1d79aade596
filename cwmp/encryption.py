"""Which connections are encrypted, and with what: one setting, and a rule that both ends apply alike.

In multiprocessing's protocol the master speaks first, in TLS the client does: so nothing can be negotiated,
and who reaches whom through which address must tell both ends the same.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Dict, Optional

from .errors import UsageError

AUTO = "auto"
"""Encrypt what leaves the machine: every connection but those through loopback and the Unix shortcut."""
ALWAYS = "always"
"""Encrypt every connection, and take no Unix shortcut."""
NEVER = "never"
"""Encrypt nothing."""
MODES = (AUTO, ALWAYS, NEVER)

PSK = "psk"
"""TLS 1.3 with a secret made of the cluster's key, and keys of their own for each connection."""
CERT = "cert"
"""TLS with certificates on both sides."""
CLEAR = "clear"
"""No TLS."""
LOCAL = "local"
"""There are no means for TLS: connections from other machines are refused."""

_WAYS_OUT = (
    "use Python 3.13 or newer on all sides; or certificates (--tls-cert, --tls-key, --tls-ca; CWMP_TLS_CERT, "
    "CWMP_TLS_KEY, CWMP_TLS_CA); or, where the network is trusted, CWMP_ENCRYPT=never (--encrypt never)"
)


@dataclass(frozen=True)
class Encryption:
    """The setting of one process. The paths are those of PEM files, all three or none of them.

    >>> Encryption().covers("10.0.0.7"), Encryption().covers("127.0.0.1"), Encryption(ALWAYS).covers("::1")
    (True, False, True)
    """

    mode: str = AUTO
    cert: Optional[str] = None  # what we show, a chain
    key: Optional[str] = None  # its private key
    ca: Optional[str] = None  # who must have signed what the other side shows

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--encrypt {self.mode!r} is none of {', '.join(MODES)}")
        files = {"--tls-cert": self.cert, "--tls-key": self.key, "--tls-ca": self.ca}
        missing = [flag for flag, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise UsageError(f"{', '.join(files)} belong together: {' and '.join(missing)} is missing")

    @property
    def way(self) -> str:
        """PSK, CERT, CLEAR or LOCAL: what becomes of a connection that leaves the machine."""
        if self.mode == NEVER:
            return CLEAR
        if self.cert is not None:
            return CERT
        return PSK if psk_is_possible() else LOCAL

    def covers(self, address: str) -> bool:
        """Whether a connection is encrypted whose other end has that address, as the kernel writes it."""
        if self.mode == AUTO:
            return not is_loopback(address)
        return self.mode == ALWAYS

    def require(self, what: str) -> None:
        """UsageError, saying what can be done, where there are no means to encrypt `what`."""
        if self.way == LOCAL:
            raise UsageError(f"{what} must be encrypted, which this Python cannot by itself: {_WAYS_OUT}")

    def caution(self, host: str) -> Optional[str]:
        """What the user of a master that listens on `host` should know; None if there is nothing."""
        if is_loopback(host) or self.way in (PSK, CERT):
            return None
        if self.way == CLEAR:
            return "connections from other machines are not encrypted, as --encrypt never demands"
        return (
            "connections are taken from this machine only, for this Python cannot encrypt others by itself: "
            + _WAYS_OUT
        )

    def following(self, mode: str, way: str) -> Encryption:
        """What we do with a master that has published its mode and way. Raises UsageError."""
        if mode == NEVER and self.mode == ALWAYS:
            raise UsageError(
                "this side is to encrypt everything (CWMP_ENCRYPT=always), and the master encrypts nothing: "
                "start it with --encrypt always, too"
            )
        return Encryption(mode, self.cert, self.key, self.ca) if way == CERT else Encryption(mode)

    def facts(self) -> Dict[str, str]:
        """The setting as a master tells it."""
        return {"mode": self.mode, "way": self.way}


DEFAULT = Encryption()
"""That of one who says nothing."""


def choose(
    mode: Optional[str] = None,
    cert: Optional[str] = None,
    key: Optional[str] = None,
    ca: Optional[str] = None,
) -> Encryption:
    """The setting that the arguments make, each else taken from the environment. Raises UsageError.

    That is CWMP_ENCRYPT, CWMP_TLS_CERT, CWMP_TLS_KEY and CWMP_TLS_CA.
    """
    paths = (
        os.path.abspath(os.path.expanduser(path)) if path else None
        for path in (
            cert or os.environ.get("CWMP_TLS_CERT"),
            key or os.environ.get("CWMP_TLS_KEY"),
            ca or os.environ.get("CWMP_TLS_CA"),
        )
    )
    return Encryption(mode or os.environ.get("CWMP_ENCRYPT") or AUTO, *paths)


def is_loopback(address: str) -> bool:
    """Whether an address, as the kernel writes it, is this machine's own way to itself.

    >>> is_loopback("127.8.0.1"), is_loopback("::ffff:127.0.0.1"), is_loopback("10.0.0.7")
    (True, True, False)
    """
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


def psk_is_possible() -> bool:
    """Whether this Python can encrypt with nothing but a key that both sides have."""
    if sys.hexversion < 0x030D0000:  # to know it without loading OpenSSL, which takes 10 ms
        return False
    import ssl

    return bool(getattr(ssl, "HAS_PSK", False)) and ssl.HAS_TLSv1_3
