"""``socketspec plan``: how many nodes a load needs, before there is one."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

from socketspec.cli.arguments import drain_seconds, number, surge, whole
from socketspec.cli.capacity import MAX_NODES, Capacity, Demand, Plan, PlanError, plan
from socketspec.cli.costs import COSTS, Costs
from socketspec.cli.output import MISUSED, fail

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec plan --connections 1e6 --rate 100 --room-size 50
  socketspec plan --connections 20000 --rate 2000 --room-size 8 --by-clients 0.2 --spare 2 --json

A node is one process on one core. The costs are those of docs/performance.md, measured on one machine: see them with
--costs, change them with --cost NAME=VALUE, and measure your own deployment with `socketspec bench`. Your handlers' own
work is not known to it: add it with --cost event=SECONDS.

exit status: 0 planned, 2 misused or no number of nodes is enough
"""
_MIB = 1 << 20
_ROOM = 50
_MOST = 1_000_000_000
"""Of what is counted. More is a slip of the keyboard: there are not that many people."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "plan",
        help="how many nodes, how much memory and how much Redis a load needs",
        description="A capacity calculator: nodes, CPU, memory, network, Redis, reconnects and drains.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demand = parser.add_argument_group("what is to be carried")
    _add_demand(demand)
    _add_capacity(parser.add_argument_group("what a node may be used for"))
    _add_rollout(parser.add_argument_group("how nodes are replaced"))
    parser.add_argument(
        "--cost", action="append", default=[], metavar="NAME=VALUE", help="another cost than the measured one"
    )
    parser.add_argument("--costs", action="store_true", help="show the costs and end")
    parser.add_argument("--json", action="store_true", help="print JSON: seconds, bytes, bits a second")
    parser.set_defaults(run=_run)


def _add_demand(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--connections", type=whole("connections", 1, _MOST), default=10_000, metavar="N", help="(default: 10000)"
    )
    group.add_argument(
        "--rate",
        type=number("messages a second", 0, _MOST),
        default=100.0,
        metavar="N",
        help="messages published a second, in all (default: 100)",
    )
    group.add_argument(
        "--room-size",
        type=number("members", 0, _MOST),
        metavar="N",
        help="members of a room (default: 50, or all where there are fewer)",
    )
    rooms = number("rooms", 0, 1e6)
    group.add_argument("--rooms-per-connection", type=rooms, default=1.0, metavar="N", help="(default: 1)")
    group.add_argument(
        "--size", type=whole("bytes", 0, _MOST), default=200, metavar="BYTES", help="of a payload (default: 200)"
    )
    group.add_argument(
        "--by-clients",
        type=number("", 0, 1),
        default=1.0,
        metavar="PART",
        help="of the messages, from 0 to 1; the rest: backend (default: 1)",
    )
    group.add_argument(
        "--events",
        type=number("events a second", 0, _MOST),
        default=0.0,
        metavar="N",
        help="events a second that are not broadcast (default: 0)",
    )
    group.add_argument(
        "--session",
        type=number("seconds", 0.1, _MOST),
        default=1800.0,
        metavar="SECONDS",
        help="a connection lasts (default: 1800)",
    )
    group.add_argument(
        "--heartbeat",
        type=number("seconds", 0, 86_400),
        default=25.0,
        metavar="SECONDS",
        help="between pings; 0: none (default: 25)",
    )


def _add_capacity(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--headroom",
        type=number("", 1, 100),
        default=2.0,
        metavar="FACTOR",
        help="CPU and memory a node has for what it needs (default: 2, half is unused)",
    )
    group.add_argument(
        "--spare",
        type=whole("nodes", 0, MAX_NODES - 1),
        default=1,
        metavar="N",
        help="nodes that may be missing (default: 1)",
    )
    group.add_argument(
        "--node-memory", type=number("MiB", 1, 1e9), default=2048.0, metavar="MIB", help="(default: 2048)"
    )
    group.add_argument(
        "--node-buffer",
        type=number("MiB", 1, 1e9),
        default=256.0,
        metavar="MIB",
        help="that may wait for slow clients, the app's max_node_buffer (default: 256)",
    )
    group.add_argument(
        "--node-connections",
        type=whole("connections", 1, _MOST),
        default=50_000,
        metavar="N",
        help="at most, the nodes' --max-connections (default: 50000)",
    )
    group.add_argument(
        "--open-files",
        type=whole("files", 1, _MOST),
        default=1_048_576,
        metavar="N",
        help="that a node may have, its container's hard limit (default: 1048576)",
    )
    group.add_argument(
        "--recovery",
        type=number("seconds", 0.1, 86_400),
        default=60.0,
        metavar="SECONDS",
        help="until the connections of a node that died are back (default: 60)",
    )
    group.add_argument("--cores-per-machine", type=whole("cores", 1, 4096), default=1, metavar="N", help="(default: 1)")


def _add_rollout(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--drain-window",
        type=drain_seconds,
        default=10.0,
        metavar="SECONDS",
        help="and minReadySeconds of the Deployment (default: 10)",
    )
    group.add_argument("--drain-grace", type=drain_seconds, default=10.0, metavar="SECONDS", help="(default: 10)")
    group.add_argument(
        "--surge",
        type=surge,
        default="25%",
        metavar="N|PERCENT",
        help="nodes that a rolling deploy replaces at once: the Deployment's maxSurge (default: 25%%)",
    )
    group.add_argument(
        "--start",
        type=number("seconds", 0, 86_400),
        default=10.0,
        metavar="SECONDS",
        help="until a new node is ready (default: 10)",
    )


def _run(arguments: argparse.Namespace) -> int:
    try:
        costs = _costs(arguments.cost)
        if arguments.costs:
            for each in fields(costs):
                print(f"{each.name:<26}{getattr(costs, each.name):g}")
            return 0
        sizes = {name: round(getattr(arguments, name) * _MIB) for name in ("node_memory", "node_buffer")}
        given = vars(arguments) | sizes
        if arguments.room_size is None:
            given["room_size"] = float(min(_ROOM, arguments.connections))
        demand = Demand(**{each.name: given[each.name] for each in fields(Demand)})
        capacity = Capacity(**{each.name: given[each.name] for each in fields(Capacity)})
        found = plan(demand, capacity, costs)
    except PlanError as error:
        return fail(f"cannot plan: {error}", MISUSED)
    if arguments.json:
        document = {
            "demand": asdict(demand),
            "capacity": asdict(capacity),
            "costs": asdict(costs),
            "plan": asdict(found),
        }
        print(json.dumps(_without_infinity(document), indent=2))
    else:
        _show(demand, capacity, found)
    return 0


def _costs(changes: list[str]) -> Costs:
    known = {each.name: type(getattr(COSTS, each.name)) for each in fields(COSTS)}
    values: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise PlanError(f"there is no cost {name!r}; --costs shows them")
        parse = whole("bytes", 0, 10**12) if known[name] is int else number("seconds", 0, 1e6)
        try:
            values[name] = parse(text)
        except argparse.ArgumentTypeError as error:
            raise PlanError(f"--cost {change}: {error}") from None
    return replace(COSTS, **values)


def _without_infinity(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def _show(demand: Demand, capacity: Capacity, found: Plan) -> None:
    members = min(demand.room_size, demand.connections)
    print(
        f"{demand.connections:,} connections, {demand.rate:,g} messages a second into rooms of {members:,g}: "
        f"{found.deliveries:,.0f} deliveries a second"
    )
    for title, rows in _rows(capacity, found).items():
        print(f"\n{title}")
        for name, value in rows:
            print(f"  {name:<30}{value}")
    for warning in found.warnings:
        print(f"\nnote: {warning}")


def _rows(capacity: Capacity, found: Plan) -> dict[str, list[tuple[str, str]]]:
    machines = f" on {found.machines:,} machines" if capacity.cores_per_machine > 1 else ""
    missing = f", {found.node_cpu_spare:.0%} with {capacity.spare} missing" if capacity.spare else ""
    return {
        "Nodes": [
            ("nodes, of one core each", f"{found.nodes:,}{machines} (limited by {found.limited_by})"),
            (
                "connections a node",
                f"{found.node_connections:,}, up to {found.node_connections_most:,}; "
                f"--max-connections {capacity.node_connections}",
            ),
            ("open files a node", f"{found.node_files:,} or more (ulimit -n)"),
            ("CPU of a node", f"{found.node_cpu:.0%}{missing}"),
            ("CPU of all", f"{found.total_cpu:.1f} cores"),
            (
                "memory of a node",
                f"{found.node_memory / _MIB:,.0f} MiB used, limit {found.node_memory_limit // _MIB:,} MiB",
            ),
            ("waiting for slow clients", f"at most {capacity.node_buffer // _MIB:,} MiB a node (max_node_buffer)"),
            ("memory of all", f"{found.total_memory / 2**30:,.1f} GiB"),
            ("network to clients", f"{_bits(found.network_out)} out, {_bits(found.network_in)} in"),
            ("network of a node", f"{_bits(found.node_network)}"),
        ],
        "Redis": [
            ("CPU", f"{found.redis_cpu:.2f} cores, {found.redis_shards} primaries"),
            ("network", f"{_bits(found.redis_in)} in, {_bits(found.redis_out)} out"),
            ("memory", f"{found.redis_memory / _MIB:,.0f} MiB, histories not included"),
            ("connections", f"{found.redis_connections:,}"),
            ("nodes a message goes to", f"{found.nodes_per_message:.1f}"),
        ],
        "Coming and going": [
            ("new connections", f"{found.connects:,.0f} a second"),
            ("a node dies: all are back", f"{found.crash_recovery:.1f} s later at the soonest"),
            ("all are lost: all are back", f"{found.full_reconnect:.1f} s later at the soonest"),
            ("a node drains", f"{found.drain_rate:,.0f} connections a second"),
            ("a node stops", f"within {_duration(found.node_stop)}"),
        ],
        "Rolling deploy": _rollout_rows(capacity, found),
    }


def _rollout_rows(capacity: Capacity, found: Plan) -> list[tuple[str, str]]:
    rollout = found.rollout
    of_all = f" (surge {capacity.surge})" if isinstance(capacity.surge, str) else ""
    rows = [
        ("nodes draining at once", f"{rollout.nodes:,} of {found.nodes:,}{of_all}, {_times(rollout.times)}"),
        ("reconnects", f"{rollout.rate:,.0f} a second, {rollout.node_rate:,.0f} for each node that does not drain"),
    ]
    if rollout.times > 1:
        rows.append(("not balanced by connections", f"up to {rollout.crowding:.1f} times as many at the end"))
    return [
        *rows,
        ("drain window", f"{rollout.window:.1f} s or more"),
        ("all are replaced", f"after about {_duration(rollout.seconds)}"),
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _bits(rate: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if rate >= size:
            return f"{rate / size:,.1f} {unit}"
    return f"{rate / 1e3:,.0f} kbit/s"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
