"""An event that takes longer than it may is ended, cleaned up after, and answered."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from socketspec import Connection, Depends, EventRouter, SocketApp
from socketspec.errors import PermissionDenied
from socketspec.inbound.timeouts import GRACE
from socketspec.testing import TestClient, TestConnection
from tests.engines import engine_of


async def ask(conn: TestConnection, event: str) -> dict[str, Any]:
    await conn.send(event, {}, id=1)
    answer: dict[str, Any] = await conn.receive()
    return answer


@pytest.mark.parametrize("longest", [0.05, timedelta(milliseconds=50)])
async def test_the_handler_is_cancelled_its_dependencies_cleaned_up_and_the_client_told(
    longest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def resource() -> AsyncIterator[str]:
        try:
            yield "open"
        finally:
            seen.append("closed")

    socket = SocketApp()

    @socket.on("slow", timeout=longest, ordered=True)
    async def slow(conn: Connection, it: str = Depends(resource)) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @socket.on_error
    async def on_error(conn: Connection, error: Exception) -> None:
        seen.append(type(error).__name__)

    async with TestClient(socket) as client:
        conn = await client.connect()
        with caplog.at_level(logging.WARNING):
            answer = await ask(conn, "slow")
        assert seen[:2] == ["cancelled", "closed"]
        assert (await ask(conn, "slow"))["payload"]["code"] == "TIMEOUT_ERROR"  # the order is not held for ever
        assert engine_of(socket).counters.events["slow", "timeout"] == 2
    assert (answer["event"], answer["id"], answer["payload"]["event"]) == ("__error__", 1, "slow")
    assert answer["payload"]["code"] == "TIMEOUT_ERROR"
    assert answer["payload"]["details"] == {"timeout": 0.05}
    assert seen[2] == "TimedOut"
    records = [record for record in caplog.records if "slow" in record.getMessage()]
    assert [(record.levelname, record.exc_info) for record in records][:1] == [("WARNING", None)]


async def test_a_timeout_error_of_the_handlers_own_is_a_failure_like_any_other() -> None:
    socket = SocketApp()

    @socket.on("fails", timeout=30)
    async def fails(conn: Connection) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with TestClient(socket) as client:
        assert (await ask(await client.connect(), "fails"))["payload"]["code"] == "HANDLER_ERROR"


async def test_what_runs_in_a_thread_goes_on_but_its_client_does_not_wait() -> None:
    may_end, seen = threading.Event(), list[str]()
    socket = SocketApp()

    @socket.on("thread", timeout=0.05)
    def thread(conn: Connection) -> dict[str, int]:
        may_end.wait(30)
        seen.append("through")
        return {"late": 1}

    @socket.on("next")
    async def next_one(conn: Connection) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await ask(conn, "thread"))["payload"]["code"] == "TIMEOUT_ERROR"
        assert seen == []
        may_end.set()
        assert (await ask(conn, "next"))["event"] == "__ack__"  # and no second answer before it
    assert seen == ["through"]


async def test_a_clean_up_that_fails_after_the_client_was_answered_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    socket, stopped = SocketApp(), asyncio.Event()

    @socket.on("stubborn", timeout=0.05)
    async def stubborn(conn: Connection) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await stopped.wait()
            raise ValueError("a bug in the clean-up") from None

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await ask(conn, "stubborn"))["payload"]["code"] == "TIMEOUT_ERROR"
        stopped.set()
    assert "a bug in the clean-up" in caplog.text


async def test_the_events_timeout_comes_before_its_routers_and_that_before_the_apps() -> None:
    socket, outer, inner = SocketApp(timeout=30), EventRouter(timeout=0.05), EventRouter()

    async def forever(conn: Connection) -> None:
        await asyncio.Event().wait()

    inner.on("outer")(forever)
    outer.include_router(inner)
    socket.include_router(outer)
    inner.on("own", timeout=0.06)(forever)
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await ask(conn, "outer"))["payload"]["details"] == {"timeout": 0.05}
        assert (await ask(conn, "own"))["payload"]["details"] == {"timeout": 0.06}
    assert socket.registry.timeout == 30


@pytest.mark.parametrize("fails", [False, True])
async def test_the_clean_up_after_a_handler_that_ended_in_time_runs_to_its_end(fails: bool) -> None:
    seen: list[str] = []
    over = asyncio.Event()

    async def transaction() -> AsyncIterator[str]:
        try:
            yield "open"
        finally:
            seen.append("begins")
            await over.wait()  # far longer than the timeout and what is waited after it
            seen.append("ended")

    socket = SocketApp(timeout=0.05)

    @socket.on("pay")
    async def pay(conn: Connection, it: str = Depends(transaction)) -> dict[str, int]:
        if fails:
            raise PermissionDenied("Not you.")
        return {"paid": 1}

    async with TestClient(socket) as client, client.connect() as conn:
        await conn.send("pay", {}, id=1)
        await asyncio.sleep(0.05 + GRACE + 0.1)
        assert seen == ["begins"]
        over.set()
        answer = await conn.receive()
        assert seen == ["begins", "ended"]
        assert engine_of(socket).counters.events["pay", "refused" if fails else "ok"] == 1
    if fails:
        assert answer["payload"]["code"] == "PERMISSION_ERROR"
    else:
        assert (answer["event"], answer["payload"]) == ("__ack__", {"paid": 1})


async def test_the_clean_up_of_a_plain_generator_is_not_cut_off_either() -> None:
    seen: list[str] = []

    def transaction() -> Iterator[str]:
        try:
            yield "open"
            seen.append("committed")
        except BaseException:
            seen.append("rolled back")
            raise
        finally:
            threading.Event().wait(1.3)

    socket = SocketApp(timeout=1)

    @socket.on("pay")
    def pay(conn: Connection, it: str = Depends(transaction)) -> dict[str, int]:
        return {"paid": 1}

    async with TestClient(socket) as client, client.connect() as conn:
        assert await conn.request("pay") == {"paid": 1}
    assert seen == ["committed"]


async def test_middleware_is_timed_again_after_the_clean_up() -> None:
    async def resource() -> AsyncIterator[str]:
        yield "open"

    socket = SocketApp(timeout=0.05)

    @socket.middleware
    async def hangs(conn: Any, event: str, payload: Any, next_handler: Any) -> Any:
        await next_handler(conn, event, payload)
        await asyncio.Event().wait()

    @socket.on("e")
    async def e(conn: Connection, it: str = Depends(resource)) -> None: ...

    async with TestClient(socket) as client, client.connect() as conn:
        assert (await ask(conn, "e"))["payload"]["code"] == "TIMEOUT_ERROR"


async def test_a_guards_clean_up_does_not_end_the_timeout_of_the_handler_that_joins() -> None:
    async def resource() -> AsyncIterator[str]:
        yield "open"

    socket = SocketApp(timeout=0.05, rooms=["r"])

    @socket.room_guard("r")
    async def guard(conn: Connection, it: str = Depends(resource)) -> bool:
        return True

    @socket.on("join")
    async def join(conn: Connection) -> None:
        await socket.rooms.join(conn, "r")
        await asyncio.Event().wait()

    async with TestClient(socket) as client, client.connect() as conn:
        assert (await ask(conn, "join"))["payload"]["code"] == "TIMEOUT_ERROR"
