"""Members whose node died: the `on_room_leave` hooks run for them on another node."""

from __future__ import annotations

import asyncio

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.backend.protocols import Deliver, Lost
from socketspec.connection.states import State
from socketspec.membership.leave_hooks import WORKERS
from socketspec.protocol.publications import Member, Topic
from socketspec.testing import TestClient
from tests.engines import engine_of, running

ROOM = Topic("/", "room", "hall")


class Cluster(MemoryBackend):
    """Lets a test say that members are lost."""

    lost: Lost

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        await super().start(namespace, deliver, lost)
        self.lost = lost


def members(count: int) -> list[Member]:
    return [Member(f"c{number}", None if number % 2 else f"u{number}", 1000.0 + number) for number in range(count)]


async def until_idle(app: SocketApp) -> None:
    engine = await running(app)
    async with asyncio.timeout(5):
        while len(engine.tasks):  # noqa: ASYNC110 - there is nothing that tells, and each turn brings them on
            await asyncio.sleep(0)


async def test_the_hook_gets_a_closed_connection_that_stands_for_the_lost_one() -> None:
    backend = Cluster()
    app = SocketApp(backend=backend)
    seen: list[Connection] = []

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        assert conn.rooms == {room} == {"hall"}
        await conn.emit("too_late", {"x": 1})
        await conn.disconnect()
        await app.rooms.join(conn, "other")
        await app.rooms.broadcast(room, "left", {"id": conn.id, "user": conn.identity.user_id})
        seen.append(conn)

    async with TestClient(app) as client:
        watcher = await client.connect()
        await app.rooms.join(watcher.connection, "hall")
        backend.lost(ROOM, members(2))
        told = [(await watcher.receive())["payload"] for _ in range(2)]
        assert told == [{"id": "c0", "user": "u0"}, {"id": "c1", "user": None}]
        await until_idle(app)
        assert [(conn.state, conn.connected_at) for conn in seen] == [(State.CLOSED, 1000.0), (State.CLOSED, 1001.0)]
        assert [conn.identity.is_authenticated for conn in seen] == [True, False]
        assert await app.rooms.count("other") == 0
        assert list(engine_of(app).connections) == [watcher.id]


async def test_users_and_apps_without_the_hook_have_nothing_to_do() -> None:
    backend = Cluster()
    app = SocketApp(backend=backend)
    async with TestClient(app):
        engine = await running(app)
        backend.lost(ROOM, members(3))
        assert len(engine.tasks) == 0

        @app.on_room_leave
        async def left(conn: Connection, room: str) -> None:
            raise AssertionError("a user is no room")

        backend.lost(Topic("/", "user", "ada"), members(3))
        assert len(engine.tasks) == 0


@pytest.mark.parametrize("batches", [1, 50])
async def test_each_is_seen_once_a_few_at_a_time_and_a_failing_hook_stops_nobody(
    batches: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Cluster()
    app = SocketApp(backend=backend)
    seen: list[str] = []
    running = most = 0

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        seen.append(f"{room}/{conn.id}")
        if conn.id == "c3":
            raise LookupError("the hook's own fault")

    async with TestClient(app):
        rooms = [Topic("/", "room", f"r{number}") for number in range(batches)]
        for room in rooms:
            backend.lost(room, members(20))
        await until_idle(app)
    assert sorted(seen) == sorted(f"{room.name}/c{number}" for room in rooms for number in range(20))
    assert 1 < most <= WORKERS
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == batches
