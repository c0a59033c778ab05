"""Ways to authenticate other than by header and query, and to stay authenticated, on a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support import Server, client, jwt, serving

SECRET = "a-secret-of-more-than-thirty-two-bytes"

APP = f"""
from fastapi import FastAPI
from socketspec import Identity, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import AuthError
from socketspec.security.auth import APIKeyAuth, JWTAuth


class Ticket:
    async def authenticate(self, handshake):
        ticket = handshake.query_params.get("ticket")
        if ticket is None:
            return None
        if ticket == "broken":
            raise RuntimeError("the ticket office burned down")
        if ticket != "good":
            raise AuthError("Bad ticket.")
        return Identity(user_id="ticket-holder", extra={{"seat": 7}})


token = JWTAuth(secret="{SECRET}")
APPS = {{
    "first": SocketApp(auth=JWTAuth(secret="{SECRET}", first_message=True), auth_timeout=0.5, namespace="/first"),
    "token": SocketApp(auth=token, namespace="/token"),
    "several": SocketApp(auth=[token, APIKeyAuth(valid_keys={{"key-abc"}}), Ticket()], namespace="/several"),
}}
app = FastAPI()
for name, socket in APPS.items():

    @socket.on("whoami")
    async def whoami(conn) -> dict:
        return {{"id": conn.id, "user": conn.identity.user_id, "extra": dict(conn.identity.extra)}}

    @socket.on_connect
    async def hello(conn) -> None:
        print(f"Connected: {{conn.identity.user_id}}")

    mount(socket, app, path="/" + name)
"""


@pytest.fixture(scope="module")
def server(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server.start(tmp_path_factory.mktemp("sessions"), APP)
    with serving(started, expected=["RuntimeError: the ticket office burned down"]):
        yield started


async def test_a_first_message_authenticates(server: Server) -> None:
    async with client(server.url("/first")) as ada:
        await ada.call("__refresh_auth__", {"token": jwt(SECRET, sub="first-ada")})
        assert (await ada.call("whoami"))["user"] == "first-ada"
        await server.logged("Connected: first-ada")


async def test_a_bad_first_message_or_another_event_closes_with_4001(server: Server) -> None:
    for event, payload in [("__refresh_auth__", {"token": "nonsense"}), ("whoami", {}), ("unknown", {})]:
        async with client(server.url("/first")) as eve:
            await eve.send(event, payload)
            assert (await eve.error())["code"] == "AUTH_ERROR"
            assert (await eve.closed())[0] == 4001


async def test_who_sends_no_first_message_is_closed_after_auth_timeout(server: Server) -> None:
    async with client(server.url("/first")) as eve:
        began = time.monotonic()
        assert (await eve.error())["code"] == "AUTH_ERROR"
        assert (await eve.closed())[0] == 4001
        assert 0.4 < time.monotonic() - began < 3


async def test_a_token_by_subprotocol_is_not_echoed(server: Server) -> None:
    offered = [f"socketspec.bearer.{jwt(SECRET, sub='sub-ada')}", "socketspec.v1.json"]
    async with client(server.url("/token"), subprotocols=offered) as ada:
        assert ada.connection.subprotocol == "socketspec.v1.json"
        assert (await ada.receive())["event"] == "__connect__"
        assert (await ada.call("whoami"))["user"] == "sub-ada"
    assert offered[0] not in server.log


async def test_several_backends_are_tried_in_order(server: Server) -> None:
    url = server.url("/several")
    async with client(f"{url}?token={jwt(SECRET)}&ticket=good") as ada:
        assert (await ada.call("whoami"))["user"] == "ada"
    async with client(url, headers={"x-api-key": "key-abc"}) as bob:
        assert (await bob.call("whoami"))["id"]
    async with client(f"{url}?ticket=good") as cleo:
        assert (await cleo.call("whoami"))["extra"] == {"seat": 7}


async def test_a_custom_backend_refuses_and_fails_closed(server: Server) -> None:
    for ticket in ("bad", "broken"):
        async with client(server.url(f"/several?ticket={ticket}")) as eve:
            error = await eve.error()
            assert error["code"] == "AUTH_ERROR"
            assert "burned" not in str(error)
            assert (await eve.closed())[0] == 4001


async def test_a_refresh_takes_the_same_user_only(server: Server) -> None:
    async with client(server.url(f"/token?token={jwt(SECRET, sub='ada')}")) as ada:
        later = int(time.time()) + 7200
        assert await ada.call("__refresh_auth__", {"token": jwt(SECRET, exp=later)}) == {"token_expires_at": later}
        await ada.send("__refresh_auth__", {"token": jwt(SECRET, sub="bob")}, id="r")
        assert (await ada.error())["code"] == "AUTH_ERROR"
        assert (await ada.call("whoami"))["user"] == "ada"
