"""A whole ASGI application in the test's event loop: its lifespan, and connections to it.

Source of the message formats: the ASGI specification, "HTTP & WebSocket ASGI Message Format" and "Lifespan Protocol".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlencode

from socketspec.connection.connection import Connection
from socketspec.lifecycle.visiting import Visitor, visiting
from socketspec.protocol.formats import SUBPROTOCOLS, Format
from socketspec.testing.errors import HandshakeRefused
from socketspec.testing.inbox import Inbox
from socketspec.testing.lines import Pong
from socketspec.testing.recipe import Recipe

__all__ = ("ASGI", "ASGILine", "Lifespan")

Event = MutableMapping[str, Any]
ASGI = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


class Lifespan:
    """Runs an application's lifespan in a task of its own, so that any task may start and stop it."""

    def __init__(self, app: ASGI) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        """What the lifespan shares with requests."""
        self._asked = False
        self._to_app: asyncio.Queue[Event] = asyncio.Queue()
        self._answer: asyncio.Future[Event] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the application. Raises what its start raises; an application may do without a lifespan."""
        self._task = asyncio.create_task(self._run(), name="lifespan of the tested app")
        answer = await self._ask(self._task, "lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            await asyncio.wait((self._task,))
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error
            raise RuntimeError(f"The application did not start: {answer.get('message', '')}")

    async def stop(self) -> None:
        """Stop it. Raises what that raises."""
        task = self._task
        if task is None or (task.done() and task.exception() is not None):
            return
        answer = await self._ask(task, "lifespan.shutdown")
        await asyncio.wait((task,))
        if (error := task.exception()) is not None:
            raise error
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            raise RuntimeError(f"The application did not stop in order: {answer.get('message', '')}")

    async def _ask(self, task: asyncio.Task[None], question: str) -> Event | None:
        """The application's answer; None where its lifespan has ended without one."""
        if task.done():
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._to_app.put_nowait({"type": question})
        await asyncio.wait((self._answer, task), return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            return self._answer.result()
        if (error := task.exception()) is not None and self._asked:
            raise error  # else it does not know of lifespans
        return None

    async def _run(self) -> None:
        await self._app(
            {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}, self._receive, self._send
        )

    async def _receive(self) -> Event:
        self._asked = True
        return await self._to_app.get()

    async def _send(self, event: Event) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(event)


class ASGILine:
    """A connection through an application: its middleware, its routes and their dependencies."""

    def __init__(
        self, app: ASGI, recipe: Recipe, path: str, state: dict[str, Any], inbox: Inbox, pong: Pong,
        failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self._app = app
        self._inbox = inbox
        self._pong = pong
        self._failed = failed
        self._scope = _scope(recipe, path, state)
        self._visitor = Visitor(recipe.identity)
        self._to_app: asyncio.Queue[Event] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._reading = False
        self._gone = False
        self._accepted = False
        self._refusal: tuple[int, str] | None = None
        self._body = b""
        self._progress = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connection(self) -> Connection:
        """The server's end."""
        if self._visitor.connection is None:
            raise RuntimeError("no SocketApp has taken this connection")
        return self._visitor.connection

    @property
    def is_idle(self) -> bool:
        """Whether the application waits for the next message, or has ended."""
        return self._task is None or self._task.done() or (self._reading and self._to_app.empty())

    async def open(self) -> None:
        """Make the handshake; where this returns, the `on_connect` hooks have run.

        Raises `HandshakeRefused`, and what the application raises before it has accepted.
        """
        token = visiting.set(self._visitor)
        try:
            self._task = asyncio.create_task(self._run(), name="connection to the tested app")
        finally:
            visiting.reset(token)
        try:
            while not self._is_open() and not self._task.done():
                self._progress.clear()
                await self._progress.wait()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._task.done() and not self._accepted:
            self._task.result()
        if self._refusal is not None:
            await asyncio.wait((self._task,))
            raise HandshakeRefused(*self._refusal)
        if self._visitor.connection is None:
            await self.close(1000)
            raise RuntimeError(
                f"What answers at {self._scope['path']!r} is no SocketApp: pass connect(path=…) where one is mounted."
            )

    def _is_open(self) -> bool:
        """Whether the application has accepted and reads, has closed, or has refused."""
        return self._refusal is not None or (self._accepted and (self._reading or self._inbox.ended is not None))

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            if not self._accepted:
                raise  # `open` does
            self._failed(error)
        finally:
            self._gone = True
            if self._accepted:
                self._inbox.end(1006, "the application ended")
            self._progress.set()

    async def send(self, data: str | bytes) -> None:
        """Send a frame, which the application takes when it reads on."""
        kind = "bytes" if isinstance(data, bytes) else "text"
        self._to_app.put_nowait({"type": "websocket.receive", kind: data})

    async def close(self, code: int) -> None:
        """End the connection, and wait until the application has returned."""
        self._inbox.end(code, "connection lost" if code == 1006 else "")
        self._gone = True
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _receive(self) -> Event:
        if self._accepted:
            self._reading = True
            self._progress.set()
        try:
            return await self._to_app.get()
        finally:
            self._reading = False

    async def _send(self, event: Event) -> None:
        kind = event["type"]
        if kind == "websocket.send":
            self._take(event)
        elif kind == "websocket.accept":
            chosen = SUBPROTOCOLS.get(event.get("subprotocol") or "", Format.PLAIN)
            self._accepted, self._inbox.format = True, chosen
        elif kind == "websocket.close":
            self._closed(int(event.get("code") or 1000), str(event.get("reason") or ""))
        elif kind == "websocket.http.response.start":
            self._refused_with = int(event["status"])
        elif kind == "websocket.http.response.body":
            self._body += event.get("body", b"")
            if not event.get("more_body", False):
                self._refusal = (self._refused_with, self._body.decode(errors="replace"))
        self._progress.set()

    def _take(self, event: Event) -> None:
        if self._gone:
            raise OSError("the client has gone")
        text: str | None = event.get("text")
        message = self._inbox.put(event["bytes"] if text is None else text)
        if message["event"] == "__ping__" and self._pong is not None:
            self._pong()

    def _closed(self, code: int, reason: str) -> None:
        if self._accepted:
            self._inbox.end(code, reason)
            # As servers do: the application, which may still read, is told that the client has closed as well.
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        else:
            self._refusal = (403, reason)


def _scope(recipe: Recipe, path: str, state: dict[str, Any]) -> MutableMapping[str, Any]:
    given = {name.lower() for name, _ in recipe.headers}
    defaults = (("host", "testserver"), ("user-agent", "socketspec-testclient"))
    headers = [*((name, value) for name, value in defaults if name not in given), *recipe.headers]
    if recipe.subprotocols and "sec-websocket-protocol" not in given:
        headers.append(("sec-websocket-protocol", ", ".join(recipe.subprotocols)))
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": quote(path).encode(),
        "root_path": "",
        "query_string": urlencode(recipe.query).encode(),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": recipe.client,
        "server": ("testserver", 80),
        "subprotocols": list(recipe.subprotocols),
        "state": state.copy(),
        "extensions": {"websocket.http.response": {}},
    }
