"""What hooks and guards annotate is what they get: honoured where it can be, and refused where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NoReturn
from uuid import UUID

import pytest
from pydantic import BaseModel

from socketspec import Connection, Room, SocketApp
from socketspec.errors import ConfigurationError, EventError
from socketspec.testing import TestClient
from tests.asking import ask, joining


class Model(BaseModel):
    id: int


class SoldOut(EventError):
    code = "SOLD_OUT"


async def reason_as_int(conn: Connection, code: int) -> None: ...
async def reason_as_model(conn: Connection, payload: Model) -> None: ...
async def reason_as_some_text(conn: Connection, reason: Literal["normal"] | str | None) -> None: ...
async def conn_as_text(reason: str) -> None: ...
async def conn_as_text_and_reason(conn: str, reason: str) -> None: ...
async def anything(conn: object, reason: Any) -> None: ...
async def for_answers(conn: Connection, error: SoldOut) -> None: ...
async def for_text(conn: Connection, error: str) -> None: ...
async def without_answer(conn: Connection) -> None: ...
async def answering_text(conn: Connection) -> str:
    return ""


async def answering_maybe(conn: Connection) -> bool | None:
    return None


async def never(conn: Connection) -> NoReturn:
    raise PermissionError


def later(conn: Connection) -> Awaitable[bool]:
    return answering_maybe(conn)  # type: ignore[return-value] # nobody calls it


async def dict_variable(conn: Connection, id: dict[str, str]) -> bool:
    return True


async def model_variable(conn: Connection, id: Model) -> bool:
    return True


async def list_variable(conn: Connection, id: list[int] | None) -> bool:
    return True


async def uuid_variable(conn: Connection, id: UUID | int | None) -> bool:
    return True


Register = Callable[[SocketApp], Callable[[Any], Any]]
ON_CONNECT: Register = lambda app: app.on_connect  # noqa: E731 # names for the table below
ON_DISCONNECT: Register = lambda app: app.on_disconnect  # noqa: E731
ON_ERROR: Register = lambda app: app.on_error  # noqa: E731
GUARD: Register = lambda app: app.room_guard("staff")  # noqa: E731
GUARD_OF_ID: Register = lambda app: app.room_guard("staff:{id}")  # noqa: E731
JOIN_OF_ID: Register = lambda app: app.on_room_join("staff:{id}")  # noqa: E731


@pytest.mark.parametrize(
    ("register", "function", "message"),
    [
        (ON_DISCONNECT, reason_as_int, "'code' gets 'reason', which is of type str, .* as int; write code: str"),
        (ON_DISCONNECT, reason_as_model, "'payload' gets 'reason'.* as Model"),
        (ON_DISCONNECT, conn_as_text_and_reason, "'conn' gets 'conn', which is of type Connection"),
        (ON_CONNECT, conn_as_text, "'reason' gets 'conn', which is of type Connection"),
        (ON_CONNECT, reason_as_model, "nothing provides parameter 'payload'"),
        (ON_ERROR, for_text, "'error' gets 'error', which is of type Exception"),
        (ON_ERROR, for_answers, "never gets a SoldOut"),
        (GUARD, without_answer, "returns None, but only True lets anybody in; write -> bool"),
        (GUARD, answering_text, "returns str, but only True"),
        (GUARD_OF_ID, dict_variable, "'id' of 'staff:{id}' is text, which never becomes dict"),
        (GUARD_OF_ID, model_variable, "never becomes Model"),
        (GUARD_OF_ID, list_variable, "never becomes"),
        (JOIN_OF_ID, dict_variable, "never becomes dict"),
    ],
)
def test_an_annotation_that_does_not_fit_what_is_passed_is_refused(
    register: Register, function: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        register(SocketApp())(function)


@pytest.mark.parametrize(
    ("register", "function"),
    [
        (ON_DISCONNECT, reason_as_some_text),
        (ON_DISCONNECT, anything),
        (GUARD, answering_maybe),
        (GUARD, never),
        (GUARD, later),
        (GUARD_OF_ID, uuid_variable),
    ],
)
def test_an_annotation_that_fits_is_taken(register: Register, function: Any) -> None:
    register(SocketApp())(function)


async def test_an_error_hook_is_for_the_exceptions_that_it_is_annotated_with() -> None:
    socket, seen = SocketApp(), list[str]()

    @socket.on_error
    async def values(conn: Connection, error: ValueError) -> None:
        seen.append(f"values {error!r}")

    @socket.on_error
    async def two(conn: Connection, error: KeyError | ValueError) -> None:
        seen.append(f"two {error!r}")

    @socket.on_error
    def every(conn: Connection, error: Exception) -> None:
        seen.append(f"every {error!r}")

    @socket.on("fail")
    async def fail(conn: Connection, payload: dict[str, str]) -> None:
        raise {"key": KeyError, "value": ValueError, "os": OSError}[payload["kind"]](1)

    async with TestClient(socket, raise_server_exceptions=False) as client, client.connect() as conn:
        for kind in ("key", "value", "os"):
            await ask(conn, "fail", {"kind": kind})
        await client.settle()

    assert seen == [
        "two KeyError(1)",
        "every KeyError(1)",
        "values ValueError(1)",
        "two ValueError(1)",
        "every ValueError(1)",
        "every OSError(1)",
    ]


async def test_a_hook_that_is_skipped_for_its_variables_says_so_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    socket = SocketApp()
    joining(socket)

    @socket.on_room_join("orders:{id}")
    async def joined(conn: Connection, id: int) -> None: ...

    with caplog.at_level(logging.DEBUG, "socketspec"):
        async with TestClient(socket) as client, client.connect() as conn:
            await ask(conn, "join", {"room": "orders:x"})

    assert "on_room_join('orders:{id}') does not run for 'orders:x'" in caplog.text


@pytest.mark.parametrize("register", [SocketApp().room_guard, SocketApp().on_room_join, SocketApp().on_room_leave])
def test_a_star_in_a_pattern_is_refused(register: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"stands for nothing.*'chat:{room}'"):
        register("chat:*")
    with pytest.raises(ConfigurationError, match=r"'chat:{room}'"):
        SocketApp(rooms=["chat:*"])


@pytest.mark.parametrize("register", [SocketApp().room_guard, SocketApp().on_room_join])
def test_a_variable_with_the_connections_name_is_refused(register: Any) -> None:
    with pytest.raises(ConfigurationError, match="'conn' has the name of the connection"):
        register("o:{conn}")


def test_rooms_is_a_list() -> None:
    with pytest.raises(ConfigurationError, match="must be a list such as"):
        SocketApp(rooms=Room("a"))  # type: ignore[arg-type] # what untyped code passes


async def swallowing(conn: Connection, **rest: Any) -> None: ...


def test_what_a_handler_would_get_by_two_stars_stays_empty_and_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\*\*rest would stay empty"):
        SocketApp().on("event")(swallowing)
