"""How the cost grows: messages delivered a second by size of a room, number of rooms and size of a message.

    python tests/benchmarks/bench_growth.py [--quick] [--picture docs/assets/growth.svg]

Two curves in each: "one write a message" (the next message is published when the last has been written out) and
"saturating" (a publisher that does not wait, so that messages of one room are joined). While one quantity grows, the
others are: a room of 1,000, one room, messages of 119 bytes; where the number of rooms grows, each has three members
among 1,000 connections.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.plot import Line, Panel, svg
from tests.benchmarks.sockets import Readers
from tests.benchmarks.stage import OURS, Failed, Server, frame_size
from tests.benchmarks.suite import TEXT, Results, Settings, run, say

MEMBERS = 3
IN_FLIGHT = 512 * 1024
"""Bytes for one connection that are under way at most: half of what a slow client may have waiting."""
MODES = {"one write a message": True, "saturating publisher": False}
Points = dict[str, list[tuple[float, float]]]


def delivered(
    server: Server, readers: Readers, settings: Settings, *, members: int, text: int, rooms: int, paced: bool
) -> float:
    """Messages delivered a second, the middle of three times; published in portions that fit into buffers."""
    size = frame_size(text)
    portion = max(1, min(20_000, IN_FLIGHT // size * rooms))

    def publish(messages: int) -> float:
        seconds = 0.0
        for start in range(0, messages, portion):
            count = min(portion, messages - start)
            began = time.perf_counter()
            server.publish(count, text, paced=paced, rooms=rooms)
            tally = readers.read(count * members * size)
            server.answer()
            if tally.bytes < count * members * size:  # more: heartbeats
                raise Failed(f"{tally.bytes:,} bytes instead of {count * members * size:,}; {tally.closed} lost")
            seconds += tally.last - began
        return messages / seconds

    warm_up = publish(min(portion, max(8, 4000 // members)))
    messages = max(8, min(500_000, int(warm_up * settings.seconds / 4)))
    return members * statistics.median(publish(messages) for _ in range(3))


def by_members(settings: Settings) -> Points:
    points: Points = {mode: [] for mode in MODES}
    for members in (50,) if settings.quick else (10, 100, 1000, 10_000):
        say(f"  a room of {members:,}")
        with Server(OURS, settings.platform) as server:
            readers = Readers(server.open(members))
            for mode, paced in MODES.items():
                rate = delivered(server, readers, settings, members=members, text=TEXT, rooms=1, paced=paced)
                points[mode].append((members, rate))
            readers.close()
    return points


def _seat(rooms: int, clients: int, index: int) -> str:
    """Which rooms a client joins: every `clients`-th seat of all."""
    return f"r={rooms}&m={MEMBERS}&i={index}&c={clients}"


def by_rooms(settings: Settings) -> Points:
    points: Points = {mode: [] for mode in MODES}
    clients = settings.connections
    for rooms in (100,) if settings.quick else (1, 10, 100, 1000, 10_000, 100_000):
        say(f"  {rooms:,} rooms")
        with Server(OURS, settings.platform) as server:
            readers = Readers(server.open(clients, partial(_seat, rooms, clients)))
            server.ask("collect")
            for mode, paced in MODES.items():
                rate = delivered(server, readers, settings, members=MEMBERS, text=TEXT, rooms=rooms, paced=paced)
                points[mode].append((rooms, rate))
            readers.close()
    return points


def by_size(settings: Settings) -> Points:
    points: Points = {mode: [] for mode in MODES}
    envelope = frame_size(0) - 2
    with Server(OURS, settings.platform) as server:
        readers = Readers(server.open(settings.connections))
        for size in (64, 1024) if settings.quick else (64, 256, 1024, 4096, 16_384, 65_536):
            say(f"  messages of {size:,} bytes")
            for mode, paced in MODES.items():
                text = size - envelope
                rate = delivered(
                    server, readers, settings, members=len(readers.clients), text=text, rooms=1, paced=paced
                )
                points[mode].append((size, rate))
        readers.close()
    return points


def benchmark(settings: Settings) -> Results:
    results = Results()
    panels = []
    for key, title, x_label, measure in (
        ("members", "room size", "members of the room", by_members),
        ("rooms", "number of rooms", f"rooms of {MEMBERS} members", by_rooms),
        ("size", "message size", "bytes of a message", by_size),
    ):
        points = measure(settings)
        results.curves[key] = points
        panels.append(Panel(f"Delivered a second by {title}", x_label, [Line(mode, points[mode]) for mode in MODES]))
    settings.picture.parent.mkdir(parents=True, exist_ok=True)
    settings.picture.write_text(svg(panels, "Messages delivered a second by room size, number of rooms, message size"))
    results.remarks.append(f"how the cost grows: {settings.picture.name}")
    for key, points in results.curves.items():
        for mode, line in points.items():
            said = ", ".join(f"{x:,}: {y:,.0f}/s" for x, y in line)
            results.remarks.append(f"delivered by {key}, {mode}: {said}")
    return results


if __name__ == "__main__":
    run({"growth": benchmark}, __doc__)
