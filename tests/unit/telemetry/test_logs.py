"""JSON logs: one line a record, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.concurrency.tasks import SeparateTasks
from socketspec.errors import AuthError, BackendError, PermissionDenied
from socketspec.identity import Identity
from socketspec.logs import MAX_EXTRAS, MAX_LENGTH, JsonFormatter
from socketspec.protocol.handshake import Handshake
from socketspec.security.ratelimit import RateLimit
from socketspec.telemetry.context import Requests, current_request, log_context
from socketspec.testing import TestClient, TestConnection
from tests.engines import engine_of

mine = logging.getLogger("mine")


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What is logged, at any level and through any logger, as JSON."""
    written: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(json.loads(self.format(record)))

    handler = Handler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(before)


def the(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    (found,) = [line for line in lines if message in line["message"]]
    return found


async def error_of(conn: TestConnection) -> dict[str, Any]:
    message = await conn.receive()
    assert message["event"] == "__error__"
    payload: dict[str, Any] = message["payload"]
    return payload


def line(message: str, *arguments: object, **options: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "app", "levelno": 20, "levelname": "INFO", "msg": message, "args": arguments, **options}
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert text.isprintable()
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_a_record_has_its_time_level_logger_and_message() -> None:
    logged = line("%s of %s", 1, 2, created=0.25)
    assert logged == {"time": "1970-01-01T00:00:00.250+00:00", "level": "info", "logger": "app", "message": "1 of 2"}


def test_line_ends_and_terminal_codes_cannot_leave_the_line() -> None:
    assert line("a\r\nERROR forged \x1b[31m\u2028")["message"] == "a\r\nERROR forged \x1b[31m\u2028"


def test_what_is_being_handled_and_extra_fields_are_in_it() -> None:
    requests = Requests("/chat")
    with log_context("c1", requests, "say", 26):
        logged = line("hello", cost=object)
    assert (logged["connection"], logged["namespace"], logged["event"]) == ("c1", "/chat", "say")
    assert logged["request"] == requests.id(26)
    assert logged["request"].endswith("-1a")
    assert "object" in logged["cost"]
    with log_context("c1", requests):
        assert not {"event", "request"} & line("in a hook").keys()
    assert "connection" not in line("later")


def test_an_exception_is_one_field_of_bounded_length() -> None:
    try:
        raise ValueError("x" * 3 * MAX_LENGTH)
    except ValueError:
        logged = line("failed", exc_info=sys.exc_info())
    assert len(logged["exception"]) == MAX_LENGTH
    assert logged["exception"].endswith("xxx")
    assert len(line("y" * 3 * MAX_LENGTH)["message"]) == MAX_LENGTH


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_no_extra_field_makes_a_line_invalid_or_loses_it() -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    logged = line("x", keys={(1, 2): 3}, circular=circular, nan=float("nan"), deep=[float("inf")], broken=Broken())
    assert logged["keys"] == "{(1, 2): 3}"
    assert logged["circular"] == "{'self': {...}}"
    assert (logged["nan"], logged["deep"]) == ("nan", "[inf]")
    assert logged["broken"] == "<Broken that cannot be shown>"
    assert line("x", fine={"a": [1, None, True]})["fine"] == {"a": [1, None, True]}


def test_a_message_whose_arguments_do_not_fit_is_logged_with_them() -> None:
    assert line("%d apples", "three")["message"] == "'%d apples' ('three',)"


def test_an_extra_field_takes_nothings_place() -> None:
    extras = {"level": "extra", "time": 1, "logger": "l", "connection": "mine", "exception": "no", "stack": "none"}
    try:
        raise ValueError("broken")
    except ValueError:
        with log_context("c1", Requests("/")):
            logged = line("x", exc_info=sys.exc_info(), stack_info="Stack (most recent call last):\n  here", **extras)
    assert (logged["level"], logged["logger"], logged["connection"]) == ("info", "app", "c1")
    assert "ValueError: broken" in logged["exception"]
    assert logged["stack"].endswith("here")
    assert {name: logged[f"extra_{name}"] for name in extras} == extras


def test_extra_fields_are_bounded_in_length_and_number() -> None:
    logged = line("x", long="y" * 3 * MAX_LENGTH, many=["z" * 10] * MAX_LENGTH)
    assert logged["long"] == "y" * MAX_LENGTH
    assert len(logged["many"]) == MAX_LENGTH
    assert len(line("x", **{f"n{i}": i for i in range(10 * MAX_EXTRAS)})) == 4 + MAX_EXTRAS


async def test_all_that_happens_to_a_connection_is_logged_with_its_id(lines: list[dict[str, Any]]) -> None:
    class Auth:
        async def authenticate(self, handshake: Handshake) -> Identity:
            mine.info("authenticates")
            return Identity(user_id="ada")

    app = SocketApp(auth=[Auth()], namespace="/chat")

    @app.on_connect
    async def on_connect(conn: Connection) -> None:
        mine.info("connects")
        await app.rooms.join(conn, "r")

    @app.room_guard("{room}")
    async def guard(conn: Connection, room: str) -> bool:
        mine.info("guards %s", room)
        return room != "no"

    @app.on_room_join
    async def on_room_join(conn: Connection, room: str) -> None:
        mine.info("joins %s", room)

    @app.on_room_leave
    async def on_room_leave(conn: Connection, room: str) -> None:
        mine.info("leaves %s", room)

    @app.on_disconnect
    async def on_disconnect(conn: Connection, reason: str) -> None:
        mine.info("disconnects")
        raise BackendError("away")

    @app.on("kick")
    async def kick(conn: Connection, payload: dict[str, Any]) -> None:
        other = engine_of(app).connections[payload["id"]]
        await app.rooms.join(other, "s")
        await other.disconnect()

    async with TestClient(app) as client:
        ada = await client.connect()
        assert current_request.get() is None
        told = {"authenticates", "connects", "guards r", "joins r"}
        (id,) = engine_of(app).connections
        assert {(line["connection"], line["namespace"]) for line in lines if line["message"] in told} == {(id, "/chat")}
        await ada.send("__resume__", {"rooms": {"t": None}}, id=1)
        assert (await ada.receive())["payload"]["rooms"]["t"]["recovered"] is False
        guarded = the(lines, "guards t")
        assert (guarded["connection"], guarded["event"]) == (id, "__resume__")
        assert the(lines, "joins t")["request"] == guarded["request"]
        await ada.send("__resume__", {"rooms": 1})
        error = await error_of(ada)
        assert the(lines, "must be an object")["request"] == error["request_id"]

        bob = await client.connect()
        await bob.send("kick", {"id": id}, id=1)
        await bob.receive()
        await ada.close()
        for message in ("joins s", "leaves r", "disconnects", "on_disconnect failed: away"):
            logged = next(line for line in lines if message in line["message"])
            assert logged["connection"] == id, message
            assert "request" not in logged, "that is a request of another connection"


async def test_a_handlers_lines_have_the_id_that_the_client_gets(lines: list[dict[str, Any]]) -> None:
    app = SocketApp()

    @app.on_error
    async def on_error(conn: Connection, error: Exception) -> None:
        mine.info("is told")

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        mine.info("about to fail")
        raise ValueError("broken")

    @app.on("refuse")
    async def refuse(conn: Connection) -> None:
        mine.info("about to refuse")
        raise PermissionDenied("Not you.\nNever.")

    @app.on("unclear")
    async def unclear(conn: Connection) -> None:
        mine.info("about to be unclear")
        raise PermissionDenied("x", details={"not": object()})

    async with TestClient(app) as client:
        conn = await client.connect()
        ids = []
        for event, said in (
            ("fail", ["about to fail", "Handling 'fail' failed", "is told"]),
            ("refuse", ["about to refuse", "Answered 'refuse' with PERMISSION_ERROR: 'Not you.\\nNever.'"]),
            (
                "unclear",
                [
                    "about to be unclear",
                    "The details or the message of a PermissionDenied cannot be sent",
                    "Answered 'unclear' with PERMISSION_ERROR: 'x'",
                ],
            ),
        ):
            lines.clear()
            await conn.send(event, id=1)
            ids.append((await error_of(conn))["request_id"])
            await conn.send("fence?")
            await error_of(conn)
            assert {the(lines, message)["request"] for message in said} == {ids[-1]}
            assert {the(lines, message)["event"] for message in said} == {event}
        assert len(set(ids)) == 3


async def test_what_is_refused_before_a_handler_is_logged_at_debug(lines: list[dict[str, Any]]) -> None:
    app = SocketApp(rate_limit=RateLimit(rate=0.001, capacity=3))

    @app.on("number")
    async def number(conn: Connection, payload: dict[str, int]) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        for event, payload, code in (
            ("number", {"n": "x"}, "VALIDATION_ERROR"),
            ("none", {}, "UNKNOWN_EVENT"),
            ("__ack__", {}, "UNKNOWN_EVENT"),
            ("number", {}, "RATE_LIMIT_ERROR"),
        ):
            lines.clear()
            await conn.send(event, payload)
            error = await error_of(conn)
            logged = the(lines, f"with {code}")
            assert (error["code"], logged["level"]) == (code, "debug")
            assert logged["request"] == error["request_id"]
            assert logged["connection"]


async def test_credentials_that_are_refused_are_logged_with_the_connection_that_is_closed(
    lines: list[dict[str, Any]],
) -> None:
    class Auth:
        async def authenticate(self, handshake: Handshake) -> Identity:
            mine.warning("a bad token")
            raise AuthError("Bad token.")

    async with TestClient(SocketApp(auth=[Auth()])) as client:
        conn = await client.connect()
        error = await error_of(conn)
        answered = the(lines, "with AUTH_ERROR")
        assert answered["request"] == error["request_id"]
        assert the(lines, "a bad token")["connection"] == answered["connection"]


async def test_tasks_that_serve_everybody_log_nothing_of_who_started_them(lines: list[dict[str, Any]]) -> None:
    async def serve() -> None:
        mine.info("serves")

    tasks = SeparateTasks()
    with log_context("c1", Requests("/")):
        await tasks.spawn(serve(), name="serve")
    assert "connection" not in the(lines, "serves")
