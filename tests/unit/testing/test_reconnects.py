"""A connection that is lost and comes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.testing import ConnectionClosed, TestClient
from tests.unit.testing.apps import ADA, Order, shop


def itself(socket: SocketApp) -> SocketApp:
    return socket


@pytest.mark.parametrize("served", [itself, ASGIApp])
@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_what_was_missed_comes_after_a_reconnect(served: Callable[[SocketApp], Any], format: Any) -> None:
    socket = shop()
    left: list[str] = []

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str) -> None:
        left.append(reason)

    async with TestClient(served(socket)) as client, client.connect(identity=ADA, format=format) as conn:
        await conn.request("watch")
        await socket.rooms.broadcast("orders", "ordered", Order(item="tea"))
        session, id = conn.connection.session.id, conn.id
        await conn.drop()
        assert left == ["connection_lost"]
        assert conn.is_closed
        await socket.rooms.broadcast("orders", "ordered", Order(item="milk"))
        answer = await conn.reconnect()
        assert answer["session_resumed"]
        assert answer["rooms"]["orders"] == {"recovered": True, "replayed": 1}
        assert conn.connection.session.id == session
        assert conn.id != id
        assert [(await conn.expect("ordered", Order)).item for _ in range(2)] == ["tea", "milk"]
        await conn.assert_nothing()


async def test_a_plain_client_begins_anew_as_browsers_do() -> None:
    socket = shop()
    async with TestClient(socket) as client, client.connect(identity=ADA) as conn:
        await conn.request("watch")
        first = conn.connection.session.id
        assert await conn.reconnect() == {}, "an open connection is dropped first"
        assert conn.connection.session.id != first
        assert conn.identity == ADA
        await socket.rooms.broadcast("orders", "ordered", Order(item="tea"))
        await conn.assert_nothing()


async def test_a_dropped_connection_has_ended_without_a_close_frame() -> None:
    async with TestClient(shop()) as client:
        conn = await client.connect(identity=ADA)
        await conn.drop()
        await conn.assert_nothing()
        with pytest.raises(ConnectionClosed) as closed:
            await conn.request("whoami")
        assert closed.value.code == 1006
