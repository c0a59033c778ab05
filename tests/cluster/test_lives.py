"""Where an app and a publisher may live: event loops after and beside each other, forks, apps that share a backend."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from socketspec import Connection, History, Identity, Room, SocketApp
from socketspec.cluster import AsyncPublisher, Publisher, RedisBackend
from socketspec.cluster.commands.keys import Keys
from socketspec.errors import BackendError
from socketspec.protocol.orders import control_topic
from socketspec.security.auth import APIKeyAuth
from socketspec.testing import ConnectionClosed, TestClient
from tests.servers import Server

ROOT = Path(__file__).parents[2]
KEY = "key-" + "a" * 40


def listening(url: str | RedisBackend) -> SocketApp:
    app = SocketApp(
        backend=url,
        auth=APIKeyAuth({KEY: Identity(user_id="ada")}),
        rooms=["{room}", Room("kept:{n}", history=History(size=9))],
        drain_window=0,
        drain_grace=1,
    )

    @app.on("join")
    async def join(conn: Connection, payload: dict[str, str]) -> None:
        await app.rooms.join(conn, payload["room"])

    return app


async def joined(client: TestClient, *rooms: str) -> Any:
    conn = await client.connect(headers={"x-api-key": KEY})
    for room in rooms:
        await conn.send("join", {"room": room}, id=1)
        await conn.receive()
    return conn


async def until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 8
    while not check():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


# --- databases


async def test_apps_in_two_databases_hear_nothing_of_each_other(standalone_server: Server, prefix: str) -> None:
    urls = [f"{standalone_server.url}/{db}?prefix={prefix}" for db in (0, 1)]
    production, staging = map(listening, urls)
    async with TestClient(production) as client, TestClient(staging) as other:
        conn = await joined(client, "lobby", "kept:1")
        for room in ("lobby", "kept:1"):
            assert (await staging.rooms.broadcast(room, "crossed")).nodes == 0
            with Publisher(urls[1]) as publisher:
                assert (await asyncio.to_thread(publisher.broadcast, room, "crossed")).nodes == 0
            async with AsyncPublisher(urls[1]) as publisher_there:
                assert (await publisher_there.broadcast(room, "crossed")).nodes == 0
        elsewhere = await joined(other, "lobby")
        assert (await staging.rooms.broadcast("lobby", "theirs")).nodes == 1
        assert (await elsewhere.receive())["event"] == "theirs"
        await elsewhere.close()
        await staging.rooms.broadcast_all("crossed")
        await staging.users.send("ada", "crossed")
        await staging.users.disconnect("ada")
        await staging.sessions.revoke(user="ada")
        assert await production.rooms.count("lobby") == 1
        with Publisher(urls[0]) as publisher:
            assert (await asyncio.to_thread(publisher.broadcast, "lobby", "ours")).nodes == 1
        assert (await conn.receive())["event"] == "ours"


async def test_in_a_database_of_its_own_an_app_has_all_it_has_elsewhere(standalone_server: Server, prefix: str) -> None:
    url = f"{standalone_server.url}/2?prefix={prefix}"
    one, other = listening(RedisBackend(url)), listening(RedisBackend(url))
    async with TestClient(one) as client, TestClient(other):
        conn = await joined(client, "kept:1")
        receipt = await other.rooms.broadcast("kept:1", "kept")
        assert receipt.nodes == 1
        assert (await conn.receive())["event"] == "kept"
        assert [message.event for message in await other.rooms.history("kept:1")] == ["kept"]
        assert await other.users.disconnect("ada") == 1
        with pytest.raises(ConnectionClosed):
            await conn.receive()


# --- event loops


@pytest.mark.parametrize("is_stopped", [False, True])
def test_an_app_of_a_module_works_in_one_event_loop_after_another(
    standalone_server: Server, prefix: str, is_stopped: bool
) -> None:
    url = f"{standalone_server.url}?prefix={prefix}"
    app = listening(url)

    async def life() -> tuple[str, str, bool]:
        client = await TestClient(app).__aenter__()
        conn = await joined(client, "r")
        async with AsyncPublisher(url) as publisher:
            await publisher.broadcast("r", "hello")
        heard = (await conn.receive())["event"]
        ready = (await app.pages.respond("GET", "/socket-health", {}, {})).status == 200  # type: ignore[union-attr, arg-type] # the page is there, and plain dicts will do
        if is_stopped:
            await app.stop()
        return app.node, heard, ready

    lives = [asyncio.run(life()) for _ in range(3)]
    assert [life[1:] for life in lives] == [("hello", True)] * 3
    assert standalone_server.ask("ZCARD", Keys(prefix).leases("/")) == 0, "an ended node is still counted"
    assert len({node for node, *_ in lives}) == 3


def test_a_script_may_call_an_app_in_one_event_loop_after_another(standalone_server: Server, prefix: str) -> None:
    app = listening(f"{standalone_server.url}?prefix={prefix}")
    receipts = [asyncio.run(app.rooms.broadcast("kept:1", "e")) for _ in range(4)]
    assert [receipt.position.offset for receipt in receipts if receipt.position] == [1, 2, 3, 4]


async def test_beside_its_event_loop_an_app_and_its_backend_say_how_to_be_called(
    standalone_server: Server, prefix: str
) -> None:
    backend = RedisBackend(standalone_server.url, prefix=prefix)
    app = listening(backend)
    async with app.lifespan():
        with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
            await asyncio.to_thread(asyncio.run, app.rooms.broadcast("r", "e"))
        with pytest.raises(RuntimeError, match="a RedisBackend of its own"):
            await asyncio.to_thread(asyncio.run, listening(backend).ensure_started())
        ready, detail = await asyncio.to_thread(asyncio.run, backend.health())
        assert not ready
        assert "another event loop" in detail
        assert (await backend.health()).ready
    await asyncio.to_thread(asyncio.run, listening(backend).rooms.broadcast("r", "e"))


async def test_figures_are_read_in_a_thread_without_an_event_loop_also_while_redis_is_away(server: Server) -> None:
    backend = RedisBackend(server.url, linger=0.0)
    app = listening(backend)
    async with TestClient(app) as client:
        await joined(client, "r")
        assert (await asyncio.to_thread(backend.figures)).ready
        server.kill()
        await until(lambda: not backend.figures().ready, "the loss is noticed")
        assert not (await asyncio.to_thread(backend.figures)).ready


# --- forks


WORKERS = """
import asyncio, os, sys
from socketspec import SocketApp
app = SocketApp(backend=sys.argv[1])  # as a module that is imported before the server forks
async def work():
    async with app.lifespan():
        print(app.node, flush=True)
        sys.stdin.read()  # both are there at the same time
if len(sys.argv) > 2:
    app.node  # named, but not started
workers = []
for _ in range(2):
    pid = os.fork()
    if not pid:
        asyncio.run(work())
        os._exit(0)
    workers.append(pid)
for pid in workers:
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize("named_before", [False, True])
def test_workers_forked_after_the_import_are_nodes_of_their_own(
    standalone_server: Server, prefix: str, named_before: bool
) -> None:
    command = [sys.executable, "-c", WORKERS, f"{standalone_server.url}?prefix={prefix}", *["named"] * named_before]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        names = [parent.stdout.readline(), parent.stdout.readline()]
        leases = standalone_server.ask("ZRANGE", Keys(prefix).leases("/"), 0, -1)
        parent.communicate("", timeout=20)
    assert len({*names}) == 2
    assert len(leases) == 2
    assert parent.returncode == 0


def _count_in_child(publisher: AsyncPublisher, answers: Any) -> None:
    answers.put(asyncio.run(publisher.count("r")))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_async_publisher_that_was_used_goes_on_in_a_forked_process(standalone_server: Server, prefix: str) -> None:
    publisher = AsyncPublisher(standalone_server.url, prefix=prefix)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    async def fork_in_the_middle() -> None:
        async with publisher:
            assert await publisher.count("r") == 0
            child = context.Process(target=_count_in_child, args=(publisher, answers))
            child.start()
            assert await asyncio.to_thread(answers.get, timeout=20) == 0
            child.join(20)
            assert child.exitcode == 0
            assert await publisher.count("r") == 0

    asyncio.run(fork_in_the_middle())


# --- publishers in many event loops


def connections(server: Server, name: str) -> int:
    return int(server.ask("CLIENT", "LIST").count(f"name={name} "))


def test_each_event_loop_has_connections_of_its_own_and_closes_them_when_it_ends(
    standalone_server: Server, prefix: str
) -> None:
    name = f"loops-{prefix}"
    publisher = AsyncPublisher(standalone_server.url, prefix=prefix, client_name=name)

    def request(_: int) -> int:
        return asyncio.run(publisher.count("r"))

    with ThreadPoolExecutor(4) as pool:
        assert Counter(pool.map(request, range(100))) == {0: 100}
    deadline = time.monotonic() + 5
    while connections(standalone_server, name):
        assert time.monotonic() < deadline, "the ended event loops left connections open"
        time.sleep(0.01)


async def test_more_event_loops_than_may_have_connections_wait_for_their_turn(
    standalone_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketspec.cluster.publishers.lives.MAX_LOOPS", 2)
    name = f"turns-{prefix}"
    publisher = AsyncPublisher(standalone_server.url, prefix=prefix, client_name=name, timeout=5)
    most = 0

    def request(_: int) -> int:
        nonlocal most
        counted = asyncio.run(publisher.count("r"))
        most = max(most, connections(standalone_server, name))
        return counted

    with ThreadPoolExecutor(8) as pool:
        assert Counter(await asyncio.to_thread(lambda: list(pool.map(request, range(40))))) == {0: 40}
    assert most <= 4  # each has one for commands and one that asks who is the primary
    impatient = AsyncPublisher(standalone_server.url, prefix=prefix, timeout=0.2)
    holders = [asyncio.new_event_loop() for _ in range(2)]

    def hold() -> None:
        for loop in holders:
            loop.run_until_complete(impatient.count("r"))

    await asyncio.to_thread(hold)
    with pytest.raises(BackendError, match="2 event loops of this process use this publisher"):
        await impatient.count("r")

    def let_go() -> None:
        for loop in holders:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    await asyncio.to_thread(let_go)
    assert await impatient.count("r") == 0
    await impatient.close()


RUDE = """
import asyncio, sys
from socketspec.cluster import AsyncPublisher
from socketspec.cluster.publishers import lives
lives.MAX_LOOPS = 2
publisher = AsyncPublisher(sys.argv[1], timeout=2)
for _ in range(5):
    loop = asyncio.new_event_loop()
    print(loop.run_until_complete(publisher.count("r")))
    loop.close()  # without the end of what still runs in it
"""


def test_an_event_loop_that_is_closed_holds_no_place_however_it_ended(standalone_server: Server, prefix: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUDE, f"{standalone_server.url}?prefix={prefix}"],
        capture_output=True, text=True, timeout=30, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n" * 5, "")


async def test_close_reaches_the_connections_of_other_event_loops(standalone_server: Server, prefix: str) -> None:
    name = f"close-{prefix}"
    publisher = AsyncPublisher(standalone_server.url, prefix=prefix, client_name=name)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    counted = asyncio.Event()

    async def elsewhere() -> None:
        await publisher.count("r")
        loop.call_soon_threadsafe(counted.set)
        await until(lambda: not connections(standalone_server, name), "they are closed")
        loop.call_soon_threadsafe(ended.set)

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    await publisher.count("r")
    await counted.wait()
    await publisher.close()
    await other
    assert ended.is_set()
    with pytest.raises(BackendError, match="closed"):
        await publisher.count("r")


# --- apps that share a backend


@pytest.mark.parametrize("turns", range(0, 60, 4))
async def test_whenever_an_app_starts_while_another_of_its_url_stops_it_is_not_deaf(
    standalone_server: Server, prefix: str, turns: int
) -> None:
    url = f"{standalone_server.url}?prefix={prefix}&linger=0"
    first, second = listening(url), listening(url)
    await first.ensure_started()
    stopping = asyncio.create_task(first.stop())
    for _ in range(turns):
        await asyncio.sleep(0)
    async with TestClient(second) as client:
        conn = await joined(client, "r")
        await stopping
        async with AsyncPublisher(url) as publisher:
            assert (await publisher.broadcast("r", "hello")).nodes == 1
            assert (await conn.receive(timeout=2))["event"] == "hello"
            assert await publisher.disconnect_user("ada") == 1
        with pytest.raises(ConnectionClosed):
            await conn.receive(timeout=2)


async def test_a_start_that_fails_leaves_the_other_app_of_its_url_at_work(
    standalone_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RedisBackend(standalone_server.url, prefix=prefix)

    async def refuse(_topic: object) -> None:
        raise BackendError("not today")

    async with TestClient(listening(backend)) as client:
        conn = await joined(client, "r")
        failing = listening(backend)
        with monkeypatch.context() as patched:
            patched.setattr(backend.broker, "subscribe", refuse)
            with pytest.raises(BackendError, match="not today"):
                await failing.ensure_started()
        async with AsyncPublisher(standalone_server.url, prefix=prefix) as publisher:
            assert (await publisher.broadcast("r", "hello")).nodes == 1
        assert (await conn.receive(timeout=2))["event"] == "hello"
        assert (await backend.health()).ready


async def test_a_node_is_not_ready_while_it_does_not_hear_what_nodes_tell_each_other(
    standalone_server: Server, prefix: str
) -> None:
    backend = RedisBackend(standalone_server.url, prefix=prefix)
    async with listening(backend).lifespan():
        assert (await backend.health()).ready
        channel = Keys(prefix).channel(control_topic("/"))
        backend._life.subscriptions.unsubscribe(channel)  # noqa: SLF001 # as a fault of ours would
        ready, detail = await backend.health()
        assert not ready
        assert "what nodes tell each other" in detail


def test_nothing_is_connected_before_the_start(standalone_server: Server, prefix: str) -> None:
    name = f"idle-{prefix}"
    made: Sequence[object] = [
        listening(RedisBackend(standalone_server.url, prefix=prefix, client_name=name)),
        AsyncPublisher(standalone_server.url, prefix=prefix, client_name=name),
        Publisher(standalone_server.url, prefix=prefix, client_name=name),
    ]
    assert len(made) == 3
    assert connections(standalone_server, name) == 0
