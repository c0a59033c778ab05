"""One event in, one answer out, on 100 connections with one outstanding each: round trips a second, p50 and p99.

    python tests/benchmarks/bench_round_trip.py [--rounds 5] [--quick]

SocketSpec parses the envelope, validates the payload with Pydantic, resolves a dependency, runs the handler and encodes
an answer. FastAPI sends the text back without a look at it. python-socketio parses, and validates nothing; chanx
parses and validates.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sockets import Readers, client_frame, round_trips
from tests.benchmarks.stage import (
    CHANX,
    FASTAPI,
    FASTAPI_LEGACY,
    OURS,
    PUBLISHED,
    SOCKETIO,
    STOCK,
    Failed,
    Server,
    Target,
)
from tests.benchmarks.suite import Goal, Results, Settings, in_turns, run, say

CONNECTIONS = 100
RATE, P50, P99, CPU = "round_trips", "round_trip_p50", "round_trip_p99", "round_trip_cpu"
PAYLOAD = {"room": "lobby", "text": "x" * 50}


def request(target: Target) -> bytes:
    """The same payload in each library's envelope."""
    message: object = {"event": "echo", "payload": PAYLOAD}
    if target.app == "chanx":
        message = {"action": "echo", "payload": PAYLOAD}
    if target.app == "socketio":
        return client_frame(b"42" + json.dumps(["echo", PAYLOAD], separators=(",", ":")).encode())
    return client_frame(json.dumps(message, separators=(",", ":")).encode())


def measure(target: Target, settings: Settings, results: Results) -> None:
    with Server(target, settings.platform) as server:
        readers = Readers(server.open(CONNECTIONS, lambda index: "r=0&m=1&i=0&c=1"))
        try:
            readers.drain(0.5 if target.app == "socketio" else 0.1)
            asked = request(target)
            readers.clients[0].send(asked)
            size = readers.drain(0.2)
            if not size:
                raise Failed(f"{target.label} does not answer")
            round_trips(readers.clients, asked, size, settings.seconds / 4)
            cpu = server.cpu()
            found = round_trips(readers.clients, asked, size, settings.seconds)
            results.add(CPU, target.key, (server.cpu() - cpu) / found.done * 1e6)
        finally:
            readers.close()
    results.add(RATE, target.key, found.rate)
    results.add(P50, target.key, found.percentile(0.5))
    results.add(P99, target.key, found.percentile(0.99))


def benchmark(settings: Settings) -> Results:
    results = Results()
    targets = settings.targets(OURS, FASTAPI, FASTAPI_LEGACY, SOCKETIO, CHANX, PUBLISHED, STOCK)
    for number in range(settings.rounds):
        say(f" round {number + 1}")
        for target in in_turns(targets, number):
            results.attempt(target, partial(measure, target, settings, results))
    for target in (FASTAPI, FASTAPI_LEGACY, SOCKETIO, CHANX, PUBLISHED, STOCK):
        goal = Goal(at_least=1.2) if target is FASTAPI else None
        results.compare("validated event and answer", RATE, OURS, target, goal=goal)
    results.compare("the same, server CPU", CPU, OURS, FASTAPI, form="{:.1f} µs")
    for target in (FASTAPI, SOCKETIO, CHANX):
        results.compare("the same, p50", P50, OURS, target, form="{:.2f} ms")
    for target in (FASTAPI, SOCKETIO, CHANX):
        goal = Goal(at_most=1) if target is FASTAPI else None
        results.compare("the same, p99", P99, OURS, target, goal=goal, form="{:.2f} ms")
    return results


if __name__ == "__main__":
    run({"round_trip": benchmark}, __doc__)
