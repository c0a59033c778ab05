"""An event loop in a thread of its own, in which code that cannot await has coroutines run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ("Portal",)

T = TypeVar("T")


class Portal:
    """The event loop of a plain `def` test."""

    def __init__(self) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._serve, name="socketspec test client", daemon=True)
        self._thread.start()
        self._loop, self._stop = self._started.result()

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        stop = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, with the caller's context variables. Raises what it raises."""
        if not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the test client has been left: use it within its `with` block")
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "this would block the app's event loop: call it directly in the test, not by client.call"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End the event loop, and what still runs in it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
