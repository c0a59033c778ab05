"""What FastAPI's exceptions mean to a client of the socket: dependencies that HTTP routes share raise them.

`HTTPException` and `WebSocketException` are known by their shape; the core imports neither FastAPI nor Starlette.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from socketspec.errors import ErrorCode, EventError, ValidationFailed

__all__ = ("as_event_error", "http_status_of", "status_of")

_BY_STATUS: Final = {
    400: ErrorCode.REFUSED,
    401: ErrorCode.AUTH_ERROR,
    403: ErrorCode.PERMISSION_ERROR,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    422: ErrorCode.VALIDATION_ERROR,
    429: ErrorCode.RATE_LIMIT_ERROR,
}

_BY_CLOSE_CODE: Final = {1003: 422, 1007: 422, 1008: 403, 1009: 413, 3000: 401, 3003: 403}
"""The status that a close code says; sources: RFC 6455 section 7.4.1, and IANA's registry of close codes."""

_STATUS_OF: Final[Mapping[str, int]] = {
    ErrorCode.AUTH_ERROR: 401,
    ErrorCode.AUTH_EXPIRED: 401,
    ErrorCode.SESSION_EXPIRED: 401,
    ErrorCode.RATE_LIMIT_ERROR: 429,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.ROOM_NOT_FOUND: 404,
}

_HTTP_STATUS_OF: Final[Mapping[str, int]] = {
    **_STATUS_OF,
    ErrorCode.PERMISSION_ERROR: 403,
    ErrorCode.UNKNOWN_EVENT: 404,
    ErrorCode.VALIDATION_ERROR: 422,
    ErrorCode.HANDLER_ERROR: 500,
    ErrorCode.TIMEOUT_ERROR: 504,
}


def as_event_error(error: BaseException) -> EventError | None:
    """The answer that `error` stands for; None where it is a failure of the server's (5xx, and all other exceptions).

    An `EventError` is one already. Of an `HTTPException`, a `detail` that is text becomes the message; any other is in
    ``details["detail"]``. ``Retry-After`` in seconds becomes ``details["retry_after"]``.
    """
    if isinstance(error, EventError):
        return error
    match _kind(error):
        case "HTTPException":
            return _of_http(error)
        case "WebSocketException":
            return _of_websocket(error)
        case "RequestValidationError" | "WebSocketRequestValidationError":
            return ValidationFailed("The request does not fit.", details={"errors": _errors(error)})
        case _:
            return None


def status_of(error: BaseException) -> int:
    """The HTTP status with which a handshake is refused that ended in `error`; 500 for a failure of the server's."""
    if isinstance(error, EventError):
        return _STATUS_OF.get(error.code, 403)
    kind = _kind(error)
    if kind == "HTTPException":
        status: int = getattr(error, "status_code", 500)
        return status if 400 <= status < 600 else 500
    return 500 if kind is None else 403  # as Starlette, which closes before it has accepted


def http_status_of(error: EventError) -> int:
    """The HTTP status that a route answers with which ended in `error`; 400 for codes of your own."""
    return _HTTP_STATUS_OF.get(error.code, 400)


def _kind(error: BaseException) -> str | None:
    for cls in type(error).__mro__:
        name, package = cls.__name__, cls.__module__.partition(".")[0]
        if package in ("starlette", "fastapi") and name in (
            "HTTPException",
            "WebSocketException",
            "RequestValidationError",
            "WebSocketRequestValidationError",
        ):
            return name
    return None


def _of_http(error: Any) -> EventError | None:
    status: int = error.status_code
    if not 400 <= status < 500:
        return None
    details: dict[str, Any] = {}
    message = error.detail
    if not isinstance(message, str):
        message, details = _phrase(status), {"detail": error.detail}
    headers: Mapping[str, str] = error.headers or {}
    wait = next((str(value) for name, value in headers.items() if name.lower() == "retry-after"), "")
    if wait.isascii() and wait.isdigit() and len(wait) < 10:
        details["retry_after"] = int(wait)
    return EventError(message, code=_BY_STATUS.get(status, ErrorCode.REFUSED), details=details)


def _of_websocket(error: Any) -> EventError | None:
    code: int = error.code
    if 1011 <= code <= 1015:  # the server's failures
        return None
    # 4401, 4403 and their like are common for "4000 and the status".
    status = code - 4000 if 4400 <= code < 4500 else _BY_CLOSE_CODE.get(code, 400)
    return EventError(error.reason or _phrase(status), code=_BY_STATUS.get(status, ErrorCode.REFUSED))


def _phrase(status: int) -> str:
    try:
        return f"{HTTPStatus(status).phrase}."
    except ValueError:
        return "The request was refused."


def _errors(error: Any) -> list[dict[str, Any]]:
    found: list[Any] = list(error.errors())[:20]
    return [{"loc": list(item["loc"]), "msg": str(item["msg"])[:300], "type": item["type"]} for item in found]
