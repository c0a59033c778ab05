"""`Connection.close`: what was published before is written first, and that may be what ends the connection."""

from __future__ import annotations

from socketspec import SocketApp
from socketspec.protocol.encoding import Message
from tests.carriers import Carrier, opened


class Full(Carrier):
    """Its client takes nothing: the first broadcast is too much."""

    def write(self, *messages: Message) -> None:
        super().write(*messages)
        if any(message.room is not None for message in messages):
            self.on_slow()


async def test_what_waits_for_the_loops_next_turn_is_written_before_the_connection_closes() -> None:
    app, carrier = SocketApp(), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        await app.rooms.join(conn, "hall")
        await app.rooms.broadcast("hall", "last")
        assert carrier.events == []
        conn.close(1000)
        assert carrier.events == ["last"]
        assert carrier.closed == (1000, "normal")


async def test_a_client_for_which_that_is_too_much_is_closed_as_slow() -> None:
    app, carrier = SocketApp(), Full()
    async with app.lifespan():
        conn = await opened(app, carrier)
        await app.rooms.join(conn, "hall")
        await app.rooms.broadcast("hall", "too much")
        assert carrier.events == []
        conn.close(1000)
        assert carrier.events == ["too much"]
        assert carrier.closed == (4006, "slow_consumer")
        assert conn.close_reason == "slow_consumer"
