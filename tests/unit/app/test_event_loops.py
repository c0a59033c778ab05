"""One app in one event loop at a time: called from another one, in one after the other, and across a fork."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from socketspec import Connection, Room, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.protocol.handshake import Headers, QueryParams
from socketspec.protocol.publications import History
from socketspec.testing import TestClient

Call = Callable[[SocketApp], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "broadcast": lambda app: app.rooms.broadcast("r", "e", {}),
    "broadcast to all": lambda app: app.rooms.broadcast_all("e", {}),
    "count": lambda app: app.rooms.count("r"),
    "send to a user": lambda app: app.users.send("ada", "e", {}),
    "disconnect": lambda app: app.users.disconnect("ada"),
    "revoke": lambda app: app.sessions.revoke(user="ada"),
    "start": lambda app: app.ensure_started(),
    "drain": lambda app: app.drain(),
    "stop": lambda app: app.stop(),
}


def listening(backend: MemoryBackend | None = None) -> SocketApp:
    app = SocketApp(backend=backend, rooms=["r", Room("kept", history=History(size=9))], drain_window=0)

    @app.on("join")
    async def join(conn: Connection) -> None:
        await app.rooms.join(conn, "r")

    return app


async def joined(app: SocketApp) -> Any:
    """A client in the room, and no stop at the end: as where a fixture failed half-way."""
    client = await TestClient(app).__aenter__()
    conn = await client.connect()
    await conn.send("join", id=1)
    await conn.receive()
    return conn


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_beside_the_event_loop_that_runs_the_app_says_how_to_call_it(name: str) -> None:
    app = listening()
    async with app.lifespan() as engine:
        call = CALLS[name]
        with pytest.raises(RuntimeError, match=r"socket\.sync.*Publisher.*run_coroutine_threadsafe"):
            await asyncio.to_thread(asyncio.run, call(app))
        assert app.engine is engine
        assert not engine.stopping


async def test_the_way_that_the_error_names_works() -> None:
    app = listening()
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("join", id=1)
        await conn.receive()
        loop = asyncio.get_running_loop()

        def elsewhere() -> int:
            return asyncio.run_coroutine_threadsafe(app.rooms.broadcast("r", "hello"), loop).result(10).nodes

        assert await asyncio.to_thread(elsewhere) == 1
        assert (await conn.receive())["event"] == "hello"


async def test_an_app_that_was_stopped_may_start_in_another_event_loop_while_the_first_goes_on() -> None:
    app = listening()
    for _ in range(2):
        async with app.lifespan():
            pass

    async def elsewhere() -> int:
        async with app.lifespan():
            return (await app.rooms.broadcast("r", "e")).nodes

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == 0


async def test_an_app_that_starts_in_one_event_loop_is_not_started_in_another() -> None:
    begun, go_on = threading.Event(), asyncio.Event()

    class Slow(MemoryBackend):
        async def start(self, namespace: str, deliver: Any, lost: Any) -> None:
            begun.set()
            await go_on.wait()
            await super().start(namespace, deliver, lost)

    app = listening(Slow())
    starting = asyncio.create_task(app.ensure_started())
    await asyncio.sleep(0)
    assert begun.is_set()
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, app.rooms.count("r"))
    go_on.set()
    assert await starting is app.engine
    await app.stop()


def test_where_the_event_loop_has_ended_without_a_stop_the_app_starts_anew_and_keeps_what_it_kept() -> None:
    app = listening()

    async def life(number: int) -> tuple[int, int, int, str]:
        conn = await joined(app)
        receipt = await app.rooms.broadcast("r", "hello")
        await app.rooms.broadcast("kept", "note", {"n": number})
        return (
            await app.rooms.count("r"),
            receipt.nodes,
            len(await app.rooms.history("kept")),
            (await conn.receive())["event"],
        )

    assert [asyncio.run(life(number)) for number in range(4)] == [(1, 1, kept, "hello") for kept in (1, 2, 3, 4)]


def test_an_event_loop_that_ended_without_being_closed_has_ended_as_well() -> None:
    app = listening()
    loops = [asyncio.new_event_loop() for _ in range(3)]
    try:
        assert [loop.run_until_complete(app.rooms.count("r")) for loop in loops] == [0, 0, 0]
    finally:
        for loop in loops:
            loop.close()


def test_a_stop_after_the_event_loop_has_ended_is_nothing() -> None:
    app = listening()
    asyncio.run(app.rooms.count("r"))
    assert asyncio.run(app.drain()) == 0
    asyncio.run(app.stop())
    assert app.engine is None


async def test_one_memory_backend_serves_one_event_loop_at_a_time() -> None:
    backend = MemoryBackend()
    async with listening(backend).lifespan():
        with pytest.raises(RuntimeError, match="a backend of its own"):
            await asyncio.to_thread(asyncio.run, listening(backend).ensure_started())
    await asyncio.to_thread(asyncio.run, listening(backend).ensure_started())


def in_a_child(work: Callable[[], object]) -> object:
    """What `work` returns, or the error it raises in words, in a forked process."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sending.send(work())
        except RuntimeError as error:
            sending.send(str(error))

    child = context.Process(target=run)
    child.start()
    try:
        assert receiving.poll(20)
        return receiving.recv()
    finally:
        child.join(20)
        assert child.exitcode == 0


def test_a_process_forked_before_the_start_is_a_node_of_its_own() -> None:
    app = listening()

    async def start() -> str:
        async with app.lifespan():
            return app.node

    names = [app.node, asyncio.run(start()), in_a_child(lambda: asyncio.run(start()))]
    assert names[0] == names[1]
    assert names[2] not in names[:2]


def test_a_process_forked_after_the_event_loop_ended_starts_anew() -> None:
    app = listening()
    asyncio.run(app.rooms.count("r"))
    assert in_a_child(lambda: asyncio.run(app.rooms.count("r"))) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_process_forked_while_the_app_runs_it_is_not_ready() -> None:
    app = listening()

    async def ask() -> dict[str, Any]:
        response = await app.pages.respond("GET", "/socket-health", Headers(), QueryParams())
        report: dict[str, Any] = {} if response is None else json.loads(response.body)
        return report

    async def fork_in_the_middle() -> Any:
        async with app.lifespan():
            return in_a_child(lambda: asyncio.run(ask()))

    told = asyncio.run(fork_in_the_middle())
    assert (told["status"], told["ready"]) == ("out_of_touch", False)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_a_fork_while_the_app_runs_is_noticed_and_refused(name: str) -> None:
    app = listening()
    parent = os.getpid()

    async def fork_in_the_middle() -> object:
        async with app.lifespan():
            said = in_a_child(lambda: asyncio.run(CALLS[name](app)))
            assert os.getpid() == parent
            assert await app.rooms.count("r") == 0
            return said

    said = asyncio.run(fork_in_the_middle())
    assert "was forked while the SocketApp was running" in str(said)
    assert "before the app starts" in str(said)
