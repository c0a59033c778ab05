"""The engines at work in this process: what has to be drained when the process is told to stop."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ("Drains", "add", "drain", "drain_soon", "engines", "everywhere", "remove")


class Drains(Protocol):
    """What can let its connections go in an orderly way."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it belongs to."""
        ...

    def begin_drain(self, window: float | None = None, grace: float | None = None) -> asyncio.Task[int]:
        """Begin, once; the task's result is how many connections there were."""
        ...


_engines: dict[int, Drains] = {}


def add(engine: Drains) -> None:
    """`engine` has started. Those whose event loop ended without a stop are forgotten."""
    for other in tuple(_engines.values()):
        if other.loop.is_closed():
            remove(other)
    _engines[id(engine)] = engine


def remove(engine: Drains) -> None:
    """`engine` has stopped; nothing happens if that was said before."""
    _engines.pop(id(engine), None)


def engines() -> tuple[Drains, ...]:
    """The engines that run in the current event loop."""
    loop = asyncio.get_running_loop()
    return tuple(engine for engine in _engines.values() if engine.loop is loop)


def everywhere() -> tuple[Drains, ...]:
    """The engines of the process, of whatever event loop. For reading figures, from any thread."""
    return tuple(_engines.values())


def drain_soon() -> None:
    """Begin the drain of every engine of the current event loop, and do not wait for it. Calls after the first do
    nothing more. The tasks are the engines' own: each app's `stop` waits for its own."""
    for engine in engines():
        engine.begin_drain()


async def drain(window: float | None = None, grace: float | None = None) -> int:
    """Drain every engine of the current event loop (see `SocketApp.drain`); how many connections there were."""
    counts = await asyncio.gather(*(asyncio.shield(engine.begin_drain(window, grace)) for engine in engines()))
    return sum(counts)
