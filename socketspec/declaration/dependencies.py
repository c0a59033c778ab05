"""`Depends`: what a handler needs beside the client's message, declared where it is used.

A dependency is any callable: a function, a class, a bound method, a `functools.partial`, an object with `__call__`.
Handlers, room guards, hooks, middleware and auth backends may ask for dependencies, and ``dependencies=[…]`` runs some
for what they check alone.

Its own parameters are provided: further dependencies, and by type the `Connection`, the `Identity` of the client and
the `Handshake` it came with. Shared with HTTP routes, it may ask for what a handshake has, as FastAPI reads it:
`WebSocket` or `HTTPConnection` (a view of the handshake that can neither send nor receive), ``Query()``, ``Header()``,
``Cookie()``, ``Path()``; and a plain parameter of a simple type is a path variable or a query parameter of that name.
Values that do not fit are a `VALIDATION_ERROR`. What a handshake has not (a `Request`, a body, a form, a response) is
refused when it is registered.

- One event calls each dependency once, however many parameters of its handler ask for it, unless one says
  ``use_cache=False``. Each hook, guard and middleware is provided for by itself.
- With ``scope="connection"``, it is called once for a connection, when it is first asked for. What the handshake's
  dependencies (``SocketApp(dependencies=…)``, ``mount(…, dependencies=…)``) return and open lives as long.
- A generator, sync or async, that yields once hands out the yielded value. What follows the `yield` is its clean-up.
  It runs after the handler and before the reply is sent, newest dependency first, also after errors and cancellation;
  with ``scope="connection"`` after the connection's last handler and its `on_disconnect` hooks, in another task: so do
  not hold a cancel scope or task group of anyio open across such a `yield`.
- An error of the handler is raised at the `yield`. A dependency may replace it by raising another one, but catching it
  does not undo it: the handler failed, dependencies further out (a transaction, say) see the error too, and the event
  is answered with it. An error of a clean-up counts as the handler's.
- What is not `async` (classes included) runs in a worker thread, with a copy of the context variables; a generator's
  two halves share one copy. An event loop has at most 40 of these threads, apart from those of asyncio's default
  executor and of HTTP routes. What is called on behalf of a thread that waits for `socket.sync` (the guard of a room
  that a `def` handler joins) runs in that thread. A cancelled event waits for its thread to finish, so that nothing is
  cleaned up while it is still in use.

FastAPI's own `Depends` and `Security` mean the same here. Its scopes ``"function"`` and ``"request"`` both mean the
event, whose reply is sent after the clean-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from socketspec.concurrency.threads import begin
from socketspec.errors import ConfigurationError

__all__ = ("Dependency", "Depends")

_T = TypeVar("_T")

_SCOPES: Final = ("event", "connection", "function", "request")
"""What `Dependency.scope` may say; the last two are FastAPI's words."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """What `Depends` leaves in a signature."""

    dependency: Callable[..., Any] | None = None
    """What to call; None: the class the parameter is annotated with."""
    use_cache: bool = True
    scope: str | None = None
    """How long what it gives is kept: for the ``"event"`` or the ``"connection"``; None: as where it is used."""
    security_scopes: tuple[str, ...] = ()
    """What FastAPI's ``Security(scopes=…)`` asks for."""

    def __post_init__(self) -> None:
        if self.scope is not None and self.scope not in _SCOPES:
            raise ConfigurationError(
                f'Depends(scope={self.scope!r}) must be "connection", for what is kept as long as the connection, or '
                '"event".'
            )
        if self.scope == "connection" and not self.use_cache:
            raise ConfigurationError(
                'Depends(use_cache=False, scope="connection") says that it is called each time and that it is kept as '
                "long as the connection. Write one of the two."
            )
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
        scopes: Any = getattr(value, "scopes", None) or ()
        return cls(getattr(value, "dependency", None), use_cache, getattr(value, "scope", None), tuple(scopes))


def Depends(
    dependency: Callable[..., Any] | None = None,
    *,
    use_cache: bool = True,
    scope: Literal["event", "connection"] | None = None,
) -> Any:
    """Declare a dependency: ``db: Db = Depends(get_db)`` or ``db: Annotated[Db, Depends(get_db)]``.

    Without `dependency`, the annotated class itself is called. ``scope="connection"`` keeps what it gives as long as
    the connection; it can then use only what is kept as long. Returns `Any` so that it fits as a default of any type.
    Raises `ConfigurationError` if `dependency` cannot be called.
    """
    return Dependency(dependency, use_cache, scope)


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
    """Run `call` in a thread, see `concurrency.threads`. A cancellation is raised when it is done, not before.

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

    future = begin(partial(context.run, run))
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from future.exception()
    return future.result()  # type: ignore[return-value]  # None only after a cancellation


async def call_in_thread(call: Callable[[], Any]) -> Any:
    """Run `call` in a worker thread, with a copy of the context variables."""
    result: Any = await run_in_thread(call, copy_context())
    # A lambda or an undeclared wrapper around something `async` returns a coroutine.
    return await result if asyncio.iscoroutine(result) else result
