"""Addresses: how people write them, and which ones this machine has."""

from __future__ import annotations

import re
import socket
from typing import Dict, List, Optional, Tuple, Union

from .errors import UsageError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
EVERY_INTERFACE = ("", "0.0.0.0", "::")

Interfaces = Dict[str, List[str]]
"""The addresses of each network interface, by its name."""


# --- as people write them -------------------------------------------------------------------


def parse_address(text: str) -> Tuple[str, Optional[int]]:
    """Split "node", "node:port", "[v6]" or "[v6]:port"; the port is None when not given.

    >>> parse_address("node7:5494"), parse_address("[::1]")
    (('node7', 5494), ('::1', None))
    """
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]\s]+)(?::([^:]*))?", text)
    if match:
        return match[1].strip("[]"), None if match[2] is None else check_port(match[2], where=text)
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        raise UsageError(f"bad address {text!r}: use HOST or HOST:PORT") from None
    return text, None


def format_address(host: str, port: int) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port(port: Union[int, str], *, where: Optional[str] = None, lowest: int = 1) -> int:
    """`port` as a number from `lowest` to 65535, else UsageError (which quotes `where`)."""
    text = str(port)
    if re.fullmatch(r"[0-9]{1,5}", text) and lowest <= int(text) <= 65535:
        return int(text)
    place = f" in {where!r}" if where is not None else ""
    raise UsageError(f"bad port {text!r}{place}: a port is a number from {lowest} to 65535")


def is_numeric(host: str) -> bool:
    """Whether this is an address and not a name, which would have to be looked up.

    >>> is_numeric("10.0.0.7"), is_numeric("::1"), is_numeric("node7")
    (True, True, False)
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return True
        except (OSError, ValueError):
            continue
    return False


# --- of this machine ------------------------------------------------------------------------


def interfaces() -> Interfaces:
    """The interfaces of this machine that are up, IPv4 addresses first."""
    import psutil  # costs 20 ms, which only a master that publishes itself pays

    up = psutil.net_if_stats()
    found: Interfaces = {}
    for name, entries in psutil.net_if_addrs().items():
        if name in up and up[name].isup:
            found[name] = [
                entry.address
                for family in (socket.AF_INET, socket.AF_INET6)
                for entry in entries
                if entry.family == family
            ]
    return found


def reachable(bound: str, found: Interfaces) -> Tuple[str, ...]:
    """The addresses where other machines may reach who is bound to `bound`, one of EVERY_INTERFACE.

    Those that only this machine or its cable understands are left out.

    >>> reachable("0.0.0.0", {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7", "fe80::1%eth0", "2001:db8::7"]})
    ('10.0.0.7',)
    """
    import ipaddress

    every = [address.partition("%") for listed in found.values() for address in listed]
    usable = [ipaddress.ip_address(address) for address, zone, _ in every if not zone]
    usable = [a for a in usable if not (a.is_loopback or a.is_link_local or a.is_unspecified)]
    usable.sort(key=lambda address: address.version)
    return tuple(str(address) for address in usable if address.version == 4 or ":" in bound)


def address_of(interface: str, found: Interfaces) -> str:
    """The first address of that interface; UsageError, naming those that there are, if it has none.

    >>> address_of("ib0", {"lo": ["127.0.0.1"], "ib0": ["10.9.0.7"]})
    '10.9.0.7'
    """
    if found.get(interface):
        return found[interface][0]
    known = ", ".join(f"{name} ({listed[0]})" for name, listed in found.items() if listed)
    raise UsageError(f"no interface {interface!r} with an address here: use one of {known or 'none'}")
