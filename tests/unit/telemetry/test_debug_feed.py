"""The debug feed: what it keeps, and that session tokens are not among it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.session.session_tokens import bound_name, new_token
from socketspec.telemetry.debug_feed import HIDDEN, MAX_TEXT, DebugFeed
from socketspec.testing import TestClient
from tests.engines import running

TOKEN = "a-session-token-0001"


def kept(data: str | bytes, session: str) -> str:
    feed = DebugFeed()
    feed.add("in", "c", "e", data, None, session=session)
    text: str = feed.since(0)[0]["data"]
    return text


@pytest.mark.parametrize(
    ("data", "session"),
    [
        (f'{{"url":"/ws?session={TOKEN}"}}', TOKEN),
        (f'{{"session":"{TOKEN}"}}'.encode(), TOKEN),
        (b"\x82\xa7session\xb4" + TOKEN.encode() + b"\xff", TOKEN),
        ('{"session":"7"}', "7"),
        (json.dumps({"session": 'quoted "sid" of an issuer'}), 'quoted "sid" of an issuer'),
        ("x" * (MAX_TEXT - 5) + TOKEN, TOKEN),
        ("\u2603".encode() * (MAX_TEXT - 5) + TOKEN.encode(), TOKEN),
    ],
)
def test_a_session_token_is_not_shown_wherever_it_stands(data: str | bytes, session: str) -> None:
    shown = kept(data, session)
    assert json.dumps(session)[1:-1][:5] not in shown.replace(HIDDEN, "") or session == "7"
    assert '"7"' not in shown
    assert HIDDEN[:5] in shown


def test_no_session_token_is_shown_whosever_it_is_and_wherever_it_stands() -> None:
    for owner in (None, "ada"):
        token = new_token("/", owner)
        feed = DebugFeed()
        for session in ("", "another-session-0001"):
            feed.add("broadcast", None, f"said:{token}", f'{{"t":"x {token} y"}}', token, session=session)
            feed.add("in", "c", "e", b"\x81\xa1t\xd9\x40" + token.encode(), f"room:{token}", session=session)
            feed.add("in", "c", "e", "x" * (MAX_TEXT - 5) + " " + token, None, session=session)
        assert token[:5] not in repr(feed.since(0))
        assert HIDDEN in repr(feed.since(0))


def test_neither_the_id_of_a_session_with_a_name_nor_the_name_is_shown() -> None:
    for name in ("7", "a-claim-of-an-issuer-0001"):
        session = bound_name("/", "ada", name)
        shown = kept(json.dumps({"id": session, "jti": name}), session)
        assert json.loads(shown) == {"id": HIDDEN, "jti": HIDDEN}


def test_what_is_no_token_is_shown_as_it_is() -> None:
    assert kept('{"n":7,"text":"17"}', "7") == '{"n":7,"text":"17"}'
    assert kept("anything", "") == "anything"


async def test_the_feed_of_a_running_app_shows_no_session_token() -> None:
    app = SocketApp(debug=True)

    @app.on("echo")
    async def echo(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
        return {"yours": conn.session.id, **payload}

    async with TestClient(app, strict=False) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.json"])
        token = (await conn.receive())["payload"]["session"]
        await conn.send("echo", {"mine": token}, id=1)
        assert (await conn.receive())["payload"] == {"yours": token, "mine": token}
        engine = await running(app)
        assert engine.feed is not None
        events = engine.feed.since(0)
        shown = [(event["direction"], event["event"], event["connection_id"]) for event in events]
        assert shown == [("out", "__connect__", conn.id), ("in", "echo", conn.id), ("out", "__ack__", conn.id)]
        assert token not in repr(events)
        assert repr(events).count(HIDDEN) == 4
