"""A cluster backend in trouble: what clients and the log get, and that nothing hangs."""

from __future__ import annotations

import asyncio
import json

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryPresence
from socketspec.backend.protocols import Health
from socketspec.errors import BackendError, ConfigurationError
from socketspec.protocol.handshake import Headers, QueryParams
from socketspec.protocol.publications import Member, Topic
from socketspec.testing import ConnectionClosed, TestClient
from tests.watching import until


class Trouble(MemoryPresence):
    """Enters nobody, or never returns from leaving."""

    entering = True

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        if not self.entering:
            raise BackendError("Redis did not answer within 5.0 s")
        return await super().enter(topic, member, limit=limit)

    async def leave(self, topic: Topic, connection_id: str) -> None:
        await asyncio.get_running_loop().create_future()


class OutOfTouch(MemoryBackend):
    error: str | None = None

    async def health(self) -> Health:
        if self.error is not None:
            raise BackendError(self.error)
        return Health(False, "no probe has come back for 4.5 s")


def troubled() -> tuple[SocketApp, Trouble]:
    backend = MemoryBackend()
    backend.presence = presence = Trouble()
    return SocketApp(backend=backend), presence


def errors(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """What was logged as an error, and whether with a traceback."""
    return [(record.message, record.exc_info is not None) for record in caplog.records if record.levelname == "ERROR"]


async def test_a_handler_that_meets_it_is_answered_and_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    app, presence = troubled()
    presence.entering = False
    seen: list[Exception] = []

    @app.on("enter")
    async def enter(conn: Connection) -> None:
        await app.rooms.join(conn, "hall")

    @app.on_error
    async def note(conn: Connection, error: Exception) -> None:
        seen.append(error)
        raise error

    async with TestClient(app) as client:
        conn = await client.connect()
        # what may have been done is undone, so joining waits for `leave`; that is not what this is about
        presence.__class__ = type("Quick", (Trouble,), {"leave": MemoryPresence.leave})
        await conn.send("enter", id=1)
        reply = await conn.receive()
        assert (reply["payload"]["code"], reply["id"]) == ("HANDLER_ERROR", 1)
        assert "Redis" not in str(reply)
        assert conn.connection.is_open
    assert [type(error) for error in seen] == [BackendError]
    (handling, hook) = errors(caplog)
    assert handling[0].endswith(": Redis did not answer within 5.0 s")
    assert (handling[1], hook[1]) == (False, False)


async def test_on_connect_that_meets_it_closes_with_1013(caplog: pytest.LogCaptureFixture) -> None:
    app, presence = troubled()
    presence.entering = False
    presence.__class__ = type("Quick", (Trouble,), {"leave": MemoryPresence.leave})

    @app.on_connect
    async def enter(conn: Connection) -> None:
        await app.rooms.join(conn, "hall")

    async with TestClient(app) as client:
        conn = await client.connect()
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert (closed.value.code, closed.value.reason) == (1013, "try_again_later")
    assert [traceback for _, traceback in errors(caplog)] == [False]


async def test_leaving_never_hangs_and_the_hooks_run_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("socketspec.lifecycle.closing.LEAVE_TIMEOUT", 0.05)
    monkeypatch.setattr("socketspec.lifecycle.closing.GIVE_UP", 0.1)
    app, _ = troubled()
    left: list[str] = []

    @app.on_room_leave
    async def note(conn: Connection, room: str) -> None:
        left.append(room)

    async with TestClient(app) as client:
        conn = await client.connect()
        for room in ("a", "b", "c"):
            await app.rooms.join(conn.connection, room)
        async with asyncio.timeout(5):
            await conn.close()
        assert sorted(left) == ["a", "b", "c"]
        assert app.engine is not None
        hub = app.engine.hub
        await until(lambda: len(hub.topics) == 2)  # nobody here listens to its rooms any more
    assert [traceback for _, traceback in errors(caplog)] == [False] * 3


async def health(app: SocketApp, **query: str) -> tuple[int, dict[str, object]]:
    headers = Headers([("authorization", "Bearer s3cret")])
    response = await app.pages.respond("GET", "/socket-health", headers, QueryParams(query.items()))
    assert response is not None
    return response.status, json.loads(response.body)


async def test_health_says_ready_or_not_and_live_all_the_same() -> None:
    backend = OutOfTouch()
    app = SocketApp(backend=backend, docs_access_token="s3cret")
    assert (await health(app))[0] == 503
    assert (await health(app, check="live"))[0] == 200
    async with TestClient(app) as client:
        await client.connect()
        status, report = await health(app, check="ready")
        assert status == 503
        assert report == {
            "status": "out_of_touch",
            "live": True,
            "ready": False,
            "node": backend.node,
            "connections": 1,
            "detail": "no probe has come back for 4.5 s",
        }
        assert (await health(app, check="live")) == (200, report)
        backend.error = "not connected"
        assert (await health(app))[1]["detail"] == "not connected"
        assert (await health(app, check="nonsense"))[0] == 400


async def test_a_node_in_touch_is_ready_and_named() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        status, report = await health(app)
        assert (status, report["status"], report["ready"], report["node"]) == (200, "ok", True, app.node)
        conn = await client.connect(subprotocols=["socketspec.v1.json"])
        assert (await conn.receive())["payload"]["node"] == app.node


def test_the_backend_comes_from_the_environment_where_the_app_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCKETSPEC_BACKEND", "nonsense://host")
    with pytest.raises(ConfigurationError, match=r"'nonsense'.*SOCKETSPEC_BACKEND"):
        SocketApp()
    assert SocketApp(backend="memory").node
    monkeypatch.setenv("SOCKETSPEC_BACKEND", " MEMORY ")
    assert SocketApp().node
    monkeypatch.delenv("SOCKETSPEC_BACKEND")
    assert SocketApp().node


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_backend_in_the_environment_does_not_make_a_node_alone(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOCKETSPEC_BACKEND", empty)
    with pytest.raises(ConfigurationError, match="SOCKETSPEC_BACKEND is set but empty"):
        SocketApp()
    assert SocketApp(backend="memory").node
