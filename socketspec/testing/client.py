"""The test client: runs an app in the test's event loop, connects to it, and moves its time."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

from socketspec.app.app import SocketApp
from socketspec.app.mounts import Mounted, mounted, refuse_bare
from socketspec.identity import Identity
from socketspec.runtime.engine import Engine
from socketspec.testing.asgi import ASGI, ASGILine, Lifespan
from socketspec.testing.clock import MovableClock
from socketspec.testing.connection import Harness, TestConnection
from socketspec.testing.inbox import Inbox
from socketspec.testing.lines import DirectLine, Line, Pong
from socketspec.testing.paths import path_of
from socketspec.testing.recipe import FormatName, Pairs, Recipe, recipe

if TYPE_CHECKING:
    import httpx

__all__ = ("AsyncTestClient", "Connecting")

SETTLE: Final = 1.0
"""Seconds that handlers under way are waited for, where nothing is said."""
TURNS: Final = 5
"""Turns of the event loop in which what has begun goes on."""
GRACE: Final = 1.0
"""Seconds that handlers have at the end of a test, before they are cancelled."""

MAX_FAILURES: Final = 100
"""Exceptions of the server's code that wait to be raised."""


class Connecting(Coroutine[Any, Any, TestConnection]):
    """What `connect` returns: await it, or write ``async with``, which closes the connection at the end."""

    def __init__(self, connecting: Coroutine[Any, Any, TestConnection]) -> None:
        self._connecting = connecting
        self._conn: TestConnection | None = None

    def __await__(self) -> Generator[Any, Any, TestConnection]:
        return self._connecting.__await__()

    def send(self, value: Any, /) -> Any:
        """As a coroutine: go on."""
        return self._connecting.send(value)

    def throw(self, *error: Any) -> Any:
        """As a coroutine: raise inside."""
        return self._connecting.throw(*error)

    def close(self) -> None:
        """As a coroutine: give up."""
        self._connecting.close()

    async def __aenter__(self) -> TestConnection:
        self._conn = await self._connecting
        return self._conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._conn is not None:
            await self._conn.close()


class AsyncTestClient:
    """What `TestClient` is in an event loop. See there."""

    def __init__(
        self, app: SocketApp | ASGI, *, strict: bool, raise_server_exceptions: bool | None, socket: SocketApp | None
    ) -> None:
        self.app: SocketApp | ASGI = app
        """What is tested."""
        self._strict = strict
        self._raises: bool | None = raise_server_exceptions
        self._is_advancing = False
        self._is_asgi = not isinstance(app, SocketApp)
        self._places: tuple[Mounted, ...] = ()
        self._sockets: dict[SocketApp, None] = {}
        self._given = socket
        self._failures: deque[Exception] = deque(maxlen=MAX_FAILURES)
        self._connections: list[TestConnection] = []
        self._harness = Harness(
            self._open, self.settle, self._write_out, self._raise_failure, lambda: self._is_advancing,
            self._forget_failure if self._raises is None else None,
        )  # fmt: skip
        self._lifespan: Lifespan | None = None
        self._clock: MovableClock | None = None
        self._http: httpx.AsyncClient | None = None

    def _find_sockets(self) -> None:
        """Look again at each start: an application may be mounted on between."""
        if isinstance(self.app, SocketApp):
            self._sockets = {self.app: None}
            return
        self._places = mounted(self.app)
        found = [place.socket for place in self._places]
        self._sockets = dict.fromkeys(found if self._given is None else [*found, self._given])
        if not self._sockets:
            refuse_bare(self.app)
            raise ValueError(
                f"TestClient found no SocketApp in this {type(self.app).__name__}: mount one on it, with "
                "mount(socket, app), before the test begins; or pass the one that it serves as "
                "TestClient(app, socket=…)."
            )

    async def start(self) -> None:
        """Start the app, its lifespan included."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "TestClient needs asyncio, and this test runs in another event loop, such as trio's. With anyio's "
                "plugin, have it run on asyncio alone: a fixture `anyio_backend` that returns 'asyncio'."
            ) from None
        self._find_sockets()
        self._clock = MovableClock(loop)
        for socket in self._sockets:
            socket.clock = self._clock
        try:
            if self._is_asgi:
                self._lifespan = Lifespan(cast("ASGI", self.app))
                await self._lifespan.start()
            for socket in self._sockets:
                engine = await socket.ensure_started()
                engine.contracts.strict = self._strict
                engine.failures.watch = self._failed
        except BaseException:
            await self._stop()
            raise

    async def stop(self, error: BaseException | None) -> None:
        """Close what is open and stop the app. What its code raised that no test has seen is raised, if all is to be,
        or noted on the test's own `error`.
        """
        try:
            for conn in self._connections:
                await conn.close()
            if self._http is not None:
                await self._http.aclose()
        finally:
            self._connections, self._http = [], None
            await self._stop()
        failures, self._failures = self._failures, deque(maxlen=MAX_FAILURES)
        if error is None:
            if failures and self._raises:
                raise failures[0]
            return
        for failure in failures:
            error.add_note(f"Meanwhile, the server's code raised {failure!r}")

    async def _stop(self) -> None:
        try:
            for engine in self._engines():
                engine.begin_drain(0, GRACE)
            if self._lifespan is not None:
                await self._lifespan.stop()
        finally:
            for socket in self._sockets:
                await socket.stop(grace=GRACE, window=0)
                socket.clock = None

    def _engines(self) -> list[Engine]:
        return [socket.engine for socket in self._sockets if socket.engine is not None]

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
    ) -> Connecting:
        """Open a connection: ``conn = await client.connect()``, or ``async with client.connect() as conn``.

        Raises `HandshakeRefused` where a real client would get an HTTP error, and `ValueError` where `path` has to be
        said. A client that fails to authenticate is connected, gets its ``__error__`` and then `ConnectionClosed`, as
        over the network.

        Args:
            path: where to connect, with a query if you like. None: where the app's one socket is mounted.
            token: sent as ``Authorization: Bearer``.
            cookies: sent as ``Cookie``, as they are.
            format: "json" and "msgpack" offer ``socketspec.v1.json`` and ``socketspec.v1.msgpack``.
            path_params: values for the variables of the path.
            client: the address that the server sees.
            identity: who the client is: the app's auth backends are not asked. Dependencies that authenticate by
                themselves are; replace those with `dependency_overrides`.
            answer_pings: whether ``__ping__`` is answered, as client libraries do. None: while `advance` lets the time
                go by, in which a test cannot answer.
        """
        made = recipe(
            path, token=token, headers=headers, cookies=cookies, query_params=query_params, subprotocols=subprotocols,
            format=format, path_params=path_params, client=client, identity=identity, answer_pings=answer_pings,
        )  # fmt: skip
        return Connecting(self._connect(made))

    async def _connect(self, made: Recipe) -> TestConnection:
        conn = TestConnection(self._harness, made)
        await conn.open()
        self._connections.append(conn)
        return conn

    async def _open(self, made: Recipe, inbox: Inbox, pong: Pong) -> Line:
        self._raise_all()
        if not self._sockets:
            self._find_sockets()
        line: Line
        try:
            if isinstance(self.app, SocketApp):
                line = await DirectLine.open(self.app, made, inbox, pong)
            else:
                state = {} if self._lifespan is None else self._lifespan.state
                path = path_of(self._places, made.path, made.path_params)
                line = asgi = ASGILine(self.app, made, path, state, inbox, pong, self._failed)
                await asgi.open()
        except Exception:
            self._raise_failure()  # it says more
            raise
        self._raise_all()
        return line

    async def settle(self, timeout: float = SETTLE) -> None:  # noqa: ASYNC109 - it bounds the waiting, cancels nothing
        """Wait until the server has handled what was sent: messages are taken, handlers through, broadcasts written.

        At most `timeout` seconds, where a handler waits for something that the test has yet to do.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            for _ in range(TURNS):
                self._write_out()
                await asyncio.sleep(0)
            remaining = deadline - loop.time()
            busy = [engine for engine in self._engines() if len(engine.handlers)]
            idle = all(conn.line.is_idle for conn in self._connections)
            if (idle and not busy) or remaining <= 0:
                return
            if busy:
                await busy[0].handlers.wait(remaining)
            else:
                await asyncio.sleep(0.001)

    async def advance(self, seconds: float) -> None:
        """Make the app's time go by at once: sessions, tokens, idle limits and heartbeats of connections, rate limits,
        and how long histories are kept.

        Whatever is due on the way happens in its order. The machine's clock stays: `asyncio.sleep` and `time.time` of
        handlers, and ``exp`` of a token that is brought to a new connection. Raises `RuntimeError` for an app whose
        backend is a server.
        """
        if isinstance(seconds, bool) or not 0 <= seconds < math.inf:
            raise ValueError(f"advance({seconds!r}): pass a number of seconds, 0 or more.")
        clock, backends = self._clock, {id(engine.backend): engine.backend for engine in self._engines()}
        if clock is None or any(engine.clock is not clock for engine in self._engines()):
            raise RuntimeError(
                "advance() needs an app that this TestClient has started: enter the client first, and start the app "
                "nowhere else."
            )
        moving: list[Callable[[float], None]] = []
        for backend in backends.values():
            move: Callable[[float], None] | None = getattr(backend, "advance", None)
            if move is None:
                raise RuntimeError(
                    f"The time of a server cannot be advanced, and this app has a {type(backend).__name__}. Test it "
                    'with SocketApp(backend="memory") or SOCKETSPEC_BACKEND=memory; or set short limits, and wait.'
                )
            moving.append(move)

        def moved(step: float) -> None:
            for move in moving:
                move(step)

        await self.settle()
        self._is_advancing = True
        try:
            await clock.advance(seconds, moved, self.settle)
            await self.settle()
        finally:
            self._is_advancing = False
        self._raise_failure()

    @property
    def http(self) -> httpx.AsyncClient:
        """An httpx client of the application, for its HTTP routes; cookies and headers are its own. Needs httpx."""
        if self._http is None:
            if not self._is_asgi:
                raise RuntimeError("A SocketApp has no HTTP routes: test the application that it is mounted on.")
            import httpx

            transport = httpx.ASGITransport(app=cast("Any", self.app), raise_app_exceptions=self._raises is not False)
            self._http = httpx.AsyncClient(transport=transport, base_url="http://testserver")
        return self._http

    def _write_out(self) -> None:
        for engine in self._engines():
            engine.hub.settle()

    def _failed(self, error: Exception) -> None:
        if self._raises is not False:
            self._failures.append(error)
            for conn in self._connections:
                conn.inbox.changed()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.popleft()

    def _raise_all(self) -> None:
        if self._raises:
            self._raise_failure()

    def _forget_failure(self) -> None:
        if self._failures:
            self._failures.popleft()
