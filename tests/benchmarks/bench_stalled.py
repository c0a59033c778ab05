"""Clients that stop reading, among 1,000: what they cost the server in memory, and the others in delay.

    python tests/benchmarks/bench_stalled.py [--rounds 5] [--quick]

One room, messages of 8 KiB at 20 a second, which is below half of what the server can do. First everybody reads, then
one client does not, then a hundred do not. The server's memory is what it grew by at most while the messages came; the
delay is from publish to arrival at the clients that read.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sockets import Readers
from tests.benchmarks.stage import OURS, Failed, Server, frame_size
from tests.benchmarks.suite import Goal, Results, Settings, run, say

TEXT = 8192
RATE = 20
P99, GREW, STILL = "stalled_p99", "stalled_memory_mib", "stalled_still_open"
BUFFER = 1.0
"""MiB that waits for one client at most (`Backpressure.max_buffer`)."""
SEND_BUFFER = 65_536
"""Bytes of the server's sockets. On loopback the kernel would take 2.5 MiB for each client before anybody waits."""
NOISE = 4.0
"""MiB that the server's memory may differ by from run to run."""


@contextmanager
def peak_of(server: Server) -> Iterator[list[int]]:
    """The most resident memory that was seen until the end of the block, and how it began."""
    seen = [server.rss(), server.rss()]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            seen[1] = max(seen[1], server.rss())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        is_over.set()
        watching.join()


def measure(stalled: int, settings: Settings, results: Results) -> None:
    size = frame_size(TEXT)
    messages = 20 if settings.quick else RATE * 12
    key = f"{stalled} stalled"
    with Server(OURS, settings.platform, send_buffer=SEND_BUFFER) as server:
        silent = server.open(stalled, receive_buffer=4096) if stalled else []
        readers = Readers(server.open(settings.connections - stalled))
        try:
            server.publish(4, TEXT, paced=True)
            readers.read(4 * size * len(readers.clients))
            server.answer()
            server.ask("collect")
            with peak_of(server) as seen:
                server.publish(messages, TEXT, rate=400 if settings.quick else RATE)
                tally = readers.read_timed(messages * size * len(readers.clients), size)
                times = server.answer()["times"]
            if tally.bytes < messages * size * len(readers.clients):
                raise Failed(
                    f"only {tally.bytes / size:,.0f} messages arrived at clients that read; {tally.closed} lost"
                )
            delays = sorted(moment - times[number] for number, moment in tally.arrivals)
            results.add(P99, key, delays[int(len(delays) * 0.99)] / 1e6)
            results.add(GREW, key, (seen[1] - seen[0]) / 2**20)
            still = server.ask("open")["open"] - len(readers.clients)
            results.add(STILL, key, still)
            if still and not settings.quick:
                results.remarks.append(f"{still} of {stalled} that stalled were not closed: too little was sent")
        finally:
            for client in silent:
                client.close()
            readers.close()


def benchmark(settings: Settings) -> Results:
    results = Results()
    many = 10 if settings.quick else 100
    some = (many,) if settings.quick else (1, many)
    amounts = (0, *some)
    for number in range(settings.times(2)):
        say(f" round {number + 1}")
        for stalled in (amounts, amounts[::-1])[number % 2]:
            say(f"  {stalled} of {settings.connections} stalled")
            measure(stalled, settings, results)
    normal = "0 stalled"
    for stalled in some:
        key = f"{stalled} stalled"
        results.contrast(
            f"p99 of the others, {stalled} of {settings.connections} stalled",
            f"{results.middle(P99, key):.2f} ms",
            "none stalled",
            f"{results.middle(P99, normal):.2f} ms",
            results.ratio(P99, key, normal),
            Goal(at_most=2),
        )
    for stalled in some:
        grew = results.middle(GREW, f"{stalled} stalled") - results.middle(GREW, normal)
        goal = Goal(at_most=stalled * BUFFER + NOISE, unit=" MiB")
        results.hold(f"memory for {stalled} that stalled, at most", grew, goal, form="{:.1f} MiB")
    return results


if __name__ == "__main__":
    run({"stalled": benchmark}, __doc__)
