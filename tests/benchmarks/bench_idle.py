"""Memory of a connection that does nothing, at 10,000 of them, and how many are accepted a second.

    python tests/benchmarks/bench_idle.py [--rounds 5] [--quick]

The server's resident memory before and after, over the number of connections; both after a garbage collection. The
handshakes come as fast as they are answered, 64 under way at any moment. Connections are in no room first; then all of
them join one. No more than one process's limit of open files is needed on either side.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sockets import Readers, open_many, raise_file_limit
from tests.benchmarks.stage import FASTAPI, OURS, Server, Target
from tests.benchmarks.suite import Goal, Results, Settings, in_turns, run, say

IDLE, IN_ROOM, ACCEPTED = "idle_kib", "idle_in_room_kib", "accepted"
SPARE = 500
"""Open files for everything else."""


def measure(target: Target, connections: int, settings: Settings, results: Results) -> None:
    with Server(target, settings.platform) as server:
        path = "/ws?r=0&m=1&i=0&c=1"
        warm = open_many(server.port, 20, lambda index: path).clients
        server.ask("collect")
        before = server.rss()
        opened = open_many(server.port, connections, lambda index: path)
        try:
            while server.ask("count")["joined"] < connections + len(warm):
                time.sleep(0.05)
            server.ask("collect")
            results.add(ACCEPTED, target.key, connections / opened.seconds)
            results.add(IDLE, target.key, (server.rss() - before) / connections / 1024)
            if target.app == "socketspec":
                server.ask("join")
                server.ask("collect")
                results.add(IN_ROOM, target.key, (server.rss() - before) / connections / 1024)
        finally:
            Readers([*opened.clients, *warm]).close()


def benchmark(settings: Settings) -> Results:
    results = Results()
    wanted = 200 if settings.quick else 10_000
    connections = min(wanted, raise_file_limit() - SPARE)
    if connections < wanted:
        results.remarks.append(f"only {connections} idle connections: the limit of open files is no higher")
    targets = settings.targets(OURS, FASTAPI)
    for number in range(settings.times(3)):
        say(f" round {number + 1}")
        for target in in_turns(targets, number):
            results.attempt(target, partial(measure, target, connections, settings, results))
    results.hold(
        "memory of an idle connection", results.middle(IDLE, OURS.key), Goal(at_most=16, unit=" KiB"), form="{:.1f} KiB"
    )
    results.hold("the same, in a room", results.middle(IN_ROOM, OURS.key), Goal(), form="{:.1f} KiB")
    results.compare("memory of an idle connection", IDLE, OURS, FASTAPI, form="{:.1f} KiB")
    results.hold(
        "connections accepted", results.middle(ACCEPTED, OURS.key), Goal(at_least=2000, unit="/s"), form="{:,.0f}/s"
    )
    results.compare("connections accepted", ACCEPTED, OURS, FASTAPI)
    return results


if __name__ == "__main__":
    run({"idle": benchmark}, __doc__)
