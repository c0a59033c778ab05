"""The end of a connection and of a node: what is undone in which order, for how long, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryBroker, MemoryPresence
from socketspec.backend.protocols import Deliver, Lost
from socketspec.errors import BackendError
from socketspec.logs import JsonFormatter
from socketspec.membership.directory import Directory
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.orders import revoke_order
from socketspec.protocol.publications import Member, Publication, Topic
from socketspec.session import SessionConfig
from socketspec.testing import ConnectionClosed, TestClient
from tests.carriers import Carrier, opened
from tests.virtual_time import in_virtual_time
from tests.watching import until

log = logging.getLogger("the_app")


class ByName:
    """Everybody is who they say they are."""

    async def authenticate(self, handshake: Handshake) -> Identity:
        return Identity(user_id=handshake.query_params.get("user", "ada"))


class Presence(MemoryPresence):
    """The memory backend's, which hangs or fails where the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.failing: dict[str, Exception] = {}

    async def leave(self, topic: Topic, connection_id: str) -> None:
        if topic.name in self.failing:
            raise self.failing[topic.name]
        if topic.name in self.hanging:
            await asyncio.get_running_loop().create_future()
        await super().leave(topic, connection_id)


class Backend(MemoryBackend):
    """The memory backend, with what a test has to see of it."""

    lost: Lost

    def __init__(self) -> None:
        super().__init__()
        self.presence = self.watched = Presence()
        self.started: list[str] = []

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        await super().start(namespace, deliver, lost)
        self.started.append(namespace)
        self.lost = lost

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        await super().stop(namespace, deliver)
        self.started.remove(namespace)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


# A connection


async def test_hooks_are_called_when_everything_is_undone_and_see_what_was() -> None:
    app = SocketApp(auth=ByName())
    seen: list[tuple[str, Any]] = []

    async def look(what: str, conn: Connection) -> None:
        there = await app.rooms.count("a") + await app.rooms.count("b") + await app.users.count("ada")
        seen.append((what, sorted(conn.rooms)))
        assert (there, conn.is_open, conn.identity.user_id) == (0, False, "ada")

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        await look(f"left {room}", conn)

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        await look(f"gone: {reason}", conn)

    async with TestClient(app) as client:
        conn = await client.connect()
        for room in ("a", "b"):
            await app.rooms.join(conn.connection, room)
        await conn.close(1001)
        rooms = ["a", "b"]
        assert seen == [("left a", rooms), ("left b", rooms), ("gone: client_going_away", rooms)]


@pytest.mark.parametrize(
    ("code", "reason", "counted"),
    [
        (1000, "client_closed", "client_closed"),
        (1001, "client_going_away", "client_going_away"),
        (1005, "connection_lost", "connection_lost"),
        (1006, "connection_lost", "connection_lost"),
        (1009, "message_too_big", "message_too_big"),
        (1012, "server_shutdown", "server_shutdown"),
        (4242, "client:4242", "client"),
    ],
)
async def test_an_end_is_named_and_counted_by_its_code(code: int, reason: str, counted: str) -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.close(code)
        await conn.close(1000)
        counters = (await app.ensure_started()).counters
        assert (counters.opened, counters.closed) == (1, {counted: 1})
        assert conn.connection.close_code == code
    assert reasons == [reason]


async def test_the_first_reason_stays_when_the_client_closes_in_turn() -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.connection.disconnect("enough", code=4321)
        await conn.connection.disconnect("again", code=4322)
        await conn.close(1000)
        assert (conn.connection.close_code, conn.connection.close_reason) == (4321, "enough")
        assert conn.connection.state.value == "closed"
    assert reasons == ["enough"]


@in_virtual_time
async def test_leaving_takes_ten_seconds_at_most_all_rooms_together() -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        for room in ("a", "b", "c"):
            await app.rooms.join(conn.connection, room)
        backend.watched.hanging = {"a", "c"}
        began = asyncio.get_running_loop().time()
        await conn.close()
        assert asyncio.get_running_loop().time() - began == pytest.approx(10, abs=0.1)
        engine = await app.ensure_started()
        assert engine.connections == {}


async def test_each_failure_of_leaving_is_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName())
    left: list[str] = []

    @app.on_room_leave
    async def hook(conn: Connection, room: str) -> None:
        left.append(room)

    async with TestClient(app) as client:
        conn = await client.connect()
        for room in ("a", "b", "c"):
            await app.rooms.join(conn.connection, room)
        backend.watched.failing = {"ada": BackendError("away"), "a": BackendError("away"), "b": OSError("a bug")}
        await conn.close()
        assert await app.rooms.count("c") == 0
    assert left == ["a", "b", "c"]
    said = [(record.getMessage(), record.exc_info is not None) for record in errors(caplog)]
    assert [traceback for _, traceback in said] == [False, False, True]
    for (message, _), what in zip(said, ("its user", "room 'a'", "room 'b'"), strict=True):
        assert what in message
        assert conn.id in message


@in_virtual_time
async def test_a_hook_that_hangs_is_cancelled_after_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()
    ended: list[str] = []

    @app.on_room_leave
    async def hang(conn: Connection, room: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(room)

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        ended.append(reason)

    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "a")
        began = asyncio.get_running_loop().time()
        await conn.close()
        assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.1)
    assert ended == ["a", "client_closed"]
    (record,) = errors(caplog)
    assert "30 s" in record.getMessage()


@pytest.mark.parametrize("error", [LookupError("a bug"), BackendError("redis is gone")])
async def test_a_hook_that_fails_is_named_in_the_log_and_stops_no_other(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app, reasons = SocketApp(), list[str]()

    @app.on_disconnect
    async def the_bad_hook(conn: Connection, reason: str) -> None:
        raise error

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(app) as client:
        await (await client.connect()).close()
    assert reasons == ["client_closed"]
    (record,) = errors(caplog)
    assert "the_bad_hook" in record.getMessage()
    assert (record.exc_info is None) is isinstance(error, BackendError)


async def test_what_is_logged_after_the_end_is_about_the_connection_that_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = SocketApp()

    @app.on_disconnect
    async def gone(conn: Connection, reason: str) -> None:
        log.warning("gone")

    @app.on("throw out")
    async def throw_out(conn: Connection, payload: dict[str, str]) -> None:
        engine = await app.ensure_started()
        await engine.connections[payload["who"]].disconnect()

    async with TestClient(app) as client:
        one, two = await client.connect(), await client.connect()
        await one.send("throw out", {"who": two.id}, id=1)
        await one.receive()
        await until(lambda: "gone" in caplog.text)
        (line,) = [json.loads(text) for text in caplog.text.splitlines() if "gone" in text]
        assert line["connection"] == two.id
        assert "request" not in line, "that one is another connection's"
        assert "event" not in line


async def test_what_a_hook_logs_is_about_the_event_that_caused_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = SocketApp()

    @app.on_room_join
    async def came(conn: Connection, room: str) -> None:
        log.warning("came")

    @app.on("enter")
    async def enter(conn: Connection) -> None:
        log.warning("enters")
        await app.rooms.join(conn, "hall")

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("enter", id=1)
        await conn.receive()
    enters, came_line = [json.loads(text) for text in caplog.text.splitlines()]
    assert came_line["message"] == "came"
    for key in ("connection", "event", "request"):
        assert came_line[key] == enters[key]


# A node


async def test_a_start_that_fails_half_way_is_undone() -> None:
    class Broker(MemoryBroker):
        failures = 1

        async def subscribe(self, topic: Topic) -> None:
            if topic.kind == "all" and self.failures:
                self.failures -= 1
                raise BackendError("not yet")
            await super().subscribe(topic)

    backend = Backend()
    backend.broker.__class__ = Broker
    app = SocketApp(backend=backend)
    with pytest.raises(BackendError):
        await app.ensure_started()
    assert (backend.started, app.engine) == ([], None)
    await app.ensure_started()
    assert backend.started == ["/"]
    await app.stop()
    assert backend.started == []


async def test_a_node_that_has_stopped_is_subscribed_to_nothing() -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        assert (await app.rooms.broadcast_all("x")).nodes == 1
        await app.rooms.join((await client.connect()).connection, "hall")
    for topic in (Topic("/", "all", ""), Topic("/", "control", ""), Topic("/", "room", "hall")):
        assert (await backend.broker.publish(topic, Publication("x", b"{}"))).nodes == 0


@in_virtual_time
async def test_a_handler_has_the_grace_and_a_hook_another_one() -> None:
    app = SocketApp(drain_window=0, drain_grace=5)
    ended: dict[str, float] = {}

    def now() -> float:
        return asyncio.get_running_loop().time()

    @app.on("hang")
    async def hang(conn: Connection) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended["handler"] = now()

    @app.on_disconnect
    async def slow(conn: Connection, reason: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended["hook"] = now()

    async with app.lifespan():
        hangs, carrier = Carrier(), Carrier()
        conn = await opened(app, hangs)
        await opened(app, carrier)
        engine = await app.ensure_started()
        engine.receive(conn, '{"event":"hang"}', binary=False)
        await asyncio.sleep(0)
        began = now()
        await asyncio.gather(app.stop(), app.stop())
        assert carrier.closed == hangs.closed == (1012, "server_shutdown")
    assert ended["handler"] - began == pytest.approx(5, abs=0.1)
    assert ended["hook"] - began == pytest.approx(10, abs=0.2)


@in_virtual_time
async def test_a_connection_that_is_being_opened_leaves_as_soon_as_its_hooks_are_through() -> None:
    app = SocketApp(drain_window=0, drain_grace=1000)

    @app.on_connect
    async def slow(conn: Connection) -> None:
        await asyncio.sleep(3)

    async with app.lifespan():
        carrier = Carrier()
        opening = asyncio.create_task(opened(app, carrier))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        assert await app.drain() == 1
        assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.1)
        assert carrier.closed == (1012, "server_shutdown")
        await opening


@in_virtual_time
@pytest.mark.parametrize("others", [0, 200])
async def test_a_handler_whose_client_has_left_has_the_grace_too(others: int) -> None:
    app = SocketApp(drain_window=10, drain_grace=5)
    done: list[str] = []
    takes = 12 if others else 4

    @app.on("work")
    async def work(conn: Connection) -> None:
        await asyncio.sleep(takes)
        done.append(conn.id)

    async with app.lifespan() as engine:
        for _ in range(others):
            await opened(app, Carrier())
        conn = await opened(app, Carrier())
        engine.receive(conn, '{"event":"work"}', binary=False)
        await asyncio.sleep(0)
        await engine.closed(conn, 1000)
        began = asyncio.get_running_loop().time()
        await app.stop()
        assert asyncio.get_running_loop().time() - began == pytest.approx(takes, abs=0.1)
    assert done == [conn.id]


@in_virtual_time
@pytest.mark.parametrize(
    ("bound", "window", "count", "expected"),
    [
        (min, 1 / 3, 100, [round((number + 1) / 300 + 0.1, 3) for number in range(100)]),
        (max, 1 / 3, 100, [round((number + 1) / 300 + 0.5, 3) for number in range(100)]),
        (min, 10, 2, [0.15, 0.2]),
        (min, 0, 3, [0.1] * 3),
        (max, 0, 3, [5.0] * 3),
    ],
)
async def test_a_goodbye_says_when_to_come_back(
    bound: Callable[[float, float], float], window: float, count: int, expected: list[float]
) -> None:
    app = SocketApp(drain_window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.uniform", bound)
        async with app.lifespan():
            carriers = [Carrier() for _ in range(count)]
            for carrier in carriers:
                await opened(app, carrier)
            await app.drain()
    goodbyes = [message for carrier in carriers for message in carrier.messages]
    assert {message["event"] for message in goodbyes} == {"__server_shutdown__"}
    assert sorted(message["payload"]["reconnect_in"] for message in goodbyes) == sorted(expected)


async def test_very_many_goodbyes_let_the_loop_turn_between_a_few_hundred() -> None:
    app = SocketApp(drain_window=1000)
    async with app.lifespan():
        carriers = [Carrier() for _ in range(1100)]
        for carrier in carriers:
            await opened(app, carrier)
        draining = asyncio.create_task(app.drain())
        told = [0]
        for _ in range(10):
            await asyncio.sleep(0)
            told.append(sum(bool(carrier.written) for carrier in carriers))
        assert max(after - before for before, after in pairwise(told)) <= 500
        assert told[-1] == 1100
        for carrier in carriers:
            carrier.abort()
        engine = await app.ensure_started()
        for conn in list(engine.connections.values()):
            engine.lost(conn, 1006)
        assert await draining == 1100


@in_virtual_time
async def test_a_stop_may_be_given_other_times() -> None:
    app = SocketApp(drain_window=100, drain_grace=100)

    @app.on("hang")
    async def hang(conn: Connection) -> None:
        await asyncio.sleep(1000)

    async with app.lifespan():
        conn = await opened(app, Carrier())
        engine = await app.ensure_started()
        engine.receive(conn, '{"event":"hang"}', binary=False)
        began = asyncio.get_running_loop().time()
        await app.stop(grace=2, window=0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.2)


# Members of a node that died


async def test_the_stand_in_of_a_lost_member_is_like_the_one_it_stands_for() -> None:
    backend = Backend()
    config = SessionConfig(idle_timeout=77)
    app = SocketApp(backend=backend, session=config)
    seen: list[Connection] = []

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        await conn.emit("too late")
        await conn.disconnect("too late")
        seen.append(conn)

    async with TestClient(app):
        backend.lost(Topic("/", "room", "hall"), [Member("c1", "ada", 1000.0)])
        await until(lambda: seen)
        (conn,) = seen
        assert (conn.id, conn.identity.user_id, conn.close_reason) == ("c1", "ada", "node_lost")
        assert (conn.connected_at, conn.session.started_at, conn.session.config) == (1000.0, 1000.0, config)
        assert conn.rooms == {"hall"}
        assert (conn.is_open, conn.metadata) == (False, {})
        assert conn.namespace == "/"


@pytest.mark.parametrize("counts", [(3, 20), (20, 3), (8, 9)])
async def test_lost_members_are_worked_on_a_few_at_once_and_again_after_a_pause(counts: tuple[int, int]) -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    free = asyncio.Event()
    began: list[str] = []

    @app.on_room_leave
    async def left(conn: Connection, room: str) -> None:
        began.append(conn.id)
        await free.wait()

    async def lose(count: int) -> None:
        began.clear()
        free.clear()
        backend.lost(Topic("/", "room", "hall"), [Member(f"c{number}", None, 0.0) for number in range(count)])
        backend.lost(Topic("/", "room", "hall"), [])
        await until(lambda: len(began) == min(count, 8))
        await asyncio.sleep(0)
        assert len(began) == min(count, 8), "eight at once at most"
        free.set()
        await until(lambda: len(began) == count)
        await until(lambda: len(engine.tasks) == 0)

    async with TestClient(app):
        engine = await app.ensure_started()
        for count in counts:
            await lose(count)


# Orders


async def test_a_users_connections_come_and_go_and_an_order_finds_those_that_are_left() -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        for left in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2], []):
            conns = [await client.connect() for _ in range(3)]
            other = await client.connect(query_params={"user": "bob"})
            for index in left:
                await conns[index].close()
            assert await app.users.disconnect("ada", reason="out", code=4444) == 3 - len(left)
            for index, conn in enumerate(conns):
                if index not in left:
                    with pytest.raises(ConnectionClosed) as closed:
                        await conn.receive()
                    assert (closed.value.code, closed.value.reason) == (4444, "out")
                    await conn.close()
            assert other.connection.is_open
            await other.close()


async def test_an_order_to_close_very_many_lets_the_loop_turn_between_a_few_hundred() -> None:
    app = SocketApp(auth=ByName())
    async with app.lifespan():
        carriers = [Carrier() for _ in range(600)]
        for carrier in carriers:
            await opened(app, carrier)
        await app.users.disconnect("ada")
        closed = [sum(carrier.closed is not None for carrier in carriers)]
        for _ in range(20):
            await asyncio.sleep(0)
            closed.append(sum(carrier.closed == (4000, "disconnected") for carrier in carriers))
        assert closed[0] <= 256
        assert max(after - before for before, after in pairwise(closed)) <= 256
        assert closed[-1] == 600


async def test_a_revocation_closes_each_kind_with_its_reason() -> None:
    class WithClaims(ByName):
        async def authenticate(self, handshake: Handshake) -> Identity:
            return Identity(user_id="ada", claims={"jti": "token-1", "sid": "s" * 16})

    app = SocketApp(auth=WithClaims())
    async with TestClient(app) as client:
        for what in ({"user": "ada"}, {"token_id": "token-1"}, {"token_id": "s" * 16}, {"session": "s" * 16}):
            conn = await client.connect()
            await app.sessions.revoke(**what, ttl=0.000001, reason="stolen")
            with pytest.raises(ConnectionClosed) as closed:
                await conn.receive()
            assert (closed.value.code, closed.value.reason) == (4005, "stolen")
            await conn.close()


class Listed:
    """What a directory lists."""

    subjects: tuple[str, ...] = ()


def test_a_directory_lists_each_under_its_subjects_and_nothing_for_who_has_gone() -> None:
    directory, listed = Directory(), [cast("Connection", Listed()) for _ in range(3)]
    for conn in listed:
        directory.set_subjects(conn, ("all", str(listed.index(conn))))
    assert (directory.find("all"), directory.find("1"), directory.find("9")) == (listed, [listed[1]], [])
    directory.set_subjects(listed[0], ("other",))
    assert (directory.find("all"), directory.find("0"), directory.find("other")) == (listed[1:], [], [listed[0]])
    for conn in listed:
        directory.drop_subjects(conn)
        directory.drop_subjects(conn)
        assert conn.subjects == ()
    assert directory.subjects == 0


async def test_a_subject_that_is_revoked_again_is_remembered_as_the_newest() -> None:
    app = SocketApp()
    async with TestClient(app):
        orders = (await app.ensure_started()).orders
        orders.receive([revoke_order(["a"], "x")])
        orders.receive([revoke_order([str(number) for number in range(9_999)], "x")])
        orders.receive([revoke_order(["a"], "x"), revoke_order(["one more"], "x")])
        assert orders.has_revoked(["a"], since=0.0)
        assert not orders.has_revoked(["0"], since=0.0), "the oldest is forgotten"
        assert orders.has_revoked(["1"], since=0.0)
