"""`socket.sync`: an app called by code that cannot await."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from socketspec import Broadcasts, Connection, Event, History, Room, SocketApp
from socketspec.app.rooms import Rooms
from socketspec.app.sessions import Sessions
from socketspec.app.sync import Sync, SyncRooms, SyncSessions, SyncUsers
from socketspec.app.users import Users
from socketspec.errors import ContractError, Disconnected, RoomNotFound
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake
from socketspec.testing import TestClient, TestConnection

TYPED = Event("e", dict[str, int], room="r")

Call = Callable[[SocketApp, Connection], Any]
CALLS: dict[str, Call] = {
    "rooms.join": lambda app, conn: app.sync.rooms.join(conn, "r"),
    "rooms.leave": lambda app, conn: app.sync.rooms.leave(conn, "r"),
    "rooms.broadcast": lambda app, conn: app.sync.rooms.broadcast("r", "e"),
    "rooms.broadcast_all": lambda app, conn: app.sync.rooms.broadcast_all("e"),
    "rooms.broadcast_except": lambda app, conn: app.sync.rooms.broadcast_except(conn, "e"),
    "rooms.members": lambda app, conn: app.sync.rooms.members("r"),
    "rooms.count": lambda app, conn: app.sync.rooms.count("r"),
    "rooms.history": lambda app, conn: app.sync.rooms.history("kept"),
    "users.send": lambda app, conn: app.sync.users.send("ada", "e"),
    "users.count": lambda app, conn: app.sync.users.count("ada"),
    "users.disconnect": lambda app, conn: app.sync.users.disconnect("ada"),
    "sessions.revoke": lambda app, conn: app.sync.sessions.revoke(user="ada"),
    "emit": lambda app, conn: app.sync.emit(conn, "e"),
    "disconnect": lambda app, conn: app.sync.disconnect(conn),
    "run": lambda app, conn: app.sync.run(app.rooms.count, "r"),
    r"event\('e'\)\.broadcast": lambda app, conn: app.sync.event(app.event(TYPED)).broadcast({"n": 1}),
    r"event\('e'\)\.broadcast_all": lambda app, conn: app.sync.event(app.event(TYPED)).broadcast_all({"n": 1}),
    r"event\('e'\)\.send": lambda app, conn: app.sync.event(app.event(TYPED)).send("ada", {"n": 1}),
    r"event\('e'\)\.emit": lambda app, conn: app.sync.event(app.event(TYPED)).emit(conn, {"n": 1}),
}


class Ada:
    async def authenticate(self, handshake: Handshake) -> Identity:
        return Identity(user_id="ada")


def app_of_ada(**options: Any) -> SocketApp:
    return SocketApp(auth=Ada(), rooms=["r", Room("kept", history=History(size=9))], drain_window=0, **options)


def test_whatever_can_be_awaited_can_be_called() -> None:
    for awaited, called in ((Rooms, SyncRooms), (Users, SyncUsers), (Sessions, SyncSessions)):
        methods = inspect.getmembers(awaited, inspect.iscoroutinefunction)
        assert methods
        for name, method in methods:
            theirs, ours = inspect.signature(method), inspect.signature(getattr(called, name))
            assert [*theirs.parameters.values()] == [
                each for each in ours.parameters.values() if each.name != "timeout"
            ]
            assert ours.return_annotation == theirs.return_annotation, name
            assert ours.parameters["timeout"].default == 10


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_in_the_apps_own_event_loop_says_what_to_await(name: str) -> None:
    app = app_of_ada()
    async with TestClient(app) as client:
        conn = await client.connect()
        with pytest.raises(RuntimeError, match=rf"^socket\.sync\.{name}\(…\) was called in the event loop .* await "):
            CALLS[name](app, conn.connection)
        assert conn.connection.is_open


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_while_the_app_does_not_run_says_so(name: str) -> None:
    app = app_of_ada()
    async with TestClient(app) as client:
        conn = (await client.connect()).connection
    with pytest.raises(RuntimeError, match=rf"^socket\.sync\.{name}\(…\): this SocketApp does not run .* Publisher"):
        CALLS[name](app, conn)
    never = app_of_ada()
    with pytest.raises(RuntimeError, match="does not run in this process"):
        await asyncio.to_thread(CALLS[name], never, conn)


async def test_a_thread_gets_results_and_clients_get_messages() -> None:
    app = app_of_ada()

    def elsewhere(conn: Connection) -> list[Any]:
        app.sync.rooms.join(conn, "kept")
        done = [
            app.sync.rooms.broadcast("kept", "first", {"n": 1}).nodes,
            app.sync.rooms.broadcast_all("second").nodes,
            app.sync.users.send("ada", "third").nodes,
            app.sync.rooms.count("kept"),
            [member.connection_id for member in app.sync.rooms.members("kept")] == [conn.id],
            [message.event for message in app.sync.rooms.history("kept", limit=1)],
            app.sync.users.count("ada"),
            app.sync.run(app.rooms.count, "kept"),
        ]
        app.sync.emit(conn, "fourth", {"n": 4})
        app.sync.rooms.leave(conn, "kept")
        return done

    async with TestClient(app) as client:
        conn = await client.connect()
        assert await asyncio.to_thread(elsewhere, conn.connection) == [1, 1, 1, 1, True, ["first"], 1, 1]
        assert [(await conn.receive())["event"] for _ in range(4)] == ["first", "second", "third", "fourth"]
        assert conn.connection.rooms == frozenset()
        assert await asyncio.to_thread(app.sync.users.disconnect, "ada", reason="enough") == 1
        await asyncio.to_thread(app.sync.sessions.revoke, user="ada")


async def test_a_thread_sends_typed_events() -> None:
    app = app_of_ada()
    typed = app.event(TYPED)
    in_a_kept_room = app.event("kept", dict[str, int], room="{room}")

    def elsewhere(conn: Connection) -> list[int]:
        app.sync.rooms.join(conn, "kept")
        sender = app.sync.event(in_a_kept_room)
        key = {"idempotency_key": "once"}
        nodes = [sender.broadcast({"n": 1}, room="kept", **key).nodes for _ in range(2)]
        nodes += [
            app.sync.event(typed).broadcast_all({"n": 2}).nodes,
            app.sync.event(typed).send("ada", {"n": 3}).nodes,
        ]
        app.sync.event(typed, timeout=5).broadcast_all({"n": -1}, exclude=conn)
        app.sync.event(typed).emit(conn, {"n": 4})
        with pytest.raises(ContractError):
            app.sync.event(typed).broadcast_all({"n": "many"})  # type: ignore[dict-item] # that is the point
        return nodes

    async with TestClient(app) as client:
        conn = await client.connect()
        assert await asyncio.to_thread(elsewhere, conn.connection) == [1, 1, 1, 1]
        got = [await conn.receive() for _ in range(4)]
        assert [(message["event"], message["payload"]["n"]) for message in got] == [
            ("kept", 1), ("e", 2), ("e", 3), ("e", 4)
        ]  # fmt: skip


async def test_an_executor_and_a_plain_thread_may_call() -> None:
    app = app_of_ada()

    async def heard(conn: TestConnection) -> str:
        return str((await conn.receive())["event"])

    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "r")
        with ThreadPoolExecutor(4) as pool:
            loop = asyncio.get_running_loop()
            sent = [loop.run_in_executor(pool, app.sync.rooms.broadcast, "r", f"e{n}") for n in range(50)]
            assert [receipt.nodes for receipt in await asyncio.gather(*sent)] == [1] * 50
        assert {await heard(conn) for _ in range(50)} == {f"e{n}" for n in range(50)}
        thread = threading.Thread(target=app.sync.rooms.broadcast, args=("r", "plain"))
        thread.start()
        assert await heard(conn) == "plain"
        thread.join()


async def test_handlers_hooks_and_guards_that_are_plain_functions_may_call() -> None:
    app = app_of_ada()

    @app.room_guard("r")
    def guard(conn: Connection) -> bool:
        app.sync.emit(conn, "guarded")
        return True

    @app.on("join")
    def join(conn: Connection) -> dict[str, int]:
        app.sync.rooms.join(conn, "r")
        app.sync.rooms.broadcast("r", "joined")
        return {"count": app.sync.rooms.count("r")}

    @app.on_disconnect
    def on_disconnect(conn: Connection, reason: str) -> None:
        app.sync.emit(conn, "bye")  # nobody hears it, and that is no failure
        app.sync.rooms.broadcast_all("left")

    async with TestClient(app) as client:
        ada, bob = await client.connect(), await client.connect()
        await ada.send("join", id=1)
        assert [(await ada.receive())["event"] for _ in range(2)] == ["guarded", "joined"]
        assert (await ada.receive())["payload"] == {"count": 1}
        await ada.close()
        assert (await bob.receive())["event"] == "left"


async def test_a_plain_handler_that_sends_in_a_loop_ends_with_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    app, ended = app_of_ada(), threading.Event()

    @app.on("watch")
    def watch(conn: Connection) -> None:
        try:
            while True:
                app.sync.emit(conn, "tick")
        except Disconnected:
            ended.set()
            raise

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("watch")
        await conn.receive()
        await conn.close()
        assert await asyncio.to_thread(ended.wait, 10)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_context_variables_go_along() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    app, seen = app_of_ada(), list[str]()

    @app.room_guard("r")
    async def guard(conn: Connection) -> bool:
        seen.append(tenant.get())
        tenant.set("of the guard")
        return True

    def elsewhere(conn: Connection) -> str:
        tenant.set("acme")
        app.sync.rooms.join(conn, "r")
        return tenant.get()

    async with TestClient(app) as client:
        conn = await client.connect()
        assert await asyncio.to_thread(elsewhere, conn.connection) == "acme"
        assert seen == ["acme"]
        assert tenant.get() == "nobody"


async def test_what_a_plain_handler_sends_is_held_to_what_it_declares() -> None:
    app = app_of_ada()

    @app.on("tell", broadcasts=[Broadcasts("declared", room="r")])
    def tell(conn: Connection) -> None:
        app.sync.rooms.broadcast("r", "other")

    async with TestClient(app, strict=True) as client:
        conn = await client.connect()
        await conn.send("tell", id=1)
        assert (await conn.receive())["payload"]["code"] == "HANDLER_ERROR"


async def test_errors_come_back_as_they_were() -> None:
    app = app_of_ada()
    async with TestClient(app) as client:
        conn = await client.connect()
        with pytest.raises(RoomNotFound, match=r"no room"):
            await asyncio.to_thread(app.sync.rooms.broadcast, "elsewhere", "e")
        with pytest.raises(TypeError):
            await asyncio.to_thread(app.sync.rooms.broadcast, "r", "e", object())

        async def late() -> None:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match=r"^mine$"):
            await asyncio.to_thread(app.sync.run, late)
        await conn.close()
        with pytest.raises(Disconnected):
            await asyncio.to_thread(app.sync.emit, conn.connection, "e")


async def test_a_call_that_takes_too_long_is_given_up_and_ended() -> None:
    app, began, cancelled = app_of_ada(), threading.Event(), asyncio.Event()

    async def stuck() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def elsewhere() -> None:
        app.sync.run(stuck, timeout=0.05)

    async with TestClient(app), asyncio.timeout(10):
        with pytest.raises(TimeoutError, match=r"socket\.sync\.run\(…\) did not finish within 0\.05 s"):
            await asyncio.to_thread(elsewhere)
        assert began.is_set()
        await cancelled.wait()


async def test_a_call_that_has_not_begun_when_its_time_is_over_does_nothing() -> None:
    app = app_of_ada()
    async with TestClient(app):
        failed: list[BaseException] = []

        def elsewhere() -> None:
            try:
                app.sync.rooms.broadcast_all("e", timeout=0.05)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()  # the event loop is blocked meanwhile, as by a handler that computes
        assert [type(error) for error in failed] == [TimeoutError]
        await asyncio.sleep(0)
        assert app.engine is not None
        assert app.engine.counters.broadcasts == 0


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True])
async def test_a_timeout_that_is_none_is_refused(seconds: float) -> None:
    app = app_of_ada()
    async with TestClient(app):
        with pytest.raises(ValueError, match="greater than 0"):
            await asyncio.to_thread(lambda: app.sync.rooms.count("r", timeout=seconds))


async def test_whoever_waits_when_the_app_stops_is_told() -> None:
    app, began = app_of_ada(drain_grace=0.01), asyncio.Event()

    async def stuck() -> None:
        began.set()
        await asyncio.Event().wait()

    async with app.lifespan():
        waiting = asyncio.create_task(asyncio.to_thread(app.sync.run, stuck))
        await began.wait()
    with pytest.raises(RuntimeError, match="does not run in this process"):
        await waiting


@pytest.mark.parametrize("what", ["emit", "disconnect"])
async def test_a_connection_is_not_touched_from_another_thread(what: str) -> None:
    app = app_of_ada()
    async with TestClient(app) as client:
        conn = await client.connect()
        call = conn.connection.emit("e") if what == "emit" else conn.connection.disconnect()
        with pytest.raises(RuntimeError, match=r"socket\.sync.*Publisher"):
            await asyncio.to_thread(asyncio.run, call)
        assert conn.connection.is_open


def test_it_is_documented_where_the_app_is() -> None:
    assert isinstance(SocketApp().sync, Sync)
