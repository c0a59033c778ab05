"""Users: all of a user's connections as one address, on several nodes that share a memory backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import Broadcasts, Connection, Emits, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryBroker, MemoryPresence
from socketspec.errors import BackendError, ConfigurationError, ContractError, PermissionDenied, ValidationFailed
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.names import MAX_USER_ID_BYTES, check_user_id
from socketspec.protocol.publications import Member, Topic
from socketspec.session.revocation import subject_of
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import engine_of, running
from tests.watching import until

V1 = ["socketspec.v1.json"]


class ByQuery:
    """Takes the user's word for it."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        user = handshake.token or handshake.query_params.get("user")
        return None if user is None else Identity(user_id=user)


@asynccontextmanager
async def nodes(
    count: int, *, backend: MemoryBackend | None = None, **options: Any
) -> AsyncIterator[list[tuple[SocketApp, TestClient]]]:
    """Several apps that share a backend, as nodes do."""
    shared = backend or MemoryBackend()
    apps = [SocketApp(backend=shared, auth=ByQuery(), **options) for _ in range(count)]
    async with AsyncExitStack() as stack:
        yield [(app, await stack.enter_async_context(TestClient(app))) for app in apps]


async def connect(client: TestClient, user: str | None, subprotocols: Sequence[str] = ()) -> TestConnection:
    return await client.connect(query_params={} if user is None else {"user": user}, subprotocols=subprotocols)


async def ended(conn: TestConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        await conn.receive()
    await conn.close()
    return closed.value.code, closed.value.reason


async def refused(conn: TestConnection) -> tuple[dict[str, Any], int]:
    """The error that a connection was refused with, and the close code."""
    message = await conn.receive()
    assert message["event"] == "__error__", message
    payload: dict[str, Any] = message["payload"]
    return payload, (await ended(conn))[0]


async def test_a_user_is_reached_on_every_connection_and_node_and_nobody_else_is() -> None:
    async with nodes(2) as ((one, here), (_, there)):
        ada = [await connect(here, "ada"), await connect(here, "ada", V1), await connect(there, "ada")]
        bob = await connect(there, "bob")
        assert await one.users.count("ada") == 3
        receipt = await one.users.send("ada", "note", {"n": 1})
        assert receipt.nodes == 1, "the memory backend is one node, however many apps share it"
        assert (await ada[1].receive())["event"] == "__connect__"
        for conn in ada:
            assert await conn.receive() == {"event": "note", "payload": {"n": 1}}
        await bob.send("__ping__")
        assert (await bob.receive())["event"] == "__pong__", "nothing else had come"


async def test_sending_to_a_user_who_is_not_connected_reaches_no_node() -> None:
    async with nodes(1) as ((app, client),):
        assert (await app.users.send("ada", "note")).nodes == 0
        conn = await connect(client, "ada")
        assert (await app.users.send("ada", "note")).nodes == 1
        await conn.close()
        assert (await app.users.send("ada", "note")).nodes == 0
        assert await app.users.count("ada") == 0


async def test_users_of_other_namespaces_are_other_users() -> None:
    backend = MemoryBackend()
    async with (
        nodes(1, backend=backend, namespace="/a") as ((one, here),),
        nodes(1, backend=backend, namespace="/b") as ((two, there),),
    ):
        await connect(here, "ada")
        other = await connect(there, "ada")
        assert await one.users.disconnect("ada") == 1
        assert (await two.users.count("ada"), other.connection.is_open) == (1, True)


async def test_disconnect_closes_the_users_connections_everywhere_and_says_how_many() -> None:
    async with nodes(2) as ((_, here), (other, there)):
        ada = [await connect(here, "ada"), await connect(there, "ada")]
        bob = await connect(here, "bob")
        assert await other.users.disconnect("ada", reason="moved out", code=4321) == 2
        assert [await ended(conn) for conn in ada] == [(4321, "moved out")] * 2
        assert bob.connection.is_open
        assert await other.users.disconnect("ada") == 0
        again = await connect(here, "ada")
        assert again.connection.is_open, "it is no ban"
        await other.users.disconnect("ada")
        assert await ended(again) == (4000, "disconnected")


async def test_very_many_connections_of_a_user_are_closed_as_well() -> None:
    async with nodes(1) as ((app, client),):
        conns = [await connect(client, "ada") for _ in range(600)]
        assert await app.users.disconnect("ada") == 600
        assert {await ended(conn) for conn in conns} == {(4000, "disconnected")}


@pytest.mark.parametrize("code", [1001, 1006, 1011, 3000, 5000])
async def test_disconnecting_a_user_with_a_code_of_others_is_refused(code: int) -> None:
    async with nodes(1) as ((app, client),):
        conn = await connect(client, "ada")
        with pytest.raises(ValueError, match="not yours to send"):
            await app.users.disconnect("ada", code=code)
        assert conn.connection.is_open


async def test_anonymous_connections_belong_to_no_user() -> None:
    app = SocketApp(max_connections_per_user=1)
    async with TestClient(app) as client:
        conns = [await client.connect() for _ in range(3)]
        assert all(conn.connection.is_open and conn.connection.user_topic is None for conn in conns)


async def test_a_first_message_makes_the_connection_its_users() -> None:
    async with nodes(1, max_connections_per_user=1) as ((app, client),):
        conn = await connect(client, None)
        assert await app.users.count("ada") == 0
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await conn.receive())["event"] == "__ack__"
        assert await app.users.count("ada") == 1
        await conn.send("__refresh_auth__", {"token": "ada"}, id=2)
        assert (await conn.receive())["event"] == "__ack__"
        assert await app.users.count("ada") == 1, "a renewal enters nobody twice"
        second = await connect(client, None)
        await second.send("__refresh_auth__", {"token": "ada"})
        assert (await refused(second))[1] == 4008
        await app.users.disconnect("ada")
        assert (await ended(conn))[0] == 4000


async def test_who_is_turned_away_by_on_connect_leaves_nothing_behind_and_hears_nothing() -> None:
    async with nodes(1) as ((app, client),):

        @app.on_connect
        async def refuse(conn: Connection) -> None:
            await app.users.send("ada", "note")
            raise PermissionDenied("No.")

        error, code = await refused(await connect(client, "ada"))
        assert (error["message"], code) == ("No.", 4001)
        assert await app.users.count("ada") == 0
        assert len(engine_of(app).hub.topics) == 2
        assert engine_of(app).directory.find(subject_of("/", "user", "ada")) == []


@pytest.mark.parametrize(
    ("user_id", "problem"),
    [("", "empty"), ("x" * 513, "too long"), ("é" * 257, "too long"), ("a\ud800", "surrogate"), (7, "of type int")],
)
async def test_what_cannot_be_a_user_id_is_refused_with_a_sentence(user_id: Any, problem: str) -> None:
    async with nodes(1) as ((app, _),):
        for call in (app.users.send(user_id, "note"), app.users.disconnect(user_id), app.users.count(user_id)):
            with pytest.raises(ValidationFailed, match=problem):
                await call


@pytest.mark.parametrize("user_id", ["", "x" * 513, "\udfff"])
async def test_credentials_with_an_impossible_user_id_let_nobody_in(user_id: str) -> None:
    class Odd:
        async def authenticate(self, handshake: Handshake) -> Identity:
            return Identity(user_id=user_id)

    async with TestClient(SocketApp(auth=Odd())) as client:
        error, code = await refused(await client.connect())
        assert (error["code"], code) == ("AUTH_ERROR", 4001)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=128))
def test_any_text_of_up_to_512_bytes_is_a_user_id(user_id: str) -> None:
    assert len(user_id.encode()) <= MAX_USER_ID_BYTES
    assert check_user_id(user_id) == user_id


async def test_user_ids_need_not_be_names() -> None:
    async with nodes(1) as ((app, client),):
        for user_id in (" ", "a\n\x00b", "auth0|{x}*", "é" * 256, "__error__"):
            conn = await connect(client, user_id)
            await app.users.send(user_id, "note")
            assert (await conn.receive())["event"] == "note"
            assert await app.users.disconnect(user_id) == 1
            assert (await ended(conn))[0] == 4000


async def test_reserved_events_and_bad_payloads_are_not_sent() -> None:
    async with nodes(1) as ((app, _),):
        with pytest.raises(ValueError, match="reserved"):
            await app.users.send("ada", "__error__")
        with pytest.raises(TypeError):
            await app.users.send("ada", "note", {"x": object()})


async def test_in_strict_mode_a_handler_sends_users_what_it_declares_only() -> None:
    async with nodes(1) as ((app, client),):
        failures: list[str] = []

        @app.on_error
        async def note(conn: Connection, error: Exception) -> None:
            assert isinstance(error, ContractError)
            failures.append(str(error))

        @app.on("tell", emits=[Emits("told")], broadcasts=[Broadcasts("news")])
        async def tell(conn: Connection, payload: dict[str, str]) -> None:
            await app.users.send("ada", payload["event"])

        conn = await connect(client, "ada")
        await conn.send("tell", {"event": "news"}, id=1)
        assert {(await conn.receive())["event"] for _ in range(2)} == {"news", "__ack__"}
        await conn.send("tell", {"event": "gossip"}, id=2)
        assert (await conn.receive())["event"] == "__error__"
        assert len(failures) == 1
        assert "broadcasts 'gossip' to a user" in failures[0]


async def test_beyond_the_limit_new_connections_are_refused_on_every_node() -> None:
    async with nodes(2, max_connections_per_user=2) as ((app, here), (_, there)):
        ran: list[str] = []

        @app.on_connect
        async def note(conn: Connection) -> None:
            ran.append(conn.id)

        first, second = await connect(here, "ada"), await connect(there, "ada")
        error, code = await refused(await connect(here, "ada", V1))
        assert (error["code"], code) == ("PERMISSION_ERROR", 4008)
        assert error["details"] == {"reason": "too_many_connections", "limit": 2}
        assert ran == [first.id], "on_connect does not run for it"
        assert (await connect(here, "bob")).connection.is_open
        await second.close()
        assert (await connect(here, "ada")).connection.is_open
        assert await app.users.count("ada") == 2


async def test_with_evict_oldest_the_oldest_make_room_wherever_they_are() -> None:
    async with nodes(2, max_connections_per_user=2, connection_limit_policy="evict_oldest") as (
        (app, here),
        (_, there),
    ):
        conns = [await connect(client, "ada") for client in (there, here, here, there)]
        assert [await ended(conn) for conn in conns[:2]] == [(4009, "replaced")] * 2
        assert all(conn.connection.is_open for conn in conns[2:])
        assert await app.users.count("ada") == 2


async def test_a_newcomer_is_not_taken_for_the_oldest_where_another_nodes_clock_is_ahead() -> None:
    backend = MemoryBackend()
    await backend.presence.enter(Topic("/", "user", "ada"), Member("ahead", "ada", 9e9))
    async with nodes(1, backend=backend, max_connections_per_user=1, connection_limit_policy="evict_oldest") as (
        (_, client),
    ):
        assert (await connect(client, "ada")).connection.is_open


async def test_of_many_that_come_at_once_as_many_stay_as_may() -> None:
    async with nodes(2, max_connections_per_user=3, connection_limit_policy="evict_oldest") as (
        (app, here),
        (_, there),
    ):
        conns = await asyncio.gather(*(connect(client, "ada") for client in [here, there] * 10))
        assert sum(conn.connection.is_open for conn in conns) == 3
        assert await app.users.count("ada") == 3


@pytest.mark.parametrize(
    "options",
    [
        {"max_connections_per_user": 0},
        {"max_connections_per_user": 1.5},
        {"max_connections_per_user": True},
        {"connection_limit_policy": "newest"},
    ],
)
def test_limits_that_cannot_work_are_refused_at_start_up(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SocketApp(**options)


class SlowPresence(MemoryPresence):
    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        self.reached.set()
        await self.gate.wait()
        return await super().enter(topic, member, limit=limit)


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
async def test_who_leaves_while_entering_leaves_nothing_behind(how: str) -> None:
    backend = MemoryBackend()
    backend.presence = presence = SlowPresence()
    async with nodes(1, backend=backend) as ((app, client),):
        engine = await running(app)
        opening = asyncio.create_task(connect(client, "ada"))
        await presence.reached.wait()
        (conn,) = engine.connections.values()
        if how == "cancel":
            opening.cancel()
        else:
            conn.close(4000)
        presence.gate.set()
        await asyncio.wait([opening])
        assert opening.cancelled() is (how == "cancel")
        assert await app.users.count("ada") == 0
        await until(lambda: not engine.connections)
        assert len(engine.hub.topics) == 2


class AwayPresence(MemoryPresence):
    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        await super().enter(topic, member, limit=limit)
        raise BackendError("no answer within 5.0 s: whether it was done is not known")


class AwayBroker(MemoryBroker):
    async def subscribe(self, topic: Topic) -> None:
        if topic.kind == "user":
            raise BackendError("Redis cannot be reached")
        await super().subscribe(topic)


@pytest.mark.parametrize("part", ["presence", "broker"])
async def test_a_backend_that_is_away_closes_with_1013_and_one_line_in_the_log(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = MemoryBackend()
    if part == "presence":
        backend.presence = AwayPresence()
    else:
        backend.broker.__class__ = AwayBroker
    async with nodes(1, backend=backend) as ((app, client),):
        conn = await connect(client, "ada", V1)
        assert await ended(conn) == (1013, "try_again_later")
        assert await app.users.count("ada") == 0, "what may have been done is undone"
        assert len(engine_of(app).hub.topics) == 2
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].exc_info is None


async def test_an_order_reaches_a_connection_that_is_still_being_opened() -> None:
    async with nodes(1) as ((app, client),):

        @app.on_connect
        async def throw_out(conn: Connection) -> None:
            assert await app.users.disconnect("ada", reason="out") == 1

        assert await ended(await connect(client, "ada")) == (4000, "out")
