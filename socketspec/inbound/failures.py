"""What follows when handling an event fails: the log, the client's answer, and the `on_error` hooks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from socketspec.connection.connection import Connection
from socketspec.connection.gone import is_disconnect
from socketspec.connection.hooks import Hooks
from socketspec.declaration.registry import EventSpec, Hook, Registry
from socketspec.errors import BackendError, ErrorCode, EventError, TimedOut
from socketspec.inbound.timeouts import AnsweredTimeout
from socketspec.telemetry.context import Requests, log_context
from socketspec.text import get_logger, sendable

__all__ = ("Failures", "outcome_of")

logger: logging.Logger = get_logger("socketspec.events")


class Failures:
    """Answers and reports failures. With `debug`, clients are told the text of exceptions."""

    def __init__(self, registry: Registry, hooks: Hooks, requests: Requests, *, debug: bool) -> None:
        self._registry = registry
        self._hooks = hooks
        self._requests = requests
        self._debug = debug

    async def failed(
        self, conn: Connection, event: str | None, id: str | int | None, error: Exception, number: int = 0
    ) -> None:
        """Log a handler's failure, tell the client a request id and nothing else, and call the `on_error` hooks.

        That a connection has gone is no failure: then only its client, if it is another's that has, gets an answer.
        """
        if is_disconnect(error):
            gone = EventError("The connection that this was for has gone.", details={"reason": "disconnected"})
            conn.send_error(gone, event=event, id=id, number=number)
            return
        number = number or next(self._requests.numbers)
        with log_context(conn.id, self._requests, event, number):
            self._report(conn, event, id, error, number)
            await self._hooks.failed(self._on_error(event), conn, error)

    async def timed_out(
        self, conn: Connection, spec: EventSpec, id: str | int | None, error: TimedOut, number: int
    ) -> None:
        """Say that an event took longer than it may: no failure of which a traceback would tell more."""
        if not isinstance(error, AnsweredTimeout):
            conn.send_error(error, event=spec.name, id=id, number=number)
        ids = {"request": self._requests.id(number), "connection": conn.id}
        with log_context(conn.id, self._requests, spec.name, number):
            logger.warning(
                "Handling %r was ended: %s (request %s, connection %s)",
                spec.name,
                error,
                ids["request"],
                conn.id,
                exc_info=error.__cause__ if isinstance(error.__cause__, Exception) else None,
                extra=ids,
            )
            await self._hooks.run(self._on_error(spec.name), conn, error)

    def _on_error(self, event: str | None) -> Sequence[Hook]:
        """The event's routers' hooks, the innermost router's first, then the app's."""
        spec = None if event is None else self._registry.events.get(event)
        groups = () if spec is None else tuple(reversed(spec.groups))
        inner = [hook for group in groups for hook in group.on_error]
        return [*inner, *self._registry.on_error]

    def _report(self, conn: Connection, event: str | None, id: str | int | None, error: Exception, number: int) -> None:
        request_id = self._requests.id(number)
        what = f"Handling {event!r} failed (request {request_id}, connection {conn.id})"
        ids = {"request": request_id, "connection": conn.id}
        if isinstance(error, BackendError):
            logger.error("%s: %s", what, error, extra=ids)  # nothing is wrong with the handler: no traceback
        else:
            logger.error("%s", what, exc_info=error, extra=ids)
        message = "The server failed to handle this event."
        details: dict[str, Any] = {}
        if self._debug:
            details = {"exception": type(error).__name__, "text": sendable(error)[:1000]}
        conn.send_error(
            EventError(message, code=ErrorCode.HANDLER_ERROR, details=details),
            event=event,
            id=id,
            number=number,
        )


def outcome_of(error: Exception) -> str:
    """What became of an event whose handler raised `error`, for metrics and spans."""
    if isinstance(error, TimedOut):
        return "timeout"
    if isinstance(error, EventError):
        return "refused"
    return "disconnected" if is_disconnect(error) else "error"
