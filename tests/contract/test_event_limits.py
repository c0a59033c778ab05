"""The buckets of events and routers on every backend: shared by nodes, and none another's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from socketspec.backend.protocols import Backend
from socketspec.connection import Connection
from socketspec.declaration.groups import Bucket
from socketspec.inbound.event_limits import EventLimits
from socketspec.security.ratelimit import RateLimit
from socketspec.telemetry.counters import Counters


def connection(id: str) -> Connection:
    return cast("Connection", SimpleNamespace(id=id, identity=SimpleNamespace(user_id="ada"), handshake=None))


async def passes(limits: EventLimits, conn: Connection, *buckets: Bucket) -> bool:
    refused = limits.check(conn, buckets, 0.0)
    return (refused if refused is None or isinstance(refused, tuple) else await refused) is None


async def test_what_one_node_took_another_has_not_and_no_event_takes_from_another(backend: Backend) -> None:
    limit = RateLimit(0.001, 2, scope="user")
    nodes = [EventLimits(backend.limits, Counters(), shared=True) for _ in range(2)]
    router, event, other = (Bucket(name, limit) for name in ("router a.", "event a.x", "event a.y"))
    again = Bucket("router a.", limit)  # as the other node's code makes it
    assert await passes(nodes[0], connection("c1"), router, event)
    assert await passes(nodes[1], connection("c2"), again)
    assert not await passes(nodes[0], connection("c1"), router)
    assert not await passes(nodes[1], connection("c2"), again, other)
    assert await passes(nodes[1], connection("c2"), other)
    assert await backend.limits.take("user:ada", rate=0.001, capacity=1) == 0.0  # the app's own
