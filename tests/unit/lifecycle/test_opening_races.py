"""What happens to a connection while its session is looked up: closed, revoked, gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend, MemorySessions
from socketspec.session import SessionConfig
from socketspec.session.session_tokens import new_token
from socketspec.testing import TestClient
from tests.endings import end_of
from tests.gated_sessions import GatedSessions, gated_app
from tests.identities import ByName


async def test_a_first_message_of_a_connection_that_was_closed_meanwhile_lets_nobody_in() -> None:
    app, sessions = gated_app()
    came: list[str] = []

    @app.on_connect
    async def hook(conn: Connection) -> None:
        came.append(conn.id)

    async with TestClient(app) as client:
        conn = await client.connect()
        sessions.gate.clear()
        entering = asyncio.create_task(conn.send("__refresh_auth__", {"token": "ada"}))
        await sessions.looking.wait()
        await conn.connection.disconnect()
        sessions.gate.set()
        await entering
        assert await app.users.count("ada") == 0
    assert came == []


async def test_a_renewal_of_a_connection_that_was_closed_meanwhile_changes_nothing() -> None:
    app, sessions = gated_app()
    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada"})
        before = conn.identity
        sessions.looking.clear()
        sessions.gate.clear()
        renewing = asyncio.create_task(conn.send("__refresh_auth__", {"token": "ada"}))
        await sessions.looking.wait()
        await conn.close()
        sessions.gate.set()
        await renewing
        assert conn.identity is before
        await app.sessions.revoke(user="ada")  # finds no connection that is no more


@pytest.mark.parametrize("how", ["first message", "renewal"])
async def test_a_revocation_while_a_token_is_looked_up_is_not_missed(how: str) -> None:
    class Slow(GatedSessions):
        async def is_revoked(self, subjects: Sequence[str]) -> bool:
            answer = await MemorySessions.is_revoked(self, subjects)
            self.looking.set()
            await self.gate.wait()  # the answer is on its way
            return answer

    backend = MemoryBackend()
    backend.sessions = sessions = Slow()
    app = SocketApp(backend=backend, auth=ByName())
    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada/1"} if how == "renewal" else {})
        sessions.looking.clear()
        sessions.gate.clear()
        sending = asyncio.create_task(conn.send("__refresh_auth__", {"token": "ada/2"}))
        await sessions.looking.wait()
        await app.sessions.revoke(token_id="ada/2")
        assert conn.connection.state.value in ("open", "authenticating"), "it does not go by that one yet"
        sessions.gate.set()
        await sending
        messages, *closed = await end_of(conn)
        assert [message["payload"]["code"] for message in messages] == ["AUTH_ERROR"]
        assert closed == [4005, "revoked"]


async def test_a_session_of_a_connection_that_was_closed_meanwhile_is_not_gone_on_with() -> None:
    backend = MemoryBackend()
    backend.sessions = sessions = GatedSessions()
    async with TestClient(SocketApp(backend=backend)) as client:
        conn = await client.connect()
        before = conn.connection.session
        sessions.looking.clear()
        sessions.gate.clear()
        resuming = asyncio.create_task(conn.send("__resume__", {"session": new_token("/", None)}))
        await sessions.looking.wait()
        await conn.close()
        sessions.gate.set()
        await resuming
        assert conn.connection.session is before


async def test_a_session_that_began_later_neither_moves_the_end_nor_the_begin() -> None:
    class Aged(GatedSessions):
        aged = 0.0

        async def began(self, session: str) -> float | None:
            found = await super().began(session)
            return None if found is None else found - self.aged

    backend = MemoryBackend()
    backend.sessions = sessions = Aged()
    app = SocketApp(backend=backend, session=SessionConfig(max_duration=100))
    async with TestClient(app) as client:
        one, two = [(await client.connect()).connection.session.id for _ in range(2)]
        conn = await client.connect()
        sessions.aged = 50.0
        await conn.send("__resume__", {"session": one})
        await conn.receive_event("__resume__")
        early = conn.connection.session
        sessions.aged = 0.0
        await conn.send("__resume__", {"session": two})
        answer = (await conn.receive_event("__resume__"))["payload"]
        late = conn.connection.session
        assert (early.id, late.id) == (one, two)
        assert (late.started_at, late.expires_at) == (early.started_at, early.expires_at)
        assert answer["session_expires_at"] == early.expires_at
