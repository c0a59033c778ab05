"""100,000 connections that come and go: resident memory and open files are afterwards where they were.

    python tests/benchmarks/bench_leak.py [--quick]

Each is let in, joins a room, and ends in one of three ways in turn: with a close frame, without a word, with a reset.
The first tenth is to warm up; what the rest left behind is what counts. Each look follows a garbage collection.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sockets import CLOSE
from tests.benchmarks.stage import OURS, Failed, Server
from tests.benchmarks.suite import Goal, Results, Settings, run, say

BATCH = 500
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close sends RST."""
NOISE = 1.0
"""MiB by which resident memory moves from look to look without a leak."""


def end(clients: list[socket.socket]) -> None:
    """Close them, each third in its way."""
    for client in clients[::3]:
        client.send(CLOSE)
    for client in clients[2::3]:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    for client in clients[::3]:
        while select.select([client], [], [], 5)[0] and client.recv(4096):
            """The server's close frame; then it closes."""
    for client in clients:
        client.close()


def look(server: Server) -> tuple[float, int]:
    """MiB resident and files open, once nobody is connected."""
    for _ in range(500):
        if not server.ask("open")["open"]:
            break
        time.sleep(0.01)
    else:
        raise Failed(f"{server.ask('open')['open']} connections have not left")
    time.sleep(0.2)
    server.ask("collect")
    return server.rss() / 2**20, server.files()


def benchmark(settings: Settings) -> Results:
    results = Results()
    total = 300 if settings.quick else 100_000
    step = total // 3 if settings.quick else total // 10
    batch = min(BATCH, step)
    looks: list[dict[str, float]] = []
    with Server(OURS, settings.platform) as server:
        for done in range(0, total + 1, step):
            if done:
                for _ in range(step // batch):
                    end(server.open(batch))
            mib, files = look(server)
            looks.append({"connections": done, "mib": mib, "files": files})
            say(f"  {done:>7,} came and went: {mib:.1f} MiB, {files} files")
    warm, last = looks[1], looks[-1]
    results.curves["leak"] = looks
    what = f"after {total:,} connections"
    memory = Goal(at_most=NOISE, unit=" MiB")
    results.hold(f"{what}: memory, more than before", last["mib"] - warm["mib"], memory, form="{:+.2f} MiB")
    results.hold(f"{what}: files, more than before", last["files"] - warm["files"], Goal(at_most=0), form="{:+.0f}")
    return results


if __name__ == "__main__":
    run({"leak": benchmark}, __doc__)
