"""Members whose node died: what hooks get for them, how many at once, and what is said where one hangs."""

from __future__ import annotations

import asyncio
import json

import pytest

from socketspec import Connection, SocketApp
from socketspec.logs import JsonFormatter
from socketspec.protocol.publications import Member, Topic
from socketspec.session import SessionConfig
from socketspec.testing import TestClient
from tests.backends import WatchedBackend
from tests.engines import running
from tests.virtual_time import in_virtual_time
from tests.watching import until


async def test_the_stand_in_of_a_lost_member_is_like_the_one_it_stands_for() -> None:
    backend = WatchedBackend()
    config = SessionConfig(idle_timeout=77)
    app = SocketApp(backend=backend, session=config)
    seen: list[Connection] = []

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        await conn.emit("too late")
        await conn.disconnect("too late")
        seen.append(conn)

    async with TestClient(app):
        backend.lost(Topic("/", "room", "hall"), [Member("c1", "ada", 1000.0)])
        await until(lambda: seen)
        (conn,) = seen
        assert (conn.id, conn.identity.user_id, conn.close_reason) == ("c1", "ada", "node_lost")
        assert (conn.connected_at, conn.session.started_at, conn.session.config) == (1000.0, 1000.0, config)
        assert conn.rooms == {"hall"}
        assert (conn.is_open, conn.metadata) == (False, {})
        assert conn.namespace == "/"


@in_virtual_time
async def test_a_hook_that_hangs_for_a_lost_member_is_cancelled_and_logged_about_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    backend = WatchedBackend()
    app = SocketApp(backend=backend)

    @app.on_room_leave
    async def hang(conn: Connection, room: str) -> None:
        await asyncio.get_running_loop().create_future()

    async with TestClient(app):
        backend.lost(Topic("/", "room", "hall"), [Member("c1", "ada", 0.0)])
        await asyncio.sleep(31)
        line = json.loads(caplog.text)
        assert (line["level"], line["connection"]) == ("error", "c1")


@pytest.mark.parametrize("counts", [(3, 20), (20, 3), (8, 9)])
async def test_lost_members_are_worked_on_a_few_at_once_and_again_after_a_pause(counts: tuple[int, int]) -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend)
    free = asyncio.Event()
    began: list[str] = []

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        began.append(conn.id)
        await free.wait()

    async def lose(count: int) -> None:
        began.clear()
        free.clear()
        backend.lost(Topic("/", "room", "hall"), [Member(f"c{number}", None, 0.0) for number in range(count)])
        backend.lost(Topic("/", "room", "hall"), [])
        await until(lambda: len(began) == min(count, 8))
        await asyncio.sleep(0)
        assert len(began) == min(count, 8), "eight at once at most"
        free.set()
        await until(lambda: len(began) == count)
        await until(lambda: len(engine.tasks) == 0)

    async with TestClient(app):
        engine = await running(app)
        for count in counts:
            await lose(count)
