"""How a message goes out to one connection: checked against contracts, and after what was published before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, Final

from socketspec.declaration.sending import Contracts
from socketspec.errors import EventError
from socketspec.fanout.hub import Hub
from socketspec.protocol.encoding import Message, Write, encode_payload
from socketspec.protocol.names import check_outbound
from socketspec.telemetry.context import Requests, log_context
from socketspec.telemetry.debug_feed import DebugFeed
from socketspec.text import cut, get_logger, sendable

__all__ = ("MAX_MESSAGE", "Sender")

logger: logging.Logger = get_logger("socketspec.events")

MAX_MESSAGE: Final = 1000
"""Characters of an error's message that are sent."""
HINT_EVERY: Final = 0.1
"""Seconds between two errors that say what the client may have meant."""
MAX_ERROR: Final = 8192
"""Bytes of an error beyond which most of its details are left out."""
MAX_DETAIL: Final = 200
"""Characters of the name and of the text of a detail that is kept then."""
MAX_DETAILS: Final = 10
"""How many are kept then."""


class Sender:
    """Sends to single connections of one app."""

    __slots__ = (
        "_contracts",
        "_feed",
        "_hinted_at",
        "_hints",
        "_hub",
        "_requests",
        "emits",
        "max_buffer",
        "namespace",
        "now",
        "thread",
    )

    def __init__(
        self,
        namespace: str,
        hub: Hub,
        contracts: Contracts,
        requests: Requests,
        feed: DebugFeed | None,
        *,
        max_buffer: int,
        now: Callable[[], float],
        hints: bool = False,
    ) -> None:
        self.namespace: str = namespace
        self.max_buffer: int = max_buffer
        """Bytes that may wait for one connection."""
        self.emits: int = 0
        """Events that handlers have emitted."""
        self.now: Callable[[], float] = now
        """Reads the clock of the connections' deadlines."""
        self.thread: int = get_ident()
        """The event loop's: nothing is sent from any other."""
        self._hub = hub
        self._contracts = contracts
        self._requests = requests
        self._feed = feed
        self._hints = hints
        """Whether clients may know every name there is, and so which one they nearly had."""
        self._hinted_at = float("-inf")

    def event(self, event: str, payload: object) -> Message:
        """An event that a handler emits, as a message. Raises `TypeError`, `ValueError` and `ContractError`."""
        check_outbound(event)
        return Message(event, self._contracts.emitted(event, payload))

    def error(
        self, connection: str, error: EventError, *, event: str | None, id: str | int | None, number: int
    ) -> Message:
        """`error` as an ``__error__`` for the request with this number; 0: it gets a number now."""
        requests = self._requests
        number = number or next(requests.numbers)
        request = requests.id(number)
        try:
            text = self._hinted(error) if self._hints and error.hint is not None else str(error.message)
            encoded = _payload(error, event, request, text)
        except Exception as cause:  # whatever the user's own objects raise: it is an answer all the same
            with log_context(connection, requests, event, number):
                what = f"The details or the message of a {type(error).__name__} cannot be sent"
                logger.error("%s (request %s, connection %s): %s", what, request, connection, cause)
            encoded = _least(error, event, request)
        message = Message("__error__", encoded, id=id)
        if logger.isEnabledFor(logging.DEBUG):
            with log_context(connection, requests, event, number):
                logger.debug(
                    "Answered %r with %s: %r (request %s, connection %s)",
                    event,
                    error.code,
                    error.message,
                    request,
                    connection,
                )
        return message

    def _hinted(self, error: EventError) -> str:
        """The error with its hint. To find one costs more than any other answer, so there are not many a second."""
        now = self.now()
        if now - self._hinted_at < HINT_EVERY:
            return str(error.message)
        self._hinted_at = now
        return str(error)

    def send(self, connection: str, session: str, write: Write, message: Message) -> None:
        """Write to one connection, after what was published to it before. The debug feed does not show `session`."""
        if self._feed is not None:
            self._feed.add("out", connection, message.event, message.payload, None, session=session)
        self._hub.send(write, message)

    def finish(self, connection: str) -> None:
        """Before a connection closes: write what was published to it so far."""
        self._hub.finish(connection)


def _payload(error: EventError, event: str | None, request: str, text: str) -> bytes:
    """An error as it is sent: bounded as a whole, as clients have a say in what is in it. Raises whatever is raised."""
    details, text = error.sent_details(), _text(text)
    encoded = encode_payload(_answer(error, event, request, text, details))
    if len(encoded) > MAX_ERROR:
        encoded = encode_payload(_answer(error, event, request, text, _shortened(details)))
    return encoded


def _least(error: EventError, event: str | None, request: str) -> bytes:
    """What can be sent of an error whose details or message cannot."""
    given: object = error.message  # untyped code passes anything
    text = _text(given) if isinstance(given, str) else ""
    return encode_payload(_answer(error, event, request, text, _shortened(error.details)))


def _answer(
    error: EventError, event: str | None, request: str, text: str, details: Mapping[str, Any]
) -> dict[str, Any]:
    return {"code": error.code, "event": event, "message": text, "request_id": request, "details": details}


def _text(message: str) -> str:
    return sendable(cut(message, MAX_MESSAGE))


def _shortened(details: object) -> dict[str, Any]:
    """The small ones of many or large details, such as a reason or a number of seconds."""
    named = details if isinstance(details, Mapping) else {}
    small = [(name, value) for name, value in named.items() if _is_small(name) and _is_small(value)]
    return {**{str(name): value for name, value in small[:MAX_DETAILS]}, "truncated": True}


def _is_small(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_DETAIL and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, int):
        return abs(value) < 2**64
    return value is None or isinstance(value, float)
