"""The app's schema: everything registered is in it, in words a JSON parser and a JSON Schema reader understand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from socketspec import Broadcasts, Connection, Emits, History, Room, SocketApp
from socketspec.errors import CLOSE_CODES, ERROR_CODES
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


class Unknown:
    """Nothing that Pydantic has a schema for."""


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
    async def bare(conn: Connection) -> Unknown:
        return Unknown()

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
    assert event(app, "bare")["ack"] is None, "Pydantic knows no schema for it"
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
