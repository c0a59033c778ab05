"""What connections send through: contracts checked, errors numbered, behind what was published before."""

from __future__ import annotations

import logging
from collections.abc import Callable

from socketspec.declaration.contracts import Contracts
from socketspec.errors import EventError
from socketspec.fanout.hub import Hub
from socketspec.protocol.messages import Message, Write, encode_payload
from socketspec.protocol.names import check_outbound
from socketspec.telemetry.context import Requests, log_context
from socketspec.telemetry.debug_feed import DebugFeed

__all__ = ("Sender",)

logger: logging.Logger = logging.getLogger("socketspec.events")


class Sender:
    """One app's way out to single connections."""

    __slots__ = ("_contracts", "_feed", "_hub", "_requests", "max_buffer", "namespace", "now")

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
    ) -> None:
        self.namespace: str = namespace
        self.max_buffer: int = max_buffer
        """Bytes that may wait for one connection."""
        self.now: Callable[[], float] = now
        """The clock of the connections' deadlines."""
        self._hub = hub
        self._contracts = contracts
        self._requests = requests
        self._feed = feed

    def event(self, event: str, payload: object) -> Message:
        """What a handler emits, as a message. Raises `TypeError`, `ValueError` and `ContractError`."""
        check_outbound(event)
        self._contracts.check_emit(event, payload)
        return Message(event, encode_payload(payload))

    def error(
        self, connection: str, error: EventError, *, event: str | None, id: str | int | None, number: int
    ) -> Message:
        """`error` as ``__error__``, about the request with this number; 0: about one that has none yet."""
        requests = self._requests
        number = number or next(requests.numbers)
        request = requests.id(number)
        payload = {
            "code": error.code,
            "event": event,
            "message": error.message,
            "request_id": request,
            "details": error.details,
        }
        message = Message("__error__", encode_payload(payload), id=id)
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

    def send(self, connection: str, write: Write, message: Message) -> None:
        """Write to one connection, behind what was published to it before."""
        if self._feed is not None:
            self._feed.add("out", connection, message.event, message.payload, None)
        self._hub.send(write, message)

    def finish(self, connection: str) -> None:
        """Before a connection closes: write what was published to it so far."""
        self._hub.finish(connection)
