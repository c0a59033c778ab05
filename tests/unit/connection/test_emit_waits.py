"""`conn.emit` holds its caller up while the client's buffer is more than half full, and sends an app's own events."""

from __future__ import annotations

import asyncio

import pytest

from socketspec import SocketApp
from socketspec.connection.outbox import Backpressure
from tests.carriers import Carrier, opened


async def test_emit_waits_for_a_buffer_that_is_more_than_half_full() -> None:
    app, carrier = SocketApp(backpressure=Backpressure(max_buffer=2048)), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        carrier.buffered = 1025
        emitting = asyncio.create_task(conn.emit("tick"))
        async with asyncio.timeout(5):
            await carrier.draining.wait()
        assert carrier.events == ["tick"], "it is sent first, then its caller waits"
        assert not emitting.done()
        carrier.empty()
        await emitting
        await conn.disconnect()


@pytest.mark.parametrize("buffered", [0, 1024])
async def test_emit_does_not_wait_for_a_buffer_that_is_half_full(buffered: int) -> None:
    app, carrier = SocketApp(backpressure=Backpressure(max_buffer=2048)), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        carrier.buffered = buffered
        async with asyncio.timeout(5):
            await conn.emit("tick")
        assert carrier.events == ["tick"]
        assert not carrier.draining.is_set()
        await conn.disconnect()


async def test_emit_to_one_stalled_client_holds_nobody_else_up() -> None:
    app = SocketApp(backpressure=Backpressure(max_buffer=2048))
    stalled, quick = Carrier(), Carrier()
    async with app.lifespan():
        slow, fast = await opened(app, stalled), await opened(app, quick)
        stalled.buffered = 2000
        emitting = asyncio.create_task(slow.emit("tick"))
        async with asyncio.timeout(5):
            await stalled.draining.wait()
            await fast.emit("tick")
        assert quick.events == ["tick"]
        stalled.empty()
        await emitting
        for conn in (slow, fast):
            await conn.disconnect()


@pytest.mark.parametrize(("event", "payload", "error"), [("__ack__", {}, ValueError), ("fine", object(), TypeError)])
async def test_what_an_app_may_not_send_or_cannot_is_not_sent(
    event: str, payload: object, error: type[Exception]
) -> None:
    app, carrier = SocketApp(), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        with pytest.raises(error):
            await conn.emit(event, payload)
        await conn.emit("next")
        assert carrier.events == ["next"]
        await conn.disconnect()
