"""What a test asks and expects, and what it is told where something else comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from socketspec import Connection, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import EventError
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, EventFailed, HandshakeRefused, TestClient, Unexpected
from tests.unit.testing.apps import ADA, Order, Receipt, shop


def on_fastapi(socket: SocketApp) -> FastAPI:
    app = FastAPI()
    mount(socket, app, path="/live")
    return app


def itself(socket: SocketApp) -> SocketApp:
    return socket


WAYS = pytest.mark.parametrize("served", [itself, on_fastapi, ASGIApp])


@WAYS
@pytest.mark.parametrize("format", ["plain", "json", "msgpack"])
async def test_a_request_gives_the_reply_and_leaves_the_rest_unread(
    served: Callable[[SocketApp], Any], format: Any
) -> None:
    async with TestClient(served(shop())) as client, client.connect(identity=ADA, format=format) as conn:
        assert await conn.request("watch") == {}
        assert await conn.request("order", Order(item="tea")) == {"number": 1, "item": "tea"}
        assert await conn.request("order", {"item": "tea"}, Receipt) == Receipt(number=1, item="tea")
        assert await conn.expect("ordered", Order) == Order(item="tea")
        assert await conn.receive(Order) == Order(item="tea")
        await conn.assert_nothing()
        with pytest.raises(ValidationError) as misfit:
            await conn.request("whoami", model=Receipt)
        assert "the reply to 'whoami' was __ack__" in misfit.value.__notes__[0]


@WAYS
async def test_an_error_is_raised_with_all_that_was_sent_of_it(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop())) as client, client.connect(identity=ADA) as conn:
        with pytest.raises(EventFailed, match=r"order failed with SOLD_OUT: There is none left") as failed:
            await conn.request("order", {"item": "gold"}, Receipt)
        error = failed.value
        assert (error.code, error.message, error.details, error.event) == (
            "SOLD_OUT", "There is none left.", {"item": "gold"}, "order",
        )  # fmt: skip
        assert error.request_id
        assert isinstance(error, EventError)
        await conn.send("order", {"item": "gold"})
        with pytest.raises(EventFailed) as received:
            await conn.receive(Receipt)
        assert received.value.code == "SOLD_OUT"
        with pytest.raises(EventFailed) as unknown:
            await conn.request("ordr")
        assert unknown.value.code == "UNKNOWN_EVENT"
        await conn.assert_nothing()


async def test_a_message_that_is_refused_unread_answers_the_request_as_well() -> None:
    socket = shop(rate_limit=RateLimit(rate=0.01, capacity=2), max_payload_size=100)
    async with TestClient(socket) as client, client.connect(identity=ADA) as conn:
        with pytest.raises(EventFailed) as large:
            await conn.request("order", {"item": "x" * 200})
        assert large.value.code == "PAYLOAD_TOO_LARGE"
        await conn.request("whoami")
        with pytest.raises(EventFailed) as limited:
            await conn.request("whoami")
        assert limited.value.code == "RATE_LIMIT_ERROR"


async def test_another_message_than_the_expected_is_shown_and_stays() -> None:
    async with TestClient(shop()) as client, client.connect(identity=ADA) as conn:
        await conn.request("watch")
        await conn.send("order", {"item": "tea"})
        with pytest.raises(Unexpected, match=r"expected 'shipped', but 'ordered' \{\"item\":\"tea\""):
            await conn.expect("shipped")
        with pytest.raises(AssertionError, match=r"expected nothing, but something came; unread: 'ordered'"):
            await conn.assert_nothing()
        await conn.expect("ordered")
        assert (await conn.expect("__ack__"))["number"] == 1, "it was passed over, not thrown away"
        await conn.send("order", {"item": "gold"})
        with pytest.raises(Unexpected, match=r"but __error__ SOLD_OUT for 'order' \(There is none left\.\) came"):
            await conn.expect("ordered")


async def test_a_timeout_says_what_was_waited_for_and_what_came() -> None:
    async with TestClient(shop()) as client, client.connect(identity=ADA) as conn:
        with pytest.raises(TimeoutError, match=r"^'ordered' did not come within 0\.01 s; nothing has come at all$"):
            await conn.expect("ordered", timeout=0.01)
        await conn.request("whoami")
        with pytest.raises(TimeoutError, match=r"a Receipt did not come .* read before: __ack__ .*\"user\":\"ada\""):
            await conn.receive(Receipt, timeout=0)
        with pytest.raises(TimeoutError, match="a message did not come within 0 s"):
            await conn.receive(0)


async def test_a_close_says_its_code_and_what_came_before() -> None:
    async with TestClient(shop()) as client:
        conn = await client.connect(token="wrong")
        with pytest.raises(Unexpected, match="AUTH_ERROR"):
            await conn.assert_nothing()
        with pytest.raises(
            ConnectionClosed, match=r"closed with 4001 .* while the test waited for the reply"
        ) as closed:
            await conn.request("whoami")
        assert closed.value.code == 4001
        assert "AUTH_ERROR" in str(closed.value)
        await conn.receive()
        with pytest.raises(Unexpected, match="the server closed the connection with 4001"):
            await conn.assert_nothing()


@WAYS
async def test_nothing_means_that_handlers_under_way_have_sent_nothing(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop())) as client, client.connect(identity=ADA) as conn:
        await conn.send("slow")
        with pytest.raises(Unexpected, match="'done'"):
            await conn.assert_nothing()
        await conn.expect("done")
        await conn.assert_nothing()
        await conn.assert_nothing(timeout=0.01)
        asyncio.get_running_loop().call_later(0.02, lambda: asyncio.ensure_future(conn.send("slow")))
        with pytest.raises(Unexpected, match="'done'"):
            await conn.assert_nothing(timeout=5)


@WAYS
async def test_requests_side_by_side_each_get_their_own_reply(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop())) as client, client.connect(identity=ADA) as conn:
        asked = [conn.request("order", {"item": str(number)}, Receipt) for number in range(20)]
        assert [receipt.item for receipt in await asyncio.gather(*asked)] == [str(number) for number in range(20)]


@WAYS
async def test_what_a_connection_brings(served: Callable[[SocketApp], Any]) -> None:
    socket = SocketApp()

    @socket.on("show")
    async def show(conn: Connection) -> dict[str, Any]:
        return {
            "token": conn.handshake.bearer_token,
            "cookies": conn.cookies,
            "query": [*conn.query_params.multi_items()],
            "user": conn.identity.user_id,
        }

    async with TestClient(served(socket)) as client:
        path = "/live?a=1&b=2" if served is on_fastapi else "/ws?a=1&b=2"
        async with client.connect(path, token="t", cookies={"c": "1", "d": "2"}, query_params={"e": "3"}) as conn:
            shown = await conn.request("show")
        assert shown == {
            "token": "t",
            "cookies": {"c": "1", "d": "2"},
            "query": [["a", "1"], ["b", "2"], ["e", "3"]],
            "user": None,
        }
        async with client.connect(identity=ADA) as conn:
            assert (await conn.request("show"))["user"] == "ada" == conn.identity.user_id
        with pytest.raises(ValueError, match="'plain', 'json' or 'msgpack'"):
            client.connect(format="xml")  # type: ignore[arg-type] # that is the point
        with pytest.raises(TypeError, match="takes an Identity, not str"):
            client.connect(identity="ada")  # type: ignore[arg-type] # that is the point


@WAYS
async def test_an_identity_replaces_the_auth_backends_and_nobody_elses(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop())) as client:
        async with client.connect(identity=ADA) as conn, client.connect(headers={"x-api-key": "key"}) as other:
            assert conn.identity == other.identity == ADA
            assert conn.id != other.id
        refused = await client.connect()
        with pytest.raises(EventFailed, match="AUTH_ERROR"):
            await refused.receive(Receipt)


@WAYS
async def test_a_refused_handshake_is_an_http_status(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop(allowed_origins=["https://mine.example"]))) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(headers={"origin": "https://evil.example"}, identity=ADA)
        assert refused.value.status == 403
