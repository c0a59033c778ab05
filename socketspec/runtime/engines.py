"""The engines of this process: for draining all of them when it is told to stop, and for reading their figures."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ("Drains", "Gate", "add", "drain", "drain_soon", "engines", "everywhere", "gate", "gated_by", "remove")


class Drains(Protocol):
    """What can let its connections go in an orderly way."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it belongs to."""
        ...

    def begin_drain(self, window: float | None = None, grace: float | None = None) -> asyncio.Task[int]:
        """Begin to drain; later calls return the same task, whose result is how many connections there were."""
        ...


class Gate(Protocol):
    """What counts the connections of a server process, and refuses those beyond its limit."""

    @property
    def max_connections(self) -> int:
        """WebSocket connections that there may be, of all apps."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether a further one would be refused."""
        ...

    @property
    def refused(self) -> int:
        """Connections that were refused for that, so far."""
        ...

    @property
    def address_refused(self) -> int:
        """How many it has refused because their address had all that it may have."""
        ...

    @property
    def dropped(self) -> int:
        """Connections that asked for nothing and had to make room, so far."""
        ...


_engines: dict[int, Drains] = {}
_gates: list[Gate] = []


def add(engine: Drains) -> None:
    """List an engine that has started, and forget those whose event loop ended without a stop."""
    for other in tuple(_engines.values()):
        if other.loop.is_closed():
            remove(other)
    _engines[id(engine)] = engine


def remove(engine: Drains) -> None:
    """Forget an engine that has stopped; no error if it is not listed."""
    _engines.pop(id(engine), None)


def gated_by(gate: Gate | None) -> None:
    """Name the gate of this process's server; None when that has stopped."""
    _gates[:] = () if gate is None else (gate,)


def gate() -> Gate | None:
    """The gate of this process's server; None where the server has none."""
    return _gates[0] if _gates else None


def engines() -> tuple[Drains, ...]:
    """The engines that run in the current event loop."""
    loop = asyncio.get_running_loop()
    return tuple(engine for engine in _engines.values() if engine.loop is loop)


def everywhere() -> tuple[Drains, ...]:
    """All engines of the process that have an event loop left: for reading figures, from any thread."""
    return tuple(engine for engine in tuple(_engines.values()) if not engine.loop.is_closed())


def drain_soon() -> None:
    """Begin to drain every engine of the current event loop, without waiting: each app's `stop` waits for its own.

    Calls after the first do nothing more.
    """
    for engine in engines():
        engine.begin_drain()


async def drain(window: float | None = None, grace: float | None = None) -> int:
    """Drain every engine of the current event loop (see `SocketApp.drain`). Returns how many connections there were."""
    counts = await asyncio.gather(*(asyncio.shield(engine.begin_drain(window, grace)) for engine in engines()))
    return sum(counts)
