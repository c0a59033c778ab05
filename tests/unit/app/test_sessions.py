"""Sessions across connections and nodes: revocation, return, and `max_duration` from the first connect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemorySessions
from socketspec.errors import BackendError, ValidationFailed
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.session import SessionConfig
from socketspec.session.revocation import revocation_subjects
from socketspec.session.session_tokens import bound_name, check_session, new_token
from socketspec.testing import HandshakeRefused, TestClient, TestConnection
from tests.carriers import Carrier
from tests.endings import end_of
from tests.engines import running

V1 = ["socketspec.v1.json"]
TOKEN = new_token("/", None)
"""A session token that some anonymous client might have been given."""


class ByClaims:
    """Takes a JSON object of claims for a verified token."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        token = handshake.token or handshake.query_params.get("token")
        if token is None:
            return None
        claims: dict[str, Any] = json.loads(token)
        return Identity(user_id=claims.get("sub"), claims=claims)


class Recording(MemorySessions):
    """Counts what is asked and keeps what is stored; can be away, and can move the begin of sessions back."""

    def __init__(self) -> None:
        super().__init__(lambda: self.clock)
        self.clock = 1000.0
        self.asked: list[Sequence[str]] = []
        self.stored: list[str] = []
        self.ttls: list[float] = []
        self.away = False
        self.aged = 0.0

    async def begin(self, session: str, *, ttl: float) -> float:
        self._reach(session, ttl)
        return await super().begin(session, ttl=ttl) - self.aged

    async def began(self, session: str) -> float | None:
        self._reach()
        found = await super().began(session)
        return None if found is None else found - self.aged

    async def revoke(self, subject: str, *, ttl: float) -> None:
        self._reach(subject, ttl)
        await super().revoke(subject, ttl=ttl)

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        self._reach()
        self.asked.append(subjects)
        return await super().is_revoked(subjects)

    def _reach(self, stored: str | None = None, ttl: float = 0.0) -> None:
        if self.away:
            raise BackendError("Redis cannot be reached")
        if stored is not None:
            self.stored.append(stored)
            self.ttls.append(ttl)


def backend() -> tuple[MemoryBackend, Recording]:
    made = MemoryBackend()
    made.sessions = sessions = Recording()
    return made, sessions


def claims(**named: Any) -> dict[str, str]:
    return {"token": json.dumps({"sub": "ada", **named})}


async def refused(conn: TestConnection) -> tuple[str, int, str]:
    """Code of the one error that came before the end, and how it ended."""
    messages, code, reason = await end_of(conn)
    (error,) = messages
    assert error["event"] == "__error__"
    return error["payload"]["code"], code, reason


REVOCATIONS = [
    ({"user": "ada"}, {}),
    ({"token_id": "j1"}, {"jti": "j1"}),
    ({"token_id": "s1"}, {"sid": "s1", "jti": "j9"}),
    ({"session": "s1"}, {"sid": "s1", "jti": "j9"}),
    ({"session": "j1"}, {"jti": "j1"}),
    ({"token_id": "7"}, {"jti": 7}),
]


@pytest.mark.parametrize(("what", "token"), REVOCATIONS)
async def test_what_is_revoked_is_closed_on_every_node_and_refused_on_return(
    what: dict[str, str], token: dict[str, Any]
) -> None:
    shared, sessions = backend()
    apps = [SocketApp(backend=shared, auth=ByClaims()) for _ in range(2)]
    async with TestClient(apps[0]) as here, TestClient(apps[1]) as there:
        ada = [await client.connect(query_params=claims(**token)) for client in (here, there)]
        other = await here.connect(query_params=claims(sub="bob", jti="j2", sid="s2"))
        await apps[1].sessions.revoke(**what, ttl=60, reason="stolen")
        for conn in ada:
            assert await end_of(conn) == ([], 4005, "stolen")
        assert other.connection.is_open
        for client in (here, there):
            assert await refused(await client.connect(query_params=claims(**token))) == ("AUTH_ERROR", 4005, "revoked")
        assert (await here.connect(query_params=claims(sub="bob"))).connection.is_open
        sessions.clock += 61
        assert (await here.connect(query_params=claims(**token))).connection.is_open


@pytest.mark.parametrize("config", [SessionConfig(), SessionConfig(max_duration=100)])
@pytest.mark.parametrize("token", [{"jti": "1jti"}, {"sid": "s-1"}, {"sid": "s-1", "jti": "1jti"}, {"jti": 7}])
async def test_the_session_of_one_user_is_revoked_and_no_other_whose_token_has_the_same_name(
    token: dict[str, Any], config: SessionConfig
) -> None:
    shared, _ = backend()
    apps = [SocketApp(backend=shared, auth=ByClaims(), session=config) for _ in range(2)]
    async with TestClient(apps[0]) as here, TestClient(apps[1]) as there:
        ada, elsewhere = [await client.connect(query_params=claims(**token)) for client in (here, there)]
        bob = await here.connect(query_params=claims(sub="bob", **token))
        assert ada.connection.session.id == elsewhere.connection.session.id != bob.connection.session.id
        await apps[1].sessions.revoke(session=ada.connection.session.id)
        for conn in (ada, elsewhere):
            assert await end_of(conn) == ([], 4005, "revoked")
        assert bob.connection.is_open
        assert await refused(await there.connect(query_params=claims(**token))) == ("AUTH_ERROR", 4005, "revoked")
        again = await there.connect(query_params=claims(sub="bob", **token))
        assert again.connection.is_open
        await apps[1].sessions.revoke(session=str(next(iter(token.values()))))
        for conn in (bob, again):
            assert await end_of(conn) == ([], 4005, "revoked"), "the bare name is everybody's who has it"


@pytest.mark.parametrize("subprotocols", [[], V1])
async def test_a_token_that_names_its_session_by_half_a_character_is_let_in(subprotocols: list[str]) -> None:
    async with TestClient(SocketApp(auth=ByClaims())) as client:
        conn = await client.connect(query_params=claims(jti="\ud83d"), subprotocols=subprotocols)
        assert conn.connection.is_open
        if subprotocols:
            assert (await conn.receive())["payload"]["session"] == conn.connection.session.id


async def test_several_things_are_revoked_at_once_and_the_ttl_is_a_day() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, auth=ByClaims())
    async with TestClient(app):
        await app.sessions.revoke(session="s", user="u", token_id="t")
        assert len(set(sessions.stored)) == 3
        assert sessions.ttls == [86_400.0] * 3


async def test_revocations_stay_in_their_namespace() -> None:
    shared, _ = backend()
    one, two = (SocketApp(backend=shared, auth=ByClaims(), namespace=name) for name in ("/one", "/two"))
    async with TestClient(one), TestClient(two) as there:
        conn = await there.connect(query_params=claims())
        await one.sessions.revoke(user="ada")
        assert conn.connection.is_open
        assert (await there.connect(query_params=claims())).connection.is_open


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "say what"),
        ({"user": ""}, "non-empty"),
        ({"session": 7}, "non-empty str, not 7"),
        ({"user": "ada", "ttl": 0}, "more than 0"),
        ({"user": "ada", "ttl": float("nan")}, "more than 0"),
        ({"user": "ada", "ttl": True}, "more than 0"),
        ({"user": "ada", "ttl": 1e12}, "10 years"),
    ],
)
async def test_revoking_nothing_or_for_an_impossible_time_is_an_error(arguments: dict[str, Any], problem: str) -> None:
    app = SocketApp()
    async with TestClient(app):
        with pytest.raises(ValueError, match=problem):
            await app.sessions.revoke(**arguments)


@pytest.mark.parametrize("ttl", [0.001, 10 * 365 * 86_400])
async def test_a_revocation_may_last_a_moment_or_ten_years(ttl: float) -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared)
    async with TestClient(app):
        await app.sessions.revoke(user="ada", ttl=ttl)
        assert sessions.ttls == [ttl]


async def test_a_revocation_that_cannot_be_recorded_raises_and_closes_nobody() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, auth=ByClaims())
    async with TestClient(app) as client:
        conn = await client.connect(query_params=claims())
        sessions.away = True
        with pytest.raises(BackendError):
            await app.sessions.revoke(user="ada")
        assert conn.connection.is_open, "closed without a record it would just come back"


async def test_a_revocation_between_the_check_and_the_opening_is_not_missed() -> None:
    app = SocketApp(auth=ByClaims())
    async with TestClient(app):
        engine = await running(app)
        admission = await engine.admit(Handshake(query_params=QueryParams(claims().items())))
        await app.sessions.revoke(user="ada")
        carrier = Carrier()
        conn = await engine.open(admission, Handshake(headers=Headers()), carrier)
        assert carrier.closed is not None
        assert carrier.closed[0] == 4005
        assert not conn.is_open


async def test_the_backend_is_asked_once_per_connect_and_only_where_there_is_something_to_ask() -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared)) as client:
        await client.connect()
        assert sessions.asked == []
        await client.connect(query_params={"session": TOKEN})
        assert [len(subjects) for subjects in sessions.asked] == [1]
    async with TestClient(SocketApp(backend=shared, auth=ByClaims())) as client:
        await client.connect(query_params=claims(sid="s", jti="j"))
        assert [len(subjects) for subjects in sessions.asked] == [1, 5]
    assert sessions.stored == [], "without max_duration nothing has to be remembered"


@pytest.mark.parametrize("config", [SessionConfig(), SessionConfig(max_duration=60)])
async def test_while_the_backend_is_away_nobody_gets_in_unchecked(
    config: SessionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared, auth=ByClaims(), session=config)) as client:
        waiting = await client.connect()
        sessions.away = True
        with pytest.raises(HandshakeRefused) as refusal:
            await client.connect(query_params=claims())
        assert refusal.value.status == 503
        await waiting.send("__refresh_auth__", claims())
        assert await end_of(waiting) == ([], 1013, "try_again_later")
    assert {record.exc_info for record in caplog.records if record.levelname == "ERROR"} == {None}


async def test_a_first_message_is_checked_too() -> None:
    app = SocketApp(auth=ByClaims())
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.sessions.revoke(token_id="j1")
        await conn.send("__refresh_auth__", claims(jti="j1"))
        assert await refused(conn) == ("AUTH_ERROR", 4005, "revoked")


async def test_a_renewal_with_a_revoked_token_is_refused_and_one_with_a_good_one_counts() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, auth=ByClaims())
    async with TestClient(app) as client:
        conn = await client.connect(query_params=claims(jti="j1"))
        await app.sessions.revoke(token_id="j2")
        await conn.send("__refresh_auth__", claims(jti="j2"), id=1)
        assert (await conn.receive())["payload"]["details"] == {"reason": "revoked"}
        await conn.send("__refresh_auth__", claims(jti="j3"), id=2)
        assert (await conn.receive())["event"] == "__ack__"
        sessions.away = True
        await conn.send("__refresh_auth__", claims(jti="j4"), id=3)
        assert (await conn.receive())["payload"]["code"] == "HANDLER_ERROR"
        sessions.away = False
        await app.sessions.revoke(token_id="j1")
        assert conn.connection.is_open, "it no longer lives by that one"
        await app.sessions.revoke(token_id="j3")
        assert await end_of(conn) == ([], 4005, "revoked")


async def test_a_connections_own_session_can_be_revoked() -> None:
    app = SocketApp()

    @app.on("sign_out")
    async def sign_out(conn: Connection) -> None:
        await app.sessions.revoke(session=conn.session.id)

    async with TestClient(app) as client:
        conn, other = await client.connect(), await client.connect()
        await conn.send("sign_out")
        assert await end_of(conn) == ([], 4005, "revoked")
        assert other.connection.is_open
        token = conn.connection.session.id
        assert (await refused(await client.connect(query_params={"session": token})))[1] == 4005


BROUGHT = [
    (claims(sid="s1"), claims(sid="s1", jti="another")),
    (claims(jti="j1"), claims(jti="j1")),
    (claims(), None),
]


@pytest.mark.parametrize(("first", "second"), BROUGHT)
async def test_max_duration_counts_from_the_first_connect_wherever_the_client_returns(
    first: dict[str, str], second: dict[str, str] | None
) -> None:
    shared, sessions = backend()
    apps = [SocketApp(backend=shared, auth=ByClaims(), session=SessionConfig(max_duration=100)) for _ in range(2)]
    async with TestClient(apps[0]) as here, TestClient(apps[1]) as there:
        began = (await here.connect(query_params=first)).connection.session
        second = second or {**first, "session": began.id}
        sessions.aged = 40.0
        back = (await there.connect(query_params=second)).connection
        assert back.session.id == began.id
        assert back.session.started_at == pytest.approx(began.started_at - 40, abs=1)
        assert back.session.expires_at == pytest.approx(back.session.started_at + 100)
        assert back.clock.expires_at == pytest.approx(asyncio.get_running_loop().time() + 60, abs=1)
        new = (await there.connect(query_params=claims(sid="s2"))).connection.session
        assert new.id != began.id
        sessions.aged = 101.0
        assert await refused(await there.connect(query_params=second)) == ("SESSION_EXPIRED", 4002, "max_duration")
        assert sessions.ttls == [100 + 86_400.0] * len(sessions.ttls)


async def test_a_session_without_a_name_begins_with_each_connect() -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared, session=SessionConfig(max_duration=100))) as client:
        one, two = [(await client.connect()).connection.session for _ in range(2)]
        sessions.aged = 500.0
        three = (await client.connect()).connection
        assert len({one.id, two.id, three.session.id}) == 3
        assert three.clock.expires_at == pytest.approx(asyncio.get_running_loop().time() + 100, abs=1)


async def test_a_first_message_goes_on_with_its_session() -> None:
    shared, sessions = backend()
    sessions.aged = 30.0
    config = SessionConfig(max_duration=100)
    async with TestClient(SocketApp(backend=shared, auth=ByClaims(), session=config)) as client:
        conn = await client.connect(subprotocols=V1)
        await conn.send("__refresh_auth__", claims(sid="s1"), id=1)
        hello = await conn.receive()
        assert (hello["event"], hello["payload"]["session"]) == ("__connect__", bound_name("/", "ada", "s1"))
        assert hello["payload"]["session_expires_at"] == conn.connection.session.expires_at
        assert conn.connection.clock.expires_at == pytest.approx(asyncio.get_running_loop().time() + 70, abs=1)
        sessions.aged = 200.0
        late = await client.connect()
        await late.send("__refresh_auth__", claims(sid="s1"))
        assert await refused(late) == ("SESSION_EXPIRED", 4002, "max_duration")


async def test_neither_tokens_nor_users_are_stored_or_sent_as_they_are() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, auth=ByClaims(), session=SessionConfig(max_duration=100))
    async with TestClient(app) as client:
        await client.connect(query_params=claims(sid="secret-sid", jti="secret-jti", sub="secret-ada"))
        token = (await client.connect(query_params=claims(sub="secret-ada"))).connection.session.id
        await client.connect(query_params=claims(sub="secret-ada") | {"session": token})
        await app.sessions.revoke(session=token, user="secret-ada", token_id="secret-jti")
    assert len(sessions.stored) == 5
    known = repr((sessions.stored, sessions.asked))
    assert "secret" not in known
    assert token not in known


BAD_SESSIONS = ["", "short", "x" * 129, "with spaces in it!", "ünïcödé-letters-here", 7, True, ["a"], {}]


@pytest.mark.parametrize("session", BAD_SESSIONS)
async def test_what_cannot_be_a_session_token_is_refused_with_a_sentence(session: Any) -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect(subprotocols=V1)
        before = conn.connection.session
        await conn.receive()
        await conn.send("__resume__", {"session": session, "rooms": {"lobby": None}}, id=1)
        error = (await conn.receive())["payload"]
        assert (error["code"], error["event"]) == ("VALIDATION_ERROR", "__resume__")
        assert "16 to 128" in error["message"]
        assert conn.connection.session is before
        assert conn.connection.rooms == frozenset()
        if isinstance(session, str):
            refusal = await refused(await client.connect(query_params={"session": session}))
            assert refusal == ("VALIDATION_ERROR", 4001, "auth_error")


@given(st.text(max_size=40))
def test_a_session_token_is_taken_as_it_is_or_not_at_all(text: str) -> None:
    try:
        assert check_session(text) == text
    except ValidationFailed:
        return
    assert len(text) >= 16
    assert text.isascii()


async def resume(conn: TestConnection, session: str) -> dict[str, Any]:
    await conn.send("__resume__", {"session": session}, id="r")
    answer = await conn.receive_event("__resume__")
    payload: dict[str, Any] = answer["payload"]
    return payload


async def test_resume_goes_on_with_a_session_and_its_deadline() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, session=SessionConfig(max_duration=100))
    async with TestClient(app) as client:
        first = (await client.connect()).connection.session
        conn = await client.connect(subprotocols=V1)
        sessions.aged = 40.0
        answer = await resume(conn, first.id)
        adopted = conn.connection.session
        assert adopted.id == first.id
        assert answer == {"session_resumed": True, "session_expires_at": adopted.expires_at, "rooms": {}}
        assert conn.connection.clock.expires_at == pytest.approx(asyncio.get_running_loop().time() + 60, abs=1)
        await app.sessions.revoke(session=first.id)
        assert (await end_of(conn))[1] == 4005, "it is listed under the session it went on with"


async def test_resume_never_moves_a_deadline_to_later() -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared, session=SessionConfig(max_duration=100))) as client:
        one, two = [(await client.connect()).connection.session.id for _ in range(2)]
        conn = await client.connect(subprotocols=V1)
        sessions.aged = 50.0
        await resume(conn, one)
        early = conn.connection.session
        assert early.id == one
        sessions.aged = 0.0
        await resume(conn, two)
        assert conn.connection.session.id == two
        assert conn.connection.session.expires_at == early.expires_at
        assert conn.connection.clock.expires_at == pytest.approx(asyncio.get_running_loop().time() + 50, abs=1)


@pytest.mark.parametrize(("how", "refusal"), [("revoked", "AUTH_ERROR"), ("expired", "SESSION_EXPIRED")])
async def test_resume_of_a_session_that_is_over_ends_the_connection(how: str, refusal: str) -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, session=SessionConfig(max_duration=100))
    asked: list[str] = []

    @app.room_guard("lobby")
    async def guard(conn: Connection) -> bool:
        asked.append(conn.id)
        return True

    async with TestClient(app) as client:
        token = (await client.connect()).connection.session.id
        conn = await client.connect()
        if how == "revoked":
            await app.sessions.revoke(session=token)
        else:
            sessions.aged = 101.0
        await conn.send("__resume__", {"session": token, "rooms": {"lobby": None}})
        code, close, _ = await refused(conn)
        assert (code, close) == (refusal, 4005 if how == "revoked" else 4002)
        assert asked == []
        assert await app.rooms.count("lobby") == 0


async def test_resume_changes_nothing_where_the_token_names_the_session_or_it_is_the_same() -> None:
    shared, sessions = backend()
    app = SocketApp(backend=shared, auth=ByClaims())
    async with TestClient(app) as client:
        for query in (claims(sid="s1"), claims()):
            conn = await client.connect(query_params=query)
            before, asked = conn.connection.session, len(sessions.asked)
            answer = await resume(conn, TOKEN if "sid" in query["token"] else before.id)
            assert answer["session_resumed"] is ("sid" not in query["token"])
            assert conn.connection.session is before
            assert len(sessions.asked) == asked


async def test_resume_while_the_backend_is_away_fails_and_keeps_the_connection() -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared)) as client:
        conn = await client.connect()
        before = conn.connection.session
        sessions.away = True
        await conn.send("__resume__", {"session": TOKEN}, id=1)
        assert (await conn.receive())["payload"]["code"] == "HANDLER_ERROR"
        assert conn.connection.session is before
        assert conn.connection.is_open


async def test_the_session_ends_when_its_time_is_over_not_the_connections() -> None:
    shared, sessions = backend()
    async with TestClient(SocketApp(backend=shared, session=SessionConfig(max_duration=100))) as client:
        token = (await client.connect()).connection.session.id
        sessions.aged = 99.9
        conn = await client.connect(query_params={"session": token})
        async with asyncio.timeout(5):
            messages, code, _ = await end_of(conn)
        assert (messages[-1]["payload"]["code"], code) == ("SESSION_EXPIRED", 4002)


PARTS = st.tuples(
    st.text(max_size=8), st.sampled_from(["session", "user", "token_id"]), st.text(min_size=1, max_size=8)
)


@given(PARTS, PARTS)
def test_subjects_are_equal_only_where_everything_is(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    subjects = [revocation_subjects(space, **{kind: value}) for space, kind, value in (one, two)]
    assert (subjects[0] == subjects[1]) is (one == two)
