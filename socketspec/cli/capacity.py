"""How many nodes a load needs: a model of measured costs. Pure arithmetic, checked against measurements by its tests.

A node is one process on one core. What a message costs is not a constant: a node that is asleep has to be woken up for
it, a busy one finds several at once. So a node's use of its core is the solution of an equation, see `_share`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Final

__all__ = ("COSTS", "Capacity", "Costs", "Demand", "Plan", "PlanError", "nodes_reached", "plan", "share_of_core")

MAX_NODES: Final = 100_000


class PlanError(ValueError):
    """No number of nodes fits; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What things cost: seconds of one core, and bytes. Measured on the machine of docs/performance.md.

    Yours differs; take the figures of `socketspec bench` and of your metrics where they matter.
    """

    accept: float = 1 / 2_400
    """Handshake, authentication not included. Source: the benchmark ``idle`` of docs/performance.md: 2,400/s a core."""
    join: float = 350e-6
    """Joining a room through Redis and leaving it again. Source: 900 connections of `bench`, life less `accept`."""
    arrival: float = 20e-6
    """A message of Redis at a busy node, without what its members cost. Source: docs/performance.md, several nodes:
    21 us a delivery unpaced is 63 us a message, at 2.1 nodes with 1.4 members each."""
    waking: float = 118e-6
    """More, where the node was asleep. Source: the same at 1,000 publishes a second: 96 us a delivery."""
    delivery: float = 7e-6
    """Writing a frame to one member. Source: docs/performance.md, fan-out: 6.2 us, 7 us for one write a message."""
    event: float = 220e-6
    """An event of a client: parsed, validated, handled, and broadcast through Redis; without its arrival.
    Your handler's own work comes on top. Source: `bench`, 2,000 events less the same from the backend."""
    heartbeat: float = 30e-6
    """A ping and its pong. Estimated from `delivery` and a read."""
    node_memory: int = 96 << 20
    """A node without connections. Source: 82 MiB resident with FastAPI and redis-py, and room for your code."""
    connection_memory: int = 5_740
    """Resident, of a connection in one room. Source: the benchmark ``idle``: 5.2 KiB; 2,000 of `bench`: 5.5."""
    membership_memory: int = 500
    """Each further room. Estimated."""
    kernel_memory: int = 4_096
    """The kernel's, of an idle TCP connection: socket, file, epoll entry. It counts in a container. Estimated."""
    redis_publish: float = 40e-6
    """Redis: one publish that is not pipelined. Source: `bench`, 500/s: 40 to 60 us with one node listening."""
    redis_delivery: float = 8e-6
    """Redis: each node that a message goes to. Estimated from 15,107 publishes/s to three nodes on one core."""
    redis_join: float = 45e-6
    """Redis: joining and leaving, presence included. Source: 900 connections of `bench`."""
    redis_membership_memory: int = 200
    """Redis: presence of a connection in a room. Estimated."""
    redis_room_memory: int = 400
    """Redis: a room that somebody is in, and its channel. Estimated."""
    redis_node_memory: int = 1 << 20
    """Redis: a node's connections and output buffers. Estimated."""
    envelope: int = 60
    """Bytes round the payload of a message to a client: event, room, frame header."""
    redis_envelope: int = 180
    """Bytes round it in Redis: command, channel, publisher, time."""
    packet: int = 66
    """Ethernet, IPv4 and TCP headers of a packet, with timestamps."""


COSTS: Final = Costs()


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
    node_connections: int = 50_000
    """Most connections of one node: open files, and how many should be lost with it."""
    recovery: float = 60.0
    """Seconds within which the connections of a node that died should be back."""
    drain_window: float = 10.0
    drain_grace: float = 10.0
    cores_per_machine: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes. CPU is in cores, memory and sizes in bytes, network in bits a second, times in seconds."""

    nodes: int
    machines: int
    limited_by: str
    """What asks for that many: cpu, memory, connections, recovery, or spare."""
    rooms: float
    deliveries: float
    """Messages to clients, a second."""
    nodes_per_message: float
    """Nodes on which a message has a member."""
    node_connections: int
    """With all nodes there."""
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
    """Connections a second that a node sends to the others while it drains."""
    drain_window: float
    """The shortest window in which the others can take them."""
    node_stop: float
    """At most, from SIGTERM to the end of a node."""
    rolling_deploy: float
    """At most, when nodes are replaced one after the other."""
    warnings: tuple[str, ...]


def nodes_reached(nodes: int, members: float) -> float:
    """On how many of `nodes` a room's members are, when connections are spread at random."""
    if nodes <= 1 or members <= 0:
        return min(float(nodes), max(members, 0.0))
    return float(nodes * (1 - (1 - 1 / nodes) ** members))


def share_of_core(arrivals: float, other: float, costs: Costs = COSTS) -> float:
    """The part of a core that a node uses: `arrivals` a second, and `other` seconds of work a second. May exceed 1.

    An arrival costs more where it wakes the node, which happens in the part of the time in which it is idle:
    ``share = other + arrivals * (arrival + waking * (1 - share))``, solved for the share; a full node never sleeps.
    """
    asleep = arrivals * costs.waking
    share = (other + arrivals * costs.arrival + asleep) / (1 + asleep)
    return share if share < 1 else other + arrivals * costs.arrival


def plan(demand: Demand, capacity: Capacity | None = None, costs: Costs = COSTS) -> Plan:
    """The smallest number of nodes that carries the demand. Raises `PlanError` where none does."""
    capacity = capacity or Capacity()
    _check(demand, capacity)
    nodes, limited_by = _smallest(demand, capacity, costs)
    return _described(demand, capacity, costs, nodes, limited_by)


def _check(demand: Demand, capacity: Capacity) -> None:
    for options in (demand, capacity):
        for each in fields(options):
            value = getattr(options, each.name)
            if not math.isfinite(value) or value < 0:
                raise PlanError(f"{each.name} must be a number of 0 or more, not {value}")
    positive = {
        "connections": demand.connections,
        "session": demand.session,
        "node_connections": capacity.node_connections,
        "recovery": capacity.recovery,
        "cores_per_machine": capacity.cores_per_machine,
    }
    for name, value in positive.items():
        if not value > 0:
            raise PlanError(f"{name} must be greater than 0")
    if capacity.headroom < 1:
        raise PlanError("headroom must be 1 or more: 2 leaves half of a node unused")
    if demand.by_clients > 1:
        raise PlanError("by_clients is a part, from 0 to 1")


def _cpu(demand: Demand, nodes: int, costs: Costs) -> float:
    """Part of a core that each of `nodes` uses."""
    arrivals = demand.rate * nodes_reached(nodes, _members(demand)) / nodes
    connects = demand.connections / demand.session
    pings = demand.connections / demand.heartbeat if demand.heartbeat else 0.0
    other = (
        demand.rate * _members(demand) * costs.delivery
        + (demand.rate * demand.by_clients + demand.events) * costs.event
        + connects * (costs.accept + demand.rooms_per_connection * costs.join)
        + pings * costs.heartbeat
    )
    return share_of_core(arrivals, other / nodes, costs)


def _members(demand: Demand) -> float:
    return min(demand.room_size, float(demand.connections))


def _memory(demand: Demand, nodes: int, costs: Costs) -> int:
    """Bytes of each of `nodes`."""
    further = max(demand.rooms_per_connection - 1, 0) * costs.membership_memory
    each = costs.connection_memory + costs.kernel_memory + further
    return round(costs.node_memory + each * demand.connections / nodes)


def _crash_recovery(demand: Demand, nodes: int, costs: Costs) -> float:
    """Seconds that the other nodes need for the connections of one."""
    if nodes < 2:
        return demand.connections * _coming(demand, costs)
    free = max(1 - _cpu(demand, nodes - 1, costs), 0.0)
    work = demand.connections / nodes * _coming(demand, costs)
    return work / ((nodes - 1) * free) if free else math.inf


def _coming(demand: Demand, costs: Costs) -> float:
    return costs.accept + demand.rooms_per_connection * costs.join


def _fits(demand: Demand, capacity: Capacity, costs: Costs, nodes: int) -> str:
    """What is too small with that many nodes; empty where nothing is."""
    left = nodes - capacity.spare
    if left < 1:
        return "spare"
    if _cpu(demand, left, costs) * capacity.headroom > 1:
        return "cpu"
    if _memory(demand, left, costs) * capacity.headroom > capacity.node_memory:
        return "memory"
    if demand.connections / left > capacity.node_connections:
        return "connections"
    if nodes > 1 and _crash_recovery(demand, nodes, costs) > capacity.recovery:
        return "recovery"
    return ""


def _smallest(demand: Demand, capacity: Capacity, costs: Costs) -> tuple[int, str]:
    if costs.node_memory * capacity.headroom > capacity.node_memory:
        raise PlanError(
            f"a node without connections needs {costs.node_memory >> 20} MiB, times the headroom: more than it has"
        )
    low, high, limit = 0, 1, "spare" if capacity.spare else "nothing: one node is enough"
    while reason := _fits(demand, capacity, costs, high):
        low, limit = high, reason
        if high >= MAX_NODES:
            raise PlanError(f"more than {MAX_NODES:,} nodes would be needed, because of {reason}")
        high = min(high * 2, MAX_NODES)
    while high - low > 1:  # more nodes never fit worse
        middle = (low + high) // 2
        if reason := _fits(demand, capacity, costs, middle):
            low, limit = middle, reason
        else:
            high = middle
    return high, limit


def _described(demand: Demand, capacity: Capacity, costs: Costs, nodes: int, limited_by: str) -> Plan:
    left = max(nodes - capacity.spare, 1)
    members = _members(demand)
    reached = nodes_reached(nodes, members)
    out, into = _traffic(demand, costs)
    redis_in, redis_out = _redis_traffic(demand, reached, costs)
    connects = demand.connections / demand.session
    redis_cpu = (
        demand.rate * (costs.redis_publish + reached * costs.redis_delivery)
        + connects * demand.rooms_per_connection * costs.redis_join
    )
    memory = _memory(demand, left, costs)
    limit = _rounded(memory * capacity.headroom)
    rooms = demand.connections * demand.rooms_per_connection / members if members else 0.0
    free = max(1 - _cpu(demand, left, costs), 1e-6)
    window = max(demand.connections / nodes * _coming(demand, costs) / (left * free), 0.0)
    stop = capacity.drain_window + 2 * capacity.drain_grace + 10
    shards = max(math.ceil(redis_cpu * capacity.headroom), 1)
    found = Plan(
        nodes=nodes,
        machines=math.ceil(nodes / capacity.cores_per_machine),
        limited_by=limited_by,
        rooms=rooms,
        deliveries=demand.rate * members,
        nodes_per_message=reached,
        node_connections=math.ceil(demand.connections / nodes),
        node_cpu=_cpu(demand, nodes, costs),
        node_cpu_spare=_cpu(demand, left, costs),
        node_memory=memory,
        node_memory_limit=limit,
        total_cpu=_cpu(demand, nodes, costs) * nodes,
        total_memory=limit * nodes,
        network_out=out,
        network_in=into,
        node_network=(out + into + redis_in + redis_out) / nodes,
        redis_cpu=redis_cpu,
        redis_shards=shards,
        redis_memory=round(
            costs.redis_node_memory * nodes
            + costs.redis_membership_memory * demand.connections * demand.rooms_per_connection
            + costs.redis_room_memory * rooms
        ),
        redis_in=redis_in,
        redis_out=redis_out,
        redis_connections=2 * nodes * shards,
        connects=connects,
        crash_recovery=_crash_recovery(demand, nodes, costs),
        full_reconnect=demand.connections * _coming(demand, costs) / nodes,
        drain_rate=demand.connections / nodes / capacity.drain_window if capacity.drain_window else math.inf,
        drain_window=window,
        node_stop=stop,
        rolling_deploy=nodes * (stop + 10),
        warnings=(),
    )
    return _with_warnings(found, demand, capacity)


def _traffic(demand: Demand, costs: Costs) -> tuple[float, float]:
    """Bits a second to clients and from them; each message is a packet, and is acknowledged by half a packet."""
    message = demand.size + costs.envelope
    pings = demand.connections / demand.heartbeat if demand.heartbeat else 0.0
    deliveries = demand.rate * _members(demand)
    events = demand.rate * demand.by_clients + demand.events
    out = deliveries * (message + costs.packet) + pings * (costs.packet + 2) + events * costs.packet / 2
    into = events * (message + costs.packet) + pings * (costs.packet + 6) + deliveries * costs.packet / 2
    return out * 8, into * 8


def _redis_traffic(demand: Demand, reached: float, costs: Costs) -> tuple[float, float]:
    each = demand.size + costs.redis_envelope + costs.packet
    return demand.rate * each * 8, demand.rate * reached * each * 8


def _rounded(size: float) -> int:
    """Up to the next 64 MiB."""
    unit = 64 << 20
    return math.ceil(size / unit) * unit


def _with_warnings(found: Plan, demand: Demand, capacity: Capacity) -> Plan:
    warnings = []
    if capacity.spare == 0:
        warnings.append("no spare node: when one is missing, the others are used beyond the headroom")
    if found.drain_window > capacity.drain_window:
        warnings.append(
            f"a drain window of {capacity.drain_window:g} s sends connections faster than the other nodes accept them; "
            f"use {math.ceil(found.drain_window)} s or more"
        )
    if found.redis_shards > 1:
        warnings.append(
            f"Redis needs {found.redis_cpu:.1f} cores: use a cluster of {found.redis_shards} primaries or more; "
            "one room lives on one of them"
        )
    if demand.size > 4096:
        warnings.append("CPU was measured with messages of 120 bytes; large ones cost more: measure yours")
    if demand.room_size > found.node_connections * found.nodes * 0.5 and demand.rate > 10:
        warnings.append("most connections are in one room: a message is written to all of them, on every node")
    return replace(found, warnings=tuple(warnings))
