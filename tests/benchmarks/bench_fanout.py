"""Fan-out to one room on stock uvicorn: SocketSpec against a FastAPI loop of ``await ws.send_text``.

    python tests/benchmarks/bench_fanout.py [--connections 1000] [--messages 200] [--rounds 10]

Both servers run in one go, in turn, each as its own process on one core with the load on another (where there are
two); both send the same number of bytes for each message. What counts is the ratio: the machines this runs on are
shared, and absolute figures drift. The server's own CPU time for each message (Linux only) drifts least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI, WebSocket

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.load import Receivers, connect, cpu_seconds, masked_text, pin, process, say_port, wait_for_port

PAYLOAD = {"text": "x" * 56, "t": 10**18}
FRAME = len(json.dumps({"event": "tick", "payload": PAYLOAD}, separators=(",", ":"))) + 2


def fastapi_app() -> FastAPI:
    """What one writes without a library: a set of sockets and a loop."""
    app = FastAPI()
    members: list[WebSocket] = []

    @app.websocket("/ws")
    async def endpoint(ws: WebSocket) -> None:
        await ws.accept()
        members.append(ws)
        while True:
            request = json.loads(await ws.receive_text())
            for _ in range(request["payload"]["count"]):
                text = json.dumps({"event": "tick", "payload": PAYLOAD}, separators=(",", ":"))
                for member in members:
                    await member.send_text(text)

    return app


def socketspec_app() -> FastAPI:
    """The same with a room."""
    from socketspec import Connection, SocketApp
    from socketspec.adapters.fastapi import mount

    socket_app = SocketApp()

    @socket_app.on_connect
    async def on_connect(conn: Connection) -> None:
        await socket_app.rooms.join(conn, "all")

    @socket_app.on("go")
    async def go(conn: Connection, payload: dict[str, int]) -> None:
        for _ in range(payload["count"]):
            await socket_app.rooms.broadcast("all", "tick", PAYLOAD)

    app = FastAPI()
    mount(socket_app, app)
    return app


APPS = {"fastapi": fastapi_app, "socketspec": socketspec_app}


def serve(name: str) -> None:
    """Run one server on a free port and print the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    say_port(listener)
    config = uvicorn.Config(APPS[name](), log_level="critical", ws_ping_interval=None)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


class Result(NamedTuple):
    """One run: messages delivered a second, and the server's CPU microseconds for each."""

    rate: float
    cpu: float


def measure(name: str, connections: int, messages: int) -> Result:
    """Run one server under load."""
    with process([sys.executable, __file__, "--serve", name], core=0) as (server, line):
        port = int(line)
        wait_for_port(port)
        clients = [connect(port) for _ in range(connections)]
        receivers = Receivers(clients)
        expected = connections * messages
        cpu_began = cpu_seconds(server.pid)
        clients[0].setblocking(True)
        clients[0].sendall(masked_text(json.dumps({"event": "go", "payload": {"count": messages}}).encode()))
        clients[0].setblocking(False)
        tally = receivers.count(expected, patience=10)
        cpu = cpu_seconds(server.pid) - cpu_began
        receivers.close()
        if tally.delivered < expected:
            raise RuntimeError(f"{name}: only {tally.delivered} of {expected} messages arrived")
        return Result(tally.delivered / tally.seconds, cpu / tally.delivered * 1e6)


def main() -> None:
    """Run every round and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve", choices=APPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    pin(1)
    results: dict[str, list[Result]] = {name: [] for name in APPS}
    for turn in range(options.rounds):
        # Whoever comes second finds another machine (caches, the hypervisor's mood): they take turns in being first.
        for name in list(APPS)[:: 1 if turn % 2 else -1]:
            results[name].append(measure(name, options.connections, options.messages))
    print(f"fan-out, {options.connections} connections, {options.messages} messages of {FRAME} bytes")
    for name, measured in results.items():
        rates = ", ".join(f"{result.rate:,.0f}" for result in measured)
        rate = statistics.median(result.rate for result in measured)
        cpu = statistics.median(result.cpu for result in measured)
        print(f"  {name:<12}{rate:>10,.0f} delivered/s {cpu:>6.2f} µs CPU a message  (runs: {rates})")
    pairs = list(zip(results["socketspec"], results["fastapi"], strict=True))
    rate_ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    cpu_ratio = statistics.median(theirs.cpu / ours.cpu for ours, theirs in pairs)
    print(
        f"  socketspec / fastapi loop: {rate_ratio:.2f} times the rate, "
        f"{cpu_ratio:.2f} times the messages per CPU second"
    )


if __name__ == "__main__":
    main()
