"""How many nodes a load needs: a model of measured costs. Pure arithmetic, checked against measurements by its tests.

A node is one process on one core. What a message costs is not a constant: a node that is asleep has to be woken up for
it, a busy one finds several at once. So a node's use of its core is the solution of an equation, see `_share`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Final

from socketspec.adapters.open_files import files_for
from socketspec.cli.costs import COSTS, Costs
from socketspec.cli.plan_model import Capacity, Demand, Plan, PlanError
from socketspec.cli.rollout import Rollout, drain_rate, rollout

__all__ = ("MAX_NODES", "Capacity", "Demand", "Plan", "PlanError", "nodes_reached", "plan", "share_of_core")

MAX_NODES: Final = 100_000
_SURGE: Final = re.compile(r"([1-9][0-9]?|100)%")


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
            if each.name == "surge":
                _check_surge(value)
            elif not math.isfinite(value) or value < 0:
                raise PlanError(f"{each.name} must be a number of 0 or more, not {value}")
    positive = {
        "connections": demand.connections,
        "session": demand.session,
        "node_connections": capacity.node_connections,
        "open_files": capacity.open_files,
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


def _check_surge(surge: int | str) -> None:
    if not (_SURGE.fullmatch(surge) if isinstance(surge, str) else surge >= 1):
        raise PlanError(f"surge must be 1 node or more, or a whole percentage from 1% to 100%, not {surge}")


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
    if files_for(math.ceil(demand.connections / left)) > capacity.open_files:
        return "open files"
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
    redis_cpu = _redis_cpu(demand, reached, costs)
    memory = _memory(demand, left, costs)
    limit = _rounded(max(memory * capacity.headroom, memory + capacity.node_buffer))
    deploy = _rollout(demand, capacity, costs, nodes)
    most = max(demand.connections / left, demand.connections / nodes * deploy.crowding)
    rooms = demand.connections * demand.rooms_per_connection / members if members else 0.0
    shards = max(math.ceil(redis_cpu * capacity.headroom), 1)
    found = Plan(
        nodes=nodes,
        machines=math.ceil(nodes / capacity.cores_per_machine),
        limited_by=limited_by,
        rooms=rooms,
        deliveries=demand.rate * members,
        nodes_per_message=reached,
        node_connections=math.ceil(demand.connections / nodes),
        node_connections_most=math.ceil(most),
        node_files=files_for(capacity.node_connections),
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
        drain_rate=drain_rate(demand.connections / nodes, capacity.drain_window),
        node_stop=capacity.drain_window + 2 * capacity.drain_grace + 10,
        rollout=deploy,
        warnings=(),
    )
    return _with_warnings(found, demand, capacity, costs)


def _rollout(demand: Demand, capacity: Capacity, costs: Costs, nodes: int) -> Rollout:
    left = max(nodes - capacity.spare, 1)
    free = max(1 - _cpu(demand, left, costs), 1e-6)
    return rollout(
        nodes,
        demand.connections,
        surge=capacity.surge,
        start=capacity.start,
        window=capacity.drain_window,
        accepting=_coming(demand, costs) / (left * free),
    )


def _traffic(demand: Demand, costs: Costs) -> tuple[float, float]:
    """Bits a second to clients and from them; each message is a packet, and is acknowledged by half a packet."""
    message = demand.size + costs.envelope
    pings = demand.connections / demand.heartbeat if demand.heartbeat else 0.0
    deliveries = demand.rate * _members(demand)
    events = demand.rate * demand.by_clients + demand.events
    out = deliveries * (message + costs.packet) + pings * (costs.packet + 2) + events * costs.packet / 2
    into = events * (message + costs.packet) + pings * (costs.packet + 6) + deliveries * costs.packet / 2
    return out * 8, into * 8


def _redis_cpu(demand: Demand, reached: float, costs: Costs) -> float:
    joins = demand.connections / demand.session * demand.rooms_per_connection
    return demand.rate * (costs.redis_publish + reached * costs.redis_delivery) + joins * costs.redis_join


def _redis_traffic(demand: Demand, reached: float, costs: Costs) -> tuple[float, float]:
    each = demand.size + costs.redis_envelope + costs.packet
    return demand.rate * each * 8, demand.rate * reached * each * 8


def _rounded(size: float) -> int:
    """Up to the next 64 MiB."""
    unit = 64 << 20
    return math.ceil(size / unit) * unit


def _with_warnings(found: Plan, demand: Demand, capacity: Capacity, costs: Costs) -> Plan:
    crowded = replace(demand, connections=math.ceil(demand.connections * found.rollout.crowding))
    crowded_memory = _memory(crowded, found.nodes, costs)
    warnings = []
    if capacity.spare == 0:
        warnings.append("no spare node: when one is missing, the others are used beyond the headroom")
    if demand.room_size > demand.connections:
        warnings.append(
            f"rooms of {demand.room_size:,g} are larger than all {demand.connections:,} connections: "
            f"planned with rooms of {demand.connections:,}, which everybody is in"
        )
    if found.rollout.window > capacity.drain_window:
        warnings.append(
            f"a drain window of {capacity.drain_window:g} s sends connections faster than the other nodes accept them "
            f"while a new version is rolled out; use {math.ceil(found.rollout.window)} s or more, or a smaller surge"
        )
    if crowded_memory > found.node_memory_limit:
        warnings.append(
            f"the last old node of a rolling deploy may hold {found.rollout.crowding:.1f} times its connections, "
            f"{crowded_memory >> 20:,} MiB, where proxies do not balance by connections: more than the memory limit; "
            "use a larger surge or more memory"
        )
    warnings += _beyond_limits(found, capacity)
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


def _beyond_limits(found: Plan, capacity: Capacity) -> Iterator[str]:
    """Where a node may come to have more than its limits allow."""
    if found.node_connections_most > capacity.node_connections:
        yield (
            f"a node that may have {capacity.node_connections:,} connections (--max-connections) refuses some of the "
            f"{found.node_connections_most:,} that come to the last old one of a rolling deploy where proxies do not "
            "balance by connections, and they try again; use a larger surge, or let it have more"
        )
    if found.node_memory + capacity.node_buffer > capacity.node_memory:
        yield (
            f"where {capacity.node_buffer >> 20:,} MiB wait for slow clients (max_node_buffer), a node that uses "
            f"{found.node_memory >> 20:,} MiB has more than its memory; set SOCKETSPEC_MAX_NODE_BUFFER to less"
        )
    if found.node_files > capacity.open_files:
        yield (
            f"{capacity.open_files:,} open files do not suffice for {capacity.node_connections:,} connections, which "
            f"take {found.node_files:,}: a node is full before that"
        )
