"""Auth backends that ask for dependencies, and the identity as a dependency of HTTP routes."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import fastapi
import jwt
import pytest

from socketspec import Connection, Depends, Identity, SocketApp
from socketspec.adapters.fastapi import CurrentIdentity, mount
from socketspec.errors import AuthError, ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import APIKeyAuth, JWTAuth
from socketspec.testing import ConnectionClosed, TestClient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it would like another HTTP client
    from starlette.testclient import TestClient as HTTPClient

SECRET = "s" * 32
log: list[str] = []


async def users() -> AsyncIterator[dict[str, str]]:
    log.append("open")
    yield {"k": "ada"}
    log.append("close")


Users = Annotated[dict[str, str], Depends(users)]


async def by_function(handshake: Handshake, known: Users) -> Identity | None:
    key = handshake.query_params.get("key")
    if key is not None and key not in known:
        raise AuthError("Who?")
    return None if key is None else Identity(user_id=known[key])


def by_sync_function(handshake: Handshake, known: Users) -> Identity | None:
    return Identity(user_id=known[handshake.query_params["key"]])


class Backend:
    async def authenticate(self, handshake: Handshake, known: Users) -> Identity | None:
        return Identity(user_id=known[handshake.query_params["key"]])


async def by_key(key: str, known: Users) -> Identity | None:
    return Identity(user_id=known[key])


async def by_claims(claims: Mapping[str, Any], known: Users) -> Identity | None:
    return Identity(user_id=known[claims["sub"]])


@pytest.mark.parametrize(
    "auth",
    [
        by_function,
        by_sync_function,
        Backend(),
        APIKeyAuth(by_key, query_param="key"),
        JWTAuth(SECRET, identity=by_claims),
    ],
)
async def test_an_auth_backend_gets_its_dependencies_which_end_with_the_authentication(auth: Any) -> None:
    log.clear()
    socket = SocketApp(auth=auth)
    token = jwt.encode({"sub": "k", "exp": 2**33}, SECRET)
    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"key": "k", "token": token})
        assert (conn.identity.user_id, log) == ("ada", ["open", "close"])
        socket.dependency_overrides[users] = lambda: {"k": "bob"}
        assert (await client.connect(query_params={"key": "k", "token": token})).identity.user_id == "bob"


async def test_a_dependency_that_refuses_is_a_refusal_of_the_credentials() -> None:
    def refuse() -> None:
        raise fastapi.HTTPException(403, "Not today.")

    async def auth(handshake: Handshake, _: Annotated[None, Depends(refuse)]) -> Identity | None:
        return Identity(user_id="ada")

    async with TestClient(SocketApp(auth=auth)) as client:
        conn = await client.connect()
        payload = (await conn.receive())["payload"]
        assert (payload["code"], payload["message"]) == ("AUTH_ERROR", "Not today.")
        with pytest.raises(ConnectionClosed):
            await conn.receive()


def test_what_authentication_cannot_have_is_refused() -> None:
    async def wants_connection(handshake: Handshake, conn: Connection) -> Identity | None: ...
    async def wants_identity(handshake: Handshake, who: Identity) -> Identity | None: ...
    async def kept(handshake: Handshake, db: Annotated[Any, Depends(users, scope="connection")]) -> Identity | None: ...

    for wrong in (wants_connection, wants_identity, kept):
        with pytest.raises(ConfigurationError):
            SocketApp(auth=wrong)


socket = SocketApp(auth=APIKeyAuth({"key": Identity(user_id="ada")}))


def name(who: Annotated[Identity, fastapi.Depends(CurrentIdentity(socket))]) -> dict[str, str | None]:
    return {"name": who.user_id}


def test_the_identity_is_a_dependency_of_http_routes_and_of_events() -> None:
    assert CurrentIdentity(socket) == CurrentIdentity(socket) != CurrentIdentity(SocketApp())
    app = fastapi.FastAPI()
    mount(socket, app)
    app.get("/name")(name)

    @socket.on("name")
    async def event(conn: Connection, found: Annotated[dict[str, str | None], Depends(name)]) -> dict[str, str | None]:
        return found

    with HTTPClient(app) as client:
        assert client.get("/name", headers={"X-API-Key": "key"}).json() == {"name": "ada"}
        for headers in ({}, {"X-API-Key": "other"}):
            refused = client.get("/name", headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        with client.websocket_connect("/ws", headers={"X-API-Key": "key"}) as ws:
            ws.send_json({"event": "name", "id": 1})
            assert ws.receive_json()["payload"] == {"name": "ada"}
        app.dependency_overrides[CurrentIdentity(socket)] = lambda: Identity(user_id="bob")
        assert client.get("/name").json() == {"name": "bob"}
