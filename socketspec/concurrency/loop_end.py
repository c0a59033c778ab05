"""`LoopEnd`: what has to be done before an event loop ends, if nobody has done it by then."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ("LoopEnd",)


class LoopEnd:
    """Awaits `end()` once: with `now`, or else when the event loop ends that `watch` was called in.

    `asyncio.run`, and whoever else calls `loop.shutdown_asyncgens`, ends the async generators that are under way before
    the loop is closed. A loop that is closed without that ends nothing.
    """

    def __init__(self, end: Callable[[], Awaitable[None]]) -> None:
        self._end = end
        self._generator: AsyncGenerator[None, None] | None = None

    async def watch(self) -> None:
        """Begin."""
        self._generator = self._until_then()
        await anext(self._generator)

    async def now(self) -> None:
        """Do it now. Nothing happens before `watch`, nor while it is being done: what ends may call this as well."""
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.aclose()

    async def _until_then(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._generator = None
            await self._end()
