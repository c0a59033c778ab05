"""Session tokens that clients bring: looked up and never created, and of no use to another user."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from socketspec import Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemorySessions
from socketspec.protocol.handshake import Handshake
from socketspec.session import SessionConfig
from socketspec.session.session_tokens import bound_name, new_token
from socketspec.testing import ConnectionClosed, TestClient, TestConnection

V1 = ["socketspec.v1.json"]
LASTING = SessionConfig(max_duration=100)
CONFIGS = [SessionConfig(), LASTING]


class ByClaims:
    """Takes a JSON object of claims for a verified token; nobody for somebody anonymous."""

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        claims: dict[str, Any] = json.loads(handshake.query_params.get("token", "{}"))
        return Identity(user_id=claims.get("sub"), claims=claims, is_authenticated="sub" in claims)


def user(name: str | None, session: str | None = None, **claims: Any) -> dict[str, str]:
    token = {} if name is None else {"sub": name}
    return {"token": json.dumps(token | claims), **({} if session is None else {"session": session})}


def app(config: SessionConfig, backend: MemoryBackend | None = None, **options: Any) -> SocketApp:
    return SocketApp(backend=backend or MemoryBackend(), auth=ByClaims(), session=config, **options)


class Counting(MemorySessions):
    """Remembers which sessions have a record."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.begun: set[str] = set()

    async def begin(self, session: str, *, ttl: float) -> float:
        self.begun.add(session)
        return await super().begin(session, ttl=ttl)


def made_up(owner: str | None) -> list[str]:
    """Tokens nobody gave out: of no form, of another user, and bound to the one who brings it."""
    return ["made-up-0123456789abcdef", "x" * 64, new_token("/", "somebody"), new_token("/", owner)]


async def resume(conn: TestConnection, session: str) -> dict[str, Any]:
    await conn.send("__resume__", {"session": session}, id="r")
    payload: dict[str, Any] = (await conn.receive_event("__resume__"))["payload"]
    return payload


@pytest.mark.parametrize("owner", [None, "ada"])
async def test_a_token_that_nobody_gave_out_leaves_no_record(owner: str | None) -> None:
    backend = MemoryBackend()
    backend.sessions = sessions = Counting()
    async with TestClient(app(LASTING, backend)) as client:
        conn = await client.connect(query_params=user(owner), subprotocols=V1)
        own = conn.connection.session
        assert len(sessions.begun) == 1
        for token in made_up(owner):
            answer = await resume(conn, token)
            assert answer == {"session_resumed": False, "session_expires_at": own.expires_at, "rooms": {}}
        assert conn.connection.session is own
        assert len(sessions.begun) == 1
        for number, token in enumerate(made_up(owner), 2):
            other = await client.connect(query_params=user(owner, token))
            assert other.connection.session.id not in made_up(owner)
            assert other.connection.session.id != token
            assert len(sessions.begun) == number, "the fresh session's own"


async def test_who_brings_an_unknown_token_is_told_the_fresh_one() -> None:
    async with TestClient(app(LASTING)) as client:
        conn = await client.connect(query_params=user("ada", new_token("/", "ada")), subprotocols=V1)
        greeting = (await conn.receive())["payload"]
        assert greeting["session"] == conn.connection.session.id
        again = await client.connect(query_params=user("ada", greeting["session"]))
        assert again.connection.session.id == greeting["session"]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("owner", [None, "ada"])
async def test_a_token_that_was_given_out_is_gone_on_with_on_every_node(
    config: SessionConfig, owner: str | None
) -> None:
    backend = MemoryBackend()
    async with TestClient(app(config, backend)) as here, TestClient(app(config, backend)) as there:
        token = (await here.connect(query_params=user(owner))).connection.session.id
        back = await there.connect(query_params=user(owner, token))
        assert back.connection.session.id == token
        resumed = await there.connect(query_params=user(owner))
        assert (await resume(resumed, token))["session_resumed"] is True
        assert resumed.connection.session.id == token


OTHERS = [("ada", "mallory"), ("ada", None), (None, "mallory")]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("owner", "thief"), OTHERS)
async def test_another_users_token_is_not_gone_on_with_and_closes_nobody_else(
    config: SessionConfig, owner: str | None, thief: str | None
) -> None:
    shared = app(config)
    async with TestClient(shared) as client:
        owners = await client.connect(query_params=user(owner), subprotocols=V1)
        token = owners.connection.session.id
        brought = await client.connect(query_params=user(thief, token))
        resumed = await client.connect(query_params=user(thief))
        assert (await resume(resumed, token))["session_resumed"] is False
        for conn in (brought, resumed):
            assert conn.connection.session.id != token
            await shared.sessions.revoke(session=conn.connection.session.id)
            assert not conn.connection.is_open
            assert owners.connection.is_open, "who brings a session does not end it for its user"
        bystander = await client.connect(query_params=user(thief, token))
        await shared.sessions.revoke(session=token)
        assert not owners.connection.is_open
        assert bystander.connection.is_open, "nor is anybody bound who brings it"
        assert (await client.connect(query_params=user(thief, token))).connection.is_open
        returning = await client.connect(query_params=user(owner, token))
        assert (await returning.receive())["event"] == "__error__"
        with pytest.raises(ConnectionClosed, match="4005"):
            await returning.receive()


async def test_a_token_is_of_no_use_in_another_namespace() -> None:
    backend = MemoryBackend()
    one, two = app(SessionConfig(), backend, namespace="/one"), app(SessionConfig(), backend, namespace="/two")
    async with TestClient(one) as here, TestClient(two) as there:
        token = (await here.connect(query_params=user("ada"))).connection.session.id
        assert (await there.connect(query_params=user("ada", token))).connection.session.id != token


@pytest.mark.parametrize("claims", [{"sid": "s1"}, {"jti": "j1"}])
async def test_where_the_credentials_name_the_session_a_brought_token_is_nothing(claims: dict[str, str]) -> None:
    async with TestClient(app(LASTING)) as client:
        token = (await client.connect(query_params=user("ada"))).connection.session.id
        conn = await client.connect(query_params=user("ada", token, **claims))
        assert conn.connection.session.id == bound_name("/", "ada", next(iter(claims.values())))
        assert (await resume(conn, token))["session_resumed"] is False
