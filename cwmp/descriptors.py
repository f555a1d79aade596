"""How many descriptors this process may have open, and how many workers a master can serve with them."""

from __future__ import annotations

import resource

_OWN = 64
"""Descriptors that a master needs for itself: its files, listeners and the newcomers that prove their key."""

_CONNECTIONS = 2
"""Of each worker, however many slots it has, and of each client."""


def raise_limit() -> int:
    """Allow as many as the system lets this process have; returns how many were allowed before."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        pass  # then it stays as it is
    return before


def set_limit(limit: int) -> None:
    """Allow so many from now on."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def what_it_allows() -> str:
    """What a master in this process can do with the limit, for people to read."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return "no limit to descriptors, and so none to workers and clients"
    members = max(0, limit - _OWN) // _CONNECTIONS
    return f"the limit of {limit:,} descriptors allows {members:,} workers and clients"
