"""Whatever text your code closes with, the connection closes, with as much of it as a close frame holds."""

from __future__ import annotations

import pytest

from socketspec import Connection, SocketApp
from socketspec.testing import ConnectionClosed, TestClient
from tests.carriers import Carrier, opened

REASONS = {"half a pair \ud800": "half a pair ?", "é" * 100: "é" * 61, "x" * 124: "x" * 123, "": "", "a\nb": "a\nb"}


@pytest.mark.parametrize("reason", REASONS)
async def test_it_closes_over_a_transport(reason: str) -> None:
    app, carrier = SocketApp(), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        await conn.disconnect(reason)
        assert carrier.closed == (4000, REASONS[reason])


@pytest.mark.parametrize("reason", REASONS)
async def test_it_closes_in_tests_and_for_whole_users(reason: str) -> None:
    app = SocketApp()

    @app.on("leave")
    async def leave(conn: Connection) -> None:
        await conn.disconnect(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert (closed.value.code, closed.value.reason) == (4000, REASONS[reason])
