"""What FastAPI answers where a dependency raises an error of ours: shared ones do, over HTTP and at the handshake."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.websockets import WebSocket, WebSocketState

from socketspec.declaration.refusals import http_status_of, status_of
from socketspec.errors import EventError, SocketSpecError
from socketspec.text import close_reason

__all__ = ("answer_errors",)

_OWN: Final = frozenset({EventError, SocketSpecError})
"""Of which an application may have a handler of its own, which then answers."""
_DEEPEST: Final = 100
"""Layers of middleware that are looked through."""


def answer_errors(app: Any) -> None:
    """Have `app`, a Starlette or FastAPI application, answer an `EventError`, unless it has a handler for it.

    Of anything else nothing is changed. Calls after the first do nothing.
    """
    handlers = getattr(app, "exception_handlers", None)
    if not isinstance(handlers, dict) or not _OWN.isdisjoint(handlers):
        return
    answer: Any = _answer  # for both kinds of connections, which no type of a handler says
    handlers[EventError] = answer
    layer = getattr(app, "middleware_stack", None)  # made of the handlers when the application is first called
    for _ in range(_DEEPEST):
        if isinstance(layer, ExceptionMiddleware):
            layer.add_exception_handler(EventError, answer)
            return
        layer = getattr(layer, "app", None)


async def _answer(connection: HTTPConnection, error: Any) -> Response | None:
    if isinstance(connection, WebSocket):
        return await _refuse(connection, error)
    details: dict[str, Any] = error.sent_details()
    body = {"detail": error.message, "code": str(error.code), **({"details": details} if details else {})}
    return JSONResponse(body, http_status_of(error), _headers(http_status_of(error), details))


async def _refuse(websocket: WebSocket, error: EventError) -> Response | None:
    """As `SocketApp(dependencies=…)` refuses a handshake."""
    status = status_of(error)
    can_answer = "websocket.http.response" in (websocket.scope.get("extensions") or {})
    if status != 403 and can_answer and websocket.application_state is WebSocketState.CONNECTING:
        return PlainTextResponse(error.message, status, _headers(status, {}))
    await websocket.close(1008, close_reason(error.message))
    return None


def _headers(status: int, details: dict[str, Any]) -> dict[str, str] | None:
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    wait = details.get("retry_after")
    return {"Retry-After": str(math.ceil(wait))} if status == 429 and isinstance(wait, int | float) else None
