"""``socketspec plan``: how many nodes a load needs, before there is one."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

from socketspec.cli.capacity import COSTS, Capacity, Costs, Demand, Plan, PlanError, plan
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
    demand.add_argument("--connections", type=_number, default=10_000.0, metavar="N", help="(default: 10000)")
    demand.add_argument(
        "--rate", type=_number, default=100.0, metavar="N", help="messages published a second, in all (default: 100)"
    )
    demand.add_argument("--room-size", type=_number, default=50.0, metavar="N", help="members of a room (default: 50)")
    demand.add_argument("--rooms-per-connection", type=_number, default=1.0, metavar="N", help="(default: 1)")
    demand.add_argument("--size", type=_number, default=200.0, metavar="BYTES", help="of a payload (default: 200)")
    demand.add_argument(
        "--by-clients",
        type=_number,
        default=1.0,
        metavar="PART",
        help="of the messages; the rest: backend (default: 1)",
    )
    demand.add_argument(
        "--events", type=_number, default=0.0, metavar="N", help="events a second that are not broadcast (default: 0)"
    )
    demand.add_argument(
        "--session", type=_number, default=1800.0, metavar="SECONDS", help="a connection lasts (default: 1800)"
    )
    demand.add_argument(
        "--heartbeat", type=_number, default=25.0, metavar="SECONDS", help="between pings; 0: none (default: 25)"
    )
    _add_capacity(parser.add_argument_group("what a node may be used for"))
    parser.add_argument(
        "--cost", action="append", default=[], metavar="NAME=VALUE", help="another cost than the measured one"
    )
    parser.add_argument("--costs", action="store_true", help="show the costs and end")
    parser.add_argument("--json", action="store_true", help="print JSON: seconds, bytes, bits a second")
    parser.set_defaults(run=_run)


def _add_capacity(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--headroom",
        type=_number,
        default=2.0,
        metavar="FACTOR",
        help="CPU and memory a node has for what it needs (default: 2, half is unused)",
    )
    group.add_argument("--spare", type=_number, default=1.0, metavar="N", help="nodes that may be missing (default: 1)")
    group.add_argument("--node-memory", type=_number, default=2048.0, metavar="MIB", help="(default: 2048)")
    group.add_argument(
        "--node-connections", type=_number, default=50_000.0, metavar="N", help="at most (default: 50000)"
    )
    group.add_argument(
        "--recovery",
        type=_number,
        default=60.0,
        metavar="SECONDS",
        help="until the connections of a node that died are back (default: 60)",
    )
    group.add_argument("--drain-window", type=_number, default=10.0, metavar="SECONDS", help="(default: 10)")
    group.add_argument("--drain-grace", type=_number, default=10.0, metavar="SECONDS", help="(default: 10)")
    group.add_argument("--cores-per-machine", type=_number, default=1.0, metavar="N", help="(default: 1)")


def _number(text: str) -> float:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more, such as 250000, 250,000 or 2.5e5")
    return value


def _run(arguments: argparse.Namespace) -> int:
    try:
        costs = _costs(arguments.cost)
        if arguments.costs:
            for each in fields(costs):
                print(f"{each.name:<26}{getattr(costs, each.name):g}")
            return 0
        given = vars(arguments) | {"node_memory": arguments.node_memory * _MIB}
        whole = ("connections", "size", "spare", "node_memory", "node_connections", "cores_per_machine")
        given |= {name: round(given[name]) for name in whole}
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
        try:
            values[name] = known[name](float(text))
        except (ValueError, OverflowError):
            values[name] = -1
        if not 0 <= values[name] < math.inf:
            raise PlanError(f"--cost {change}: {text!r} is not a number of 0 or more")
    return replace(COSTS, **values)


def _without_infinity(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def _show(demand: Demand, capacity: Capacity, found: Plan) -> None:
    print(
        f"{demand.connections:,} connections, {demand.rate:,g} messages a second into rooms of {demand.room_size:,g}: "
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
            ("connections a node", f"{found.node_connections:,}"),
            ("CPU of a node", f"{found.node_cpu:.0%}{missing}"),
            ("CPU of all", f"{found.total_cpu:.1f} cores"),
            (
                "memory of a node",
                f"{found.node_memory / _MIB:,.0f} MiB used, limit {found.node_memory_limit // _MIB:,} MiB",
            ),
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
            (
                "a node drains",
                f"{found.drain_rate:,.0f} connections a second; window of {found.drain_window:.1f} s or more",
            ),
            ("a node stops", f"within {found.node_stop:.0f} s"),
            ("rolling deploy, one by one", f"within {_duration(found.rolling_deploy)}"),
        ],
    }


def _bits(rate: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if rate >= size:
            return f"{rate / size:,.1f} {unit}"
    return f"{rate / 1e3:,.0f} kbit/s"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
