"""From the handshake to an open connection: who is turned away and how, and what is set up by when."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryPresence
from socketspec.backend.protocols import Displaced
from socketspec.errors import (
    AuthError,
    BackendError,
    ErrorCode,
    EventError,
    PermissionDenied,
    RoomNotFound,
)
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import Topic
from socketspec.session import SessionConfig
from socketspec.session.session_tokens import new_token
from socketspec.testing import HandshakeRefused, TestClient
from tests.carriers import Carrier, opened
from tests.endings import end_of
from tests.engines import engine_of
from tests.gated_sessions import gated_app
from tests.identities import ByName

# Turned away before the handshake is accepted


async def test_a_node_that_stops_refuses_with_503() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        await app.drain()
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect()
        assert refused.value.status == 503
        assert "stopping" in str(refused.value)
        assert engine_of(app).counters.refused == {503: 1}


async def test_another_origin_is_refused_with_403_and_counted() -> None:
    app = SocketApp(allowed_origins=["https://my.app"])
    async with TestClient(app) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(headers={"origin": "https://other.app"})
        assert refused.value.status == 403
        assert "origin" in str(refused.value)
        assert (engine_of(app).counters.refused, engine_of(app).counters.opened) == ({403: 1}, 0)
        await client.connect(headers={"origin": "https://my.app"})
        assert (engine_of(app).counters.refused, engine_of(app).counters.opened) == ({403: 1}, 1)


async def test_a_session_that_cannot_be_looked_up_is_refused_with_503(caplog: pytest.LogCaptureFixture) -> None:
    app, sessions = gated_app()
    sessions.away = True
    async with TestClient(app) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(query_params={"user": "ada"})
        assert refused.value.status == 503
        assert "connect again" in str(refused.value)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "redis is gone" in record.getMessage()
    assert record.exc_info is None


class EndedLease(MemoryPresence):
    """Of a node whose lease has ended while `ended` says so."""

    ended = "the lease has ended"

    def now(self) -> float:
        return time.time()

    async def runs_leave_hooks(self, topic: Topic, connection_id: str) -> bool:
        return True

    def why_closed(self, namespace: str) -> str:
        return self.ended

    def watch(self, namespace: str, displaced: Displaced) -> None:
        """Nobody is displaced."""

    def unwatch(self, namespace: str, displaced: Displaced) -> None:
        """As `watch`."""


async def test_where_nobody_can_enter_users_are_refused_with_503_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not accepted first, and closed some seconds later. Who is nobody does not enter, and comes in."""
    backend = MemoryBackend()
    backend.presence = presence = EndedLease()
    async with TestClient(SocketApp(backend=backend, auth=ByName())) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(query_params={"user": "ada"})
        assert refused.value.status == 503
        assert "the lease has ended" in caplog.text
        presence.ended = ""
        await client.connect(query_params={"user": "ada"})
    presence.ended = "the lease has ended"
    async with TestClient(SocketApp(backend=backend)) as client:
        await client.connect()


async def test_a_user_id_that_nobody_can_have_is_refused_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with TestClient(SocketApp(auth=ByName())) as client:
        messages, code, reason = await end_of(await client.connect(query_params={"user": "x" * 600}))
        assert [message["payload"]["code"] for message in messages] == ["AUTH_ERROR"]
        assert "user id" in messages[0]["payload"]["message"]
        assert (code, reason) == (4001, "auth_error")
    assert "too long" in caplog.text


class InHeadersOnly:
    """Says nothing about first messages, so it takes none."""

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        return None


async def test_one_backend_that_takes_first_messages_is_enough_to_wait_for_one() -> None:
    async with TestClient(SocketApp(auth=[InHeadersOnly(), ByName()])) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await conn.receive())["event"] == "__ack__"


async def test_where_no_first_message_is_taken_no_credentials_are_an_error_at_once() -> None:
    async with TestClient(SocketApp(auth=InHeadersOnly())) as client:
        messages, code, _ = await end_of(await client.connect())
        assert ([message["payload"]["code"] for message in messages], code) == (["AUTH_ERROR"], 4001)


# What is set up


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["other"], None),
        (["other", "socketspec.v1.msgpack", "socketspec.v1.json"], "socketspec.v1.msgpack"),
        (["socketspec.v1.json"], "socketspec.v1.json"),
    ],
)
async def test_the_handshake_is_answered_with_the_clients_first_known_subprotocol(
    offered: list[str], chosen: str | None
) -> None:
    app = SocketApp()
    async with app.lifespan() as engine:
        assert (await engine.admit(Handshake(subprotocols=tuple(offered)))).subprotocol == chosen


async def test_the_introduction_says_what_a_client_has_to_know() -> None:
    app, carrier = SocketApp(session=SessionConfig(max_duration=500, heartbeat_timeout=7)), Carrier(can_ping=True)
    async with app.lifespan():
        conn = await opened(app, carrier, Handshake(subprotocols=("socketspec.v1.json",)))
        expires = conn.session.expires_at
        assert expires is not None
        assert carrier.messages == [
            {
                "event": "__connect__",
                "payload": {
                    "connection_id": conn.id,
                    "session": conn.session.id,
                    "session_expires_at": expires,
                    "heartbeat": {"interval": 25.0, "timeout": 7, "frames": True},
                    "node": app.node,
                },
            }
        ]
        assert expires == pytest.approx(time.time() + 500, abs=30)
        await conn.disconnect()


async def test_a_connection_has_the_apps_limits_from_the_first_moment() -> None:
    config = SessionConfig(idle_timeout=77)
    async with TestClient(SocketApp(auth=ByName(), session=config)) as client:
        waiting, in_already = await client.connect(), await client.connect(query_params={"user": "ada"})
        for conn in (waiting, in_already):
            assert conn.connection.session.config is config


async def test_a_client_that_reads_too_slowly_is_closed_with_4006_and_counted() -> None:
    app, carrier = SocketApp(), Carrier()
    reasons: list[str] = []

    @app.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with app.lifespan() as engine:
        await opened(app, carrier)
        carrier.on_slow()
        assert carrier.closed == (4006, "slow_consumer")
        assert engine.counters.slow_consumers == 1
    assert reasons == ["slow_consumer"]


async def test_what_is_sent_to_everybody_reaches_who_has_been_let_in() -> None:
    app = SocketApp(auth=ByName())

    @app.on_connect
    async def greet(conn: Connection) -> None:
        await app.rooms.broadcast_all("too early")
        await app.users.send("ada", "too early")

    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada"})
        await app.rooms.broadcast_all("everybody")
        await app.users.send("ada", "you")
        assert [(await conn.receive())["event"] for _ in range(2)] == ["everybody", "you"]
        waiting = await client.connect()
        await app.rooms.broadcast_all("everybody")
        await waiting.send("anything")
        assert (await waiting.receive())["payload"]["code"] == "AUTH_ERROR", "it is not let in yet"


@pytest.mark.parametrize("first_message", [True, False])
async def test_the_session_of_the_url_is_gone_on_with(first_message: bool) -> None:
    class Anonymous:
        async def authenticate(self, handshake: Handshake) -> Identity | None:
            return None if first_message and handshake.token is None else Identity(user_id="ada")

        first_message = True

    token = new_token("/", "ada")
    async with TestClient(SocketApp(auth=Anonymous())) as client:
        conn = await client.connect(query_params={"session": token})
        if first_message:
            await conn.send("__refresh_auth__", {"token": "ada"})
            await conn.receive()
        assert conn.connection.session.id == token


async def test_an_opening_that_the_server_cancels_counts_as_a_lost_connection() -> None:
    app = SocketApp()
    entered = asyncio.Event()

    @app.on_connect
    async def slow(conn: Connection) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    async with TestClient(app) as client:
        connecting = asyncio.create_task(client.connect())
        await entered.wait()
        connecting.cancel()
        await asyncio.wait([connecting])
        assert engine_of(app).counters.closed == {"connection_lost": 1}


# Hooks that refuse or fail


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (PermissionDenied("No."), 4001, "refused: permission_error"),
        (AuthError("No."), 4001, "refused: auth_error"),
        (RoomNotFound("No."), 4000, "refused: room_not_found"),
        (EventError("No.", code=ErrorCode.VALIDATION_ERROR), 4000, "refused: validation_error"),
    ],
)
@pytest.mark.parametrize("after_one", [False, True])
async def test_a_hook_that_refuses_gives_the_reason(error: EventError, code: int, reason: str, after_one: bool) -> None:
    app = SocketApp()
    ended: list[str] = []

    if after_one:

        @app.on_connect
        async def first(conn: Connection) -> None: ...

    @app.on_connect
    async def refuse(conn: Connection) -> None:
        raise error

    @app.on_connect
    async def never(conn: Connection) -> None:
        raise AssertionError("not after one that refused")

    @app.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        ended.append(reason)

    async with TestClient(app) as client:
        messages, *closed = await end_of(await client.connect())
        assert [message["payload"]["code"] for message in messages] == [error.code]
        assert closed == [code, reason]
    assert ended == [reason] * after_one, "what the first one set up has to be undone"


@pytest.mark.parametrize(("error", "code"), [(LookupError("secret"), 1011), (BackendError("redis is gone"), 1013)])
@pytest.mark.parametrize("after_one", [False, True])
async def test_a_hook_that_fails_closes_and_is_reported(
    error: Exception, code: int, after_one: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = SocketApp()
    ended: list[str] = []
    failures: list[Exception] = []

    if after_one:

        @app.on_connect
        async def first(conn: Connection) -> None: ...

    @app.on_connect
    async def fail(conn: Connection) -> None:
        raise error

    @app.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        ended.append(reason)

    @app.on_error
    async def hear(conn: Connection, error: Exception) -> None:
        failures.append(error)

    async with TestClient(app) as client:
        conn = await client.connect()
        messages, closed, _ = await end_of(conn)
        assert (messages, closed) == ([], code)
        assert conn.id in caplog.text
    assert failures == [error]
    assert len(ended) == after_one
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.exc_info is None) is isinstance(error, BackendError)
