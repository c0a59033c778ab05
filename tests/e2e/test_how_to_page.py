"""The how-to page "Mount on FastAPI" is a contract: each of its snippets, verbatim, on a stock uvicorn process.

The strings below are the page's own text. `_app` adds only what a snippet leaves out: imports, and the mount.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import Client, Server, client, fetch, jwt, refused, serving

BASIC = """\
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount

socket = SocketApp()
app = FastAPI()
mount(socket, app, path="/ws")
"""

DOCS = """\
socket = SocketApp(
    docs=True,
    docs_url="/socket-docs",          # URL to serve the UI
    docs_access_token="secret-token", # optional — protects the docs page
)
"""

JWT = """\
from socketspec.security.auth import JWTAuth

socket = SocketApp(
    auth=JWTAuth(secret="your-jwt-secret", algorithm="HS256"),
)
"""

API_KEYS = """\
from socketspec.security.auth import APIKeyAuth

socket = SocketApp(
    auth=APIKeyAuth(valid_keys={"key-abc", "key-xyz"}),
)
"""

RATE_LIMIT = """\
from socketspec.security.ratelimit import RateLimit

socket = SocketApp(
    rate_limit=RateLimit(rate=10, capacity=20),  # 10 events/sec, burst of 20
)
"""

ORIGINS = """\
socket = SocketApp(
    allowed_origins=["https://myapp.com", "https://staging.myapp.com"],
)
"""

SESSION = """\
from socketspec.session import SessionConfig

socket = SocketApp(
    session=SessionConfig(
        max_duration=3600,        # max session length in seconds
        idle_timeout=300,         # disconnect after 5 min of inactivity
        heartbeat_interval=25,    # ping every 25 seconds
        heartbeat_timeout=10,     # disconnect if pong not received in 10s
        token_refresh_window=60,  # warn 60s before token expires
    ),
)
"""

HOOKS = """\
from socketspec.connection import Connection

@socket.on_connect
async def on_connect(conn: Connection) -> None:
    print(f"Connected: {conn.id}")

@socket.on_disconnect
async def on_disconnect(conn: Connection, reason: str) -> None:
    print(f"Disconnected: {conn.id} ({reason})")

@socket.on_error
async def on_error(conn: Connection, error: Exception) -> None:
    print(f"Handler error on {conn.id}: {error}")
"""

COMPLETE = """\
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig

socket = SocketApp(
    docs=True,
    docs_url="/socket-docs",
    auth=JWTAuth(secret="super-secret", algorithm="HS256"),
    allowed_origins=["https://myapp.com"],
    rate_limit=RateLimit(rate=20, capacity=50),
    session=SessionConfig(max_duration=7200, idle_timeout=300),
    namespace="/",
)

app = FastAPI(title="My WebSocket API")
mount(socket, app, path="/ws")
"""

# What follows is not on the page.

IMPORTS = """\
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount

"""

MOUNT = """
app = FastAPI()
mount(socket, app, path="/ws")
"""

HANDLERS = """

@socket.on("whoami")
async def whoami(conn) -> dict:
    return {"id": conn.id, "user": conn.identity.user_id, "authenticated": conn.identity.is_authenticated}


@socket.on("fail")
async def fail(conn) -> None:
    raise RuntimeError("broken on purpose")


@socket.on("leave")
async def leave(conn) -> None:
    await conn.disconnect("kicked")
"""

# The page's options with its hours turned into fractions of a second: one app each, so that each is seen alone.
SCALED = f"""
from socketspec.security.auth import JWTAuth
from socketspec.session import SessionConfig

VARIANTS = {{
    "heartbeat": SessionConfig(heartbeat_interval=0.3, heartbeat_timeout=0.4),
    "idle": SessionConfig(idle_timeout=0.6, idle_warning=0),
    "duration": SessionConfig(max_duration=0.6, expiry_warning=0),
    "token": SessionConfig(token_refresh_window=1.5),
    "all": SessionConfig(
        max_duration=1.4, idle_timeout=0.8, heartbeat_interval=0.3, heartbeat_timeout=5, token_refresh_window=0.5
    ),
}}
app = FastAPI()
for name, config in VARIANTS.items():
    auth = JWTAuth(secret="your-jwt-secret", algorithm="HS256") if name == "token" else None
    socket = SocketApp(session=config, auth=auth, namespace="/" + name)
{"".join("    " + line + chr(10) if line else chr(10) for line in (HANDLERS + HOOKS).splitlines())}
    mount(socket, app, path="/" + name)
"""

SECRET = "your-jwt-secret"
PROGRAMS = {
    "basic": BASIC + HANDLERS,
    "docs": IMPORTS + DOCS + MOUNT + HANDLERS,
    "jwt": IMPORTS + JWT + MOUNT + HANDLERS,
    "api_keys": IMPORTS + API_KEYS + MOUNT + HANDLERS,
    "rate_limit": IMPORTS + RATE_LIMIT + MOUNT + HANDLERS,
    "origins": IMPORTS + ORIGINS + MOUNT + HANDLERS,
    "session": IMPORTS + SESSION + MOUNT + HANDLERS,
    "scaled": IMPORTS + SCALED,
    "hooks": BASIC + HOOKS + HANDLERS,
    "complete": COMPLETE + HANDLERS,
}


@pytest.fixture(scope="module")
def servers(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("how-to")
    started = {name: Server.start(folder / name, source) for name, source in PROGRAMS.items()}
    with serving(*started.values(), expected=["RuntimeError: broken on purpose"]):
        yield started


async def test_a_basic_mount_answers_at_its_path_with_nothing_unasked(servers: dict[str, Server]) -> None:
    async with client(servers["basic"].url("/ws")) as ada:
        await ada.silence(0.1)
        assert (await ada.call("whoami"))["authenticated"] is False
    assert (await fetch(servers["basic"], "/openapi.json")).status == 200
    assert (await fetch(servers["basic"], "/socket-docs")).status == 404, "docs are off unless asked for"


@pytest.mark.parametrize("page", ["/socket-docs", "/socket-docs/schema"])
async def test_the_docs_want_their_token_by_header_or_query(servers: dict[str, Server], page: str) -> None:
    server = servers["docs"]
    for path, header in [(page, None), (page, "Bearer wrong"), (page + "?token=wrong", None), (page + "?token=", None)]:
        answer = await fetch(server, path, {"Authorization": header} if header else {})
        assert answer.status == 401
        assert "whoami" not in answer.text
    by_header = await fetch(server, page, {"Authorization": "Bearer secret-token"})
    by_query = await fetch(server, page + "?token=secret-token")
    assert by_header.status == by_query.status == 200
    assert by_header.text == by_query.text


async def test_the_schema_lists_the_events(servers: dict[str, Server]) -> None:
    schema = (await fetch(servers["docs"], "/socket-docs/schema?token=secret-token")).json()
    assert "whoami" in str(schema["events"])


async def test_a_jwt_is_taken_from_header_and_query(servers: dict[str, Server]) -> None:
    url = servers["jwt"].url("/ws")
    async with client(url, headers={"Authorization": f"Bearer {jwt(SECRET, sub='ada')}"}) as ada:
        assert (await ada.call("whoami"))["user"] == "ada"
    async with client(f"{url}?token={jwt(SECRET, sub='bob')}") as bob:
        assert (await bob.call("whoami"))["user"] == "bob"


@pytest.mark.parametrize(
    "query",
    ["", "?token=", "?token=nonsense", f"?token={jwt('another-secret')}", f"?token={jwt(SECRET, exp=1)}"],
    ids=["none", "empty", "nonsense", "forged", "expired"],
)
async def test_a_bad_jwt_gets_auth_error_and_4001(servers: dict[str, Server], query: str) -> None:
    async with client(servers["jwt"].url("/ws") + query) as eve:
        assert (await eve.error())["code"] == "AUTH_ERROR"
        assert (await eve.closed())[0] == 4001


async def test_events_sent_before_the_refusal_arrives_are_not_handled(servers: dict[str, Server]) -> None:
    async with client(servers["jwt"].url("/ws")) as eve:
        with suppress(ConnectionClosed):
            for _ in range(20):
                await eve.send("whoami", id=1)
        assert (await eve.error())["code"] == "AUTH_ERROR"
        assert (await eve.closed())[0] == 4001


async def test_an_api_key_is_taken_from_header_and_query(servers: dict[str, Server]) -> None:
    url = servers["api_keys"].url("/ws")
    async with client(url, headers={"x-api-key": "key-abc"}) as ada, client(f"{url}?api_key=key-xyz") as bob:
        assert (await ada.call("whoami"))["authenticated"] is True
        assert (await bob.call("whoami"))["authenticated"] is True
    for refused_url, headers in [(url, None), (url, {"x-api-key": "key-ab"}), (url + "?api_key=key", None)]:
        async with client(refused_url, headers=headers) as eve:
            assert (await eve.error())["code"] == "AUTH_ERROR"
            assert (await eve.closed())[0] == 4001


async def test_the_rate_limit_passes_a_burst_of_twenty_and_refills(servers: dict[str, Server]) -> None:
    async with client(servers["rate_limit"].url("/ws")) as ada:
        began = time.monotonic()
        for number in range(90):  # more than a busy machine lets pass by taking its time
            await ada.send("whoami", id=number)
        replies = [await ada.receive() for _ in range(90)]
        refilled = 10 * (time.monotonic() - began)
        acked = [reply["id"] for reply in replies if reply["event"] == "__ack__"]
        errors = [reply["payload"] for reply in replies if reply["event"] == "__error__"]
        assert acked[:20] == list(range(20))
        assert len(acked) <= 20 + refilled
        assert {error["code"] for error in errors} == {"RATE_LIMIT_ERROR"}
        assert all(0 < error["details"]["retry_after"] <= 0.1 for error in errors)
        # The bucket refills: after the time it names, one more event passes.
        await asyncio.sleep(errors[-1]["details"]["retry_after"] + 0.01)
        assert (await ada.call("whoami"))["id"]


async def test_a_listed_origin_passes_and_another_gets_403_before_accept(servers: dict[str, Server]) -> None:
    url = servers["origins"].url("/ws")
    for origin in ("https://myapp.com", "https://staging.myapp.com"):
        async with client(url, origin=origin) as ada:
            assert (await ada.call("whoami"))["id"]
    for origin in ("https://evil.example", "http://myapp.com", "https://myapp.com.evil.example", "null"):
        assert await refused(url, origin=origin) == 403


async def test_every_origin_passes_by_default(servers: dict[str, Server]) -> None:
    async with client(servers["basic"].url("/ws"), origin="https://anywhere.example") as ada:
        assert (await ada.call("whoami"))["id"]


@pytest.mark.asgi_only
async def test_the_session_options_of_the_page_apply(servers: dict[str, Server]) -> None:
    async with client(servers["session"].url("/ws"), subprotocols=["socketspec.v1.json"]) as ada:
        hello = await ada.receive()
        assert hello["event"] == "__connect__"
        assert hello["payload"]["heartbeat"] == {"interval": 25, "timeout": 10, "frames": False}
        assert hello["payload"]["session_expires_at"] == pytest.approx(time.time() + 3600, abs=5)
        assert (await ada.call("whoami"))["id"]


async def _only_pings(ada: Client) -> None:
    while True:
        assert (await ada.receive())["event"] == "__ping__"


async def _answer_pings(ada: Client, seen: list[str]) -> None:
    while True:
        event = await ada.receive()
        seen.append(event["payload"]["code"] if event["event"] == "__error__" else event["event"])
        if event["event"] == "__ping__":
            await ada.send("__pong__")


@pytest.mark.asgi_only
async def test_a_client_that_answers_pings_stays(servers: dict[str, Server]) -> None:
    async with client(servers["scaled"].url("/heartbeat")) as ada:
        began = time.monotonic()
        for count in range(1, 5):
            assert (await ada.receive())["event"] == "__ping__"
            assert time.monotonic() - began >= 0.28 * count, "pinged before the interval was over"
            await ada.send("__pong__")
        assert (await ada.call("whoami"))["id"]


@pytest.mark.asgi_only
async def test_a_client_that_does_not_answer_pings_gets_4004(servers: dict[str, Server]) -> None:
    async with client(servers["scaled"].url("/heartbeat")) as ada:
        id = (await ada.call("whoami"))["id"]
        assert (await ada.receive())["event"] == "__ping__"
        with pytest.raises(ConnectionClosed) as ended:
            await _only_pings(ada)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 4004
    await servers["scaled"].logged(rf"Disconnected: {id} \(heartbeat_timeout\)")


async def test_an_idle_client_gets_idle_timeout_and_4003(servers: dict[str, Server]) -> None:
    async with client(servers["scaled"].url("/idle")) as ada:
        id = (await ada.call("whoami"))["id"]
        began = time.monotonic()
        assert (await ada.error())["code"] == "IDLE_TIMEOUT"
        assert (await ada.closed())[0] == 4003
        assert time.monotonic() - began >= 0.55
    await servers["scaled"].logged(rf"Disconnected: {id} \(idle_timeout\)")


async def test_an_active_client_is_not_idle(servers: dict[str, Server]) -> None:
    async with client(servers["scaled"].url("/idle")) as ada:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            assert (await ada.call("whoami"))["id"]
            await asyncio.sleep(0.1)


async def test_a_session_at_its_end_gets_session_expired_and_4002(servers: dict[str, Server]) -> None:
    async with client(servers["scaled"].url("/duration")) as ada:
        id = (await ada.call("whoami"))["id"]
        assert (await ada.error())["code"] == "SESSION_EXPIRED"
        assert (await ada.closed())[0] == 4002
    await servers["scaled"].logged(rf"Disconnected: {id} \(max_duration\)")


async def test_an_expiring_token_is_announced_then_closes_with_4001(servers: dict[str, Server]) -> None:
    token = jwt(SECRET, exp=int(time.time()) + 3)  # whole seconds: between 2 and 3 are left
    async with client(servers["scaled"].url(f"/token?token={token}")) as ada:
        id = (await ada.call("whoami"))["id"]
        warning = await ada.receive()
        assert warning["event"] == "__auth_expiring__"
        assert 0 < warning["payload"]["expires_in"] <= 1.5
        assert (await ada.error())["code"] == "AUTH_EXPIRED"
        assert (await ada.closed())[0] == 4001
    await servers["scaled"].logged(rf"Disconnected: {id} \(auth_expired\)")


async def test_a_refreshed_token_keeps_the_connection(servers: dict[str, Server]) -> None:
    expires = int(time.time()) + 2
    async with client(servers["scaled"].url(f"/token?token={jwt(SECRET, exp=expires)}")) as ada:
        assert (await ada.receive())["event"] == "__auth_expiring__"
        assert (await ada.call("__refresh_auth__", {"token": jwt(SECRET)}))["token_expires_at"] > expires + 60
        await asyncio.sleep(max(expires - time.time(), 0) + 0.3)
        assert (await ada.call("whoami"))["user"] == "ada"


@pytest.mark.asgi_only
async def test_all_session_options_work_together(servers: dict[str, Server]) -> None:
    seen: list[str] = []
    async with client(servers["scaled"].url("/all")) as ada:
        with pytest.raises(ConnectionClosed) as ended:
            await _answer_pings(ada, seen)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 4003, "pongs are no activity"
    assert seen[-1] == "IDLE_TIMEOUT"
    assert {"__ping__", "__idle_warning__"} <= set(seen)


async def test_hooks_hear_of_connect_disconnect_and_errors(servers: dict[str, Server]) -> None:
    server = servers["hooks"]
    async with client(server.url("/ws")) as ada:
        id = (await ada.call("whoami"))["id"]
        await server.logged(f"Connected: {id}")
        await ada.send("fail", id="f")
        error = await ada.error()
        assert error["code"] == "HANDLER_ERROR"
        assert "purpose" not in str(error)
        await server.logged(f"Handler error on {id}: broken on purpose")
        await server.logged(f"request {error['request_id']}")
    await server.logged(rf"Disconnected: {id} \(client_closed\)")


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, "client_closed"), (1001, "client_going_away"), (4123, "client:4123")]
)
async def test_the_clients_close_code_reaches_on_disconnect(servers: dict[str, Server], code: int, reason: str) -> None:
    async with client(servers["hooks"].url("/ws")) as ada:
        id = (await ada.call("whoami"))["id"]
        await ada.connection.close(code)
    await servers["hooks"].logged(rf"Disconnected: {id} \({reason}\)")


async def test_a_lost_connection_and_a_servers_disconnect_have_their_reasons(servers: dict[str, Server]) -> None:
    server = servers["hooks"]
    async with client(server.url("/ws")) as ada, client(server.url("/ws")) as bob:
        lost, kicked = (await ada.call("whoami"))["id"], (await bob.call("whoami"))["id"]
        ada.connection.transport.abort()
        await bob.send("leave")
        assert await bob.closed() == (4000, "kicked")
    await server.logged(rf"Disconnected: {lost} \(connection_lost\)")
    await server.logged(rf"Disconnected: {kicked} \(kicked\)")


async def test_the_complete_example_works(servers: dict[str, Server]) -> None:
    server = servers["complete"]
    url = server.url("/ws?token=" + jwt("super-secret", sub="ada"))
    async with client(url, origin="https://myapp.com", subprotocols=["socketspec.v1.json"]) as ada:
        assert (await ada.receive())["payload"]["session_expires_at"] == pytest.approx(time.time() + 7200, abs=5)
        assert (await ada.call("whoami"))["user"] == "ada"
    assert await refused(url, origin="https://evil.example") == 403
    async with client(server.url("/ws"), origin="https://myapp.com") as eve:
        assert (await eve.error())["code"] == "AUTH_ERROR"
        assert (await eve.closed())[0] == 4001
    assert (await fetch(server, "/socket-docs")).status == 200
    assert "whoami" in (await fetch(server, "/socket-docs/schema")).text
    assert (await fetch(server, "/openapi.json")).json()["info"]["title"] == "My WebSocket API"
