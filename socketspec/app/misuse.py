"""What is done to a `SocketApp` by mistake, answered with what to write instead."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from socketspec.declaration.habits import refuse_as_router
from socketspec.declaration.options import check_known
from socketspec.errors import ConfigurationError
from socketspec.runtime.engine import Engine
from socketspec.text import get_logger

__all__ = ("NOT_ASGI", "Callers", "Misuse")

logger: logging.Logger = get_logger("socketspec")

NOT_ASGI: Final = (
    "A SocketApp is no ASGI application: app.mount('/ws', socket) cannot serve it. Write "
    "mount(socket, app, path='/ws'), with `from socketspec.adapters.fastapi import mount`; elsewhere "
    "ASGIApp(socket), with `from socketspec.adapters.asgi import ASGIApp`."
)


NO_ROUTER: Final = (
    "A SocketApp is no router, so app.include_router(socket) cannot serve it. Write mount(socket, app), with "
    "`from socketspec.adapters.fastapi import mount`."
)


class Misuse:
    """A base of `SocketApp` that finds mistyped options, and servers that take it for an ASGI application."""

    if not TYPE_CHECKING:  # the signature is __init__'s; this only makes a mistyped option easy to find

        def __new__(cls, *args: Any, **options: Any) -> Misuse:
            owner = next(each for each in cls.__mro__ if Misuse in each.__bases__)
            if cls.__init__ is not owner.__init__:
                return super().__new__(cls)  # a subclass has options of its own
            known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
            check_known("SocketApp", options, known)
            return super().__new__(cls)

        def __getattr__(self, name: str) -> Any:
            refuse_as_router(name, NO_ROUTER)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Refuse to be served as it is. A server that starts asks here first, and does not start."""
        if scope["type"] != "lifespan":
            raise ConfigurationError(NOT_ASGI)
        await receive()
        await send({"type": "lifespan.startup.failed", "message": NOT_ASGI})


class Callers:
    """The engine, for what your code calls."""

    def __init__(self, start: Callable[[], Awaitable[Engine]], engine: Callable[[], Engine | None]) -> None:
        self._start = start
        self._engine = engine
        self.served: bool = False
        """Whether the app is mounted somewhere, so that clients can come."""

    async def engine(self) -> Engine:
        """The running engine, started now if it is not. Says once where nobody can be connected to it."""
        if not self.served and self._engine() is None:
            self.served = True
            logger.warning(
                "This SocketApp is called, but neither mounted nor entered: nobody is connected to it in this process. "
                "Mount it with mount(socket, app) or enter `async with socket.lifespan()`; to send from another "
                "process, such as a worker or a script, use a Publisher (from socketspec.cluster import Publisher)."
            )
        return await self._start()
