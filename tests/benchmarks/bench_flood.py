"""One client floods: what its messages cost the others in delay, by what is in them.

    python tests/benchmarks/bench_flood.py [--rounds 5] [--quick]

One client sends messages of 60,000 bytes as fast as the server takes them, and reads what it is answered. Another one
asks, waits for its answer, and asks again. The flood's messages are a text, which is validated and answered; 60,000
empty arrays in MessagePack, or 20,000 in JSON, which are more items than `max_payload_items` allows; 9,000, which it
allows; and a thousand headers of MessagePack, one within the other, each of which claims 10,000 items that never come.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgpack

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sockets import Readers, RoundTrips, client_frame, handshake, round_trips
from tests.benchmarks.stage import OURS, Failed, Server
from tests.benchmarks.suite import Goal, Results, Settings, run, say

P99, RATE = "flood_p99", "flood_round_trips"
SIZE: Final = 60_000
"""Bytes of a message, with the few of its envelope on top."""
NOBODY, TEXT = "nobody floods", "text"
REQUEST: Final = client_frame(b'{"event":"echo","payload":{"room":"lobby","text":"hello"}}')


def packed(items: object) -> bytes:
    body: bytes = msgpack.packb({"event": "echo", "payload": {"room": "r0", "text": items}})
    return b"\x82" + client_frame(body)[1:]  # the same as a binary frame


def in_json(items: object) -> bytes:
    body = json.dumps({"event": "echo", "payload": {"room": "r0", "text": items}}, separators=(",", ":"))
    return client_frame(body.encode())


def claims(header: bytes) -> bytes:
    """A message whose arrays or objects claim more than comes."""
    text: bytes = msgpack.packb("x" * (SIZE - 1000 * len(header)))
    return b"\x82" + client_frame(header * 1000 + text)[1:]


FLOODS: Final[Mapping[str, tuple[str, bytes]]] = {
    TEXT: ("msgpack", packed("x" * SIZE)),
    "60,000 empty arrays": ("msgpack", packed([[]] * SIZE)),
    "20,000 empty arrays in JSON": ("json", in_json([[]] * (SIZE // 3))),
    "9,000 arrays, which are allowed": ("msgpack", packed([[]] * 9_000)),
    "arrays that claim 10,000,000 items": ("msgpack", claims(b"\xdc\x27\x10")),
    "objects that claim 10,000,000 items": ("msgpack", claims(b"\xde\x27\x10\xa0")),
}
"""The subprotocol and the frame of each."""


@contextmanager
def flooding(port: int, path: str, kind: str) -> Iterator[None]:
    """A client that sends what it can until the end of the block, in a process of its own."""
    subprotocol, frame = FLOODS[kind]
    request = handshake(port, path)[:-2] + f"Sec-WebSocket-Protocol: socketspec.v1.{subprotocol}\r\n\r\n".encode()
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(request)
    if not client.recv(4096).startswith(b"HTTP/1.1 101"):
        raise Failed("the client that is to flood was not let in")
    flood = get_context("fork").Process(target=_flood, args=(client, frame), daemon=True)
    flood.start()
    client.close()
    try:
        yield
        if not flood.is_alive():
            raise Failed(f"the client that floods with {kind} was closed")
    finally:
        flood.kill()
        flood.join()


def _flood(client: socket.socket, frame: bytes) -> None:
    os.nice(10)  # on the core it shares, who measures goes first: it is the server's delay that counts
    threading.Thread(target=_read, args=(client,), daemon=True).start()
    while True:
        client.sendall(frame)


def _read(client: socket.socket) -> None:
    while client.recv(1 << 18):
        pass


def measure(kind: str, settings: Settings) -> RoundTrips:
    with Server(OURS, settings.platform) as server:
        readers = Readers(server.open(1, lambda index: "r=0&m=1&i=0&c=1"))
        try:
            readers.drain(0.1)
            readers.clients[0].send(REQUEST)
            size = readers.drain(0.2)
            if not size:
                raise Failed("the server does not answer")
            if kind == NOBODY:
                return round_trips(readers.clients, REQUEST, size, settings.seconds)
            with flooding(server.port, f"{OURS.path}?r=0&m=1&i=0&c=1", kind):
                round_trips(readers.clients, REQUEST, size, settings.seconds / 4)
                return round_trips(readers.clients, REQUEST, size, settings.seconds)
        finally:
            readers.close()


def benchmark(settings: Settings) -> Results:
    results = Results()
    kinds: tuple[str, ...] = (NOBODY, *FLOODS)
    for number in range(settings.rounds):
        say(f" round {number + 1}")
        for kind in (kinds, kinds[::-1])[number % 2]:
            say(f"  {kind}")
            found = measure(kind, settings)
            results.add(P99, kind, found.percentile(0.99))
            results.add(RATE, kind, found.rate)
    for kind in kinds:
        if kind != TEXT:
            results.contrast(
                f"p99 beside a flood of {kind}" if kind != NOBODY else f"p99 where {kind}",
                f"{results.middle(P99, kind):.2f} ms",
                "a flood of text",
                f"{results.middle(P99, TEXT):.2f} ms",
                results.ratio(P99, kind, TEXT),
                Goal(at_most=2),
            )
    return results


if __name__ == "__main__":
    run({"flood": benchmark}, __doc__)
