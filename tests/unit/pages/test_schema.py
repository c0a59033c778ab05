"""The app's schema: everything registered is in it, in words a JSON parser and a JSON Schema reader understand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from socketspec import Broadcasts, Connection, Emits, History, Room, SocketApp
from socketspec.errors import CLOSE_CODES, ERROR_CODES
from socketspec.protocol.handshake import Headers, QueryParams
from socketspec.security.auth import APIKeyAuth


class Mood(Enum):
    good = "good"
    bad = "bad"


class Post(BaseModel):
    """A post, maybe an answer to others."""

    text: Annotated[str, Field(max_length=500, description="What it says")]
    mood: Mood = Mood.good
    at: datetime | None = None
    answers: list[Post] = Field(default_factory=list)


@dataclass
class Stored:
    number: int


class Cursor(TypedDict):
    line: int


def event(app: SocketApp, name: str) -> dict[str, Any]:
    (found,) = [event for event in app.schema()["events"] if event["event"] == name]
    assert isinstance(found, dict)
    return found


def posting_app() -> SocketApp:
    app = SocketApp(
        title="Board",
        version="3.1",
        description="Posts and cursors.",
        namespace="/board",
        max_payload_size=1234,
        auth=APIKeyAuth(valid_keys={"k" * 32}),
        rooms=[
            Room("board:{id}", history=History(size=5, ttl=60), max_members=9, description="One board"),
            Room("all"),
        ],
    )

    @app.on(
        "post",
        tags=["board", "write"],
        ordered=True,
        deprecated=True,
        emits=[Emits("quota", model=Stored, description="What is left")],
        broadcasts=[Broadcasts("posted", room="board:{id}", model=Post), Broadcasts("news")],
    )
    async def post(conn: Connection, payload: Post) -> Stored:
        """Put a post on a board."""
        return Stored(1)

    @app.on("move", description="Move the cursor")
    async def move(conn: Connection, payload: Cursor) -> None:
        return None

    @app.on("bare")
    async def bare(conn: Connection):  # type: ignore[no-untyped-def] # that is the point
        return {"of": "any kind"}

    @app.on("anything")
    async def anything(conn: Connection, payload: dict[str, Any]) -> Any:
        return payload

    return app


def test_the_app_describes_itself() -> None:
    schema = posting_app().schema()
    assert (schema["title"], schema["version"], schema["description"]) == ("Board", "3.1", "Posts and cursors.")
    assert schema["namespace"] == "/board"
    assert schema["max_payload_size"] == 1234
    assert schema["authentication"] == ["APIKeyAuth"]
    assert schema["subprotocols"] == ["socketspec.v1.json", "socketspec.v1.msgpack"]


def test_an_event_comes_with_its_words_and_marks() -> None:
    post = event(posting_app(), "post")
    assert post["description"] == "Put a post on a board."
    assert post["tags"] == ["board", "write"]
    assert post["ordered"] is True
    assert post["deprecated"] is True
    move = event(posting_app(), "move")
    assert (move["description"], move["ordered"], move["deprecated"]) == ("Move the cursor", False, False)


def test_events_stand_in_the_order_they_were_registered() -> None:
    assert [item["event"] for item in posting_app().schema()["events"]] == ["post", "move", "bare", "anything"]


def test_a_models_constraints_and_a_model_that_holds_itself_are_in_the_schema() -> None:
    payload = event(posting_app(), "post")["payload"]
    model = payload["$defs"]["Post"]
    assert model["properties"]["text"] == {
        "description": "What it says",
        "maxLength": 500,
        "title": "Text",
        "type": "string",
    }
    assert model["required"] == ["text"]
    assert model["properties"]["answers"]["items"] == {"$ref": "#/$defs/Post"}
    assert payload["$defs"]["Mood"]["enum"] == ["good", "bad"]


def test_dataclasses_typed_dicts_and_plain_dicts_have_schemas() -> None:
    app = posting_app()
    assert event(app, "post")["ack"]["properties"]["number"]["type"] == "integer"
    assert event(app, "move")["payload"]["properties"]["line"]["type"] == "integer"
    assert event(app, "anything")["payload"]["type"] == "object"


def test_what_says_nothing_has_no_schema() -> None:
    app = posting_app()
    assert event(app, "bare")["payload"] is None
    assert event(app, "bare")["ack"] is None
    assert event(app, "move")["ack"] is None
    assert event(app, "anything")["ack"] is None


def test_what_a_handler_sends_is_listed_with_its_models() -> None:
    post = event(posting_app(), "post")
    (quota,) = post["emits"]
    assert (quota["event"], quota["description"]) == ("quota", "What is left")
    assert quota["payload"]["properties"]["number"]["type"] == "integer"
    posted, news = post["broadcasts"]
    assert (posted["event"], posted["room"]) == ("posted", "board:{id}")
    assert posted["payload"]["$defs"]["Post"]["required"], "the serialised form"
    assert (news["event"], news["room"], news["payload"]) == ("news", None, None)
    assert event(posting_app(), "move")["emits"] == []


def test_rooms_are_listed_with_their_limits() -> None:
    board, everybody = posting_app().schema()["rooms"]
    assert board == {
        "name": "board:{id}",
        "description": "One board",
        "max_members": 9,
        "client_join": False,
        "history": {"size": 5, "ttl": 60},
    }
    assert (everybody["max_members"], everybody["history"]) == (None, None)


def test_every_error_and_close_code_is_explained() -> None:
    schema = SocketApp().schema()
    assert {error["code"] for error in schema["errors"]} == {code.value for code in ERROR_CODES}
    assert {close["code"] for close in schema["close_codes"]} == {code.value for code in CLOSE_CODES}
    assert all(error["meaning"] for error in schema["errors"])
    assert all(close["reason"] and close["issued_when"] for close in schema["close_codes"])
    auth = next(close for close in schema["close_codes"] if close["code"] == 4001)
    assert (auth["reason"], auth["reconnect"]) == ("auth_error", False)


def test_everything_is_plain_json() -> None:
    schema = posting_app().schema()
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


def test_an_event_registered_later_is_in_the_next_schema() -> None:
    app = SocketApp()
    assert app.schema()["events"] == []

    @app.on("late")
    async def late(conn: Connection) -> None:
        return None

    assert [item["event"] for item in app.schema()["events"]] == ["late"]


def test_no_secret_of_the_app_is_in_it() -> None:
    app = SocketApp(docs=True, docs_access_token="the-docs-token", auth=APIKeyAuth(valid_keys={"the-api-key" * 4}))
    text = json.dumps(app.schema())
    assert "the-docs-token" not in text
    assert "the-api-key" not in text


class Range(BaseModel):
    lowest: float = -math.inf
    highest: Annotated[float, Field(le=math.inf)] = math.inf
    middle: float = math.nan
    steps: list[float] = [1.0, math.inf]
    default: float = 1.0


class Callback(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    call: Callable[[], None]


class Broken(BaseModel):
    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        raise RuntimeError("no schema today")


class OddDefault(BaseModel):
    it: Any = object()


@pytest.mark.parametrize("model", [Range, Callback, Broken, OddDefault])
async def test_the_schema_page_is_json_whatever_a_model_is(model: Any) -> None:
    app = SocketApp(docs=True)

    async def search(conn: Connection, payload: Any) -> Any: ...

    search.__annotations__["payload"] = search.__annotations__["return"] = model
    app.on("search", emits=[Emits("a", model)], broadcasts=[Broadcasts("b", model=model)])(search)

    @app.on("fine")
    async def fine(conn: Connection, payload: Stored) -> Stored: ...  # type: ignore[empty-body]

    answer = await app.pages.respond("GET", "/socket-docs/schema", Headers(), QueryParams())
    assert answer is not None
    schema = json.loads(answer.body, parse_constant=pytest.fail)
    assert [item["event"] for item in schema["events"]] == ["search", "fine"]
    found, other = schema["events"]
    assert other["payload"]["properties"]["number"]["type"] == "integer"
    for part in (found["payload"], found["ack"], found["emits"][0]["payload"], found["broadcasts"][0]["payload"]):
        if model in (Callback, Broken):
            assert f"'{model.__name__}' has no JSON Schema: " in part["description"]
        else:
            assert part["type"] == "object"


def test_a_default_that_json_cannot_say_is_left_out_and_told() -> None:
    app = SocketApp()

    @app.on("search")
    async def search(conn: Connection, payload: Range) -> None: ...

    properties = event(app, "search")["payload"]["properties"]
    assert "default" not in properties["lowest"]
    assert "default is -inf" in properties["lowest"]["$comment"]
    assert "maximum" not in properties["highest"]
    assert properties["steps"]["default"] == [1.0, None]
    assert properties["default"]["default"] == 1.0
