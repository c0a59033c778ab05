"""`def` code that waits for the app, whose own guards, hooks and dependencies are `def` as well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Annotated

import pytest

from socketspec import Connection, Depends, SocketApp
from socketspec.concurrency.threads import WORKERS
from socketspec.errors import PermissionDenied
from socketspec.testing import EventFailed, TestClient

MANY = WORKERS + 5


async def test_def_handlers_and_def_guards_do_not_wait_for_each_others_threads() -> None:
    app = SocketApp(max_in_flight=MANY, rooms=["r{n}"], drain_window=0)
    everybody = threading.Barrier(WORKERS)

    @app.room_guard("r{n}")
    def guard(conn: Connection, n: int) -> bool:
        return True

    @app.on("join")
    def join(conn: Connection, which: dict[str, int]) -> None:
        if which["n"] < WORKERS:
            everybody.wait(10)  # now there is no worker thread left
        app.sync.rooms.join(conn, f"r{which['n']}")

    async with TestClient(app) as client, client.connect() as conn, asyncio.timeout(8):
        for n in range(MANY):
            await conn.send("join", {"n": n}, id=n)
        assert {(await conn.receive())["event"] for _ in range(MANY)} == {"__ack__"}
        assert len(conn.connection.rooms) == MANY


async def test_what_a_waiting_thread_needs_runs_in_it_with_the_callers_context() -> None:
    app = SocketApp(rooms=["r"], drain_window=0)
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: dict[str, tuple[int, str]] = {}

    def note(what: str) -> None:
        seen[what] = (threading.get_ident(), variable.get())

    def opened() -> Iterator[int]:
        note("opened")
        yield 1
        note("closed")

    @app.room_guard("r")
    def guard(conn: Connection, one: Annotated[int, Depends(opened)]) -> bool:
        note("guard")
        return True

    @app.on_room_join
    def joined(conn: Connection, room: str) -> None:
        note("hook")

    @app.on("join")
    def join(conn: Connection) -> None:
        variable.set("of the handler")
        note("handler")
        app.sync.rooms.join(conn, "r")

    async with TestClient(app) as client, client.connect() as conn:
        await conn.request("join")
        assert conn.connection.rooms == {"r"}
    assert seen.keys() == {"handler", "opened", "guard", "closed", "hook"}
    assert set(seen.values()) == {seen["handler"]}


async def test_a_guard_may_wait_itself_at_any_depth() -> None:
    app = SocketApp(rooms=["{depth}"], drain_window=0)

    @app.room_guard("{depth}")
    def guard(conn: Connection, depth: int) -> bool:
        if depth > 0:
            app.sync.rooms.join(conn, str(depth - 1))
        return True

    @app.on("join")
    def join(conn: Connection) -> None:
        app.sync.rooms.join(conn, str(WORKERS))

    async with TestClient(app) as client, client.connect() as conn, asyncio.timeout(8):
        await conn.request("join")
        assert len(conn.connection.rooms) == WORKERS + 1


async def test_what_a_def_guard_raises_reaches_the_handler() -> None:
    app = SocketApp(rooms=["r"], drain_window=0)

    @app.room_guard("r")
    def guard(conn: Connection) -> bool:
        raise PermissionDenied("Not you.")

    @app.on("join")
    def join(conn: Connection) -> None:
        app.sync.rooms.join(conn, "r")

    async with TestClient(app) as client, client.connect() as conn:
        with pytest.raises(EventFailed, match="Not you"):
            await conn.request("join")


async def test_a_call_whose_time_is_over_has_its_guard_finish_and_joins_nothing() -> None:
    app = SocketApp(rooms=["r"], drain_window=0)
    finished = threading.Event()
    release = threading.Event()

    def slow() -> Iterator[None]:
        try:
            yield
        finally:
            finished.set()

    @app.room_guard("r")
    def guard(conn: Connection, _: Annotated[None, Depends(slow)]) -> bool:
        return release.wait(10)

    def elsewhere(conn: Connection) -> None:
        threading.Timer(2.0, release.set).start()
        app.sync.rooms.join(conn, "r", timeout=0.1)

    async with TestClient(app) as client, client.connect() as conn:
        with pytest.raises(TimeoutError, match=r"did not finish within 0\.1 s"):
            await asyncio.to_thread(elsewhere, conn.connection)
        assert await asyncio.to_thread(finished.wait, 10)  # in a worker thread: nobody waits for it any more
        assert conn.connection.rooms == frozenset()
