"""What is served and published to in the benchmarks: the same small application on every library.

Clients of a room get ``{"event": "tick", "payload": {"text": …}}`` or what the library makes of it; what they send is
answered. For `serve.py`, in whichever environment has the library: everything is imported where it is used.
"""

import json
import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

Send = Callable[[str, dict[str, Any]], Awaitable[object]]
Batch = Callable[[list[str], dict[str, Any]], Awaitable[object]]


@dataclass
class App:
    """What is served, and how to publish to one of its rooms."""

    asgi: Any
    send: Send
    joined: list[int] = field(default_factory=lambda: [0])
    """How many clients have been let in and put into their rooms."""
    orders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = field(default_factory=dict)
    """What else it can be asked to do."""


def rooms_of(query: Any) -> list[str]:
    """The rooms of client ``i`` of ``c``, where there are ``r`` rooms of ``m`` members; room r0 by default."""
    if "r" not in query:
        return ["r0"]
    index, clients, total = int(query["i"]), int(query["c"]), int(query["r"]) * int(query["m"])
    return [f"r{seat // int(query['m'])}" for seat in range(index, total, clients)]


class _Ours:
    """What our application remembers for the benchmarks."""

    def __init__(self, socket_app: Any) -> None:
        self._socket_app = socket_app
        self.joined = [0]
        self.connections: set[Any] = set()
        self._writes = self._messages = 0

    async def let_in(self, conn: Any) -> None:
        self.connections.add(conn)
        if "probe" in conn.query_params:
            engine = await self._socket_app.ensure_started()
            await engine.rooms.join(conn, "r0", self._counting(conn.transport.write))
        for room in rooms_of(conn.query_params):
            await self._socket_app.rooms.join(conn, room)
        self.joined[0] += 1

    def _counting(self, write: Callable[..., None]) -> Callable[..., None]:
        def counted(*messages: Any) -> None:
            self._writes += 1
            self._messages += len(messages)
            write(*messages)

        return counted

    async def send(self, room: str, payload: dict[str, Any]) -> None:
        await self._socket_app.rooms.broadcast(room, "tick", payload)

    async def join(self) -> dict[str, Any]:
        """Everybody into r0."""
        for conn in list(self.connections):
            await self._socket_app.rooms.join(conn, "r0")
        return {}

    async def open(self) -> dict[str, Any]:
        return {"open": len(self.connections)}

    async def writes(self) -> dict[str, Any]:
        """Of the client that asked for it with ``probe``, since the last time."""
        counted = {"writes": self._writes, "messages": self._messages}
        self._writes = self._messages = 0
        return counted


def socketspec_app(url: str) -> App:
    """Ours; the published one runs it too."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    from socketspec import Connection, Depends, SocketApp
    from socketspec.adapters.fastapi import mount

    class Echo(BaseModel):
        room: str
        text: str

    async def limit() -> int:  # not `def`: that would run in a worker thread, as in FastAPI
        return 100

    socket_app = SocketApp(backend=url or "memory")
    ours = _Ours(socket_app)

    @socket_app.on_connect
    async def on_connect(conn: Connection) -> None:
        await ours.let_in(conn)

    @socket_app.on_disconnect
    async def on_disconnect(conn: Connection, reason: str) -> None:
        ours.connections.discard(conn)

    @socket_app.on("echo")
    async def echo(conn: Connection, payload: Echo, limit: int = Depends(limit)) -> None:
        await conn.emit("echoed", {"room": payload.room, "text": payload.text[:limit]})

    served = FastAPI()
    mount(socket_app, served)
    return App(served, ours.send, ours.joined, {"join": ours.join, "open": ours.open, "writes": ours.writes})


def fastapi_app(url: str) -> App:
    """What one writes without a library: a set of sockets, a loop, and a text echo without a look at the text."""
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect

    served = FastAPI()
    members: set[WebSocket] = set()

    async def send(room: str, payload: dict[str, Any]) -> None:
        text = json.dumps({"event": "tick", "payload": payload}, separators=(",", ":"))
        for member in members:
            await member.send_text(text)

    app = App(served, send)

    @served.websocket("/ws")
    async def endpoint(ws: WebSocket) -> None:
        await ws.accept()
        members.add(ws)
        app.joined[0] += 1
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect:
            members.discard(ws)

    return app


def socketio_app(url: str) -> App:
    """python-socketio, with its manager for Redis where there is a URL."""
    import socketio

    manager = {"client_manager": socketio.AsyncRedisManager(url)} if url else {}
    server = socketio.AsyncServer(async_mode="asgi", **manager)

    async def on_connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        await server.enter_room(sid, "r0")
        app.joined[0] += 1

    async def echo(sid: str, payload: dict[str, Any]) -> None:
        await server.emit("echoed", payload, to=sid)

    async def send(room: str, payload: dict[str, Any]) -> None:
        await server.emit("tick", payload, room=room)

    server.on("connect", on_connect)
    server.on("echo", echo)
    app = App(socketio.ASGIApp(server), send)
    return app


def _channels_layer(url: str) -> Any:
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer(hosts=[url])


def channels_app(url: str) -> App:
    """channels_redis with what a consumer does, without Django's routing and dispatch: the layer is measured."""
    layer = _channels_layer(url)

    async def served(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        channel = await layer.new_channel()
        for room in rooms_of(dict(urllib.parse.parse_qsl(scope["query_string"].decode()))):
            await layer.group_add(room, channel)
        await send({"type": "websocket.accept"})
        app.joined[0] += 1
        while True:
            message = await layer.receive(channel)
            text = json.dumps({"event": "tick", "payload": message["payload"]}, separators=(",", ":"))
            await send({"type": "websocket.send", "text": text})

    async def publish(room: str, payload: dict[str, Any]) -> None:
        await layer.group_send(room, {"type": "tick", "payload": payload})

    app = App(served, publish)
    return app


def _chanx(url: str) -> tuple[Any, Send]:
    return cast("tuple[Any, Send]", import_module("chanx_peer").build(url))


def chanx_app(url: str) -> App:
    """chanx on fast_channels: in memory, or its Redis layer where there is a URL."""
    consumer, send = _chanx(url)
    return App(consumer.as_asgi(), send, joined=consumer.joined)


APPS: dict[str, Callable[[str], App]] = {
    "socketspec": socketspec_app,
    "fastapi": fastapi_app,
    "socketio": socketio_app,
    "channels": channels_app,
    "chanx": chanx_app,
}


# Publishers in a process of their own: what backend code would use


def socketspec_publisher(url: str) -> Batch:
    from socketspec.cluster import Publisher

    publisher = Publisher(url)

    async def send(rooms: list[str], payload: dict[str, Any]) -> None:
        publisher.broadcast_many([(room, "tick", payload) for room in rooms])

    return send


def one_by_one(send: Send) -> Batch:
    async def each(rooms: list[str], payload: dict[str, Any]) -> None:
        for room in rooms:
            await send(room, payload)

    return each


def socketio_publisher(url: str) -> Batch:
    import socketio

    manager = socketio.AsyncRedisManager(url, write_only=True)

    async def send(room: str, payload: dict[str, Any]) -> None:
        await manager.emit("tick", payload, room=room)

    return one_by_one(send)


def channels_publisher(url: str) -> Batch:
    layer = _channels_layer(url)

    async def send(room: str, payload: dict[str, Any]) -> None:
        await layer.group_send(room, {"type": "tick", "payload": payload})

    return one_by_one(send)


def chanx_publisher(url: str) -> Batch:
    return one_by_one(_chanx(url)[1])


PUBLISHERS: dict[str, Callable[[str], Batch]] = {
    "socketspec": socketspec_publisher,
    "socketio": socketio_publisher,
    "channels": channels_publisher,
    "chanx": chanx_publisher,
}
