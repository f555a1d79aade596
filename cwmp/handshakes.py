"""What is said to people of a connection that stood, and led to no proven key."""

from __future__ import annotations

import socket
from multiprocessing import AuthenticationError
from typing import Optional

from . import errors

_HINT = ": if that is a master which encrypts this connection, set CWMP_ENCRYPT=always here"


def told(error: BaseException, place: str, timeout_s: float, encrypted: bool) -> BaseException:
    """What went wrong between a standing connection and a proven key."""
    if isinstance(error, AuthenticationError):
        return errors.WrongKey(
            f"the master at {place} holds another key: use the key that it was started with "
            "(--authkey-file, CWMP_AUTHKEY_FILE)"
        )
    if encrypted:
        trouble = _tls_trouble(error, place)
        if trouble:
            return errors.ConnectError(trouble)
    died = isinstance(error, ConnectionResetError)  # who waits for the other side to begin does not reset
    hint = "" if encrypted or died else _HINT
    if isinstance(error, socket.timeout):
        return errors.ConnectError(
            f"{place} took the connection but did not answer within {timeout_s:g} s{hint}"
        )
    if isinstance(error, (EOFError, OSError)):
        return errors.ConnectError(
            f"{place} closed the connection during the handshake ({reason(error)}){hint}"
        )
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return errors.ConnectError(f"what listens at {place} is not a cwmp master ({reason(error)})")
    return error


def _tls_trouble(error: BaseException, place: str) -> Optional[str]:
    """What is to be said of a handshake of TLS that failed; None if it was not TLS that did."""
    from . import tls

    if isinstance(error, tls.NotTls):
        if b"#CHALLENGE#" in error.heard:
            return (
                f"the master at {place} does not encrypt this connection, and this side does: start it "
                "without --encrypt never (CWMP_ENCRYPT), or set CWMP_ENCRYPT=never here, too"
            )
        return f"what listens at {place} is not a cwmp master (it does not speak TLS)"
    if isinstance(error, tls.ForeignCertificate):
        return (
            f"the master at {place} shows a certificate that is not signed by the CA of this side "
            f"({reason(error)}): set CWMP_TLS_CERT, CWMP_TLS_KEY and CWMP_TLS_CA as they are set there"
        )
    if isinstance(error, tls.TlsError):
        return (
            f"{place} and this side do not agree on encryption ({reason(error)}): do both have certificates "
            "of the same CA (CWMP_TLS_CERT, CWMP_TLS_KEY, CWMP_TLS_CA), or neither?"
        )
    return None


def reason(error: BaseException) -> str:
    """An error of the system in its own words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
