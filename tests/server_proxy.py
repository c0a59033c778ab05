"""A TCP proxy with faults, for tests. Import it from `tests.servers`."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar

__all__ = ("Proxy", "Way")

Way = Literal["up", "down"]
"""``up`` is towards the server, ``down`` towards the client."""

T = TypeVar("T")
HOST = "127.0.0.1"
CHUNK = 65_536


class _Gate:
    """What is done to the bytes of one way."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.delay = 0.0
        self.cut_in: int | None = None
        self.bytes = 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` may pass, and whether the connection is to be cut after it."""
        is_cut = self.cut_in is not None and len(data) >= self.cut_in
        data = data[: self.cut_in] if is_cut else data
        if self.cut_in is not None:
            self.cut_in = None if is_cut else self.cut_in - len(data)
        self.bytes += len(data)
        return data, is_cut


class _Side:
    """One end of a proxied connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def reset(self) -> None:
        """Close it with RST instead of FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def end(self) -> None:
        """Close its sending direction."""
        with suppress(OSError):
            self.writer.write_eof()


class _Pair:
    """A client's connection and the one made for it to the server."""

    def __init__(self, client: _Side, server: _Side) -> None:
        self.client = client
        self.server = server

    async def run(self, gates: dict[Way, _Gate]) -> None:
        """Carry both ways until both have ended or one broke."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(self.client, self.server, gates["up"]))
                tasks.create_task(self._carry(self.server, self.client, gates["down"]))
        except* OSError:
            self.reset()
        finally:
            for side in (self.client, self.server):
                side.writer.close()
                with suppress(OSError):
                    await side.writer.wait_closed()

    def reset(self) -> None:
        self.client.reset()
        self.server.reset()

    async def _carry(self, source: _Side, to: _Side, gate: _Gate) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(source.reader, queue, gate))
            tasks.create_task(self._write(queue, to, gate))

    async def _read(self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]], gate: _Gate) -> None:
        data = b"more"
        while data:
            data = await reader.read(CHUNK)
            await queue.put((asyncio.get_running_loop().time() + gate.delay, data))

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], to: _Side, gate: _Gate) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
            await gate.open.wait()
            if not data:
                to.end()
                return
            data, is_cut = gate.take(data)
            to.writer.write(data)
            await to.writer.drain()
            if is_cut:
                self.reset()


class Proxy:
    """Forwards TCP connections to a port of 127.0.0.1, and misbehaves when told to.

    It runs in a thread with an event loop of its own: its methods are plain calls that return when they have taken
    effect, from sync and async tests alike. What a mode keeps back is not lost: it flows when the mode ends.
    """

    host = HOST

    def __init__(self, port: int) -> None:
        self.port = 0
        self.target = port
        self.accepted = 0
        self._refusing = False
        self._pairs: dict[asyncio.Task[None], _Pair | None] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="proxy", daemon=True)
        self._thread.start()
        if not self._ready.wait(5):
            raise AssertionError("the proxy did not start within 5 s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """A ``redis://`` URL that leads through the proxy."""
        return f"redis://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open, both ends together as one."""
        return self._call(lambda: sum(pair is not None for pair in self._pairs.values()))

    def count(self, way: Way) -> int:
        """Bytes passed on so far, over all connections."""
        return self._call(lambda: self._gates[way].bytes)

    def aim(self, port: int) -> None:
        """Lead new connections to `port`; those that are open stay where they are."""
        self.target = port

    def pass_on(self) -> None:
        """End all faults; what was kept back flows."""

        def heal() -> None:
            self._refusing = False
            for gate in self._gates.values():
                gate.delay, gate.cut_in = 0.0, None
                gate.open.set()

        self._call(heal)

    def black_hole(self, *ways: Way) -> None:
        """Stop forwarding (both ways if none is named), keep every socket open, and accept new connections into it."""

        def shut() -> None:
            for way in ways or tuple(self._gates):
                self._gates[way].open.clear()

        self._call(shut)

    def delay(self, seconds: float, *ways: Way) -> None:
        """From now on pass bytes on `seconds` later (both ways if none is named)."""

        def slow() -> None:
            for way in ways or tuple(self._gates):
                self._gates[way].delay = seconds

        self._call(slow)

    def cut_after(self, count: int, way: Way = "down") -> None:
        """Pass `count` more bytes on in one way, then reset the connection that carried the last of them."""

        def arm() -> None:
            self._gates[way].cut_in = count

        self._call(arm)

    def reset(self) -> int:
        """Reset (RST) every open connection on both ends; how many. New ones are accepted."""

        def reset_all() -> int:
            pairs = [pair for pair in self._pairs.values() if pair is not None]
            for pair in pairs:
                pair.reset()
            return len(pairs)

        return self._call(reset_all)

    def refuse(self) -> None:
        """Reset every open connection, and new ones as soon as they are made, until `pass_on`."""
        self._refusing = True
        self.reset()

    def half_close(self, way: Way = "down") -> None:
        """Send FIN to the clients (to the server: ``up``) on every open connection; the other way goes on."""

        def end_all() -> None:
            for pair in self._pairs.values():
                if pair is not None:
                    (pair.client if way == "down" else pair.server).end()

        self._call(end_all)

    def close(self) -> None:
        """Reset all connections and stop listening. Nothing happens the second time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(5)
            if self._thread.is_alive():
                raise AssertionError("the proxy did not end within 5 s")

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        job: Coroutine[Any, Any, T] = run()
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(5)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._gates: dict[Way, _Gate] = {"up": _Gate(), "down": _Gate()}
        server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        tasks = list(self._pairs)
        for task in tasks:
            pair = self._pairs[task]
            if pair is not None:
                pair.reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Side(reader, writer)
        self.accepted += 1
        task = asyncio.current_task()
        if self._refusing or task is None:
            client.reset()
            return
        self._pairs[task] = None
        try:
            server = _Side(*await asyncio.open_connection(HOST, self.target))
            pair = self._pairs[task] = _Pair(client, server)
            await pair.run(self._gates)
        except (OSError, asyncio.CancelledError):
            client.reset()
        finally:
            del self._pairs[task]
