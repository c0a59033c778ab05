"""`Depends`: what a handler needs beside the client's message, declared where it is used.

A dependency is any callable: a function, a class, a bound method, a `functools.partial`, an object with `__call__`.
Its own parameters are provided the same way: the connection by type, further dependencies, plain defaults.

- One event calls each dependency once, however many parameters ask for it, unless one says ``use_cache=False``.
- A generator, sync or async, that yields once hands out the yielded value. What follows the `yield` is its clean-up.
  It runs after the handler and before the reply is sent, newest dependency first, also after errors and cancellation.
- An error of the handler is raised at the `yield`. A dependency may replace it by raising another one, but catching it
  does not undo it: the handler failed, dependencies further out (a transaction, say) see the error too, and the event
  is answered with it. An error of a clean-up counts as the handler's.
- What is not `async` (classes included) runs in a worker thread of asyncio's default executor, with a copy of the
  context variables; a generator's two halves share one copy. At most ``min(32, cpus + 4)`` of these threads run at a
  time in the whole process, unless you give the loop another executor. A cancelled event waits for its thread to
  finish, so that nothing is cleaned up while it is still in use.

FastAPI's own `Depends` and `Security` mean the same here; `scope` makes no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from socketspec.errors import ConfigurationError

__all__ = ("Dependency", "Depends")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Dependency:
    """What `Depends` leaves in a signature."""

    dependency: Callable[..., Any] | None = None
    """What to call; None: the class the parameter is annotated with."""
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.dependency is not None and not callable(self.dependency):
            raise ConfigurationError(
                f"Depends() takes something to call, and {self.dependency!r} is not. "
                "Pass the function itself, without calling it: Depends(get_db), not Depends(get_db())."
            )

    @classmethod
    def read(cls, value: object) -> Dependency | None:
        """Understand `value` if it marks a dependency, FastAPI's `Depends` included; None if it does not."""
        if isinstance(value, Dependency):
            return value
        # FastAPI's is known by its shape: the core must not import it, yet shared dependencies come written with it.
        use_cache = getattr(value, "use_cache", None)
        if isinstance(value, type) or not isinstance(use_cache, bool) or not hasattr(value, "dependency"):
            return None
        if getattr(value, "max_concurrency", None) is not None:
            raise ConfigurationError(
                f"{value!r} limits its concurrency, which events do not support: a limit that is not kept is refused. "
                "Use an asyncio.Semaphore inside the dependency."
            )
        return cls(getattr(value, "dependency", None), use_cache)


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:
    """Declare a dependency: ``db: Db = Depends(get_db)`` or ``db: Annotated[Db, Depends(get_db)]``.

    Without `dependency`, the annotated class itself is called. Returns `Any` so that it fits as a default of any type.
    Raises `ConfigurationError` if `dependency` cannot be called.
    """
    return Dependency(dependency, use_cache)


async def enter(manager: AbstractAsyncContextManager[Any], stack: AsyncExitStack) -> Any:
    """Enter a dependency and leave its clean-up on `stack`."""
    value = await manager.__aenter__()

    async def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await manager.__aexit__(kind, error, trace)  # what it returns is ignored: catching an error does not undo it

    stack.push_async_exit(leave)
    return value


async def enter_in_thread(manager: AbstractContextManager[Any], stack: AsyncExitStack) -> Any:
    """Like `enter`; both the entering and the leaving run in worker threads, in one copy of the context."""
    context = copy_context()
    entered = False

    def run() -> Any:
        nonlocal entered
        value = manager.__enter__()
        entered = True
        return value

    async def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if entered:
            await run_in_thread(partial(manager.__exit__, kind, error, trace), context, always=True)

    # Pushed before entering: a cancellation may arrive meanwhile, and what the thread has opened must be closed.
    stack.push_async_exit(leave)
    return await run_in_thread(run, context)


async def run_in_thread(call: Callable[[], _T], context: Context, *, always: bool = False) -> _T:
    """Run `call` in the default executor. A cancellation is raised when the thread is done, not before.

    If it arrives before a thread was free, `call` is not run at all, unless it is to run `always`.
    """
    cancelled: asyncio.CancelledError | None = None

    def run() -> _T | None:
        if cancelled is not None and not always:
            return None
        try:
            return call()
        except StopIteration as error:
            # A future cannot carry it: on Python 3.11 the event would wait forever.
            raise RuntimeError("StopIteration was raised in a worker thread") from error

    future = asyncio.get_running_loop().run_in_executor(None, context.run, run)
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from future.exception()
    return future.result()  # type: ignore[return-value]  # None only after a cancellation
