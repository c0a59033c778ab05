"""SocketSpec as a plain ASGI 3 application: for any ASGI server, in any ASGI framework.

    app = ASGIApp(socket)       # run it as it is, or mount it in Starlette, Litestar, Quart, Django …

It answers WebSocket connections at every path it is given, HTTP requests for the app's own pages, and lifespan
events. Source of the message formats: the ASGI specification, "HTTP & WebSocket ASGI Message Format", 2.4.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Final, cast

from socketspec.adapters.asgi_refusal import is_presentable, refuse
from socketspec.adapters.asgi_transport import ASGITransport, Event, Send
from socketspec.adapters.direct import take_over
from socketspec.adapters.handover import EXTENSION, HandOver
from socketspec.app.app import SocketApp
from socketspec.app.mounts import Serves
from socketspec.connection.connection import Connection
from socketspec.declaration.signatures import listed
from socketspec.errors import BackendError, ConfigurationError, EventError
from socketspec.lifecycle.admission import Admission
from socketspec.pages.responses import Response
from socketspec.protocol.handshake import NO_VARIABLES, Handshake, Headers, QueryParams
from socketspec.runtime.engine import Engine
from socketspec.telemetry.context import log_context
from socketspec.text import get_logger, one_line

__all__ = ("ASGIApp",)

logger: logging.Logger = get_logger("socketspec.asgi")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]

NOT_FOUND: Final = Response(404, b'{"detail":"Not Found"}')
"""The answer at a path where there is no page."""
MESSAGES_A_TURN: Final = 64
"""Messages of one connection that are taken before the event loop gets its turn."""


class ASGIApp(Serves):
    """A `SocketApp` as an ASGI application."""

    def __init__(self, socket: SocketApp, *, dependencies: Sequence[Any] = ()) -> None:
        """`dependencies` run at the handshake, before those of `socket`. Raises `ConfigurationError`."""
        if not isinstance(socket, SocketApp):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
            raise ConfigurationError(
                f"ASGIApp() needs a SocketApp, not {type(socket).__name__}. An EventRouter is included in one: "
                "socket.include_router(router)."
            )
        self.socket: SocketApp = socket
        own = listed("ASGIApp", dependencies)
        self.dependencies: tuple[Callable[..., Any], ...] = tuple(
            each.dependency for each, _ in own if each.dependency is not None
        )
        self._at_handshake = socket.registry.at_handshake("ASGIApp", own)
        socket.callers.served = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        if scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise RuntimeError(f"SocketSpec does not speak the ASGI scope type {scope['type']!r}")

    async def websocket(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        stays: bool = False,
        raises: bool = False,
    ) -> None:
        """Serve one WebSocket connection from its opening handshake to its end.

        On a server that takes connections over, this returns when it is open; with `stays`, when it has been cleaned up
        after: for frameworks that close then, and in this task, what they opened for it. With `raises`, what a
        dependency of the handshake raises is raised here before anything is answered: for frameworks that know how.
        """
        event = await receive()
        if event["type"] != "websocket.connect":
            return
        try:
            engine = await self.socket.ensure_started()
        except BackendError as error:  # a sub-application starts with its first connection; the next one tries again
            logger.error("A connection is refused, as the app cannot start: %s", error)
            await refuse(scope, send, 503, "The service cannot be reached at the moment.")
            return
        try:
            handshake = handshake_of(scope, keep_scope=self.socket.registry.wants_scope)
        except ValueError:
            await refuse(scope, send, 403, "Too many query parameters.")
            return
        admission = await engine.admit(handshake, self._at_handshake)
        try:
            with log_context(admission.connection, engine.requests):  # the server logs, within `send`, how it answers
                if admission.refusal is not None:
                    cause = admission.cause
                    if raises and cause is not None and not isinstance(cause, EventError) and is_presentable(cause):
                        raise cause
                    await refuse(scope, send, *admission.refusal, cause)
                    return
                await send({"type": "websocket.accept", "subprotocol": admission.subprotocol, "headers": []})
            hand_over: HandOver | None = (scope.get("extensions") or {}).get(EXTENSION)
            if hand_over is None:
                await _ASGISession(engine, admission, handshake, receive, send).run()
            else:
                ended = asyncio.Event() if stays else None
                if ended is not None:
                    admission = admission.followed_by(ended.set)
                await take_over(hand_over, engine, admission, handshake)
                if ended is not None:
                    await ended.wait()
        finally:
            if admission.resources is not None:
                await admission.abandon()

    async def _http(self, scope: Scope, send: Send) -> None:
        path: str = scope["path"]
        path = path.removeprefix(scope.get("root_path", "")).rstrip("/") or "/"  # Litestar's mounts add a slash
        response = await answer(self.socket, scope, path)
        await send_response(send, response or NOT_FOUND)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.socket.ensure_started()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": one_line(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.socket.stop()
        await send({"type": "lifespan.shutdown.complete"})


def handshake_of(scope: Scope, *, keep_scope: bool = False) -> Handshake:
    """The opening handshake in an ASGI scope; with all of that, if it is to be kept."""
    client = scope.get("client")
    kept: Scope | None = None
    if keep_scope:  # without the extensions, which hold on to the server's side of the connection
        kept = {key: value for key, value in scope.items() if key != "extensions"}
    return Handshake(
        path=scope["path"],
        headers=_headers(scope),
        query_params=Handshake.parse_query(scope.get("query_string", b"")),
        subprotocols=tuple(scope.get("subprotocols") or ()),
        client=(client[0], client[1]) if client else None,
        secure=scope.get("scheme") in ("wss", "https"),
        path_params=scope.get("path_params") or NO_VARIABLES,
        scope=kept,
    )


async def answer(socket: SocketApp, scope: Scope, path: str) -> Response | None:
    """The answer of one of the app's pages to an HTTP scope; None where `path` is none of them."""
    try:
        query: QueryParams = Handshake.parse_query(scope.get("query_string", b""))
    except ValueError:
        return Response(400, b'{"detail":"Too many query parameters."}')
    if path == socket.pages.health_url:
        await socket.start_if_never_started()
    return await socket.pages.respond(scope["method"], path, _headers(scope), query)


def _headers(scope: Scope) -> Headers:
    return Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


async def send_response(send: Send, response: Response) -> None:
    """Send an HTTP answer."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


class _ASGISession:
    """One accepted connection, whose messages are read in the task that the server called the application in."""

    def __init__(
        self, engine: Engine, admission: Admission, handshake: Handshake, receive: Receive, send: Send
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._handshake = handshake
        self._receive = receive
        limits = engine.settings.backpressure
        self._transport = ASGITransport(send, admission.format, limits, engine.tasks, engine.counters, engine.waiting)
        self._stopped = False
        self._waiting = False
        self._ahead: asyncio.Future[Event] | None = None

    async def run(self) -> None:
        """Open the connection, read until it ends, clean up."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._transport.on_closing = lambda: self._stop_reading(task)
        conn: Connection | None = None
        code = 1006
        try:
            conn = await self._engine.open(self._admission, self._handshake, self._transport)
            code = await self._read(conn, task)
            if self._stopped:
                await self._transport.flush()
        finally:
            self._transport.abort()
            if conn is not None:
                await self._engine.closed(conn, code)

    def _stop_reading(self, task: asyncio.Task[None]) -> None:
        """Stop waiting for messages: we are about to close. Handlers and hooks are left to finish.

        Some servers (granian 2.8 is one) lose a close frame that is sent while the application waits in `receive`.
        """
        self._stopped = True
        if self._waiting:
            task.cancel()
        elif self._ahead is not None:
            self._ahead.cancel()

    async def _read(self, conn: Connection, task: asyncio.Task[None]) -> int:
        """Take messages until the client disconnects or we close; the close code of the former, else 1006."""
        taken = 0
        while not self._stopped:
            taken += 1
            if taken % MESSAGES_A_TURN == 0:  # a server queues all it has read, and taking that never waits
                await asyncio.sleep(0)
            event = await self._next_event(task)
            if event is None:
                break
            if event["type"] == "websocket.disconnect":
                return int(event.get("code") or 1005)
            text = event.get("text")
            data = text if text is not None else event.get("bytes") or b""
            pending = self._engine.receive(conn, data, binary=text is None)
            if pending is not None:
                conn.held = True
                try:
                    await self._finish(pending)
                finally:
                    conn.held = False
        return 1006

    async def _next_event(self, task: asyncio.Task[None]) -> Event | None:
        """The next ASGI event; None if we began to close meanwhile."""
        ahead, self._ahead = self._ahead, None
        self._waiting = True
        try:
            return await (self._receive() if ahead is None else ahead)
        except asyncio.CancelledError:
            if not self._stopped or task.uncancel() > 0:
                raise
            return None
        finally:
            self._waiting = False

    async def _finish(self, pending: Coroutine[Any, Any, None]) -> None:
        """Finish handling a message. One event is read ahead meanwhile, so that a client which leaves is noticed."""
        work = asyncio.ensure_future(pending)
        ahead = self._ahead = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({work, ahead}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._stopped and ahead.result()["type"] == "websocket.disconnect":
                work.cancel()
                await asyncio.wait({work})
            else:
                await work
        except BaseException:
            work.cancel()
            ahead.cancel()
            raise
