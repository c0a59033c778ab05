"""Errors of an app's own: declared once, with a code and typed details; and always an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, Field

from socketspec import Connection, Identity, SocketApp
from socketspec.errors import AuthError, ConfigurationError, ContractError, ErrorCode, EventError, PermissionDenied
from socketspec.protocol.handshake import Handshake
from socketspec.testing import ConnectionClosed, TestClient
from tests.engines import running


class SoldOutDetails(BaseModel):
    item: str
    next_in: int | None = Field(None, serialization_alias="nextIn")


class SecretDetails(SoldOutDetails):
    supplier: str = "s3cret"


class SoldOut(EventError):
    """Nothing of it is left.

    More of it may come.
    """

    code = "SOLD_OUT"
    details: SoldOutDetails


class NotYours(PermissionDenied):
    """Belongs to somebody else."""


async def answer_to(error: EventError, **options: Any) -> dict[str, Any]:
    app = SocketApp(**options)

    @app.on("act", errors=[SoldOut])
    async def act(conn: Connection) -> None:
        raise error

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", id=1)
        answer = await conn.receive()
        assert (answer["event"], answer["id"]) == ("__error__", 1)
        payload: dict[str, Any] = answer["payload"]
        await conn.send("act", id=2)
        assert (await conn.receive())["id"] == 2, "the connection stays"
    return payload


async def test_an_error_of_the_apps_own_has_its_code_and_its_details() -> None:
    error = SoldOut("No tea.", details=SecretDetails(item="tea", next_in=3))
    assert error.details.item == "tea"
    answer = await answer_to(error)
    assert (answer["code"], answer["message"]) == ("SOLD_OUT", "No tea.")
    assert answer["details"] == {"item": "tea", "nextIn": 3}, "by alias, and nothing else"
    assert (await answer_to(SoldOut(details={"item": "tea"})))["message"] == "Nothing of it is left."


async def test_an_error_without_a_code_is_a_refusal() -> None:
    assert (await answer_to(EventError("No.")))["code"] == "REFUSED"
    assert (await answer_to(EventError("No.", code="TOO_LATE")))["code"] == "TOO_LATE"
    assert (await answer_to(NotYours("No.")))["code"] == "PERMISSION_ERROR"


@pytest.mark.parametrize("details", [None, {}, {"item": 1}, {"itm": "tea"}, "tea"])
def test_details_that_do_not_fit_are_the_servers_mistake(details: object) -> None:
    with pytest.raises(ContractError, match="SoldOut: the details do not fit their type: "):
        SoldOut("No.", details=details)


@pytest.mark.parametrize(
    "code",
    ["HANDLER_ERROR", "REFUSED", ErrorCode.AUTH_ERROR, "sold_out", "SOLD OUT", "", "1ST", 5, "X" * 65, "ÜBER", "A\n"],
)
def test_codes_that_are_taken_or_malformed_are_refused_with_the_class(code: Any) -> None:
    with pytest.raises(ConfigurationError, match="Odd: "):
        type("Odd", (EventError,), {"code": code, "__module__": __name__})


@pytest.mark.parametrize("code", ["sold out", "", 5])
def test_a_malformed_code_of_one_error_is_refused_too(code: Any) -> None:
    with pytest.raises(ValueError, match="such as 'SOLD_OUT'"):
        EventError("No.", code=code)


def test_details_may_be_of_a_type_that_is_local_and_must_be_defined() -> None:
    @dataclass
    class Local:
        n: int

    class Own(EventError):
        code = "OWN"
        details: Local

    assert Own("x", details={"n": 1}).details == Local(1)
    with pytest.raises(ConfigurationError, match=r"the type of `details` cannot be used: .*Missing.*Define it before"):

        class Other(EventError):
            code = "OTHER"
            details: Missing  # type: ignore[name-defined] # noqa: F821 # that is the point


def test_declared_errors_are_in_the_schema() -> None:
    app = SocketApp()

    @app.on("buy", errors=[SoldOut, NotYours])
    async def buy(conn: Connection) -> None: ...

    schema = app.schema()
    sold_out, not_yours = schema["events"][0]["errors"]
    assert (sold_out["code"], sold_out["meaning"]) == ("SOLD_OUT", "Nothing of it is left.\n\nMore of it may come.")
    jsonschema.validate({"item": "tea", "nextIn": 1}, sold_out["details"])
    assert set(sold_out["details"]["properties"]) == {"item", "nextIn"}
    assert (not_yours["code"], not_yours["details"]) == ("PERMISSION_ERROR", None)
    codes = [item["code"] for item in schema["errors"]]
    assert codes == [*(code.value for code in ErrorCode if code.value in codes), "SOLD_OUT"]


class Second(EventError):
    code = "SOLD_OUT"


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        (SoldOut, "must be a list of error classes"),
        ("SOLD_OUT", "must be a list of error classes"),
        (["SOLD_OUT"], "list classes"),
        ([EventError("x")], "list classes, such as EventError"),
        ([ValueError], "list classes"),
        ([SoldOut, Second], "SoldOut and Second have the code 'SOLD_OUT' and different details"),
        (None, "must be a list"),
    ],
)
def test_what_cannot_be_declared_says_what_to_write(errors: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SocketApp().on("act", errors=errors)
    assert says in str(refused.value)


def test_two_events_cannot_share_a_code_for_different_details() -> None:
    app = SocketApp()

    async def act(conn: Connection) -> None: ...

    app.on("one", errors=[SoldOut])(act)
    app.on("two", errors=[SoldOut])(act)
    with pytest.raises(ConfigurationError, match="give each a code of its own"):
        app.on("three", errors=[Second])(act)
    assert "three" not in app.registry.events


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("not a word")


UNSENDABLE = [
    ({"details": {"why": object(), "left": 2}}, {"left": 2, "truncated": True}),
    ({"details": {"why": "\ud800"}}, {"truncated": True}),
    ({"details": {1: {2: object()}}}, {"truncated": True}),
    ({"message": "half \ud800"}, {}),
    ({"message": Unspeakable()}, {"truncated": True}),
]


@pytest.mark.parametrize(("options", "details"), UNSENDABLE)
async def test_what_cannot_be_encoded_is_left_out_of_an_answer(
    options: dict[str, Any], details: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answer_to(PermissionDenied(**{"message": "No.", **options}))
    assert (answer["code"], answer["details"]) == ("PERMISSION_ERROR", details)
    if options.get("message") != "half \ud800":  # which can be written in another way
        assert "of a PermissionDenied cannot be sent" in caplog.text


@pytest.mark.parametrize(("options", "details"), UNSENDABLE)
@pytest.mark.parametrize("where", ["auth", "on_connect"])
async def test_so_it_is_in_the_handshake_and_no_connection_is_left(
    options: dict[str, Any], details: dict[str, Any], where: str
) -> None:
    error = AuthError(**{"message": "No.", **options})

    class Refusing:
        async def authenticate(self, handshake: Handshake) -> Identity:
            raise error

    app = SocketApp(auth=Refusing() if where == "auth" else None)
    if where == "on_connect":

        @app.on_connect
        async def on_connect(conn: Connection) -> None:
            raise error

    engine = await running(app)
    async with TestClient(app) as client:
        conn = await client.connect()
        answer = (await conn.receive())["payload"]
        assert (answer["code"], answer["details"]) == ("AUTH_ERROR", details)
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4001
        await conn.close()
        assert not engine.connections


class Left(BaseModel):
    left: int = 3


OF_CLASSES = """
from __future__ import annotations
from typing import Optional, TypedDict
from pydantic import BaseModel
from socketspec.errors import EventError
class D(BaseModel): left: int
class Odd(EventError):
    code = "ODD"
    {line}
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("details = D", "Write the type of the details: `details: D`"),
        ("details = {'left': 1}", "`details: SoldOutDetails`"),
        ("detail: D", "nobody reads 'detail'. Did you mean 'details'"),
        ("mesage = 'No.'", "nobody reads 'mesage'. Did you mean 'message'"),
        ("details: list[D]", "details are an object, and list.* is none"),
        ("details: int", "details are an object, and int is none"),
        ("details: D | str", "details are an object"),
    ],
)
def test_what_a_class_declares_and_nobody_reads_is_refused_with_the_class(line: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^Odd: .*{message}"):
        exec(OF_CLASSES.format(line=line), {"__name__": __name__})  # noqa: S102 # classes that cannot be made


@pytest.mark.parametrize("line", ["details: Optional[D]", "details: dict[str, int]", "extra: int = 1", "count = 5"])
def test_what_a_class_may_declare_is_taken(line: str) -> None:
    exec(OF_CLASSES.format(line=line), {"__name__": __name__})  # noqa: S102 # as above


@pytest.mark.parametrize("details", ["only 3 left", 3, [1], b"x"])
def test_details_that_are_no_object_are_refused_where_the_error_is_made(details: object) -> None:
    with pytest.raises(TypeError, match="details are an object"):
        EventError("No.", details=details)


class Perhaps(EventError):
    code = "PERHAPS"
    details: Left | None


async def test_details_that_may_be_none_are_not_invented() -> None:
    app = SocketApp()

    @app.on("act", errors=[Perhaps])
    async def act(conn: Connection) -> None: ...

    assert Perhaps("x").details is None
    assert (await answer_to(Perhaps("x")))["details"] == {}
    assert (await answer_to(Perhaps("x", details=Left())))["details"] == {"left": 3}
    assert app.schema()["events"][0]["errors"][0]["details"] is not None


def test_one_of_our_codes_is_no_code_of_an_error_either_unless_it_says_no_more_than_an_app_may() -> None:
    with pytest.raises(ValueError, match=r"'VALIDATION_ERROR' is SocketSpec's own code.*use the error of"):
        EventError("x", code="VALIDATION_ERROR")
    assert EventError("x", code="NOT_FOUND").code == "NOT_FOUND"
    assert EventError("x", code=ErrorCode.VALIDATION_ERROR).code == "VALIDATION_ERROR"
    assert NotYours("x", code="PERMISSION_ERROR").code == "PERMISSION_ERROR"
