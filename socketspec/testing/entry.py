"""`TestClient`: one class, entered by `async with` or by `with`."""

from __future__ import annotations

import asyncio
from types import TracebackType

from socketspec.app.app import SocketApp
from socketspec.testing.asgi import ASGI
from socketspec.testing.client import AsyncTestClient
from socketspec.testing.portal import Portal
from socketspec.testing.sync import SyncTestClient

__all__ = ("TestClient",)


class TestClient(AsyncTestClient):
    """Connects to a `SocketApp`, or to the whole application that it is mounted on, without a network.

        async with TestClient(app) as client:  # in an async test
        with TestClient(app) as client:        # in a plain one: a `SyncTestClient`, whose methods are not awaited

    Args:
        app: a `SocketApp`, or a FastAPI, Starlette or other ASGI application: then its lifespan, middleware, routes and
            their dependencies run as well.
        strict: check what handlers send against their `Emits` and `Broadcasts`.
        raise_server_exceptions: whether the test gets what the app's handlers, hooks and dependencies raise
            unexpectedly. None: from whatever waits for an outcome: `request`, `expect`, `receive` with a model,
            `assert_nothing`; `receive()` and `receive_event` show what the client gets, a ``HANDLER_ERROR``. True: from
            every call, and at the end of the block. False: from none. An `EventError` and a `BackendError` are answers
            always.
        socket: the `SocketApp` that `app` serves, where it cannot be found in the routes of `app`, as in other
            frameworks than FastAPI and Starlette.
    """

    __test__: bool = False

    def __init__(
        self,
        app: SocketApp | ASGI,
        *,
        strict: bool = True,
        raise_server_exceptions: bool | None = None,
        socket: SocketApp | None = None,
    ) -> None:
        super().__init__(app, strict=strict, raise_server_exceptions=raise_server_exceptions, socket=socket)
        self._portal: Portal | None = None

    async def __aenter__(self) -> TestClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(error)

    def __enter__(self) -> SyncTestClient:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("In an async test, write `async with TestClient(…)`: `with` would block the event loop.")
        self._portal = Portal()
        try:
            self._portal.run(self.start())
        except BaseException:
            self._portal.close()
            raise
        return SyncTestClient(self._portal, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal, self._portal = self._portal, None
        if portal is None:
            return
        try:
            portal.run(self.stop(error))
        finally:
            portal.close()
