"""One small app on every ASGI server that people run: the same behaviour on each."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack
import pytest

from tests.support import Server, client, free_port, serving

APP = """
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount

socket = SocketApp()
app = FastAPI()
mount(socket, app, path="/ws")


@socket.on("whoami")
async def whoami(conn) -> dict:
    return {"id": conn.id}


@socket.on("say")
async def say(conn, payload: dict) -> dict:
    await socket.rooms.broadcast_all("said", payload)
    return {"length": len(payload["text"])}


@socket.on("leave")
async def leave(conn) -> None:
    await conn.disconnect("kicked", code=4321)


@socket.on_disconnect
async def bye(conn, reason) -> None:
    print(f"Disconnected: {conn.id} ({reason})")
"""

COMMANDS = {
    "uvicorn-websockets-sansio": "uvicorn main:app --host 127.0.0.1 --port {port} --ws websockets-sansio",
    "uvicorn-wsproto": "uvicorn main:app --host 127.0.0.1 --port {port} --ws wsproto",
    "hypercorn": "hypercorn main:app --bind 127.0.0.1:{port}",
    "granian": "granian main:app --interface asgi --host 127.0.0.1 --port {port}",
    "daphne": "daphne -b 127.0.0.1 -p {port} main:app",
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("servers")
    started: dict[str, Server] = {}
    for name, command in COMMANDS.items():
        port = free_port()
        started[name] = Server(folder / name, {"main.py": APP}, command.format(port=port).split(), port)
    with serving(*started.values()):
        yield started


@pytest.fixture(params=list(COMMANDS))
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


async def test_a_broadcast_reaches_two_clients_and_the_sender_gets_its_ack(server: Server) -> None:
    async with client(server.url("/ws")) as ada, client(server.url("/ws")) as bob:
        assert (await bob.call("whoami"))["id"]
        await ada.send("say", {"text": "hi"}, id="s")
        got = [await ada.receive(), await ada.receive()]
        assert {"event": "said", "payload": {"text": "hi"}} in got
        assert {"event": "__ack__", "payload": {"length": 2}, "id": "s"} in got
        assert await bob.receive() == {"event": "said", "payload": {"text": "hi"}}


async def test_a_big_message_passes_and_a_bigger_one_is_refused(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        await ada.send("say", {"text": "x" * 60_000}, id=1)
        got = [await ada.receive(), await ada.receive()]
        assert sorted(event["event"] for event in got) == ["__ack__", "said"]
        await ada.send("say", {"text": "x" * 70_000}, id=2)
        assert (await ada.error())["code"] == "PAYLOAD_TOO_LARGE"
        assert (await ada.call("whoami"))["id"]


async def test_messagepack_is_spoken_by_subprotocol(server: Server) -> None:
    async with client(server.url("/ws"), subprotocols=["socketspec.v1.msgpack"]) as ada:
        assert ada.connection.subprotocol == "socketspec.v1.msgpack"
        first = await ada.connection.recv()
        assert isinstance(first, bytes)
        assert msgpack.unpackb(first)["event"] == "__connect__"
        await ada.connection.send(msgpack.packb({"event": "whoami", "payload": {}, "id": 7}))
        reply = await ada.connection.recv()
        assert isinstance(reply, bytes)
        assert msgpack.unpackb(reply)["id"] == 7


async def test_the_clients_close_code_reaches_on_disconnect(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        id = (await ada.call("whoami"))["id"]
        await ada.connection.close(4123)
    # hypercorn tells applications 1006 whatever the client sent (its ws_stream.py, on StreamClosed).
    reason = "connection_lost" if server.name == "hypercorn" else "client:4123"
    await server.logged(rf"Disconnected: {id} \({reason}\)")


async def test_the_servers_close_code_and_reason_reach_the_client(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        id = (await ada.call("whoami"))["id"]
        await ada.send("leave")
        assert (await ada.closed())[0] == 4321
    await server.logged(rf"Disconnected: {id} \(kicked\)")


async def test_a_close_code_of_the_standard_reaches_the_client(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        id = (await ada.call("whoami"))["id"]
        await ada.connection.send(b"not text")
        assert (await ada.error())["code"] == "VALIDATION_ERROR"
        # daphne (its autobahn) sends 1000 and 3000-4999 only; asked for another it sends none and leaves the client be.
        assert (await ada.closed())[0] == (1000 if server.name == "daphne" else 1003)
    await server.logged(rf"Disconnected: {id} \(unsupported_data\)")
