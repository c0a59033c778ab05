"""Fan-out between nodes: SocketSpec against python-socketio (AsyncRedisManager) and channels_redis (pub/sub layer).

    python tests/benchmarks/bench_cluster.py [--rounds 3] [--peers FOLDER] [--only socketspec]

One Valkey of its own. Every server runs on stock uvicorn; messages come from a publisher process. The peers are
installed in virtual environments of their own below FOLDER (default: .bench), made at the first run. It measures:

1. one room: one node with 1,000 connections in one room; how many messages a second arrive when published unpaced;
2. many rooms: three nodes on one core, 10,000 rooms of three members, one on each node (3,000 connections, each in ten
   rooms); the nodes' CPU time for each message that arrived, at 1,000 publishes a second and unpaced;
3. delay: the same nodes at half of what they deliver unpaced; from publish to arrival, half (p50) and 99 % (p99).

Servers are on one core; Valkey, publisher and load on the other. What counts is the ratio within one run: the
machines this runs on are shared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
import venv
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.load import Receivers, connect, cpu_seconds, masked_text, pin, process, say_port, wait_for_port

PEERS = {
    "socketio": ["python-socketio", "redis", "hiredis", "uvicorn", "websockets"],
    "channels": ["channels", "channels_redis", "hiredis", "uvicorn", "websockets"],
}
NAMES = ("socketspec", *PEERS)
TEXT = "x" * 60
Batch = Sequence[str]
"""The rooms to publish one message to, each."""


def payload() -> dict[str, Any]:
    return {"text": TEXT, "t": time.time_ns()}


# The servers: each joins the rooms of the handshake's ?rooms=a,b,c


def socketspec_app(url: str) -> Any:
    from fastapi import FastAPI

    from socketspec import Connection, SocketApp
    from socketspec.adapters.fastapi import mount

    socket_app = SocketApp(backend=url)

    @socket_app.on_connect
    async def on_connect(conn: Connection) -> None:
        for room in conn.query_params["rooms"].split(","):
            await socket_app.rooms.join(conn, room)

    app = FastAPI()
    mount(socket_app, app)
    return app


def socketio_app(url: str) -> Any:
    import socketio

    server = socketio.AsyncServer(async_mode="asgi", client_manager=socketio.AsyncRedisManager(url))

    async def on_connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        for room in urllib.parse.parse_qs(environ["QUERY_STRING"])["rooms"][0].split(","):
            await server.enter_room(sid, room)

    server.on("connect", on_connect)
    return socketio.ASGIApp(server)


def channels_layer(url: str) -> Any:
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer(hosts=[url])


def channels_app(url: str) -> Any:
    layer = channels_layer(url)

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        # What a consumer does, without Django's routing and dispatch: the layer is what is measured.
        if scope["type"] != "websocket":
            return
        await receive()
        channel = await layer.new_channel()
        for room in urllib.parse.parse_qs(scope["query_string"].decode())["rooms"][0].split(","):
            await layer.group_add(room, channel)
        await send({"type": "websocket.accept"})
        while True:
            message = await layer.receive(channel)
            text = json.dumps({"event": "tick", "payload": message["payload"]}, separators=(",", ":"))
            await send({"type": "websocket.send", "text": text})

    return app


APPS: dict[str, Callable[[str], Any]] = {
    "socketspec": socketspec_app,
    "socketio": socketio_app,
    "channels": channels_app,
}


def serve(name: str, url: str) -> None:
    """Run one node on a free port and print the port."""
    import uvicorn

    signal.signal(signal.SIGUSR1, lambda *_: gc.collect())
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # or asyncio leaves Nagle on
    listener.bind(("127.0.0.1", 0))
    say_port(listener)
    # Ours is served as `socketspec serve` does it; the peers as their documentation says.
    protocol = "socketspec.adapters.uvicorn:WebSocketProtocol" if name == "socketspec" else "auto"
    config = uvicorn.Config(APPS[name](url), ws=protocol, log_level="critical", ws_ping_interval=None, backlog=4096)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


# The publishers: read lines "count rate rooms" and publish, in a process of their own


def socketspec_publisher(url: str) -> Callable[[Batch], Awaitable[None]]:
    from socketspec.cluster import Publisher

    publisher = Publisher(url)

    async def send(rooms: Batch) -> None:
        publisher.broadcast_many((room, "tick", payload()) for room in rooms)

    return send


def socketio_publisher(url: str) -> Callable[[Batch], Awaitable[None]]:
    import socketio

    manager = socketio.AsyncRedisManager(url, write_only=True)

    async def send(rooms: Batch) -> None:
        for room in rooms:
            await manager.emit("tick", payload(), room=room)

    return send


def channels_publisher(url: str) -> Callable[[Batch], Awaitable[None]]:
    layer = channels_layer(url)

    async def send(rooms: Batch) -> None:
        for room in rooms:
            await layer.group_send(room, {"type": "tick", "payload": payload()})

    return send


PUBLISHERS = {"socketspec": socketspec_publisher, "socketio": socketio_publisher, "channels": channels_publisher}


async def publish(name: str, url: str) -> None:
    """Take orders ``{"count": int, "rate": per second or 0 for unpaced, "rooms": int}`` from standard input."""
    send = PUBLISHERS[name](url)
    rng = random.Random(1)  # noqa: S311 - which rooms, the same for everybody
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        rooms = [f"r{rng.randrange(order['rooms'])}" for _ in range(order["count"])]
        began, sent = time.perf_counter(), 0
        while sent < len(rooms):
            due = len(rooms) if not order["rate"] else int((time.perf_counter() - began) * order["rate"]) + 1
            batch = rooms[sent : min(due, sent + 100)]
            if batch:
                await send(batch)
                sent += len(batch)
            else:
                await asyncio.sleep(0.0005)
        print("done", flush=True)


# The measurements


class Setup(NamedTuple):
    """What is measured, running."""

    name: str
    nodes: list[subprocess.Popen[str]]
    publisher: subprocess.Popen[str]
    receivers: Receivers

    def order(self, count: int, rooms: int, rate: float = 0) -> None:
        assert self.publisher.stdin is not None
        self.publisher.stdin.write(json.dumps({"count": count, "rate": rate, "rooms": rooms}) + "\n")
        self.publisher.stdin.flush()

    def settle(self) -> None:
        """Let every node collect what setting it up has left: one such run takes 0.3 s of its time, at any moment."""
        for node in self.nodes:
            node.send_signal(signal.SIGUSR1)
        self.receivers.drain(1.0)

    def cpu(self) -> float:
        return sum(cpu_seconds(node.pid) for node in self.nodes)


def join(name: str, port: int, rooms: Sequence[str]) -> socket.socket:
    query = "rooms=" + ",".join(rooms)
    if name != "socketio":
        return connect(port, f"/ws?{query}")
    client = connect(port, f"/socket.io/?EIO=4&transport=websocket&{query}")
    client.sendall(masked_text(b"40"))
    received = b""
    while b"40{" not in received:
        received += client.recv(4096)
    return client


@contextmanager
def running(name: str, python: str, url: str, members: Sequence[Sequence[str]], nodes: int) -> Iterator[Setup]:
    """`nodes` nodes, one connection for each list of rooms in `members` (in turn on every node), a publisher."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(process([python, __file__, "--serve", name, "--url", url], core=0))
            for _ in range(nodes)
        ]
        ports = [int(line) for _, line in started]
        for port in ports:
            wait_for_port(port)
        clients = [join(name, ports[index % nodes], rooms) for index, rooms in enumerate(members)]
        receivers = Receivers(clients)
        stack.callback(receivers.close)
        publisher = subprocess.Popen(
            [python, __file__, "--publish", name, "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(publisher.wait)
        stack.callback(publisher.kill)
        assert publisher.stdout is not None
        publisher.stdout.readline()
        setup = Setup(name, [child for child, _ in started], publisher, receivers)
        _warm_up(setup, members)
        yield setup


def _warm_up(setup: Setup, members: Sequence[Sequence[str]]) -> None:
    """Until every join has taken effect: some servers answer the handshake before."""
    rooms = len({room for joined in members for room in joined})
    for _ in range(20):
        setup.order(rooms if rooms == 1 else 300, rooms)
        if setup.receivers.count(len(members) if rooms == 1 else 900, patience=2.0).delivered:
            break
    setup.settle()


class OneRoom(NamedTuple):
    rate: float
    lost: float


def one_room(name: str, python: str, url: str, connections: int, messages: int) -> OneRoom:
    with running(name, python, url, [["r0"]] * connections, nodes=1) as setup:
        setup.order(messages, 1)
        tally = setup.receivers.count(connections * messages)
        return OneRoom(tally.delivered / tally.seconds, 1 - tally.delivered / (connections * messages))


class ManyRooms(NamedTuple):
    cpu: float
    """Microseconds a delivered message at 1,000 publishes a second, when each one wakes every node."""
    busy_cpu: float
    """The same when published unpaced."""
    lost: float
    rate: float
    """Publishes a second that the nodes keep up with."""
    p50: float
    p99: float


def many_rooms(name: str, python: str, url: str, rooms: int, seconds: float) -> ManyRooms:
    count = 3 * rooms // 10
    members: list[list[str]] = [[] for _ in range(count)]
    for room in range(rooms):
        for node in range(3):  # a member on each node: connection `index` is on node `index % 3`
            members[(room * 3 + node) % count].append(f"r{room}")
    with running(name, python, url, members, nodes=3) as setup:
        published = int(1000 * seconds)
        before = setup.cpu()
        setup.order(published, rooms, rate=1000)
        tally = setup.receivers.count(published * 3)
        cpu = (setup.cpu() - before) / max(tally.delivered, 1) * 1e6
        lost = 1 - tally.delivered / (published * 3)
        setup.settle()
        before = setup.cpu()
        setup.order(published, rooms)
        unpaced = setup.receivers.count(published * 3)
        busy_cpu = (setup.cpu() - before) / max(unpaced.delivered, 1) * 1e6
        rate = unpaced.delivered / 3 / unpaced.seconds
        setup.settle()
        setup.order(int(rate / 2 * seconds), rooms, rate=rate / 2)
        delays = sorted(setup.receivers.count(int(rate / 2 * seconds) * 3, timed=True).delays)
        p50, p99 = (delays[int(len(delays) * part)] * 1e3 for part in (0.5, 0.99))
        return ManyRooms(cpu, busy_cpu, lost, rate, p50, p99)


def interpreter(name: str, folder: Path) -> str:
    """The Python that has `name` installed."""
    if name not in PEERS:
        return sys.executable
    home = folder / name
    if not (home / "ready").exists():
        print(f"installing {', '.join(PEERS[name])} into {home}", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin/python", "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
        (home / "ready").touch()
    return str(home / "bin/python")


def main() -> None:
    """Run everything, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rooms", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--peers", type=Path, default=Path(__file__).parents[2] / ".bench")
    parser.add_argument("--serve", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--publish", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.url)
    elif options.publish:
        asyncio.run(publish(options.publish, options.url))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    from socketspec.cluster.embedded import EmbeddedServer

    pin(1)
    names = [options.only] if options.only else list(NAMES)
    pythons = {name: interpreter(name, options.peers) for name in names}
    one: dict[str, list[OneRoom]] = {name: [] for name in names}
    many: dict[str, list[ManyRooms]] = {name: [] for name in names}
    with EmbeddedServer() as server:
        for turn in range(options.rounds):
            for name in names[:: 1 if turn % 2 else -1]:
                one[name].append(one_room(name, pythons[name], server.url, options.connections, options.messages))
                print(f"  {name}: {one[name][-1]}", file=sys.stderr, flush=True)
                many[name].append(many_rooms(name, pythons[name], server.url, options.rooms, options.seconds))
                print(f"  {name}: {many[name][-1]}", file=sys.stderr, flush=True)
    report(options, one, many)


def report(options: argparse.Namespace, one: dict[str, list[OneRoom]], many: dict[str, list[ManyRooms]]) -> None:
    def middle(results: Sequence[OneRoom] | Sequence[ManyRooms], field: str) -> float:
        return statistics.median(float(getattr(result, field)) for result in results)

    print(f"one room of {options.connections} connections on one node; {options.rooms} rooms of 3 on three nodes")
    print("CPU of the nodes for each delivered message: at 1,000 publishes a second / unpaced")
    print(f"{'':<12}{'one room':>14}{'lost':>7}{'CPU/message':>19}{'lost':>7}{'max rate':>11}{'p50':>9}{'p99':>10}")
    for name in one:
        rate, lost = middle(one[name], "rate"), middle(one[name], "lost")
        cpu, busy_cpu, lost_many = (middle(many[name], field) for field in ("cpu", "busy_cpu", "lost"))
        print(
            f"{name:<12}{rate:>12,.0f}/s{lost:>7.1%}{cpu:>8.0f} /{busy_cpu:>4.0f} µs{lost_many:>7.1%}"
            f"{middle(many[name], 'rate'):>9,.0f}/s{middle(many[name], 'p50'):>6.2f} ms"
            f"{middle(many[name], 'p99'):>6.2f} ms"
        )
    for name in one:
        if name != "socketspec" and "socketspec" in one:
            faster = middle(one["socketspec"], "rate") / middle(one[name], "rate")
            paced, busy = (middle(many[name], f) / middle(many["socketspec"], f) for f in ("cpu", "busy_cpu"))
            print(f"socketspec / {name}: {faster:.1f} times the rate in one room; of the CPU a message")
            print(f"    1/{paced:.1f} at 1,000 publishes a second, 1/{busy:.1f} unpaced")


if __name__ == "__main__":
    main()
