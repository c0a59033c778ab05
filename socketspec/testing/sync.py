"""The test client for plain `def` tests: the same, without `await`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from socketspec.connection.connection import Connection
from socketspec.identity import Identity
from socketspec.testing.client import SETTLE, AsyncTestClient
from socketspec.testing.connection import TIMEOUT, TestConnection
from socketspec.testing.portal import Portal
from socketspec.testing.recipe import FormatName, Pairs

if TYPE_CHECKING:
    import httpx

__all__ = ("SyncTestClient", "SyncTestConnection")

P = ParamSpec("P")
T = TypeVar("T")


class SyncTestConnection:
    """A client's end of a connection, for plain `def` tests. Every method is as in `TestConnection`, and waits."""

    __test__: bool = False

    def __init__(self, portal: Portal, conn: TestConnection) -> None:
        self._portal = portal
        self._conn = conn

    def __enter__(self) -> SyncTestConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        """The server's end. Look at it; call its methods through `SyncTestClient.call`."""
        return self._conn.connection

    @property
    def id(self) -> str:
        """The connection's id."""
        return self._conn.id

    @property
    def identity(self) -> Identity:
        """Who the server takes this client for."""
        return self._conn.identity

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._conn.is_closed

    def send(self, event: str, payload: object = None, *, id: str | int | None = None) -> None:
        """Send one event."""
        self._portal.run(self._conn.send(event, payload, id=id))

    def send_raw(self, data: str | bytes) -> None:
        """Send a frame as it is."""
        self._portal.run(self._conn.send_raw(data))

    @overload
    def request(self, event: str, payload: object = None, *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    def request(self, event: str, payload: object, model: type[T], *, timeout: float = ...) -> T: ...
    @overload
    def request(self, event: str, payload: object = None, *, model: type[T], timeout: float = ...) -> T: ...
    def request(
        self, event: str, payload: object = None, model: type[T] | None = None, *, timeout: float = TIMEOUT
    ) -> T | dict[str, Any]:
        """Send an event and give its reply."""
        if model is None:
            return self._portal.run(self._conn.request(event, payload, timeout=timeout))
        return self._portal.run(self._conn.request(event, payload, model, timeout=timeout))

    @overload
    def receive(self, model: float = ..., *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    def receive(self, model: type[T], timeout: float = ...) -> T: ...
    def receive(self, model: type[T] | float | None = None, timeout: float = TIMEOUT) -> T | dict[str, Any]:
        """The next message."""
        if model is None or isinstance(model, int | float):
            return self._portal.run(self._conn.receive(timeout=timeout if model is None else model))
        return self._portal.run(self._conn.receive(model, timeout=timeout))

    def receive_event(self, event: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The next message named `event`; others before it are passed over for good."""
        return self._portal.run(self._conn.receive_event(event, timeout))

    @overload
    def expect(self, event: str, *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    def expect(self, event: str, model: type[T], *, timeout: float = ...) -> T: ...
    def expect(self, event: str, model: type[T] | None = None, *, timeout: float = TIMEOUT) -> T | dict[str, Any]:
        """The next message has to be this event; gives its payload."""
        if model is None:
            return self._portal.run(self._conn.expect(event, timeout=timeout))
        return self._portal.run(self._conn.expect(event, model, timeout=timeout))

    def assert_nothing(self, timeout: float = 0) -> None:
        """Nothing has come, and nothing comes within `timeout` seconds."""
        self._portal.run(self._conn.assert_nothing(timeout))

    def close(self, code: int = 1000) -> None:
        """Disconnect, and wait for the clean-up."""
        self._portal.run(self._conn.close(code))

    def drop(self) -> None:
        """Lose the network."""
        self._portal.run(self._conn.drop())

    def reconnect(self) -> dict[str, Any]:
        """Connect again with what `connect` was called with."""
        return self._portal.run(self._conn.reconnect())


class SyncHTTP:
    """Asks the application's HTTP routes. Options are those of httpx: ``json=``, ``headers=``, ``params=`` …"""

    def __init__(self, portal: Portal, client: httpx.AsyncClient) -> None:
        self._portal = portal
        self._client = client

    @property
    def headers(self) -> httpx.Headers:
        """Sent with every request."""
        return self._client.headers

    @property
    def cookies(self) -> httpx.Cookies:
        """Sent with every request, and kept from every answer."""
        return self._client.cookies

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """The answer to a request."""
        return self._portal.run(self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        """The answer to GET."""
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        """The answer to POST."""
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Any) -> httpx.Response:
        """The answer to PUT."""
        return self.request("PUT", url, **options)

    def patch(self, url: str, **options: Any) -> httpx.Response:
        """The answer to PATCH."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Any) -> httpx.Response:
        """The answer to DELETE."""
        return self.request("DELETE", url, **options)


class SyncTestClient:
    """What ``with TestClient(app) as client`` gives a plain `def` test.

    The app runs in an event loop in a thread of its own, so it goes on between calls, and ``socket.sync`` works.
    """

    __test__: bool = False

    def __init__(self, portal: Portal, client: AsyncTestClient) -> None:
        self._portal = portal
        self._client = client

    def connect(
        self,
        path: str | None = None,
        *,
        token: str | None = None,
        headers: Pairs = (),
        cookies: Mapping[str, str] | None = None,
        query_params: Pairs = (),
        subprotocols: Iterable[str] = (),
        format: FormatName = "plain",
        path_params: Mapping[str, Any] | None = None,
        client: tuple[str, int] = ("127.0.0.1", 50000),
        identity: Identity | None = None,
        answer_pings: bool | None = None,
    ) -> SyncTestConnection:
        """Open a connection: ``conn = client.connect()``, or ``with client.connect() as conn``. See `TestClient`."""
        connecting = self._client.connect(
            path, token=token, headers=headers, cookies=cookies, query_params=query_params, subprotocols=subprotocols,
            format=format, path_params=path_params, client=client, identity=identity, answer_pings=answer_pings,
        )  # fmt: skip
        return SyncTestConnection(self._portal, self._portal.run(connecting))

    def settle(self, timeout: float = SETTLE) -> None:
        """Wait until the server has handled what was sent."""
        self._portal.run(self._client.settle(timeout))

    def advance(self, seconds: float) -> None:
        """Make the app's time go by at once."""
        self._portal.run(self._client.advance(seconds))

    @overload
    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    def call(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """What `function` gives, called in the app's event loop, and awaited where it is a coroutine function."""

        async def calling() -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self._portal.run(calling())

    @property
    def http(self) -> SyncHTTP:
        """An HTTP client of the application, for its routes; cookies and headers are its own. Needs httpx."""
        return SyncHTTP(self._portal, self._client.http)
