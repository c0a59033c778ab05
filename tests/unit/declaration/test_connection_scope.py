"""What runs at the handshake, and what is kept as long as the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import pytest
from fastapi import HTTPException, WebSocketException

from socketspec import Connection, Depends, Identity, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import APIKeyAuth
from socketspec.testing import HandshakeRefused, TestClient
from tests.asking import ask, nobody, somebody


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(401, "Sign in."), 401),
        (WebSocketException(1008), 403),
        (HTTPException(503), 503),
        (RuntimeError("bug"), 500),
    ],
)
async def test_a_dependency_of_the_handshake_refuses_before_the_accept_and_cleans_up(
    error: Exception, status: int
) -> None:
    log: list[str] = []

    def opened() -> Iterator[None]:
        try:
            yield
        except BaseException as seen:
            log.append(f"saw {type(seen).__name__}")
            raise
        finally:
            log.append("closed")

    def refuse(_: Annotated[None, Depends(opened)]) -> None:
        raise error

    async with TestClient(SocketApp(dependencies=[Depends(refuse)]), raise_server_exceptions=False) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect()
        assert refused.value.status == status
        assert log == [f"saw {type(error).__name__}", "closed"]


async def test_a_value_that_does_not_fit_refuses_the_handshake_it_belongs_to() -> None:
    def tenant(tenant: int) -> None: ...

    async with TestClient(SocketApp(dependencies=[Depends(tenant)])) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(query_params={"tenant": "x"})
        assert refused.value.status == 403
        await client.connect(query_params={"tenant": "1"})


async def test_the_handshake_may_ask_who_it_is_and_a_bad_key_is_still_refused_as_ever() -> None:
    seen: list[str | None] = []

    def note(who: Identity) -> None:
        seen.append(who.user_id)

    socket = SocketApp(auth=APIKeyAuth({"key": Identity(user_id="ada")}), dependencies=[Depends(note)])
    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"api_key": "key"})
        assert (seen, conn.identity.user_id) == (["ada"], "ada")
        stranger = await client.connect()
        assert (await stranger.receive())["payload"]["code"] == "AUTH_ERROR"
        assert seen == ["ada"]


async def test_what_is_kept_is_made_once_shared_by_all_and_closed_after_the_last_hook() -> None:
    log: list[str] = []

    async def opened(handshake: Handshake) -> AsyncIterator[list[str]]:
        log.append("open")
        yield log
        log.append("close")

    async def user(db: Annotated[list[str], Depends(opened, scope="connection")]) -> AsyncIterator[str]:
        log.append("user")
        yield "ada"
        log.append("user gone")

    socket = SocketApp(dependencies=[Depends(opened)])
    Kept = Annotated[str, Depends(user, scope="connection")]

    @socket.on("x")
    async def x(conn: Connection, who: Kept) -> dict[str, str]:
        return {"who": who}

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str, who: Kept) -> None:
        log.append(f"bye {who}")

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert log == ["open"]
        for _ in range(2):
            assert await ask(conn, "x") == {"who": "ada"}
        await conn.close()
        assert log == ["open", "user", "bye ada", "user gone", "close"]
        assert conn.connection.resources is not None
        with pytest.raises(RuntimeError, match="has ended"):
            await conn.connection.resources.value("late", lambda stack: nobody())


async def test_a_connection_that_declares_nothing_keeps_nothing() -> None:
    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection, who: Annotated[str, Depends(somebody)]) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        await ask(conn, "x")
        assert (conn.connection.resources, conn.connection.handshake.scope) == (None, None)


def test_what_is_kept_cannot_use_what_each_event_gets_anew() -> None:
    def kept(name: Annotated[str, Depends(somebody)]) -> str:
        return name

    async def handler(conn: Connection, name: Annotated[str, Depends(kept, scope="connection")]) -> None: ...

    with pytest.raises(ConfigurationError, match=r'Depends\(somebody, scope="connection"\)'):
        SocketApp().on("x")(handler)

    def wants_connection(conn: Connection) -> None: ...

    with pytest.raises(ConfigurationError, match="before there is one"):
        SocketApp(dependencies=[Depends(wants_connection)])
    with pytest.raises(ConfigurationError, match="there is no event"):
        SocketApp(dependencies=[Depends(somebody, scope="event")])


async def test_what_is_kept_is_tried_again_where_making_it_failed() -> None:
    tries: list[int] = []

    def shaky() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise HTTPException(403, "Not yet.")
        return len(tries)

    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection, n: Annotated[int, Depends(shaky, scope="connection")]) -> dict[str, int]:
        return {"n": n}

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await ask(conn, "x") == "PERMISSION_ERROR"
        assert [await ask(conn, "x"), await ask(conn, "x")] == [{"n": 2}, {"n": 2}]
