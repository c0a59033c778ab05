"""One client of fifty stops reading: the others notice nothing, and what happens to it is what the policy says.

Many stop reading: what waits for all of them together is bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support_process import RawClient, ServerProcess, serve

APP = """
import asyncio

from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.connection.outbox import Backpressure

app = FastAPI()
reasons: dict[str, str] = {}


def build(path: str, **options):
    options = {"max_buffer": 200_000, **options}
    socket = SocketApp(namespace=path, health_url=None, backpressure=Backpressure(**options))

    @socket.on("join")
    async def join(conn: Connection):
        await socket.rooms.join(conn, "prices")
        return {"id": conn.id}

    @socket.on("publish")
    async def publish(conn: Connection, payload: dict):
        for number in range(payload["first"], payload["last"]):
            await socket.rooms.broadcast("prices", "price", {"n": number, "text": "x" * payload["size"]})
            await asyncio.sleep(0)

    @socket.on("send")
    async def send(conn: Connection, payload: dict):
        to = socket.engine.connections.get(payload["to"])
        for _ in range(payload["count"] if to else 0):
            await to.emit("single", {"text": "x" * payload["size"]})

    @socket.on("waiting")
    async def waiting(conn: Connection, payload: dict):
        return {"bytes": socket.engine.waiting.size, "closed": socket.engine.waiting.closed, "reasons": reasons}

    @socket.on("state")
    async def state(conn: Connection, payload: dict):
        return {
            "reason": reasons.get(payload["id"]),
            "buffered": {id: c.transport.buffered for id, c in socket.engine.connections.items()}.get(payload["id"]),
            "members": await socket.rooms.count("prices"),
            "connections": len(socket.engine.connections),
        }

    @socket.on_disconnect
    async def gone(conn, reason):
        reasons[conn.id] = reason

    mount(socket, app, path=path)


build("/disconnect", send_timeout=1.0)
build("/drop_oldest", policy="drop_oldest", send_timeout=60)
build("/keep_latest", policy="keep_latest", send_timeout=60)
build("/together", policy="drop_oldest", send_timeout=60, max_buffer=20_000_000, max_node_buffer=20_000_000)
"""
COUNT, SIZE = 400, 20_000  # 8 MB for each client: more than the sockets' own buffers hold


@pytest.fixture(scope="module")
def server(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(APP, tmp_path_factory.mktemp("slow_client")) as running:
        yield running


class Stage:
    """A publisher outside the room, readers in it, and one member that never reads."""

    def __init__(self, stack: ExitStack, port: int, path: str, readers: int) -> None:
        self.publisher = stack.enter_context(RawClient(port, path))
        self.readers = [stack.enter_context(RawClient(port, path)) for _ in range(readers)]
        self.stalled = stack.enter_context(RawClient(port, path, receive_buffer=4096))
        self.stalled_id = self.stalled.ask("join")["id"]
        for reader in self.readers:
            reader.ask("join")

    def publish(self, first: int, last: int, size: int) -> None:
        self.publisher.send("publish", {"first": first, "last": last, "size": size})

    def state(self) -> dict[str, object]:
        return self.publisher.ask("state", {"id": self.stalled_id})


def test_the_others_get_everything_in_order_and_the_stalled_one_is_dropped(server: ServerProcess) -> None:
    before = server.memory
    with ExitStack() as stack:
        stage = Stage(stack, server.port, "/disconnect", 49)
        assert stage.state()["members"] == 50
        start = time.monotonic()
        for first in range(0, COUNT, 20):
            stage.publish(first, first + 20, SIZE)
            for number in range(first, first + 20):
                for reader in stage.readers:
                    assert reader.json()["payload"]["n"] == number
        assert time.monotonic() - start < 20
        deadline = time.monotonic() + 10
        while stage.state()["connections"] != 50:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        state = stage.state()
        assert state["reason"] == "slow_consumer"
        assert state["members"] == 49
        stage.publish(0, 1, 1)
        assert all(reader.json()["payload"]["n"] == 0 for reader in stage.readers)
        assert server.memory < before + 64 * 1024 * 1024
    assert "Traceback" not in server.log


@pytest.mark.parametrize("policy", ["drop_oldest", "keep_latest"])
def test_a_policy_that_drops_keeps_the_stalled_one_connected(server: ServerProcess, policy: str) -> None:
    before = server.memory
    with ExitStack() as stack:
        stage = Stage(stack, server.port, f"/{policy}", 2)
        for first in range(0, COUNT, 20):
            stage.publish(first, first + 20, SIZE)
            for number in range(first, first + 20):
                for reader in stage.readers:
                    assert reader.json()["payload"]["n"] == number
        state = stage.state()
        assert (state["reason"], state["members"], state["connections"]) == (None, 3, 4)
        buffered = state["buffered"]
        assert isinstance(buffered, int)
        assert SIZE <= buffered <= (200_000 if policy == "drop_oldest" else 41_000)  # the rest of one written before
        assert server.memory < before + 64 * 1024 * 1024
        seen: list[int] = []
        while not seen or seen[-1] != COUNT - 1:
            seen.append(json.loads(stage.stalled.receive().data)["payload"]["n"])
        assert seen == sorted(set(seen))
        assert len(seen) < COUNT
    assert "Traceback" not in server.log


def test_what_waits_for_all_together_is_bounded_and_the_largest_buffers_go_first(server: ServerProcess) -> None:
    before = server.memory
    with ExitStack() as stack:
        stage = Stage(stack, server.port, "/together", 1)
        stalled = [stack.enter_context(RawClient(server.port, "/together", receive_buffer=4096)) for _ in range(8)]
        ids = [client.ask("join")["id"] for client in stalled]
        sent = 0
        state = stage.publisher.ask("waiting", {})
        while state["closed"] < 3:
            assert sent < 60
            for number, id in enumerate(ids):  # the later ones are sent more
                if id not in state["reasons"]:
                    stage.publisher.ask("send", {"to": id, "count": 5 + number, "size": 50_000})
            state = stage.publisher.ask("waiting", {})
            assert state["bytes"] <= 20_000_000
            sent += 1
        assert [state["reasons"].get(id) for id in ids] == [None] * 5 + ["slow_consumer"] * 3
        assert stage.state()["reason"] is None
        stage.publish(0, 1, 1)
        assert stage.readers[0].json()["payload"]["n"] == 0
        assert server.memory < before + 128 * 1024 * 1024
    assert "Traceback" not in server.log
    assert server.log.count("max_node_buffer") == 1  # a line a minute
