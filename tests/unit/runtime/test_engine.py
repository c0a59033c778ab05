"""The engine's life: connecting, hooks, reasons, stopping and starting again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.connection.states import State
from socketspec.errors import PermissionDenied
from socketspec.lifecycle.closing import CLIENT_REASONS
from socketspec.testing import HandshakeRefused, TestClient
from tests.endings import end_of


async def test_handlers_see_the_handshake_and_metadata_that_hooks_left() -> None:
    socket = SocketApp(namespace="/chat")

    @socket.on_connect
    async def note(conn: Connection) -> None:
        conn.metadata["tenant"] = conn.query_params["tenant"]

    @socket.on("look")
    async def look(conn: Connection) -> dict[str, Any]:
        assert conn.last_active >= conn.connected_at - 1
        return {"agent": conn.headers["User-Agent"], "tenant": conn.metadata["tenant"], "namespace": conn.namespace}

    async with TestClient(socket) as client:
        conn = await client.connect(headers={"user-agent": "probe"}, query_params={"tenant": "t1"})
        await conn.send("look", id=1)
        expected = {"agent": "probe", "tenant": "t1", "namespace": "/chat"}
        assert await conn.receive() == {"event": "__ack__", "payload": expected, "id": 1}


async def test_on_connect_can_turn_a_client_away() -> None:
    socket = SocketApp()
    ended: list[str] = []

    @socket.on_connect
    async def refuse(conn: Connection) -> None:
        raise PermissionDenied("Closed on Sundays.")

    @socket.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        ended.append(reason)

    async with TestClient(socket) as client:
        messages, code, reason = await end_of(await client.connect())
    assert [message["payload"]["message"] for message in messages] == ["Closed on Sundays."]
    assert (code, reason) == (4001, "refused: permission_error")
    assert ended == [], "a connection that never began does not end"


async def test_on_connect_that_fails_closes_with_1011_and_tells_on_error() -> None:
    socket = SocketApp()
    failures: list[str] = []

    @socket.on_connect
    async def fail(conn: Connection) -> None:
        raise LookupError("a secret text")

    @socket.on_error
    async def note(conn: Connection, error: Exception) -> None:
        failures.append(str(error))

    async with TestClient(socket) as client:
        messages, code, _ = await end_of(await client.connect())
    assert code == 1011
    assert "secret" not in str(messages)
    assert failures == ["a secret text"]


@pytest.mark.parametrize("code", [*CLIENT_REASONS, 4321])
async def test_on_disconnect_gets_the_reason_by_name_and_the_rooms_left(code: int) -> None:
    socket = SocketApp()
    seen: list[tuple[str, frozenset[str]]] = []

    @socket.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        seen.append((reason, conn.rooms))

    async with TestClient(socket) as client:
        conn = await client.connect()
        await socket.rooms.join(conn.connection, "lobby")
        await conn.close(code)
    assert seen == [(CLIENT_REASONS.get(code, "client:4321"), frozenset({"lobby"}))]


@pytest.mark.parametrize("code", [1000, 4000, 4999])
async def test_disconnecting_sends_code_and_reason(code: int) -> None:
    socket = SocketApp()
    reasons: list[str] = []

    @socket.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    @socket.on("bye")
    async def bye(conn: Connection) -> None:
        await conn.emit("last")
        await conn.disconnect("signed_out", code=code)

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("bye")
        messages, got, reason = await end_of(conn)
        assert [message["event"] for message in messages] == ["last"]
        assert (got, reason) == (code, "signed_out")
    assert reasons == ["signed_out"]


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 3000, 5000, 0])
async def test_codes_that_are_not_yours_are_refused(code: int) -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        with pytest.raises(ValueError, match="not yours to send"):
            await conn.connection.disconnect(code=code)
        assert conn.connection.state is State.OPEN


async def test_a_plain_client_gets_no_frame_it_did_not_cause() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("__ping__")
        assert (await conn.receive())["event"] == "__pong__"


@pytest.mark.parametrize("subprotocol", ["socketspec.v1.json", "socketspec.v1.msgpack"])
async def test_subprotocol_clients_are_introduced_first(subprotocol: str) -> None:
    socket = SocketApp()

    @socket.on_connect
    async def greet(conn: Connection) -> None:
        await conn.emit("welcome")

    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=[subprotocol])
        first = await conn.receive()
        assert first["event"] == "__connect__"
        assert first["payload"]["connection_id"] == conn.id
        assert first["payload"]["session"] == conn.connection.session.id
        assert first["payload"]["heartbeat"] == {"interval": 25.0, "timeout": 10, "frames": False}
        assert (await conn.receive())["event"] == "welcome"


async def test_stopping_says_goodbye_waits_for_handlers_and_closes_with_1012() -> None:
    socket = SocketApp()
    started, finish = asyncio.Event(), asyncio.Event()
    reasons: list[str] = []

    @socket.on("work")
    async def work(conn: Connection) -> dict[str, str]:
        started.set()
        await finish.wait()
        return {"work": "done"}

    @socket.on_disconnect
    async def note(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("work")
        await started.wait()
        stopping = asyncio.create_task(socket.stop(grace=5))
        goodbye = await conn.receive()
        assert goodbye["event"] == "__server_shutdown__"
        assert 0 < goodbye["payload"]["reconnect_in"] <= 5
        assert not stopping.done()
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect()
        assert refused.value.status == 503
        finish.set()
        await stopping
        messages, code, reason = await end_of(conn)
        assert [message["payload"] for message in messages] == [{"work": "done"}]
        assert (code, reason) == (1012, "server_shutdown")
    assert reasons == ["server_shutdown"]


async def test_a_handler_that_does_not_finish_is_cancelled_after_the_grace() -> None:
    socket = SocketApp()
    started = asyncio.Event()
    cancelled: list[bool] = []

    @socket.on("hang")
    async def hang(conn: Connection) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("hang")
        await started.wait()
        await socket.stop(grace=0.01)
        assert cancelled == [True]


async def test_hooks_that_broadcast_while_the_app_stops_start_no_second_engine() -> None:
    socket = SocketApp()

    @socket.on_disconnect
    async def tell(conn: Connection, reason: str) -> None:
        await socket.rooms.broadcast_all("left", {"who": conn.id})

    async with TestClient(socket) as client:
        await client.connect()
        await client.connect()
        await socket.stop()
        assert socket.engine is None


def test_an_app_starts_again_in_another_event_loop() -> None:
    socket = SocketApp()

    @socket.on("ping")
    async def ping(conn: Connection) -> dict[str, int]:
        return {"n": 1}

    async def session() -> dict[str, Any]:
        async with TestClient(socket) as client:
            conn = await client.connect()
            await conn.send("ping")
            return await conn.receive()

    assert asyncio.run(session()) == asyncio.run(session()) == {"event": "__ack__", "payload": {"n": 1}}


def test_an_engine_whose_loop_ended_without_a_stop_is_detached() -> None:
    socket = SocketApp()

    async def start() -> None:
        await socket.ensure_started()

    async def session() -> dict[str, Any]:
        async with TestClient(socket) as client:
            conn = await client.connect()
            await socket.rooms.broadcast_all("hello")
            return await conn.receive()

    asyncio.run(start())
    assert asyncio.run(session())["event"] == "hello"


async def test_a_start_that_fails_is_tried_again_by_the_next_one() -> None:
    class Flaky(MemoryBackend):
        failures = 1

        async def start(self, namespace: str, deliver: Any, lost: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("not yet")
            await super().start(namespace, deliver, lost)

    socket = SocketApp(backend=Flaky())
    with pytest.raises(ConnectionError):
        await socket.ensure_started()
    results = await asyncio.gather(*(socket.ensure_started() for _ in range(5)))
    assert len(set(map(id, results))) == 1
    await socket.stop()


async def test_two_hundred_connections_come_and_go_without_a_trace() -> None:
    socket = SocketApp()

    @socket.on("enter")
    async def enter(conn: Connection, payload: dict[str, str]) -> None:
        await socket.rooms.join(conn, payload["room"])

    async with TestClient(socket) as client:
        engine = await socket.ensure_started()
        tasks = len(asyncio.all_tasks())
        for number in range(200):
            conn = await client.connect()
            await conn.send("enter", {"room": f"room{number % 7}"}, id=1)
            await conn.receive()
            await conn.close(1006 if number % 2 else 1000)
        assert engine.connections == {}
        assert len(engine.hub.topics) == 2, "only the topics of everybody and of the nodes' orders are left"
        assert [await socket.rooms.count(f"room{number}") for number in range(7)] == [0] * 7
        assert (len(engine.tasks), len(engine.handlers), len(asyncio.all_tasks())) == (0, 0, tasks)


async def test_an_origin_that_is_not_allowed_is_refused_before_accepting() -> None:
    async with TestClient(SocketApp(allowed_origins=["https://myapp.com"])) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(headers={"origin": "https://evil.example"})
        assert refused.value.status == 403
