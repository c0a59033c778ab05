"""The end of a connection: what is undone in which order, for how long, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryPresence
from socketspec.errors import (
    BackendError,
)
from socketspec.logs import JsonFormatter
from socketspec.protocol.handshake import Handshake, QueryParams
from socketspec.protocol.publications import Topic
from socketspec.testing import ConnectionClosed, TestClient
from tests.backends import WatchedBackend
from tests.carriers import Carrier, opened
from tests.engines import running
from tests.identities import ByName
from tests.virtual_time import in_virtual_time
from tests.watching import until

log = logging.getLogger("the_app")


class Presence(MemoryPresence):
    """The memory backend's, which hangs or fails where the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.failing: dict[str, Exception] = {}

    async def leave(self, topic: Topic, connection_id: str) -> None:
        if topic.name in self.failing:
            raise self.failing[topic.name]
        if topic.name in self.hanging:
            await asyncio.get_running_loop().create_future()
        await super().leave(topic, connection_id)


class Backend(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self.presence = self.watched = Presence()


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_hooks_are_called_when_everything_is_undone_and_see_what_was() -> None:
    app = SocketApp(auth=ByName())
    seen: list[tuple[str, Any]] = []

    async def look(what: str, conn: Connection) -> None:
        there = await app.rooms.count("a") + await app.rooms.count("b") + await app.users.count("ada")
        seen.append((what, sorted(conn.rooms)))
        assert (there, conn.is_open, conn.identity.user_id) == (0, False, "ada")

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        await look(f"left {room}", conn)

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        await look(f"gone: {reason}", conn)

    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada"})
        for room in ("a", "b"):
            await app.rooms.join(conn.connection, room)
        await conn.close(1001)
        rooms = ["a", "b"]
        assert seen == [("left a", rooms), ("left b", rooms), ("gone: client_going_away", rooms)]


@pytest.mark.parametrize(
    ("code", "reason", "counted"),
    [
        (1000, "client_closed", "client_closed"),
        (1001, "client_going_away", "client_going_away"),
        (1005, "connection_lost", "connection_lost"),
        (1006, "connection_lost", "connection_lost"),
        (1009, "message_too_big", "message_too_big"),
        (1012, "server_shutdown", "server_shutdown"),
        (4242, "client:4242", "client"),
    ],
)
async def test_an_end_is_named_and_counted_by_its_code(code: int, reason: str, counted: str) -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.close(code)
        await conn.close(1000)
        counters = (await running(app)).counters
        assert (counters.opened, counters.closed) == (1, {counted: 1})
    assert reasons == [reason]


async def test_the_first_reason_stays_when_the_client_closes_in_turn() -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.connection.disconnect("enough", code=4321)
        await conn.connection.disconnect("again", code=4322)
        await conn.close(1000)
        with pytest.raises(ConnectionClosed, match=r"4321 \(enough\)"):
            await conn.receive()
        assert conn.connection.close_reason == "enough"
        assert conn.connection.state.value == "closed"
    assert reasons == ["enough"]


async def test_what_goes_to_everybody_does_not_go_to_a_connection_that_is_being_cleaned_up() -> None:
    backend = WatchedBackend()
    app, gone, there = SocketApp(backend=backend, auth=ByName()), Carrier(), Carrier()
    async with app.lifespan():
        ending = await opened(app, gone, Handshake(query_params=QueryParams([("user", "ada")])))
        staying = await opened(app, there, Handshake(query_params=QueryParams([("user", "bob")])))
        backend.watched.may_leave.clear()
        engine = await running(app)
        cleaning = asyncio.ensure_future(engine.closed(ending, 1006))
        async with asyncio.timeout(5):
            await backend.watched.leaving.wait()
        await app.rooms.broadcast_all("meanwhile")
        engine.hub.settle()
        assert there.events == ["meanwhile"]
        assert gone.events == []
        backend.watched.may_leave.set()
        await cleaning
        await staying.disconnect()


@in_virtual_time
async def test_who_has_gone_waits_for_a_second_and_a_half_at_most_for_all_rooms_together() -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        for room in ("a", "b", "c"):
            await app.rooms.join(conn.connection, room)
        backend.watched.hanging = {"a", "c"}
        began = asyncio.get_running_loop().time()
        await conn.close()
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.5, abs=0.1)
        engine = await running(app)
        assert engine.connections == {}


async def test_each_failure_of_leaving_is_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName())
    left: list[str] = []

    @app.on_room_leave
    async def hook(conn: Connection, room: str) -> None:
        left.append(room)

    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada"})
        for room in ("a", "b", "c"):
            await app.rooms.join(conn.connection, room)
        backend.watched.failing = {"ada": BackendError("away"), "a": BackendError("away"), "b": OSError("a bug")}
        await conn.close()
        assert await app.rooms.count("c") == 0
    assert left == ["a", "b", "c"]
    said = [(record.getMessage(), record.exc_info is not None) for record in errors(caplog)]
    assert [traceback for _, traceback in said] == [False, False, True]
    for (message, _), what in zip(said, ("its user", "room 'a'", "room 'b'"), strict=True):
        assert what in message
        assert conn.id in message


async def test_a_failure_of_leaving_is_logged_about_the_connection_that_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    backend = Backend()
    app = SocketApp(backend=backend)

    @app.on("throw out")
    async def throw_out(conn: Connection, payload: dict[str, str]) -> None:
        engine = await running(app)
        await engine.connections[payload["who"]].disconnect()

    async with TestClient(app) as client:
        one, two = await client.connect(), await client.connect()
        await app.rooms.join(two.connection, "a")
        backend.watched.failing = {"a": BackendError("away")}
        await one.send("throw out", {"who": two.id}, id=1)
        await one.receive()
        await until(lambda: caplog.text)
    line = json.loads(caplog.text)
    assert (line["connection"], line["namespace"]) == (two.id, "/")
    assert not {"request", "event"} & set(line), "those are another connection's"


async def test_a_lost_transport_begins_the_clean_up_without_waiting_for_it() -> None:
    app = SocketApp()
    async with app.lifespan() as engine:
        conn = await opened(app, Carrier())
        await app.rooms.join(conn, "a")
        engine.lost(conn, 1006)
        assert conn.state.value == "closed"
        await until(lambda: not engine.connections)
        assert await app.rooms.count("a") == 0


@in_virtual_time
async def test_a_hook_that_hangs_is_cancelled_after_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()
    ended: list[str] = []

    @app.on_room_leave
    async def hang(conn: Connection, room: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(room)

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        ended.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "a")
        began = asyncio.get_running_loop().time()
        await conn.close()
        assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.1)
    assert ended == ["a", "client_closed"]
    (record,) = errors(caplog)
    assert "30 s" in record.getMessage()


@pytest.mark.parametrize("error", [LookupError("a bug"), BackendError("redis is gone")])
async def test_a_hook_that_fails_is_named_in_the_log_and_stops_no_other(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def the_bad_hook(conn: Connection, reason: str) -> None:
        raise error

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        await (await client.connect()).close()
    assert reasons == ["client_closed"]
    (record,) = errors(caplog)
    assert "the_bad_hook" in record.getMessage()
    assert (record.exc_info is None) is isinstance(error, BackendError)


async def test_what_is_logged_after_the_end_is_about_the_connection_that_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = SocketApp()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        log.warning("gone")

    @app.on("throw out")
    async def throw_out(conn: Connection, payload: dict[str, str]) -> None:
        engine = await running(app)
        await engine.connections[payload["who"]].disconnect()

    async with TestClient(app) as client:
        one, two = await client.connect(), await client.connect()
        await one.send("throw out", {"who": two.id}, id=1)
        await one.receive()
        await until(lambda: "gone" in caplog.text)
        (line,) = [json.loads(text) for text in caplog.text.splitlines() if "gone" in text]
        assert line["connection"] == two.id
        assert "request" not in line, "that one is another connection's"
        assert "event" not in line


async def test_what_a_hook_logs_is_about_the_event_that_caused_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = SocketApp()

    @app.on_room_join
    async def came(conn: Connection, room: str) -> None:
        log.warning("came")

    @app.on("enter")
    async def enter(conn: Connection) -> None:
        log.warning("enters")
        await app.rooms.join(conn, "hall")

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("enter", id=1)
        await conn.receive()
    enters, came_line = [json.loads(text) for text in caplog.text.splitlines()]
    assert came_line["message"] == "came"
    for key in ("connection", "event", "request"):
        assert came_line[key] == enters[key]
