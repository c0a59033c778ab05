"""What a rolling deploy does to the nodes that stay: how many drain at once, and how many connections come back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from socketspec.lifecycle.drain import LEAST_A_SECOND

__all__ = ("Rollout", "drain_rate", "rollout", "surge_nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Every node replaced, new ones first. Rates are connections a second, times are seconds."""

    nodes: int
    """Nodes that drain at once."""
    times: int
    """How often that many are replaced until all are."""
    rate: float
    """Reconnects while they drain; infinite without a window."""
    node_rate: float
    """The same for each node that does not drain."""
    crowding: float
    """At most so many times as many at the end, where proxies do not look for the node with the fewest connections:
    old nodes then take some of those that leave the others, and hold more the later they go."""
    window: float
    """The shortest drain window in which the others can take them, crowded as they are."""
    seconds: float
    """About, until no old node gets new connections; the last ones then have their drain left."""


def surge_nodes(surge: int | str, nodes: int) -> int:
    """How many of `nodes` are replaced at once: a number of them, or a percentage such as "25%", rounded up."""
    if isinstance(surge, str):  # in whole numbers: 7% of 100 is not 8
        return -(-int(surge.removesuffix("%")) * nodes // 100)
    return min(surge, nodes)


def drain_rate(connections: float, window: float) -> float:
    """Connections a second that leave a node with that many of them; infinite without a window."""
    return max(connections / window, LEAST_A_SECOND) if window else math.inf


def rollout(
    nodes: int, connections: int, *, surge: int | str, start: float, window: float, accepting: float
) -> Rollout:
    """Roll out to `nodes` with a Kubernetes Deployment of ``maxUnavailable: 0`` and ``minReadySeconds`` of `window`.

    A Deployment does not count pods that are ending. So what paces it is only that a new pod counts once it was ready
    for ``minReadySeconds``: then as many old ones end at once as new ones came. `start` is how long a new one takes
    until it is ready, `accepting` how long all nodes together take to accept one connection.
    """
    at_once = surge_nodes(surge, nodes)
    times = math.ceil(nodes / at_once)
    crowding = (1 + at_once / nodes) ** (times - 1)
    rate = at_once * drain_rate(connections / nodes, window)
    return Rollout(
        nodes=at_once,
        times=times,
        rate=rate,
        node_rate=rate / nodes,  # as many as before: the new ones are there before the old ones drain
        crowding=crowding,
        window=at_once * connections / nodes * crowding * accepting,
        seconds=times * (start + window),
    )
