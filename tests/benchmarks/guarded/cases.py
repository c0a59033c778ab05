"""What the guard counts. Runs inside callgrind, one case in a process of its own:

    valgrind --tool=callgrind --instr-atstart=no … python -m tests.benchmarks.guarded.cases event marks.so

`SOCKETSPEC_BACKEND` says where Redis is, for the case that needs it. Only doors that stay where they are get used: the
command line, `SocketApp`, `socket.rooms`, and the bytes of HTTP and WebSocket. So the same file counts any version.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
from collections.abc import Callable, Sized
from typing import Final, Protocol

from tests.benchmarks.guarded import app
from tests.benchmarks.guarded.app import socket
from tests.benchmarks.guarded.wire import Serving, Wire, upgrade
from tests.benchmarks.sockets import CLOSE, client_frame

WARM: Final = 2
"""Stretches before anything is counted: by then Python has specialised its bytecode, and caches are filled."""
STRETCHES: Final = 3
"""How many are counted, one by one."""
TURNS: Final = 100_000
"""Turns of the event loop within which what was asked for must have happened; Redis takes some before it answers."""
TEXT: Final = "x" * 81
"""Makes a message of some 120 bytes, as in the other benchmarks."""
CLIENTS: Final = 20
"""Connections that send an event in the same turn of the event loop."""
MEMBERS: Final = 1000
"""Of the room that is broadcast to."""


class Case(Protocol):
    """One thing that is counted."""

    times: int
    """How often `run` does it in one stretch."""

    async def prepare(self) -> None:
        """Open the connections that it takes, and make sure that the right thing happens."""
        ...

    async def run(self) -> None:
        """One stretch."""
        ...


class Event:
    """A client's message comes in, is parsed, validated and handled, and its reply goes out."""

    times = 25 * CLIENTS

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._written: list[bytes] = []
        self._wires: list[Wire] = []
        self._frame = client_frame(
            b'{"id":"17","event":"say","payload":{"room":"general","text":"%b"}}' % TEXT.encode()
        )

    async def prepare(self) -> None:
        self._wires = [await connected(self._serving, "/ws", self._written.append) for _ in range(CLIENTS)]
        await self._round()
        check(b'"__ack__","payload":{"length":81}' in self._written[-1], self._written[-1])

    async def run(self) -> None:
        for _ in range(self.times // CLIENTS):
            await self._round()

    async def _round(self) -> None:
        self._written.clear()
        for wire in self._wires:
            wire.receive(self._frame)
        await until(self._written, CLIENTS)


class FanOut:
    """One broadcast reaches everybody in a large room of this process."""

    times = 20

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._written: list[bytes] = []

    async def prepare(self) -> None:
        for _ in range(MEMBERS):
            await connected(self._serving, "/ws?room=r", self._written.append)
        await self._round()
        check(TEXT.encode() in self._written[-1], self._written[-1])

    async def run(self) -> None:
        for _ in range(self.times):
            await self._round()

    async def _round(self) -> None:
        self._written.clear()
        await socket.rooms.broadcast("r", "tick", {"text": TEXT})
        await until(self._written, MEMBERS)


class Accept:
    """A connection is opened, its origin checked, its hooks run, and closed by its client."""

    times = 60

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._written: list[bytes] = []

    async def prepare(self) -> None:
        await self._round()
        check(self._written[0].startswith(b"HTTP/1.1 101 "), self._written[0])

    async def run(self) -> None:
        for _ in range(self.times):
            await self._round()

    async def _round(self) -> None:
        self._written.clear()
        wire = await connected(self._serving, "/ws", self._written.append)
        app.closed.clear()
        wire.receive(CLOSE)
        await until(app.closed, 1)


class Publish:
    """A broadcast goes to Redis, comes back, and reaches a member: each is awaited before the next one is sent."""

    times = 50

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._arrived = asyncio.Event()
        self._last = b""

    async def prepare(self) -> None:
        await connected(self._serving, "/ws?room=r", self._write)
        await self._round()
        check(TEXT.encode() in self._last, self._last)

    def _write(self, data: bytes) -> None:
        self._last = data
        self._arrived.set()

    async def run(self) -> None:
        for _ in range(self.times):
            await self._round()

    async def _round(self) -> None:
        self._arrived.clear()
        await socket.rooms.broadcast("r", "tick", {"text": TEXT})
        await self._arrived.wait()


CASES: Final[dict[str, Callable[[Serving], Case]]] = {
    "event": Event,
    "fan-out": FanOut,
    "accept": Accept,
    "publish": Publish,
}


async def connected(serving: Serving, path: str, write: Callable[[bytes], object]) -> Wire:
    """A connection whose `on_connect` has ended."""
    app.opened.clear()
    wire = serving.connect(upgrade(path), write)
    await until(app.opened, 1)
    return wire


async def until(items: Sized, count: int) -> None:
    """Turn the event loop until there are `count` of them."""
    for _ in range(TURNS):
        if len(items) >= count:
            return
        await asyncio.sleep(0)
    raise RuntimeError(f"after {TURNS} turns of the event loop there were {len(items)} instead of {count}")


def check(is_right: bool, seen: bytes) -> None:
    """Refuse to count something else than what was meant."""
    if not is_right:
        raise RuntimeError(f"this is not what should have been written: {seen!r}")


class SteadyLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be stopped: no timer comes due in what is counted, however long it takes."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None
        super().__init__()

    def time(self) -> float:
        return super().time() if self._stopped_at is None else self._stopped_at

    def stop_clock(self) -> None:
        self._stopped_at = super().time()

    def start_clock(self) -> None:
        self._stopped_at = None


async def count(case: Case, marks: ctypes.CDLL) -> None:
    """Run the stretches that are counted, each between two marks."""
    gc.collect()
    gc.freeze()  # what was set up is looked at no more
    gc.disable()  # or it would run in this stretch or in the next, as chance has it
    marks.begin()
    marks.mark(b"prepared")
    for _ in range(STRETCHES):
        await case.run()
        gc.collect()  # clearing up is part of the work
        marks.mark(b"counted")
    marks.end()
    gc.enable()


async def main(name: str, marks: ctypes.CDLL, loop: SteadyLoop) -> None:
    case = CASES[name](Serving(f"{app.__name__}:app"))
    async with socket.lifespan():
        loop.stop_clock()
        await case.prepare()
        for _ in range(WARM):
            await case.run()
        await count(case, marks)
        loop.start_clock()  # a stop waits for things, within times
    print(case.times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("marks", help="marks.c, compiled")
    arguments = parser.parse_args()
    steady = SteadyLoop()
    with asyncio.Runner(loop_factory=lambda: steady) as runner:
        runner.run(main(arguments.case, ctypes.CDLL(arguments.marks), steady))
