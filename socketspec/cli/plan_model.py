"""What the capacity calculator is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from socketspec.cli.rollout import Rollout

__all__ = ("Capacity", "Demand", "Plan", "PlanError")


class PlanError(ValueError):
    """No number of nodes fits; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be carried. Rates are per second, times are seconds, sizes are bytes."""

    connections: int
    rate: float
    """Messages published, in all rooms together."""
    room_size: float = 50.0
    """Members of a room that is published to."""
    rooms_per_connection: float = 1.0
    size: int = 200
    """Of a payload, encoded."""
    by_clients: float = 1.0
    """Part of the messages that clients publish through events; the rest comes from backend code."""
    events: float = 0.0
    """Events of clients that are not broadcast."""
    session: float = 1800.0
    """How long a connection lasts; it says how many come and go."""
    heartbeat: float = 25.0
    """The app's ``heartbeat_interval``; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a node may be used for."""

    headroom: float = 2.0
    """CPU and memory that a node has, for what it needs: 2 leaves half of both unused."""
    spare: int = 1
    """Nodes that may be missing without a node's use going above that."""
    node_memory: int = 2 << 30
    """Of one node, the container's limit."""
    node_buffer: int = 256 << 20
    """Bytes that may wait for slow clients of one node: the app's ``max_node_buffer``."""
    node_connections: int = 50_000
    """Most connections of one node, its ``--max-connections``: how many should be lost with it."""
    open_files: int = 1_048_576
    """Files that a node may have open, the hard limit of its container: a connection is one."""
    recovery: float = 60.0
    """Seconds within which the connections of a node that died should be back."""
    drain_window: float = 10.0
    drain_grace: float = 10.0
    surge: int | str = "25%"
    """Nodes that a rolling deploy replaces at once: a number, or a percentage of them, as Kubernetes' maxSurge."""
    start: float = 10.0
    """Until a new node is ready."""
    cores_per_machine: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes. CPU is in cores, memory and sizes in bytes, network in bits a second, times in seconds."""

    nodes: int
    machines: int
    limited_by: str
    """What asks for that many: cpu, memory, connections, open files, recovery, or spare."""
    rooms: float
    deliveries: float
    """Messages to clients, a second."""
    nodes_per_message: float
    """Nodes on which a message has a member."""
    node_connections: int
    """With all nodes there."""
    node_connections_most: int
    """The most a node has to take: with the spare ones missing, or as the last old one of a rolling deploy."""
    node_files: int
    """Files that a node has to be allowed for the most connections that it may have."""
    node_cpu: float
    """Part of one core, with all nodes there."""
    node_cpu_spare: float
    """The same with the spare ones missing."""
    node_memory: int
    """With the spare ones missing; without headroom."""
    node_memory_limit: int
    """What to give a node."""
    total_cpu: float
    total_memory: int
    network_out: float
    """To clients, of all nodes."""
    network_in: float
    node_network: float
    """Out and in, of one node, with Redis."""
    redis_cpu: float
    redis_shards: int
    """Primaries among which Redis should be divided."""
    redis_memory: int
    redis_in: float
    redis_out: float
    redis_connections: int
    connects: float
    """New connections a second, in everyday life."""
    crash_recovery: float
    """Until the connections of a node that died are back, if they come as fast as they can."""
    full_reconnect: float
    """Until all connections are back after all were lost at once."""
    drain_rate: float
    """Connections a second that one node sends to the others while it drains."""
    node_stop: float
    """At most, from SIGTERM to the end of a node."""
    rollout: Rollout
    warnings: tuple[str, ...]
