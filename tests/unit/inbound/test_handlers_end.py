"""A handler that sends to a connection which has gone learns of it, and ends; nobody takes that for a failure."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from typing import Annotated

import pytest

from socketspec import Connection, Depends, SocketApp
from socketspec.errors import Disconnected
from socketspec.testing import TestClient
from tests.engines import running
from tests.watching import until


async def test_a_handler_that_sends_in_a_loop_ends_with_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    app, errors, open_sessions = SocketApp(), list[Exception](), 0

    async def session() -> AsyncIterator[str]:
        nonlocal open_sessions
        open_sessions += 1
        try:
            yield "session"
        finally:
            open_sessions -= 1

    @app.on("watch")
    async def watch(conn: Connection, _: Annotated[str, Depends(session)]) -> None:
        while True:
            await conn.emit("tick")
            await asyncio.sleep(0.001)

    @app.on_error
    async def on_error(conn: Connection, error: Exception) -> None:
        errors.append(error)

    async with TestClient(app) as client:
        ada = await client.connect()
        await ada.send("watch", id=1)
        assert (await ada.receive())["event"] == "tick"
        assert open_sessions == 1
        await ada.close()
        engine = await running(app)
        await until(lambda: len(engine.handlers) == 0)
        assert open_sessions == 0
        assert engine.counters.events == {("watch", "disconnected"): 1}
    assert errors == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_handler_that_does_nothing_but_send_ends_too_and_leaves_others_their_turn() -> None:
    app, ended = SocketApp(), list[str]()

    @app.on("watch")
    async def watch(conn: Connection) -> None:
        for _ in range(100_000):  # it stands for ever: nothing in it waits
            await conn.emit("tick")
        ended.append("by itself")

    @app.on("ask")
    async def ask(conn: Connection) -> dict[str, bool]:
        return {"answered": True}

    async with TestClient(app) as client:
        ada, bob = await client.connect(), await client.connect()
        await ada.send("watch")
        assert await bob.request("ask") == {"answered": True}
        assert ended == []
        await ada.close()
        engine = await running(app)
        await until(lambda: len(engine.handlers) == 0)
    assert ended == []


@pytest.mark.parametrize("how", ["by the server", "by the client"])
async def test_emit_says_that_and_why_the_connection_has_gone(how: str) -> None:
    app, raised = SocketApp(), list[Disconnected]()

    @app.on("leave")
    async def leave(conn: Connection) -> None:
        if how == "by the server":
            await conn.disconnect("enough", code=4001)
        while not raised:
            try:
                await conn.emit("more")
            except Disconnected as error:
                raised.append(error)
            await asyncio.sleep(0)

    async with TestClient(app) as client:
        ada = await client.connect()
        await ada.send("leave")
        if how == "by the client":
            await ada.receive_event("more")
            await ada.close()
        await until(lambda: bool(raised))
    reason = "enough" if how == "by the server" else "client_closed"
    assert (raised[0].connection, raised[0].reason) == (ada.id, reason)
    assert str(raised[0]) == f"Connection {ada.id} has gone ({reason}): nothing reaches it."
    copy = pickle.loads(pickle.dumps(raised[0]))  # noqa: S301 - our own bytes: a worker process may hand it on
    assert (copy.connection, copy.reason, str(copy)) == (ada.id, reason, str(raised[0]))


async def test_a_task_group_in_a_handler_may_gather_it(caplog: pytest.LogCaptureFixture) -> None:
    app, started = SocketApp(), asyncio.Event()

    @app.on("two")
    async def two(conn: Connection) -> None:
        async def stream() -> None:
            started.set()
            while True:
                await conn.emit("tick")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(stream())
            group.create_task(stream())

    async with TestClient(app) as client:
        ada = await client.connect()
        await ada.send("two")
        await started.wait()
        await ada.close()
        engine = await running(app)
        await until(lambda: len(engine.handlers) == 0)
        assert engine.counters.events == {("two", "disconnected"): 1}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_failed_beside_it_in_the_group_is_still_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()

    @app.on("two")
    async def two(conn: Connection) -> None:
        raise ExceptionGroup("both", [Disconnected("x"), ValueError("mine")])

    async with TestClient(app) as client:
        ada = await client.connect()
        await ada.send("two", id=1)
        assert (await ada.receive())["payload"]["message"] == "The server failed to handle this event."
    assert "Handling 'two' failed" in caplog.text


async def test_a_client_that_is_there_is_told_that_the_other_one_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    app, others = SocketApp(), dict[str, Connection]()

    @app.on_connect
    async def on_connect(conn: Connection) -> None:
        others[conn.id] = conn

    @app.on("whisper")
    async def whisper(conn: Connection, payload: dict[str, str]) -> None:
        await others[payload["to"]].emit("whisper")

    async with TestClient(app) as client:
        ada, bob = await client.connect(), await client.connect()
        await bob.close()
        await ada.send("whisper", {"to": bob.id}, id=7)
        answer = await ada.receive()
        assert (answer["event"], answer["id"]) == ("__error__", 7)
        assert answer["payload"]["details"] == {"reason": "disconnected"}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_hooks_after_the_end_may_send_and_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    app, ran = SocketApp(), list[str]()

    @app.on_room_leave
    async def on_room_leave(conn: Connection, room: str) -> None:
        await conn.emit("left", {"room": room})
        ran.append("on_room_leave")

    @app.on_disconnect
    async def on_disconnect(conn: Connection, reason: str) -> None:
        await conn.emit("bye")
        ran.append("on_disconnect")

    @app.on("join")
    async def join(conn: Connection) -> None:
        await app.rooms.join(conn, "hall")

    async with TestClient(app) as client:
        ada = await client.connect()
        await ada.send("join", id=1)
        await ada.receive_event("__ack__")
        await ada.close()
    assert ran == ["on_room_leave", "on_disconnect"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_leaves_during_on_connect_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    app, ran = SocketApp(), list[str]()

    @app.on_connect
    async def on_connect(conn: Connection) -> None:
        ran.append("on_connect")
        conn.close(1000)  # as a client would that leaves now
        await conn.emit("hello")
        ran.append("more of on_connect")

    @app.on_disconnect
    async def on_disconnect(conn: Connection, reason: str) -> None:
        ran.append("on_disconnect")

    @app.on_error
    async def on_error(conn: Connection, error: Exception) -> None:
        ran.append("on_error")

    async with TestClient(app) as client:
        await client.connect()
    assert ran == ["on_connect", "on_disconnect"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_stop_does_not_wait_for_a_handler_whose_connection_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    app, ticks = SocketApp(drain_window=0, drain_grace=30), 0

    @app.on("watch")
    async def watch(conn: Connection) -> None:
        nonlocal ticks
        while True:
            await conn.emit("tick")
            ticks += 1
            await asyncio.sleep(0.001)

    async with asyncio.timeout(10), app.lifespan():
        client = TestClient(app)
        ada = await client.connect()
        await ada.send("watch")
        await ada.receive_event("tick")
        await ada.close()
    assert ticks
    assert "Cancelled" not in caplog.text
