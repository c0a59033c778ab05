"""A handler's reply is what its return annotation says, or no reply at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from socketspec import Connection, Depends, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.testing import TestClient


class Public(BaseModel):
    name: str


class Stored(Public):
    hashed_password: str = "s3cret"


async def reply_of(app: SocketApp, *, id: int | None = 1) -> dict[str, Any]:
    async with TestClient(app, strict=False) as client:
        conn = await client.connect()
        await conn.send("me", id=id)
        return await conn.receive()


def returning(value: Any, annotation: Any, **options: Any) -> SocketApp:
    app = SocketApp()

    async def me(conn: Connection) -> Any:
        return value

    me.__annotations__["return"] = annotation
    app.on("me", **options)(me)
    return app


@pytest.mark.parametrize("is_async", [True, False])
async def test_fields_that_the_annotation_does_not_have_stay_on_the_server(is_async: bool) -> None:
    app = SocketApp()
    if is_async:

        @app.on("me")
        async def me(conn: Connection) -> Public:
            return Stored(name="ada")
    else:

        @app.on("me")
        def me_in_a_thread(conn: Connection) -> Public:
            return Stored(name="ada")

    assert (await reply_of(app))["payload"] == {"name": "ada"}


@pytest.mark.parametrize("value", [{"nam": "ada"}, None, "ada", Public.model_construct(name=1)])
@pytest.mark.parametrize("id", [1, None])
async def test_a_reply_that_does_not_fit_is_the_handlers_failure(
    value: Any, id: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await reply_of(returning(value, Public), id=id)
    assert (answer["event"], answer["payload"]["code"]) == ("__error__", "HANDLER_ERROR")
    assert "does not fit 'Public'" in caplog.text
    assert answer["payload"]["request_id"] in caplog.text


@pytest.mark.parametrize(
    ("annotation", "options", "expected"),
    [
        (Any, {}, {"name": "ada", "hashed_password": "s3cret"}),
        (Public, {"response_model": None}, {"name": "ada", "hashed_password": "s3cret"}),
        (str, {"response_model": Public}, {"name": "ada"}),
        (Stored, {"response_model": Public}, {"name": "ada"}),
        (Public | None, {}, {"name": "ada"}),
        (Awaitable[Public], {}, {"name": "ada"}),
        (Annotated[Public, "words"], {}, {"name": "ada"}),
    ],
)
async def test_a_response_model_takes_the_annotations_place(
    annotation: Any, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert (await reply_of(returning(Stored(name="ada"), annotation, **options)))["payload"] == expected


@pytest.mark.parametrize("annotation", [str, int | None, list[Public], bytes])
def test_a_reply_that_is_no_object_is_refused_at_registration(annotation: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"me: the return annotation: .* cannot be a payload: .*always an object"
    ):
        returning(None, annotation)
    with pytest.raises(ConfigurationError, match="me: response_model: "):
        returning(None, Any, response_model=annotation)


async def test_a_handler_that_declares_no_reply_has_none() -> None:
    assert (await reply_of(returning(None, None)))["payload"] == {}
    assert (await reply_of(returning(Stored(name="ada"), None)))["payload"]["code"] == "HANDLER_ERROR"


async def test_what_middleware_answers_is_held_to_it_too() -> None:
    app = returning(Public(name="ada"), Public)

    @app.middleware
    async def other(conn: Connection, event: str, payload: Any, next_handler: Callable[..., Awaitable[Any]]) -> Any:
        assert await next_handler(conn, event, payload) == Public(name="ada")
        return Stored(name="bob")

    assert (await reply_of(app))["payload"] == {"name": "bob"}


class Record:
    """As an object of a database: what it holds is there as long as its session is."""

    def __init__(self) -> None:
        self.is_open = True

    @property
    def name(self) -> str:
        if not self.is_open:
            raise RuntimeError("the session is closed")
        return "ada"


@pytest.mark.parametrize("overridden", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_reply_is_validated_while_the_dependencies_are_there(is_async: bool, overridden: bool) -> None:
    app = SocketApp()

    async def session() -> AsyncIterator[Record]:
        record = Record()
        yield record
        record.is_open = False

    if is_async:

        @app.on("me")
        async def me(conn: Connection, record: Annotated[Record, Depends(session)]) -> Public:
            return record  # type: ignore[return-value] # as with an ORM
    else:

        @app.on("me")
        def me_in_a_thread(conn: Connection, record: Annotated[Record, Depends(session)]) -> Public:
            return record  # type: ignore[return-value] # as with an ORM

    if overridden:
        app.dependency_overrides[print] = repr
    assert (await reply_of(app))["payload"] == {"name": "ada"}
