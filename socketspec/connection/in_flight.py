"""One connection's handlers under way: so many at once, some of them in order, and leaving after the last."""

from __future__ import annotations

import asyncio

__all__ = ("InFlight",)


class InFlight:
    """Counts the handlers of one connection, so that it closes when the last one is through."""

    __slots__ = ("_freed", "_order", "count", "leaving")

    def __init__(self) -> None:
        self.count: int = 0
        """Handlers under way."""
        self.leaving: bool = False
        """Whether the connection closes after its last handler: what arrives from now on is not handled."""
        self._freed: asyncio.Event | None = None
        self._order: asyncio.Lock | None = None

    def begin(self) -> None:
        """A handler begins."""
        self.count += 1

    def end(self) -> bool:
        """A handler is through. True where it was the last one of a connection that leaves: close it."""
        self.count -= 1
        if self._freed is not None:  # a message waits for this place, and is handled before the connection leaves
            self._freed.set()
            self._freed = None
            return False
        return self.leaving and self.count == 0

    def leave(self) -> bool:
        """Have the connection leave after its last handler. True where none is under way: close it."""
        self.leaving = True
        return self.count == 0

    async def below(self, limit: int) -> None:
        """Wait until fewer than `limit` handlers are under way."""
        while self.count >= limit:
            if self._freed is None:
                self._freed = asyncio.Event()
            await self._freed.wait()

    @property
    def order(self) -> asyncio.Lock:
        """Held while the handler of an ordered event runs; first come, first served."""
        if self._order is None:
            self._order = asyncio.Lock()
        return self._order
