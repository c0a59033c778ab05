"""A client's end of a connection: what it sends, and what the test expects to come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final, TypeVar, cast, overload

import msgpack
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json, to_jsonable_python

from socketspec.connection.connection import Connection
from socketspec.errors import ErrorCode
from socketspec.identity import Identity
from socketspec.protocol.formats import Format
from socketspec.protocol.names import is_reserved
from socketspec.testing.errors import ConnectionClosed, EventFailed, Unexpected
from socketspec.testing.inbox import HOUSEKEEPING, Inbox, Message, shown
from socketspec.testing.lines import PONG, Line, Pong
from socketspec.testing.recipe import Recipe

__all__ = ("Harness", "TestConnection")

T = TypeVar("T")

TIMEOUT: Final = 5.0
"""Seconds to wait for a message unless the test says otherwise."""

Pick = Callable[[], Message | None]
"""Reads the message that is waited for, if it has come. Raises where it never will."""


class Harness:
    """What a connection needs of its client."""

    def __init__(
        self,
        open: Callable[[Recipe, Inbox, Pong], Awaitable[Line]],
        settle: Callable[[], Awaitable[None]],
        write_out: Callable[[], None],
        raise_failure: Callable[[], None],
        is_advancing: Callable[[], bool],
        seen: Callable[[], None] | None,
    ) -> None:
        self.open = open
        """Opens a connection."""
        self.settle = settle
        """Waits until handlers are through."""
        self.write_out = write_out
        """Has everything written that was published."""
        self.raise_failure = raise_failure
        """Raises what the server's code raised unexpectedly, if anything."""
        self.is_advancing = is_advancing
        """Whether the test lets the time go by just now."""
        self.seen = seen
        """Says that the test has seen a failure as its client did; None: it is to be raised all the same."""


class TestConnection:
    """A client's end of a connection.

    What is waited for by name, `request` and `expect`, is given as its payload; `receive()` gives whole messages. What
    the server's own code has raised unexpectedly meanwhile is raised first, see `TestClient`.
    """

    __test__: bool = False

    def __init__(self, harness: Harness, recipe: Recipe) -> None:
        self._harness = harness
        self._recipe = recipe
        self.inbox: Inbox = Inbox()
        self._line: Line | None = None
        self._numbers = count(1)
        self._by_server = True
        self._left = False
        """Whether the test itself has closed it."""
        self._rooms: frozenset[str] = frozenset()

    async def open(self) -> None:
        """Connect. `TestClient.connect` does this."""
        pong = None if self._recipe.answers_pings is False else self._pong
        self._line = await self._harness.open(self._recipe, self.inbox, pong)
        self._by_server, self._left = True, False

    @property
    def line(self) -> Line:
        """What carries its frames."""
        if self._line is None:
            raise RuntimeError("this connection is not open")
        return self._line

    @property
    def connection(self) -> Connection:
        """The server's end: what handlers get."""
        return self.line.connection

    @property
    def id(self) -> str:
        """The connection's id."""
        return self.connection.id

    @property
    def identity(self) -> Identity:
        """Who the server takes this client for."""
        return self.connection.identity

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended; what came before may still be read."""
        return self.inbox.ended is not None

    async def send(self, event: str, payload: object = None, *, id: str | int | None = None) -> None:
        """Send one event. `payload` is a model, dataclass or mapping.

        Raises `ConnectionClosed` where the test itself has closed or dropped the connection: nothing would be sent.
        """
        if self._left and self.inbox.ended is not None:
            raise ConnectionClosed(*self.inbox.ended, f" by this test before {event!r} was sent: reconnect() first")
        envelope: dict[str, Any] = {"event": event}
        if payload is not None:
            envelope["payload"] = payload
        if id is not None:
            envelope["id"] = id
        await self.send_raw(self._encoded(envelope))

    async def send_raw(self, data: str | bytes) -> None:
        """Send a frame as it is: text for `str`, binary for `bytes`."""
        await self.line.send(data)

    def _encoded(self, envelope: dict[str, Any]) -> str | bytes:
        if self.inbox.format is Format.MSGPACK:
            packed: Any = msgpack.packb(to_jsonable_python(envelope))  # typed as if there were nothing to pack
            return bytes(packed)
        return to_json(envelope).decode()

    @overload
    async def request(self, event: str, payload: object = None, *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    async def request(self, event: str, payload: object, model: type[T], *, timeout: float = ...) -> T: ...
    @overload
    async def request(self, event: str, payload: object = None, *, model: type[T], timeout: float = ...) -> T: ...
    async def request(
        self,
        event: str,
        payload: object = None,
        model: type[T] | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> T | dict[str, Any]:
        """Send an event and give its reply: a `model`, or without one the payload as a dict.

        Other messages that come meanwhile stay unread. Raises `EventFailed` for an ``__error__``, `TimeoutError`,
        `ConnectionClosed`, and Pydantic's `ValidationError` where the reply is no `model`.
        """
        id, sent_after = f"request-{next(self._numbers)}", self.inbox.count

        def answer() -> Message | None:
            for number, message in self.inbox:
                if message.get("id") == id or (number > sent_after and _is_about(message, event)):
                    return self.inbox.take(number)
            return None

        await self.send(event, payload, id=id)
        try:
            message = await self._next(answer, timeout, f"the reply to {event!r}")
        except BaseException:
            answer()  # it would be unread for ever
            raise
        return _payload(message, model, f"the reply to {event!r}")

    @overload
    async def receive(self, model: float = ..., *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    async def receive(self, model: type[T], timeout: float = ...) -> T: ...
    async def receive(
        self,
        model: type[T] | float | None = None,
        timeout: float = TIMEOUT,
    ) -> T | dict[str, Any]:
        """The next message: as a dict with `event`, `payload` and, in a reply, `id`; or its payload as a `model`.

        With a model, what the protocol says by itself (``__connect__``, warnings) is passed over, and ``__error__``
        raises `EventFailed`. Raises `TimeoutError` after `timeout` seconds, and `ConnectionClosed` once everything has
        been received.
        """
        if model is None or isinstance(model, int | float):
            return await self._next(self._first, timeout if model is None else model, "a message", as_client=True)
        what = f"a {getattr(model, '__name__', model)}"
        return _payload(await self._next(self._first_of_the_app, timeout, what), model, what)

    def _first(self) -> Message | None:
        message = next((self.inbox.take(number) for number, _ in self.inbox), None)
        if message is not None and self._harness.seen is not None and _is_failure(message):
            self._harness.seen()
        return message

    def _first_of_the_app(self) -> Message | None:
        for number, message in self.inbox:
            if message["event"] not in HOUSEKEEPING:
                return self.inbox.take(number)
        return None

    async def receive_event(self, event: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The next message named `event`; others before it are passed over for good. Raises as `receive` does."""

        def named() -> Message | None:
            while (message := self._first()) is not None:
                if message["event"] == event:
                    return message
            return None

        return await self._next(named, timeout, repr(event), as_client=True)

    @overload
    async def expect(self, event: str, *, timeout: float = ...) -> dict[str, Any]: ...
    @overload
    async def expect(self, event: str, model: type[T], *, timeout: float = ...) -> T: ...
    async def expect(
        self,
        event: str,
        model: type[T] | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> T | dict[str, Any]:
        """The next message has to be this event; gives its payload, as a `model` if one is named.

        Another event of the app's before it, or an ``__error__``, raises `Unexpected` (an `AssertionError`) that shows
        it, and stays unread. The protocol's own messages, replies too, are passed over and stay unread, unless `event`
        is one. Raises `TimeoutError` and `ConnectionClosed` as `receive` does.
        """

        if not isinstance(event, str):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
            raise TypeError(f"expect({event!r}): name an event; to see that nothing comes, use assert_nothing().")

        def expected() -> Message | None:
            for number, message in self.inbox:
                if message["event"] == event:
                    return self.inbox.take(number)
                if message["event"] == "__error__" or not is_reserved(message["event"]):
                    raise Unexpected(f"expected {event!r}, but {shown(message)} came; {self.inbox.account()}")
            return None

        return _payload(await self._next(expected, timeout, repr(event)), model, repr(event))

    async def assert_nothing(self, timeout: float = 0) -> None:
        """Nothing has come, and nothing comes within `timeout` seconds. Raises `Unexpected`, showing what did.

        Handlers under way are waited for first, a second at most: with the memory backend, what they send is there
        then, so 0 is enough. What the protocol says by itself (``__connect__``, pings, warnings) does not count;
        replies and errors do.
        """
        await self._harness.settle()
        try:
            async with asyncio.timeout(timeout or None):
                while True:
                    self._harness.raise_failure()
                    self._check_nothing()
                    if not timeout:
                        return
                    await self.inbox.change()
        except TimeoutError:
            self._check_nothing()

    def _check_nothing(self) -> None:
        if any(message["event"] not in HOUSEKEEPING for _, message in self.inbox):
            raise Unexpected(f"expected nothing, but something came; {self.inbox.account()}")
        if self.inbox.ended is not None and self._by_server:
            code, reason = self.inbox.ended
            raise Unexpected(f"expected nothing, but the server closed the connection with {code} ({reason})")

    async def close(self, code: int = 1000) -> None:
        """Disconnect. Returns when the server has cleaned up and the `on_disconnect` hooks have run."""
        if self._line is None:
            return
        if self.inbox.ended is None:
            self._harness.write_out()  # what was broadcast before has reached it
            self._rooms, self._by_server = self.connection.rooms, False
        self._left = True
        await self._line.close(code)

    async def drop(self) -> None:
        """Lose the network: no close frame, as 1006. Returns when the server has noticed and cleaned up."""
        await self.close(1006)

    async def reconnect(self) -> dict[str, Any]:
        """Connect again with what `connect` was called with; an open connection is dropped first.

        A client with `format` "json" or "msgpack" goes on with its session and resumes its rooms, from the last
        positions that it was sent; the answer of ``__resume__`` is returned, and what was missed comes after it. A
        plain client knows neither a session nor positions: it begins anew, and the answer is ``{}``. What is unread
        stays.
        """
        if not self.is_closed:
            await self.drop()
        session = self.inbox.session
        rooms = {room: self.inbox.positions.get(room) for room in sorted(self._rooms | set(self.inbox.positions))}
        self.inbox.reopen()
        await self.open()
        if self.inbox.format is Format.PLAIN or session is None:
            return {}
        return await self.request("__resume__", {"session": session, "rooms": rooms})

    def _pong(self) -> None:
        if not self._recipe.answers_pings and not self._harness.is_advancing():
            return
        asyncio.get_running_loop().create_task(self.send_raw(self._encoded(dict(PONG))), name="pong of the test client")

    async def _next(self, pick: Pick, timeout: float, what: str, *, as_client: bool = False) -> Message:
        self._harness.write_out()  # what was broadcast before is there, also for a timeout of 0
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                while True:
                    if not as_client or self._harness.seen is None:
                        self._harness.raise_failure()
                    message = pick()
                    if message is not None:
                        return message
                    if self.inbox.ended is not None:
                        circumstances = f" while the test waited for {what}; {self.inbox.account()}"
                        raise ConnectionClosed(*self.inbox.ended, circumstances)
                    await self.inbox.change()
        except TimeoutError as error:
            if not limit.expired():
                raise  # the server's own
            text = f"{what} did not come within {timeout:g} s; {self.inbox.account()}"
            raise TimeoutError(text) from error


def _is_about(message: Message, event: str) -> bool:
    """Whether it is an error without an id: of a message that the server refused unread."""
    return message["event"] == "__error__" and "id" not in message and message["payload"]["event"] in (None, event)


def _is_failure(message: Message) -> bool:
    return bool(message["event"] == "__error__" and message["payload"]["code"] == ErrorCode.HANDLER_ERROR)


def _payload(message: Message, model: type[T] | None, what: str) -> T | dict[str, Any]:
    payload = message["payload"]
    if message["event"] == "__error__" and what != repr("__error__"):
        raise EventFailed(payload)
    if model is None:
        return cast("dict[str, Any]", payload)
    try:
        return TypeAdapter(model).validate_json(to_json(payload))
    except ValidationError as error:
        error.add_note(f"{what} was {shown(message)}")
        raise
