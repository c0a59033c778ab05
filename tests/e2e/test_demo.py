"""The demo chat as a real process, with real WebSocket clients, and its handlers against what they declare."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from socketspec.cli.demo.app import socket as demo_socket
from socketspec.testing import ConnectionClosed, TestClient
from tests.support import Client, client
from tests.support_demo import Demo, running_demo

JSON = "socketspec.v1.json"


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running_demo() as running:
        yield running


@asynccontextmanager
async def guest(demo: Demo, name: str) -> AsyncIterator[Client]:
    """A client as the page is one: on our subprotocol, past the introduction."""
    async with client(demo.socket_url(name), subprotocols=[JSON]) as guest:
        assert (await guest.receive())["event"] == "__connect__"
        yield guest


async def until(guest: Client, event: str, **payload: Any) -> dict[str, Any]:
    """The next `event` whose payload has these values; others are passed over."""
    async with asyncio.timeout(10):
        while True:
            message = await guest.receive()
            if message["event"] == event and payload.items() <= message["payload"].items():
                return message


async def enter(guest: Client, room: str) -> dict[str, Any]:
    """Join a room; what the ack says."""
    await guest.send("join", {"room": room}, id=f"join {room}")
    joined: dict[str, Any] = (await until(guest, "__ack__"))["payload"]
    return joined


async def say(guest: Client, room: str, text: str) -> dict[str, Any]:
    """Say something; the message as everybody gets it."""
    await guest.send("say", {"room": room, "text": text, "key": text})
    return await until(guest, "message", room=room, text=text)


def fetch(demo: Demo, path: str) -> tuple[int, Mapping[str, str], str]:
    try:
        with urllib.request.urlopen(demo.url(path), timeout=10) as answer:  # noqa: S310 - always an http address
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}, ""


async def test_two_guests_see_each_other_talk_type_and_leave(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada:
        assert (await enter(ada, "two"))["history"] == []
        async with guest(demo, "Grace") as grace:
            await enter(grace, "two")
            arrival = (await until(ada, "presence", joined="Grace"))["payload"]
            assert (arrival["count"], arrival["names"]) == (2, ["Ada", "Grace"])

            await say(grace, "two", "hello")
            message = await until(ada, "message")
            assert (message["payload"]["name"], message["payload"]["text"]) == ("Grace", "hello")
            assert message["room"] == "chat:two"

            await grace.send("typing", {"room": "two"})
            assert (await until(ada, "typing"))["payload"] == {"room": "two", "name": "Grace"}
        departure = (await until(ada, "presence", left="Grace"))["payload"]
        assert (departure["count"], departure["names"]) == (1, ["Ada"])


async def test_leaving_a_room_is_seen_like_closing_the_tab(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada, guest(demo, "Grace") as grace:
        await enter(ada, "leaving")
        await enter(grace, "leaving")
        await until(ada, "presence", count=2)
        await grace.send("leave", {"room": "leaving"})
        assert (await until(ada, "presence", left="Grace"))["payload"]["names"] == ["Ada"]


async def test_the_typist_does_not_hear_of_it(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada:
        await enter(ada, "typist")
        await ada.send("typing", {"room": "typist"}, id="done")
        heard = []
        while (message := await ada.receive())["event"] != "__ack__":
            heard.append(message["event"])
        assert "typing" not in heard


async def test_one_who_comes_late_gets_the_history_but_not_who_typed(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada:
        await enter(ada, "late")
        await ada.send("typing", {"room": "late"})
        last = None
        for text in ("one", "two", "three"):
            last = await say(ada, "late", text)
        async with guest(demo, "Grace") as grace:
            history = (await enter(grace, "late"))["history"]
    assert [kept["message"]["text"] for kept in history] == ["one", "two", "three"]
    assert last is not None
    assert {key: history[-1][key] for key in ("offset", "epoch", "tag")} == {
        key: last[key] for key in ("offset", "epoch", "tag")
    }


async def test_resuming_after_a_drop_replays_exactly_what_was_missed(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada:
        await enter(ada, "drop")
        async with guest(demo, "Grace") as grace:
            await enter(grace, "drop")
            seen = await say(ada, "drop", "seen")
            await until(grace, "message", text="seen")
            grace.connection.transport.abort()
            await until(ada, "presence", left="Grace")
        for text in ("missed 1", "missed 2"):
            await say(ada, "drop", text)
        async with guest(demo, "Grace") as grace:
            position = {key: seen[key] for key in ("offset", "epoch", "tag")}
            rooms = {"chat:drop": position, "live:drop": None}
            await grace.send("__resume__", {"rooms": rooms}, id="resume")
            answer = (await until(grace, "__resume__"))["payload"]["rooms"]
            assert answer["chat:drop"] == {"recovered": True, "replayed": 2}
            await until(ada, "presence", joined="Grace", count=2)
            await say(ada, "drop", "after")
            heard = [await until(grace, "message") for _ in range(3)]
            assert [message["payload"]["text"] for message in heard] == ["missed 1", "missed 2", "after"]
            assert [message["offset"] - seen["offset"] for message in heard] == [1, 2, 3]


async def test_a_message_sent_again_after_a_drop_is_said_once(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada, guest(demo, "Grace") as grace:
        await enter(ada, "twice")
        await enter(grace, "twice")
        for id in (1, 2):
            await ada.send("say", {"room": "twice", "text": "once", "key": "k"}, id=id)
            await until(ada, "__ack__")
        await say(ada, "twice", "end")
        heard = [(await until(grace, "message"))["payload"]["text"] for _ in range(2)]
        assert heard == ["once", "end"]


@pytest.mark.parametrize("room", ["Loud", "a b", "", "x" * 64, "-x", "é", "a:b"])
async def test_a_room_name_the_page_would_not_take_is_refused_on_every_way_in(demo: Demo, room: str) -> None:
    async with guest(demo, "Ada") as ada:
        await ada.send("join", {"room": room})
        assert (await until(ada, "__error__"))["payload"]["code"] == "VALIDATION_ERROR"
        await ada.send("__resume__", {"rooms": {f"chat:{room}": None}})
        answer = (await until(ada, "__resume__"))["payload"]["rooms"][f"chat:{room}"]
        assert answer["recovered"] is False
        assert answer["reason"] in ("PERMISSION_ERROR", "ROOM_NOT_FOUND", "VALIDATION_ERROR"), answer


async def test_speaking_into_a_room_from_outside_is_refused(demo: Demo) -> None:
    async with guest(demo, "Ada") as ada:
        for event, payload in (("say", {"room": "far", "text": "hi", "key": "k"}), ("typing", {"room": "far"})):
            await ada.send(event, payload)
            error = (await until(ada, "__error__"))["payload"]
            assert (error["code"], error["event"]) == ("PERMISSION_ERROR", event)


@pytest.mark.parametrize("name", ["", "%20", "x" * 31, "a%0Ab%00", "%E2%80%AE"])
async def test_a_name_that_is_none_is_refused_with_4001(demo: Demo, name: str) -> None:
    async with client(demo.socket_url(name)) as nobody:
        assert (await nobody.error())["code"] == "AUTH_ERROR"
        assert (await nobody.closed())[0] == 4001


async def test_a_flood_is_limited(demo: Demo) -> None:
    async with guest(demo, "Flood") as flood:
        await enter(flood, "flood")
        for number in range(60):
            await flood.send("typing", {"room": "flood"}, id=number)
        error = (await until(flood, "__error__"))["payload"]
        assert error["code"] == "RATE_LIMIT_ERROR"
        assert error["details"]["retry_after"] > 0


def test_the_page_and_everything_it_refers_to_is_served(demo: Demo) -> None:
    pages = ["/", "/socket-docs"]
    seen: set[str] = set()
    while pages:
        path = pages.pop()
        seen.add(path)
        status, headers, text = fetch(demo, path)
        assert status == 200, path
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        references = re.findall(r'(?:src|href)="([^"]+)"', text) if "html" in headers["content-type"] else []
        pages += {f"/{name}" for name in references if not name.startswith("data:")} - seen
    expected = {"/", "/page.js", "/page.css", "/socket-docs"}
    assert seen == expected | {f"/socket-docs/{name}" for name in ("docs.js", "pages.css", "schema")}


def test_only_the_pages_own_files_are_served(demo: Demo) -> None:
    for path in ("/page.py", "/app.py", "/page.", "/page.js/..", "/page.%2e%2e", "/docs", "/openapi.json"):
        assert fetch(demo, path)[0] == 404, path


async def test_the_handlers_send_what_they_declare() -> None:
    async with TestClient(demo_socket) as inside:  # strict: anything undeclared is an error
        ada = await inside.connect(query_params={"name": "Ada"}, subprotocols=[JSON])
        assert ada.identity.user_id == "Ada"
        for event, payload in (
            ("join", {"room": "strict"}),
            ("say", {"room": "strict", "text": "hi", "key": "k"}),
            ("typing", {"room": "strict"}),
            ("leave", {"room": "strict"}),
        ):
            await ada.send(event, payload, id=event)
            while (message := await ada.receive())["event"] != "__ack__":
                assert message["event"] != "__error__", message
            assert message["id"] == event


async def test_the_token_of_a_real_app_would_be_asked_for_where_the_name_is() -> None:
    async with TestClient(demo_socket) as inside:
        nobody = await inside.connect()
        assert (await nobody.receive())["payload"]["code"] == "AUTH_ERROR"
        with pytest.raises(ConnectionClosed, match="4001"):
            await nobody.receive()
