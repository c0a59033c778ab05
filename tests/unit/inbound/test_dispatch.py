"""From a frame to a handler and its answer, through the in-process client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from socketspec import Broadcasts, Connection, Depends, Emits, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryLimits
from socketspec.errors import (
    AuthError,
    EventError,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    RoomNotFound,
    UnknownEvent,
    ValidationFailed,
)
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection


class Item(BaseModel):
    name: str
    count: int = 1

    @field_validator("name")
    @classmethod
    def _never_boom(cls, name: str) -> str:
        if name == "boom":
            raise RuntimeError("secret of the validator")
        return name


async def error_of(conn: TestConnection) -> dict[str, Any]:
    message = await conn.receive()
    assert message["event"] == "__error__"
    payload: dict[str, Any] = message["payload"]
    return payload | {"id": message.get("id")}


async def nothing_more(conn: TestConnection) -> None:
    """An unknown event's error must be the next thing the client gets."""
    await conn.send("marker?")
    assert (await conn.receive())["payload"]["code"] == "UNKNOWN_EVENT"


# Answers


async def test_an_event_is_acknowledged_where_it_has_an_id_or_its_handler_returns_something() -> None:
    app = SocketApp()

    @app.on("quiet")
    async def quiet(conn: Connection) -> None: ...

    @app.on("answer")
    async def answer(conn: Connection, payload: Item) -> Item:
        return payload

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("quiet", id="a")
        assert await conn.receive() == {"event": "__ack__", "payload": {}, "id": "a"}
        await conn.send("quiet", id=0)
        assert await conn.receive() == {"event": "__ack__", "payload": {}, "id": 0}
        await conn.send("answer", {"name": "x"})
        assert await conn.receive() == {"event": "__ack__", "payload": {"name": "x", "count": 1}}
        await conn.send("quiet")
        await nothing_more(conn)


async def test_a_payload_that_does_not_fit_names_the_places_and_the_event() -> None:
    app = SocketApp()

    @app.on("item")
    async def item(conn: Connection, payload: Item) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("item", {"count": "many"}, id=3)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("VALIDATION_ERROR", "item", 3)
        assert [item["loc"] for item in error["details"]["errors"]] == [["name"], ["count"]]
        assert error["request_id"]


@pytest.mark.parametrize(
    "kind",
    [AuthError, PermissionDenied, PayloadTooLarge, RateLimited, RoomNotFound, UnknownEvent, ValidationFailed],
)
async def test_an_event_error_of_a_handler_is_answered_with_its_own_words(kind: type[EventError]) -> None:
    app = SocketApp()
    raised = kind("My words.", details={"more": 1})

    @app.on("refuse")
    async def refuse(conn: Connection) -> None:
        raise raised

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("refuse", id=9)
        error = await error_of(conn)
        request_id = error.pop("request_id")
        assert error == {
            "code": raised.code,
            "event": "refuse",
            "message": "My words.",
            "details": {"more": 1},
            "id": 9,
        }
        assert isinstance(request_id, str)


@pytest.mark.parametrize("debug", [False, True])
async def test_the_text_of_an_exception_stays_in_the_log(debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp(debug=debug)

    @app.on("fail")
    async def fail(conn: Connection, payload: dict[str, Any]) -> None:
        raise KeyError("the secret \ud800")

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("fail", {}, id=1)
        message = await conn.receive()
        error = message["payload"]
        assert (error["code"], error["event"], message["id"]) == ("HANDLER_ERROR", "fail", 1)
        assert ("secret" in str(message)) is debug
        assert (error["details"] != {}) is debug
    assert error["request_id"] in caplog.text
    assert "the secret" in caplog.text


@pytest.mark.parametrize("value", [{"x": object()}, [1], "text", {"x": "\ud800"}])
async def test_a_return_value_that_cannot_be_sent_is_the_handlers_failure(value: object) -> None:
    app = SocketApp()

    @app.on("answer")
    async def answer(conn: Connection) -> Any:
        return value

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("answer", id=1)
        assert (await error_of(conn))["code"] == "HANDLER_ERROR"


async def test_a_validator_that_fails_is_the_handlers_failure(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()

    @app.on("item")
    async def item(conn: Connection, payload: Item) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("item", {"name": "boom"}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("HANDLER_ERROR", "item", 1)
        assert "secret" not in str(error)
    assert "secret of the validator" in caplog.text


async def test_the_on_error_hook_hears_of_failures_and_not_of_refusals() -> None:
    app = SocketApp()
    heard: list[tuple[str, BaseException]] = []

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise ValueError("broken")

    @app.on("refuse")
    async def refuse(conn: Connection) -> None:
        raise PermissionDenied("No.")

    @app.on_error
    async def broken_hook(conn: Connection, error: Exception) -> None:
        raise RuntimeError("a hook may fail too")

    @app.on_error
    async def hear(conn: Connection, error: Exception) -> None:
        heard.append((conn.id, error))

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("refuse")
        await conn.receive()
        await conn.send("fail")
        await conn.receive()
        await asyncio.sleep(0)
        assert [(id, str(error)) for id, error in heard] == [(conn.id, "broken")]


async def test_a_guard_that_fails_while_resuming_does_not_end_the_connection() -> None:
    app = SocketApp(rooms=["r", Room("s", client_join=True)])

    @app.room_guard("r")
    async def guard(conn: Connection) -> bool:
        raise RuntimeError("guard broke")

    @app.on("ping")
    async def ping(conn: Connection) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("__resume__", {"rooms": {"r": None, "s": None}}, id=1)
        rooms = (await conn.receive_event("__resume__"))["payload"]["rooms"]
        assert rooms["r"] == {"recovered": False, "reason": "failed"}
        assert rooms["s"]["reason"] == "no_position"
        await conn.send("ping", id=2)
        assert (await conn.receive())["id"] == 2


# Handlers at once


class Gate:
    """Handlers that wait until let through, in the order they began."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[int] = []
        self.events: dict[int, asyncio.Event] = {}

    async def handle(self, conn: Connection, payload: dict[str, Any]) -> None:
        number = payload["n"]
        self.began.append(number)
        event = self.events.setdefault(number, asyncio.Event())
        await event.wait()
        self.ended.append(number)

    def open(self, number: int) -> None:
        self.events.setdefault(number, asyncio.Event()).set()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_beyond_max_in_flight_reading_pauses_until_a_handler_is_done() -> None:
    app, gate = SocketApp(), Gate()
    app.on("wait")(gate.handle)
    async with TestClient(app) as client:
        conn, other = await client.connect(), await client.connect()
        for number in range(16):
            await conn.send("wait", {"n": number})
        seventeenth = asyncio.ensure_future(conn.send("wait", {"n": 16}))
        await turns()
        assert not seventeenth.done()
        assert gate.began == list(range(16))
        await other.send("wait", {"n": 99})
        await turns()
        assert gate.began[-1] == 99
        gate.open(5)
        await asyncio.wait_for(seventeenth, 5)
        await turns()
        assert gate.began[-1] == 16
        assert conn.connection.in_flight.count == 16
        for number in [*range(17), 99]:
            gate.open(number)
        await turns()
        assert conn.connection.in_flight.count == 0


async def test_handlers_overlap_and_those_of_ordered_events_do_not() -> None:
    app, gate = SocketApp(), Gate()
    app.on("wait")(gate.handle)
    ordered = Gate()
    app.on("step", ordered=True)(ordered.handle)
    async with TestClient(app) as client:
        conn = await client.connect()
        for number in range(3):
            await conn.send("wait", {"n": number})
            await conn.send("step", {"n": number})
        await turns()
        assert (gate.began, ordered.began) == ([0, 1, 2], [0])
        for number in (2, 1, 0):
            gate.open(number)
            ordered.open(number)
            await turns()
        assert (gate.ended, ordered.ended) == ([2, 1, 0], [0, 1, 2])


async def test_an_ordered_handler_that_fails_lets_the_next_one_run() -> None:
    app = SocketApp()

    @app.on("step", ordered=True)
    async def step(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if payload["n"] == 0:
            raise ValueError
        return payload

    async with TestClient(app) as client:
        conn = await client.connect()
        for number in range(3):
            await conn.send("step", {"n": number}, id=number)
        answers = [await conn.receive() for _ in range(3)]
        assert [(answer["event"], answer["id"]) for answer in answers] == [
            ("__error__", 0),
            ("__ack__", 1),
            ("__ack__", 2),
        ]


# Middleware and dependencies


Next = Callable[[Connection, str, Any], Awaitable[Any]]


async def test_middleware_runs_outermost_first_and_may_answer_itself() -> None:
    app = SocketApp()
    trace: list[str] = []

    @app.middleware
    async def outer(conn: Connection, event: str, payload: Any, next_handler: Next) -> Any:
        trace.append(f"outer {event}")
        result = await next_handler(conn, event, payload)
        trace.append("outer done")
        return result

    @app.middleware
    async def inner(conn: Connection, event: str, payload: Any, next_handler: Next) -> Any:
        trace.append("inner")
        if payload["stop"]:
            return {"from": "middleware"}
        return await next_handler(conn, event, payload)

    @app.on("work")
    async def work(conn: Connection, payload: dict[str, Any]) -> dict[str, str]:
        trace.append("handler")
        return {"from": "handler"}

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("work", {"stop": False})
        assert (await conn.receive())["payload"] == {"from": "handler"}
        assert trace == ["outer work", "inner", "handler", "outer done"]
        trace.clear()
        await conn.send("work", {"stop": True})
        assert (await conn.receive())["payload"] == {"from": "middleware"}
        assert trace == ["outer work", "inner", "outer done"]


async def test_a_dependency_can_be_overridden_and_the_override_taken_back() -> None:
    app = SocketApp()

    async def database() -> str:
        return "real"

    @app.on("which")
    async def which(conn: Connection, db: str = Depends(database)) -> dict[str, str]:
        return {"db": db}

    async with TestClient(app) as client:
        conn = await client.connect()
        for override, expected in ((None, "real"), (lambda: "fake", "fake"), (None, "real")):
            app.dependency_overrides.clear()
            if override is not None:
                app.dependency_overrides[database] = override
            await conn.send("which")
            assert (await conn.receive())["payload"] == {"db": expected}


# Limits


class SharedLimits(MemoryLimits):
    """A backend's shared limits: slow, and full or failing when told so."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.wait = 0.0
        self.error: Exception | None = None
        self.keys: list[str] = []

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        await asyncio.sleep(0)
        self.keys.append(key)
        if self.error is not None:
            raise self.error
        return self.wait


class SharedBackend(MemoryBackend):
    """The memory backend, as if other nodes shared it."""

    shared = True

    def __init__(self, limits: SharedLimits) -> None:
        super().__init__()
        self.limits = limits


def echo_app(**options: Any) -> SocketApp:
    app = SocketApp(**options)

    @app.on("echo")
    async def echo(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    return app


async def codes(conn: TestConnection, count: int) -> list[str]:
    """What each of `count` events is answered with."""
    answers = []
    for _ in range(count):
        await conn.send("echo", id=1)
        message = await conn.receive()
        answers.append(message["payload"].get("code", "ok"))
    return answers


async def test_a_shared_limit_is_asked_before_the_event_is_handled() -> None:
    limits = SharedLimits()
    backend = SharedBackend(limits)
    async with TestClient(echo_app(backend=backend, rate_limit=RateLimit(1, 1, scope="ip"))) as client:
        conn = await client.connect(client=("10.1.1.1", 5))
        assert await codes(conn, 3) == ["ok"] * 3
        limits.wait = 2.5
        await conn.send("echo")
        error = await error_of(conn)
        assert (error["code"], error["event"], error["details"]) == ("RATE_LIMIT_ERROR", None, {"retry_after": 2.5})
        assert set(limits.keys) == {"ip:10.1.1.1"}
        limits.error = ConnectionError("redis is gone")
        assert await codes(conn, 1) == ["HANDLER_ERROR"]
        limits.error, limits.wait = None, 0.0
        assert await codes(conn, 1) == ["ok"]


async def test_connections_of_one_address_share_a_limit() -> None:
    async with TestClient(echo_app(rate_limit=RateLimit(0.001, 2, scope="ip"))) as client:
        one, two = await client.connect(), await client.connect()
        other = await client.connect(client=("10.9.9.9", 1))
        assert await codes(one, 1) + await codes(two, 2) == ["ok", "ok", "RATE_LIMIT_ERROR"]
        assert await codes(other, 2) == ["ok", "ok"]


async def test_a_scope_function_that_fails_is_an_error_and_not_the_end() -> None:
    def scope(conn: Connection) -> str:
        return conn.query_params["team"]

    async with TestClient(echo_app(rate_limit=RateLimit(0.001, 1, scope=scope))) as client:
        red, red_too = [await client.connect(query_params={"team": "red"}) for _ in range(2)]
        assert await codes(red, 1) + await codes(red_too, 1) == ["ok", "RATE_LIMIT_ERROR"]
        nobody = await client.connect()
        assert await codes(nobody, 2) == ["HANDLER_ERROR"] * 2


async def test_a_client_that_goes_on_and_on_is_closed_with_4007() -> None:
    app = echo_app(rate_limit=RateLimit(0.001, 1, max_violations=3))
    reasons: list[str] = []

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        assert await codes(conn, 5) == ["ok", *["RATE_LIMIT_ERROR"] * 4]
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert (closed.value.code, closed.value.reason) == (4007, "rate_limited")
        await conn.send("echo")  # into the void
        await turns()
        assert reasons == ["rate_limited"]


# Contracts


class Price(BaseModel):
    value: float


def contract_app() -> SocketApp:
    app = SocketApp()

    @app.on("act", emits=[Emits("price", Price)], broadcasts=[Broadcasts("news", room="chat:{room}", model=Price)])
    async def act(conn: Connection, payload: dict[str, Any]) -> None:
        if payload["do"] == "emit":
            await conn.emit(payload["event"], payload["with"])
        elif payload["do"] == "everybody":
            await app.rooms.broadcast_all(payload["event"], payload["with"])
        else:
            await app.rooms.broadcast(payload["do"], payload["event"], payload["with"])

    return app


@pytest.mark.parametrize(
    ("do", "event", "value", "declared", "fits"),
    [
        ("emit", "price", {"value": 1.5}, True, True),
        ("emit", "price", {"value": "dear"}, True, False),
        ("emit", "prize", {"value": 1.5}, False, True),
        ("chat:a", "news", {"value": 1.5}, True, True),
        ("chat:a", "news", {"valu": 1.5}, True, False),
        ("chat:a", "olds", {"value": 1.5}, False, True),
        ("lounge", "news", {"value": 1.5}, False, True),
        ("everybody", "news", {"value": 1.5}, False, True),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
async def test_strict_mode_refuses_what_a_handler_did_not_declare_and_every_mode_what_does_not_fit(
    do: str, event: str, value: dict[str, Any], declared: bool, fits: bool, strict: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with TestClient(contract_app(), strict=strict) as client:
        conn = await client.connect()
        await conn.send("act", {"do": do, "event": event, "with": value}, id=1)
        messages = [await conn.receive()]
        while messages[-1].get("id") != 1:
            messages.append(await conn.receive())
        succeeded = messages[-1]["event"] == "__ack__"
        assert succeeded is (fits and (declared or not strict))
    assert ("ContractError" in caplog.text) is not succeeded


async def test_frames_that_arrive_after_the_close_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with TestClient(echo_app()) as client:
        conn = await client.connect()
        await conn.send_raw(b"binary")
        assert (await error_of(conn))["code"] == "VALIDATION_ERROR"
        await conn.send("echo", id=1)
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 1003
    assert not caplog.records
