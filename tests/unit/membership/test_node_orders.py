"""Orders between nodes: carried out, or ignored where they are not understood."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from socketspec import SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.concurrency.tasks import Tasks
from socketspec.membership.directory import Directory
from socketspec.membership.node_orders import MAX_REMEMBERED, REMEMBERED, NodeOrders
from socketspec.protocol.orders import control_topic, disconnect_order, revoke_order
from socketspec.protocol.publications import Publication
from socketspec.testing import ConnectionClosed, TestClient
from tests.engines import running

TOPIC = control_topic("/")


async def give(app: SocketApp, event: str, payload: Any) -> None:
    engine = await running(app)
    await engine.backend.broker.publish(TOPIC, Publication(event=event, payload=json.dumps(payload).encode()))


async def test_no_client_hears_orders() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conn = await client.connect()
        await give(app, "disconnect", {"connections": ["another"], "code": 4000, "reason": "x"})
        await give(app, "news", {})
        await conn.send("__ping__")
        assert (await conn.receive())["event"] == "__pong__"


async def test_connections_are_closed_by_id_with_code_and_reason() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        one, two = await client.connect(), await client.connect()
        engine = await running(app)
        others = [f"elsewhere-{number}" for number in range(1500)]
        receipt = await engine.orders.disconnect(connections=[*others, one.id], code=4009, reason="replaced")
        assert receipt.nodes == 1
        with pytest.raises(ConnectionClosed) as closed:
            await one.receive()
        assert (closed.value.code, closed.value.reason) == (4009, "replaced")
        assert two.connection.is_open


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("disconnect", {}),
        ("disconnect", []),
        ("disconnect", {"connections": ["{id}"], "code": 1006, "reason": "x"}),
        ("disconnect", {"connections": ["{id}"], "code": "?", "reason": "x"}),
        ("disconnect", {"connections": "{id}", "code": 4000, "reason": "x"}),
        ("disconnect", {"user": "", "connections": ["{id}"], "code": 4000, "reason": "x"}),
        ("revoke", {"subjects": [7], "reason": "x"}),
        ("reboot", {"connections": ["{id}"], "code": 4000, "reason": "x"}),
    ],
)
async def test_orders_that_are_not_understood_are_ignored_and_logged_once(
    event: str, payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conn = await client.connect()
        text = json.loads(json.dumps(payload).replace("{id}", conn.id))
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await give(app, event, text)
        assert conn.connection.is_open
        assert len([record for record in caplog.records if f"order {event!r}" in record.message]) == 1


async def test_unknown_orders_beyond_number_do_not_grow_the_log(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()
    async with TestClient(app):
        for number in range(300):
            await give(app, f"order-{number}", {})
    assert len([record for record in caplog.records if record.name == "socketspec.control"]) == 100


async def test_fields_of_newer_versions_are_no_obstacle() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conn = await client.connect()
        await give(app, "disconnect", {"connections": [conn.id], "code": 4000, "reason": "x", "since": "0.9"})
        assert not conn.connection.is_open


def test_an_order_with_a_code_of_others_is_not_made() -> None:
    with pytest.raises(ValueError, match="not yours to send"):
        disconnect_order(user="ada", code=1006, reason="x")


async def test_revocations_heard_are_remembered_for_a_minute_and_bounded() -> None:
    now = 1000.0
    orders = NodeOrders("/", (memory := MemoryBackend()).broker, memory.sessions, Directory(), Tasks(), lambda: now)
    orders.receive([revoke_order(["a"], "x")])
    assert orders.has_revoked(["b", "a"], since=1000.0)
    assert not orders.has_revoked(["b"], since=0.0)
    assert not orders.has_revoked(["a"], since=1000.1), "who asked later was told by the backend"
    now += REMEMBERED - 1
    orders.receive([revoke_order(["b"], "x")])
    now += 2
    assert not orders.has_revoked(["a"], since=0.0)
    assert orders.has_revoked(["b"], since=0.0)
    orders.receive([revoke_order([str(number) for number in range(MAX_REMEMBERED)], "x")])
    assert not orders.has_revoked(["b"], since=0.0)
    assert orders.has_revoked(["0"], since=0.0)
