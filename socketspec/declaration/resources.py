"""What a connection holds for its dependencies: their values, and the clean-up that runs when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack
from typing import Any

from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake

__all__ = ("Arrival", "Resources")

Make = Callable[[AsyncExitStack], Awaitable[Any]]
"""Makes a value, and leaves its clean-up on the stack."""


class Resources:
    """What is kept as long as a connection. Made where something is declared for that long, and nowhere else."""

    __slots__ = ("_locks", "_stack", "_values", "closed", "ended", "owned")

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._values: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self.closed: bool = False
        """Whether the connection has ended: nothing is made any more."""
        self.ended: Callable[[], None] | None = None
        """Called at the end of `close`."""
        self.owned: bool = False
        """Whether there is a connection that will close this. Until then, who admitted the client has to."""

    async def value(self, key: Hashable, make: Make) -> Any:
        """The value under `key`, made now if it is not there; those who ask meanwhile wait for the same.

        Raises what `make` does (the next one who asks tries again), and `RuntimeError` after the connection's end.
        """
        if key in self._values:
            return self._values[key]
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._values:
                return self._values[key]
            if self.closed:
                raise RuntimeError("the connection has ended, so nothing is kept for it any more")
            async with AsyncExitStack() as stack:
                value = await make(stack)
                if self.closed:  # meanwhile: what was opened is closed again
                    raise RuntimeError("the connection has ended, so nothing is kept for it any more")
                self._stack.push_async_exit(stack.pop_all())
                self._values[key] = value
        self._locks.pop(key, None)
        return value

    async def close(self, error: BaseException | None = None) -> None:
        """Clean up, newest first. `error` is raised at each `yield`: why the client was turned away."""
        self.closed = True
        stack = self._stack.pop_all()
        try:
            await stack.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)
        finally:
            self._values.clear()
            if self.ended is not None:
                self.ended()


class Arrival:
    """A client that wants to come in: what stands for the connection while its handshake is decided about."""

    __slots__ = ("_authenticate", "_identity", "handshake", "resources")

    def __init__(self, handshake: Handshake, authenticate: Callable[[], Awaitable[Identity]]) -> None:
        self.handshake: Handshake = handshake
        self.resources: Resources | None = None
        self._authenticate = authenticate
        self._identity: Identity | None = None

    async def identity(self) -> Identity:
        """Who it is; found out once. Raises as `authenticate` does."""
        if self._identity is None:
            self._identity = await self._authenticate()
        return self._identity
