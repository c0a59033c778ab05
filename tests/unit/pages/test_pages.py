"""The app's HTTP pages: who may see them, what they load, and that they are safe to show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.pages.responses import Response
from socketspec.protocol.handshake import Headers, QueryParams
from socketspec.testing import TestClient

TOKEN = "s3cret"

ASSETS = {
    name: files("socketspec.pages").joinpath("assets", name).read_text()
    for name in ("docs.html", "docs.js", "debug.html", "debug.js", "pages.css")
} | {
    f"demo/{name}": files("socketspec").joinpath("cli", "demo", name).read_text()
    for name in ("page.html", "page.js", "page.css")
}


async def get(
    app: SocketApp,
    path: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    query: Iterable[tuple[str, str]] = (),
    method: str = "GET",
) -> Response:
    response = await app.pages.respond(method, path, Headers(headers), QueryParams(query))
    assert response is not None, f"{path} is not one of {app.pages.paths}"
    return response


def guarded(token: str = TOKEN) -> SocketApp:
    return SocketApp(docs=True, docs_access_token=token)


@pytest.mark.parametrize("path", ["/socket-docs", "/socket-docs/schema"])
async def test_the_token_is_taken_from_the_header_and_from_the_query(path: str) -> None:
    app = guarded()
    assert (await get(app, path, headers=[("Authorization", "Bearer s3cret")])).status == 200
    assert (await get(app, path, headers=[("authorization", "bearer  s3cret ")])).status == 200
    assert (await get(app, path, query=[("token", "s3cret")])).status == 200


@pytest.mark.parametrize("path", ["/socket-docs", "/socket-docs/schema"])
@pytest.mark.parametrize("given", ["", "S3CRET", "s3cret2", "s3cre", "s3cr\u00e9t", "\u2603", "\udcff"])
async def test_a_wrong_token_is_refused_wherever_it_stands(path: str, given: str) -> None:
    app = guarded()
    query = given.encode(errors="replace").decode()  # what a query parser makes of half a character
    assert (await get(app, path, query=[("token", query)])).status == 401
    assert (await get(app, path, headers=[("authorization", f"Bearer {given}")])).status == 401


@pytest.mark.parametrize("path", ["/socket-docs", "/socket-docs/schema"])
async def test_no_token_at_all_is_refused_and_told_how_to_send_it(path: str) -> None:
    response = await get(guarded(), path)
    assert response.status == 401
    assert b"Authorization: Bearer" in response.body
    assert b"s3cret" not in response.body


async def test_a_wrong_header_is_not_saved_by_a_right_query() -> None:
    headers, query = [("authorization", "Bearer wrong")], [("token", "s3cret")]
    assert (await get(guarded(), "/socket-docs/schema", headers=headers, query=query)).status == 401


async def test_other_schemes_than_bearer_are_no_token() -> None:
    assert (await get(guarded(), "/socket-docs", headers=[("authorization", "Basic s3cret")])).status == 401


async def test_a_token_beyond_ascii_works_in_the_query_and_as_utf_8_in_the_header() -> None:
    app = guarded("schlüssel-☃")
    as_the_server_sees_it = "schlüssel-☃".encode().decode("latin-1")
    assert (await get(app, "/socket-docs", query=[("token", "schlüssel-☃")])).status == 200
    header = [("authorization", f"Bearer {as_the_server_sees_it}")]
    assert (await get(app, "/socket-docs", headers=header)).status == 200


@pytest.mark.parametrize("query", [[], [("token", "")], [("token", "guess")]])
async def test_an_empty_token_option_lets_nobody_in(query: list[tuple[str, str]]) -> None:
    assert (await get(guarded(""), "/socket-docs", query=query)).status == 401
    headers = [("authorization", "Bearer")]
    assert (await get(guarded(""), "/socket-docs", headers=headers, query=query)).status == 401


async def test_without_a_token_option_everybody_sees_the_page() -> None:
    app = SocketApp(docs=True)
    assert (await get(app, "/socket-docs")).status == 200
    assert (await get(app, "/socket-docs", headers=[("authorization", "Bearer anything")])).status == 200


async def test_scripts_and_styles_need_no_token_since_the_browser_sends_none() -> None:
    app = SocketApp(docs=True, docs_access_token="s3cret", debug=True)
    for path in ("/socket-docs/docs.js", "/socket-docs/pages.css", "/socket-debug/debug.js", "/socket-debug/pages.css"):
        response = await get(app, path)
        assert response.status == 200
        assert len(response.body) > 500


async def test_the_debug_page_and_its_feed_want_the_token_too() -> None:
    app = SocketApp(debug=True, docs_access_token="s3cret")
    for path in ("/socket-debug", "/socket-debug/feed"):
        assert (await get(app, path)).status == 401
        assert (await get(app, path, query=[("token", "s3cret")])).status == 200


async def test_head_is_answered_like_get() -> None:
    app = SocketApp(docs=True)
    head, got = await get(app, "/socket-docs", method="HEAD"), await get(app, "/socket-docs")
    assert (head.status, head.headers) == (got.status, got.headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get"])
async def test_other_methods_are_refused_and_told_what_works(method: str) -> None:
    response = await get(SocketApp(docs=True), "/socket-docs", method=method)
    assert response.status == 405
    assert response.headers["allow"] == "GET, HEAD"


async def test_the_token_is_asked_for_before_the_method_is_looked_at() -> None:
    assert (await get(guarded(), "/socket-docs", method="POST")).status == 401


async def test_paths_that_are_not_the_apps_are_left_to_others() -> None:
    app = SocketApp(docs=True)
    for path in ("/", "/socket-docs/", "/socket-docs/other.js", "/socket-debug", "/socket-docs/../socket-docs"):
        assert await app.pages.respond("GET", path, Headers(), QueryParams()) is None


@pytest.mark.parametrize("app", [SocketApp(docs=True, debug=True), SocketApp(docs=True, docs_access_token="x")])
async def test_every_answer_has_the_security_headers(app: SocketApp) -> None:
    for path in app.pages.paths:
        for method in ("GET", "POST"):
            headers = (await get(app, path, method=method)).headers
            policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("url", ["/socket-docs", "/internal/sockets"])
async def test_a_page_refers_to_its_own_files_relative_to_itself(url: str) -> None:
    app = SocketApp(docs=True, docs_url=url)
    page = (await get(app, url)).body.decode()
    assert "{{" not in page
    references = re.findall(r'(?:src|href)="([^"]+)"', page)
    folder = url.rpartition("/")[0]
    served = {f"{folder}/{reference}" for reference in references if not reference.startswith("data:")}
    assert served == {f"{url}/docs.js", f"{url}/pages.css", f"{url}/schema"}
    assert served <= set(app.pages.paths)


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".html")])
def test_no_page_has_anything_inline(name: str) -> None:
    text = ASSETS[name]
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", text, re.S) == [""]
    assert "<style" not in text
    assert not re.search(r"\s(on\w+|style)\s*=", text)
    assert "javascript:" not in text


@pytest.mark.parametrize("name", ASSETS)
def test_no_asset_loads_anything_from_elsewhere(name: str) -> None:
    text = ASSETS[name]
    addresses = set(re.findall(r"[\w+.-]*://[^\s\"'`]*", text)) | set(re.findall(r"[\"'(]//\w[^\"')]*", text))
    assert addresses <= {"https://example.com/"}, "a sample value of the schema page; nothing else"
    assert "@import" not in text


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_script_makes_markup_or_code_of_data(name: str) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc"
    assert not re.findall(sinks, ASSETS[name])


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_script_keeps_the_access_token(name: str) -> None:
    assert "localStorage" not in ASSETS[name]
    assert "cookie" not in ASSETS[name]
    if name in ("docs.js", "debug.js"):
        assert "sessionStorage" not in ASSETS[name]
        assert "history.replaceState" in ASSETS[name]


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".html")])
def test_every_field_has_a_label(name: str) -> None:
    fields = re.findall(r'<input id="([\w-]+)"', ASSETS[name])
    assert fields
    assert set(fields) <= set(re.findall(r'<label for="([\w-]+)"', ASSETS[name]))


async def feed(app: SocketApp, since: str | None = None) -> list[dict[str, Any]]:
    response = await get(app, "/socket-debug/feed", query=[] if since is None else [("since", since)])
    assert response.status == 200
    events: list[dict[str, Any]] = json.loads(response.body)["events"]
    return events


async def test_the_feed_shows_events_in_and_out_and_only_those_after_since() -> None:
    app = SocketApp(debug=True)

    @app.on("greet")
    async def greet(conn: Connection, payload: dict[str, Any]) -> None:
        await app.rooms.join(conn, "hall")
        await app.rooms.broadcast("hall", "greeted", payload)

    assert await feed(app) == [], "not started yet"
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("greet", {"text": "<script>alert(1)</script>"})
        await conn.receive_event("greeted")
        events = await feed(app)
        assert [(event["direction"], event["event"], event["room"]) for event in events] == [
            ("in", "greet", None),
            ("broadcast", "greeted", "hall"),
        ]
        assert events[0]["connection_id"] == conn.id
        assert json.loads(events[0]["data"])["payload"] == {"text": "<script>alert(1)</script>"}
        first = events[0]["number"]
        assert await feed(app, str(first)) == events[1:]
        assert await feed(app, str(events[-1]["number"])) == []
        for nonsense in ("", "-1", "x", "1e3", "²", "9" * 5000):
            assert await feed(app, nonsense) == events, "taken for 0"


async def test_without_debug_there_is_no_feed() -> None:
    assert not [path for path in SocketApp(docs=True).pages.paths if "debug" in path]


async def test_health_needs_no_token_and_says_whether_the_app_runs() -> None:
    app = guarded()
    before = await get(app, "/socket-health")
    assert (before.status, json.loads(before.body)["ready"]) == (503, False)
    async with TestClient(app) as client:
        await client.connect()
        running = await get(app, "/socket-health")
        report = json.loads(running.body)
        assert (running.status, report["ready"], report["connections"]) == (200, True, 1)
