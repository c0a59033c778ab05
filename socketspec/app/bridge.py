"""From other threads into the event loop that runs an app, and back with the result."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

from socketspec.app.whereabouts import FORKED
from socketspec.concurrency.threads import waiting_here
from socketspec.runtime.engine import Engine

__all__ = ("Bridge",)

T = TypeVar("T")

_NOT_RUNNING: Final = (
    "socket.sync.{name}(…): this SocketApp does not run in this process, so nothing can be done for it here. It runs "
    "while the application that it is mounted on does, or inside `async with socket.lifespan()`. Other processes send "
    "with a Publisher."
)
_WOULD_BLOCK: Final = (
    "socket.sync.{name}(…) was called in the event loop that runs the app, and would block it for ever. "
    "Write await {awaited}(…) there."
)
_TOO_LATE: Final = (
    "socket.sync.{name}(…) did not finish within {timeout:g} s and was given up; what it was to do may have been done. "
    "Where it may take longer, pass timeout=…"
)


class Bridge:
    """Runs coroutines in the event loop of a running app, for other threads.

    While a thread waits, it runs what is not `async` of what it waits for: guards and dependencies.
    """

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine

    def call(
        self, name: str, work: Callable[[], Coroutine[Any, Any, T]], timeout: float, *, awaited: str | None = None
    ) -> T:
        """The result of `work`. `name` is what was called, `awaited` what to await in its place."""
        if isinstance(timeout, bool) or not 0 < timeout < float("inf"):
            raise ValueError(f"socket.sync.{name}(timeout={timeout!r}) must be a number of seconds greater than 0.")
        call = _Call(name, work, self._running(name, awaited or f"socket.{name}"))
        return call.wait(timeout)

    def _running(self, name: str, awaited: str) -> Engine:
        engine = self._engine()
        if engine is not None and engine.pid != os.getpid():
            raise RuntimeError(FORKED)
        if engine is None or not engine.loop.is_running():
            raise RuntimeError(_NOT_RUNNING.format(name=name))
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return engine
        if here is engine.loop:
            raise RuntimeError(_WOULD_BLOCK.format(name=name, awaited=awaited))
        return engine


class _Call(Generic[T]):
    """One call: a task of the engine's, in a copy of the caller's context variables."""

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, T]], engine: Engine) -> None:
        self._name = name
        self._work = work
        self._engine = engine
        self._context = copy_context()
        self._result: Future[T] = Future()
        self._task: asyncio.Task[Any] | None = None

    def wait(self, timeout: float) -> T:
        """Have the work done, and wait for its result."""
        with waiting_here(self._context) as thread:
            try:
                self._engine.loop.call_soon_threadsafe(self._start)
            except RuntimeError:  # the event loop was closed just now
                raise self._ended() from None
            thread.wait_for(self._result, timeout)
            if self._result.done():
                return self._result.result()
            self._give_up()
            raise TimeoutError(_TOO_LATE.format(name=self._name, timeout=timeout))

    def _start(self) -> None:
        if self._result.set_running_or_notify_cancel():  # else the caller has given up
            self._task = self._context.run(self._engine.tasks.spawn, self._run(), name=f"socket.sync.{self._name}")

    async def _run(self) -> None:
        try:
            self._result.set_result(await self._work())
        except asyncio.CancelledError:
            self._result.set_exception(self._ended())
            raise
        except Exception as error:
            self._result.set_exception(error)

    def _give_up(self) -> None:
        if not self._result.cancel():  # it has begun
            try:
                self._engine.loop.call_soon_threadsafe(self._cancel)
            except RuntimeError:  # the event loop has ended, and the task with it
                return

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self) -> RuntimeError:
        return RuntimeError(_NOT_RUNNING.format(name=self._name))
