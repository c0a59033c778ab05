"""What the server's code raises unexpectedly is raised in the test, by whatever the test does next."""

from __future__ import annotations

import traceback

import pytest
from fastapi import Depends, FastAPI

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.testing import ConnectionClosed, EventFailed, TestClient
from tests.unit.testing.apps import ADA, shop


async def test_a_handlers_exception_is_raised_with_its_own_traceback() -> None:
    async with TestClient(shop()) as client, client.connect(identity=ADA) as conn:
        with pytest.raises(ZeroDivisionError) as raised:
            await conn.request("divide")
        assert "in divide" in "".join(traceback.format_exception(raised.value))
        await conn.assert_nothing()
        assert await conn.request("whoami") == {"user": "ada"}, "it is raised once"
        await conn.send("divide")
        with pytest.raises(ZeroDivisionError):
            await conn.expect("anything")


async def test_whole_messages_show_what_the_client_gets_and_then_it_has_been_seen() -> None:
    async with TestClient(shop()) as client, client.connect(identity=ADA) as conn:
        await conn.send("divide")
        assert (await conn.receive())["payload"]["code"] == "HANDLER_ERROR"
        await conn.send("divide")
        assert (await conn.receive_event("__error__"))["payload"]["code"] == "HANDLER_ERROR"
        assert await conn.request("whoami") == {"user": "ada"}
        await conn.send("divide")


async def test_every_call_raises_it_where_that_is_said() -> None:
    async with TestClient(shop(), raise_server_exceptions=True) as client:
        one, other = await client.connect(identity=ADA), await client.connect(identity=ADA)
        await one.send("divide")
        with pytest.raises(ZeroDivisionError):
            await one.receive()
        await other.send("divide")
        with pytest.raises(ZeroDivisionError):
            await other.receive_event("__error__")


async def test_without_raising_it_is_what_the_client_gets() -> None:
    async with TestClient(shop(), raise_server_exceptions=False) as client, client.connect(identity=ADA) as conn:
        with pytest.raises(EventFailed) as failed:
            await conn.request("divide")
        assert failed.value.code == "HANDLER_ERROR"


async def test_what_no_call_has_raised_is_raised_at_the_end() -> None:
    with pytest.raises(ZeroDivisionError):
        async with TestClient(shop(), raise_server_exceptions=True) as client:
            await (await client.connect(identity=ADA)).send("divide")

    async def failing() -> None:
        async with TestClient(shop()) as client:
            await (await client.connect(identity=ADA)).send("divide")
            await client.settle()
            raise AssertionError("the test's own")

    with pytest.raises(AssertionError, match="the test's own") as own:
        await failing()
    assert own.value.__notes__ == ["Meanwhile, the server's code raised ZeroDivisionError('division by zero')"]
    async with TestClient(shop()):
        pass


async def test_hooks_and_dependencies_of_the_handshake_raise_as_well() -> None:
    socket = SocketApp()

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str) -> None:
        raise LookupError("bye")

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.close()
        with pytest.raises(LookupError, match="bye"):
            await conn.assert_nothing()

    @socket.on_connect
    async def hello(conn: Connection) -> None:
        raise IndexError("hello")

    async with TestClient(socket, raise_server_exceptions=True) as client:
        with pytest.raises(IndexError, match="hello"):
            await client.connect()
    async with TestClient(socket) as client:
        conn = await client.connect()
        with pytest.raises(ConnectionClosed):
            await conn.receive()

    def broken() -> None:
        raise KeyError("broken")

    async with TestClient(SocketApp(dependencies=[Depends(broken)])) as client:
        with pytest.raises(KeyError, match="broken"):
            await client.connect()


@pytest.mark.parametrize("raises", [True, False])
async def test_an_application_that_fails_before_the_accept_raises_in_connect(raises: bool) -> None:
    def broken() -> None:
        raise KeyError("broken")

    app = FastAPI(dependencies=[Depends(broken)])
    mount(SocketApp(), app)
    async with TestClient(app, raise_server_exceptions=raises) as client:
        with pytest.raises(KeyError, match="broken"):
            await client.connect()
