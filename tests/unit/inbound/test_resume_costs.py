"""What a resume costs: one token for all rooms with a right, and one for each other room that is named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.errors import BackendError, PermissionDenied
from socketspec.inbound.surcharge import CREDIT
from socketspec.protocol.publications import Position
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import running


class SharedBackend(MemoryBackend):
    """The memory backend, taken for one that nodes share: limits are asked of it."""

    shared = True


class Guarded(SocketApp):
    """Lets clients into the rooms called mine:…; remembers what its guard was asked."""

    def __init__(self, limit: RateLimit | None, backend: MemoryBackend | None = None) -> None:
        rooms = [
            Room("mine:{n}", history=History()),
            Room("theirs:{n}", history=History()),
            Room("kept:{n}", history=History()),
            Room("open:{n}", client_join=True),
            Room("small:{n}", max_members=1),
        ]
        super().__init__(backend=backend or MemoryBackend(), rate_limit=limit, rooms=rooms)
        self.asked: list[str] = []

        @self.room_guard("mine:{n}")
        async def mine(conn: Connection, n: str) -> bool:
            return True

        @self.room_guard("theirs:{n}")
        async def theirs(conn: Connection, n: str) -> bool:
            self.asked.append(n)
            if n.startswith("fails"):
                raise LookupError(n)
            if n.startswith("away"):
                raise BackendError("redis is gone")
            return False

        @self.room_guard("small:{n}")
        async def small(conn: Connection, n: str) -> bool:
            return True


SCOPES = [("connection", MemoryBackend), ("ip", MemoryBackend), ("ip", SharedBackend)]


def limited(capacity: int, scope: Any, backend: type[MemoryBackend], **options: Any) -> Guarded:
    return Guarded(RateLimit(0.001, capacity, scope=scope, **options), backend())


async def resume(conn: TestConnection, *rooms: str, **positions: Position) -> dict[str, Any]:
    brought: dict[str, Any] = dict.fromkeys(rooms)
    brought |= {room: at._asdict() for room, at in positions.items()}
    await conn.send("__resume__", {"rooms": brought}, id="r")
    rows: dict[str, Any] = (await conn.receive_event("__resume__"))["payload"]["rooms"]
    assert list(rows) == list(brought), "in the order of the question"
    return rows


def reasons(rows: dict[str, Any]) -> list[str]:
    return [row["reason"] for row in rows.values()]


@pytest.mark.parametrize(("scope", "backend"), SCOPES)
async def test_thirty_rooms_with_a_right_cost_one_token(scope: Any, backend: type[MemoryBackend]) -> None:
    app = limited(1, scope, backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        rooms = [f"{kind}:{number}" for number in range(15) for kind in ("mine", "open")]
        assert reasons(await resume(conn, *rooms)) == ["no_position"] * 30
        assert conn.connection.rooms == set(rooms)


async def test_a_client_in_thirty_rooms_resumes_all_of_them_under_a_common_limit() -> None:
    app = Guarded(RateLimit(rate=10, capacity=20))
    async with TestClient(app) as client:
        at = [await app.rooms.broadcast(f"kept:{number}", "n") for number in range(30)]
        conn = await client.connect()
        positions = {f"kept:{n}": receipt.position for n, receipt in enumerate(at) if receipt.position is not None}
        rows = await resume(conn, **positions)
        assert [row["recovered"] for row in rows.values()] == [True] * 30
        await conn.send("marker?")
        assert (await conn.receive())["payload"]["code"] == "UNKNOWN_EVENT", "and has tokens left"


@pytest.mark.parametrize(("scope", "backend"), SCOPES)
async def test_every_other_room_costs_a_token_and_beyond_the_bucket_says_so(
    scope: Any, backend: type[MemoryBackend]
) -> None:
    app = limited(4, scope, backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        rows = await resume(conn, "theirs:1", "mine:1", "theirs:2", "nowhere", "theirs:3", "mine:2", "a\nb", "mine:3")
        assert {room: row["reason"] for room, row in rows.items()} == {
            "theirs:1": "PERMISSION_ERROR",
            "theirs:2": "PERMISSION_ERROR",
            "nowhere": "ROOM_NOT_FOUND",
            "theirs:3": "RATE_LIMIT_ERROR",
            "a\nb": "RATE_LIMIT_ERROR",
            **dict.fromkeys(["mine:1", "mine:2", "mine:3"], "no_position"),
        }
        assert 0 < rows["theirs:3"]["retry_after"] <= 1000
        assert set(rows["theirs:3"]) == {"recovered", "reason", "retry_after"}
        engine = await running(app)
        assert engine.counters.rate_limited == 2
        await conn.send("marker?")
        assert (await conn.receive())["payload"]["code"] == "RATE_LIMIT_ERROR"


@pytest.mark.parametrize(("scope", "backend"), SCOPES)
@pytest.mark.parametrize("name", ["theirs:{}", "theirs:fails{}", "unknown:{}", "kept:{}", "\n{}"])
async def test_a_thousand_rooms_cost_a_few_guards_and_close_in_the_end(
    name: str, scope: Any, backend: type[MemoryBackend]
) -> None:
    app = limited(3, scope, backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("__resume__", {"rooms": {name.format(number): None for number in range(1000)}})
        error = (await conn.receive())["payload"]
        assert (error["code"], error["details"]["retry_after"] > 0) == ("RATE_LIMIT_ERROR", True)
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert (closed.value.code, closed.value.reason) == (4007, "rate_limited")
        assert len(app.asked) <= 2 + CREDIT


async def test_positions_that_do_not_verify_are_read_a_few_times_only() -> None:
    app = Guarded(RateLimit(0.001, 3, max_violations=0))
    async with TestClient(app) as client:
        engine = await running(app)
        reads: list[str] = []
        read = engine.backend.history.read

        async def counted(topic: Any, **options: Any) -> Any:
            reads.append(topic.name)
            return await read(topic, **options)

        engine.backend.history.read = counted  # type: ignore[method-assign] # the backend is this test's own
        conn = await client.connect()
        made_up = {f"kept:{number}": Position(1, "epoch", "tag") for number in range(1000)}
        rows = await resume(conn, **made_up)
        assert reasons(rows) == ["PERMISSION_ERROR"] * 2 + ["RATE_LIMIT_ERROR"] * 998
        assert len(reads) == 2 + CREDIT


async def test_rooms_that_are_open_or_joined_go_on_when_no_other_is_looked_at_any_more() -> None:
    app = Guarded(RateLimit(0.001, 2, max_violations=0))
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "mine:joined")
        rows = await resume(conn, *(f"theirs:{number}" for number in range(50)), "open:1", "mine:joined", "mine:late")
        assert rows["open:1"]["reason"] == "no_position"
        assert rows["mine:joined"]["reason"] == "already_joined"
        assert rows["mine:late"]["reason"] == "RATE_LIMIT_ERROR", "it may come again"


async def test_those_with_a_position_are_looked_at_first() -> None:
    app = Guarded(RateLimit(0.001, 2, max_violations=0))
    async with TestClient(app) as client:
        at = (await app.rooms.broadcast("kept:1", "n")).position
        assert at is not None
        conn = await client.connect()
        rows = await resume(conn, *(f"theirs:{number}" for number in range(50)), **{"kept:1": at})
        assert rows["kept:1"] == {"recovered": True, "replayed": 0}


async def test_a_full_room_and_a_backend_that_is_away_cost_nothing() -> None:
    app = Guarded(RateLimit(0.001, 1))
    async with TestClient(app) as client:
        other, conn = await client.connect(), await client.connect()
        await app.rooms.join(other.connection, "small:1")
        rows = await resume(conn, "small:1", *(f"theirs:away{number}" for number in range(30)))
        assert reasons(rows) == ["PERMISSION_ERROR"] + ["failed"] * 30
        assert rows["small:1"]["message"] == "'small:1' is full."


async def test_without_a_rate_limit_every_room_is_looked_at() -> None:
    app = Guarded(None)
    async with TestClient(app) as client:
        conn = await client.connect()
        rows = await resume(conn, *(f"theirs:{number}" for number in range(200)))
        assert reasons(rows) == ["PERMISSION_ERROR"] * 200


async def test_every_row_beyond_the_bucket_is_a_violation() -> None:
    app = Guarded(RateLimit(0.001, 100, max_violations=5))
    async with TestClient(app) as client:
        conn = await client.connect()
        await resume(conn, *(f"theirs:{number}" for number in range(104)))
        assert conn.connection.is_open, "5 refusals"
        await conn.send("marker?")
        assert (await conn.receive())["payload"]["code"] == "RATE_LIMIT_ERROR"
        with pytest.raises(ConnectionClosed, match="4007"):  # the sixth
            await conn.receive()


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 20))
@settings(max_examples=40)
def test_tokens_are_taken_for_rooms_without_a_right_alone(rights: list[bool], capacity: int) -> None:
    async def run() -> None:
        app = Guarded(RateLimit(0.001, capacity, max_violations=0))
        async with TestClient(app) as client:
            conn = await client.connect()
            rooms = [f"{'mine' if right else 'theirs'}:{number}" for number, right in enumerate(rights)]
            found = reasons(await resume(conn, *rooms))
            wrong = rights.count(False)
            assert found.count("PERMISSION_ERROR") == min(wrong, capacity - 1)
            if wrong < capacity - 1 + CREDIT:
                assert [reason == "no_position" for reason in found] == rights

    asyncio.run(run())


NAMES = ["aa\u200b{:04}", "{:04}", "theirs:{:04}", "é" * 20 + "{:04}", "\n{:04}"]


@pytest.mark.parametrize("subprotocols", [["socketspec.v1.json"], ["socketspec.v1.msgpack"]])
@pytest.mark.parametrize("name", NAMES)
async def test_the_answer_is_in_proportion_to_the_question(name: str, subprotocols: list[str]) -> None:
    app = Guarded(None)

    @app.room_guard("theirs:{n}")
    async def wordy(conn: Connection, n: str) -> bool:
        raise PermissionDenied("no " * 3000)

    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=subprotocols)
        rooms = [name.format(number) for number in range(1000)]
        rows = await resume(conn, *rooms)
        assert [room for room, row in rows.items() if "message" in row] == rooms[:20]
        assert max(len(row.get("message", "")) for row in rows.values()) <= 1000
        assert len(json.dumps(rows)) < 20 * 1100 + 7 * len(json.dumps(dict.fromkeys(rooms)))
        assert conn.connection.is_open


async def test_a_name_that_no_room_can_have_is_not_repeated() -> None:
    async with TestClient(Guarded(None)) as client:
        conn = await client.connect()
        await conn.send("__resume__", {"rooms": {"x" * 60_000: None}}, id="r")
        error = (await conn.receive())["payload"]
        assert error["code"] == "VALIDATION_ERROR"
        assert len(error["message"]) < 200
