"""What a client is told of a message that is no envelope, came too late, or failed, and what the log has of it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryLimits
from socketspec.errors import (
    BackendError,
)
from socketspec.inbound.catching_up import unrecovered
from socketspec.logs import JsonFormatter
from socketspec.protocol.handshake import Handshake
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import TestClient
from tests.backends import SharedBackend
from tests.carriers import Carrier, opened
from tests.engines import running
from tests.items import counted, error_of, make_app


class Limits(MemoryLimits):
    """Shared limits with an answer that the test chose."""

    def __init__(self, answer: float) -> None:
        super().__init__(lambda: 0.0)
        self.answer = answer

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        return self.answer


async def test_long_names_are_cut_in_the_answer() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        await conn.send("n" * 500, id=1)
        error = await error_of(conn)
        assert (error["code"], error["id"], error["event"]) == ("UNKNOWN_EVENT", 1, "n" * 200)
        assert error["message"] == f"There is no event {'n' * 80!r}."
        await conn.send(f"__{'n' * 500}__", id=2)
        error = await error_of(conn)
        assert error["event"] == f"__{'n' * 198}"
        assert error["message"].startswith(f"{'__' + 'n' * 78!r} is reserved; a client may send __ping__, __pong__, ")


@pytest.mark.parametrize("frame", ["{", '{"payload":{}}', '{"event":"item","id":[1]}'])
async def test_what_is_no_envelope_is_answered_without_event_and_id(frame: str) -> None:
    async with TestClient(make_app()) as client:
        conn = await client.connect()
        await conn.send_raw(frame)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("VALIDATION_ERROR", None, None)


async def test_a_closed_connection_is_not_heard_in_any_way() -> None:
    tokens: list[str | None] = []

    class Auth:
        async def authenticate(self, handshake: Handshake) -> Identity:
            tokens.append(handshake.token)
            return Identity(user_id="ada")

    app = make_app(auth=Auth(), max_payload_size=100)
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.connection.disconnect()
        await conn.send("__refresh_auth__", {"token": "newer"})
        await conn.send("item", {"n": 0, "more": "x" * 100})
        await conn.send_raw("{")
        assert await counted(app) == {}
    assert tokens == [None]


async def test_what_comes_before_the_connect_hooks_are_through_is_not_handled() -> None:
    app, handled = SocketApp(), list[str]()

    @app.on_connect
    async def early(conn: Connection) -> None:
        engine = await running(app)
        assert engine.receive(conn, '{"event":"act"}', binary=False) is None

    @app.on("act")
    async def act(conn: Connection) -> None:
        handled.append(conn.id)

    async with app.lifespan():
        conn = await opened(app, Carrier())
        await asyncio.sleep(0)
        await conn.disconnect()
    assert handled == []


# Failures


@pytest.mark.parametrize("shared", [False, True])
async def test_a_limit_that_fails_is_answered_without_an_event(shared: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Limits):
        async def take(self, key: str, *, rate: float, capacity: float) -> float:
            raise LookupError("a secret of the limit")

    def scope(conn: Connection) -> str:
        raise LookupError("a secret of the limit")

    limit = RateLimit(10, 10, scope="ip" if shared else scope)
    app = make_app(backend=SharedBackend(Failing(0.0)), rate_limit=limit)
    failures: list[Exception] = []

    @app.on_error
    async def note(conn: Connection, error: Exception) -> None:
        failures.append(error)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("item", {"n": 0}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("HANDLER_ERROR", None, None)
        assert "secret" not in json.dumps(error)
        assert await counted(app) == {}, "it was not handled"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error["request_id"] in record.getMessage()
    assert record.exc_info is not None
    assert [str(failure) for failure in failures] == ["a secret of the limit"]


@pytest.mark.parametrize("debug", [False, True])
async def test_in_debug_mode_a_failure_is_told_in_a_thousand_characters(debug: bool) -> None:
    app = SocketApp(debug=debug)

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise ValueError("v" * 2000)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("fail", id=1)
        error = await error_of(conn)
        assert error["details"] == ({"exception": "ValueError", "text": "v" * 1000} if debug else {})
        assert error["message"] == "The server failed to handle this event."


async def test_a_text_that_cannot_be_sent_is_shown_escaped() -> None:
    app = SocketApp(debug=True)

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise ValueError("half a pair: \ud800")

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("fail", id=1)
        assert (await error_of(conn))["details"]["text"] == "half a pair: \\ud800"


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_an_exception_without_a_text_is_answered_too() -> None:
    app = SocketApp(debug=True)

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise MuteError

    async with TestClient(app, raise_server_exceptions=False) as client:
        conn = await client.connect()
        await conn.send("fail", id=1)
        assert (await error_of(conn))["details"]["exception"] == "MuteError"


def test_why_a_room_could_not_be_recovered_can_always_be_sent() -> None:
    assert unrecovered("refused", "half a pair: \ud800")["message"] == "half a pair: \\ud800"


@pytest.mark.parametrize("error", [ValueError("a bug"), BackendError("redis is gone")])
@pytest.mark.parametrize("where", ["handler", "limit"])
async def test_the_record_of_a_failure_has_the_ids_that_the_client_and_others_know(
    error: Exception, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    def scope(conn: Connection) -> str:
        if where == "limit":
            raise error
        return "all"

    app = SocketApp(namespace="/n", rate_limit=RateLimit(10, 10, scope=scope))

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise error

    @app.on_error
    async def note(conn: Connection, error: Exception) -> None:
        logging.getLogger("the_app").error("noted")

    logging.getLogger().addHandler(handler := Handler())
    try:
        async with TestClient(app) as client:
            conn = await client.connect()
            await conn.send("fail", id=1)
            request_id = (await error_of(conn))["request_id"]
            await asyncio.sleep(0)
    finally:
        logging.getLogger().removeHandler(handler)
    failed, noted = lines
    for line in (failed, noted):
        assert (line["request"], line["connection"], line["namespace"]) == (request_id, conn.id, "/n")
        assert line.get("event") == ("fail" if where == "handler" else None)
    assert request_id in failed["message"]
    assert noted["message"] == "noted"
    record = next(record for record in caplog.records if "failed" in record.getMessage())
    assert (vars(record)["request"], vars(record)["connection"]) == (request_id, conn.id)
    assert (record.exc_info is None) is isinstance(error, BackendError)


@pytest.mark.parametrize("strict", [True, False])
async def test_what_a_handler_returns_is_the_answer(strict: bool) -> None:
    app = SocketApp()

    @app.on("answer")
    async def answer(conn: Connection) -> dict[str, int]:
        return {"n": 1}

    async with TestClient(app, strict=strict) as client:
        conn = await client.connect()
        await conn.send("answer")
        assert await conn.receive() == {"event": "__ack__", "payload": {"n": 1}}


async def test_the_debug_feed_shows_what_is_handled_as_it_came() -> None:
    app = make_app(debug=True)
    async with TestClient(app) as client:
        conn = await client.connect()
        frame = '{"event":"item", "payload":{"n":0}}'
        await conn.send_raw(frame)
        await conn.send("item", {"n": "x"})
        engine = await running(app)
        assert engine.feed is not None
        shown = [event for event in engine.feed.since(0) if event["direction"] == "in"]
        assert [(event["connection_id"], event["event"], event["data"]) for event in shown] == [
            (conn.id, "item", frame)
        ]
