"""Talking to the master of a cluster, for those who only ask or command."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from .. import defaults, dial, rendezvous
from ..errors import ConnectError
from ..messages import JOB_QUEUE


def call(cluster: rendezvous.Cluster, method: str, *args: Any) -> Any:
    """What that master's JobQueue answers. ConnectError when it cannot be reached."""
    wire = dial.reach(cluster.destination(), defaults.CONNECT_S).wire
    try:
        return wire.call(JOB_QUEUE, method, *args)
    except OSError as error:
        raise ConnectError(f"the master on {cluster.node} does not answer: {error}") from None
    finally:
        wire.close()


def status(name: str) -> Dict[str, Any]:
    """The status of the cluster of that name; ConnectError when its master does not answer."""
    found: Dict[str, Any] = call(_published(name), "status")
    return found


def drain(name: str, workers: Sequence[int]) -> List[int]:
    """Let these workers go when what they run has ended; returns those that were there."""
    gone: List[int] = call(_published(name), "drain", list(workers)) if workers else []
    return gone


def answering(name: str) -> Optional[rendezvous.Cluster]:
    """The published cluster of that name, if its master answers now; None otherwise."""
    cluster = rendezvous.find_cluster(name)
    return cluster if cluster is not None and dial.answers(cluster) else None


def _published(name: str) -> rendezvous.Cluster:
    cluster = rendezvous.find_cluster(name)
    if cluster is None:
        raise ConnectError(f"no master of cluster {name!r} is running")
    return cluster
