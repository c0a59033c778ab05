"""Every error SocketSpec raises or sends, and every close code, in one place.

The exceptions, by what is at fault::

    SocketSpecError
    ├── ConfigurationError      you, at start-up: an option, a signature, a name that cannot work
    ├── ContractError           you, in strict mode: an emit or broadcast that differs from its declaration
    ├── BackendError            the cluster backend: out of reach, refusing, or too late
    ├── Disconnected            nobody: the connection that something was sent to has gone
    └── EventError              sent to the client as ``__error__``; raise one to answer a client with your own words
        ├── AuthError           AUTH_ERROR
        ├── PermissionDenied    PERMISSION_ERROR
        ├── PayloadTooLarge     PAYLOAD_TOO_LARGE
        ├── RateLimited         RATE_LIMIT_ERROR
        ├── RoomNotFound        ROOM_NOT_FOUND
        ├── UnknownEvent        UNKNOWN_EVENT
        └── ValidationFailed    VALIDATION_ERROR

A handler may let `Disconnected` go: it ends, and that is no failure.
Any other exception of a handler is answered with ``HANDLER_ERROR`` and a request id; its text goes to the log only.
The docs pages on errors and close codes are made from the tables below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

__all__ = (
    "CLOSE_CODES",
    "ERROR_CODES",
    "AuthError",
    "BackendError",
    "CloseCode",
    "CloseInfo",
    "ConfigurationError",
    "ContractError",
    "Disconnected",
    "ErrorCode",
    "EventError",
    "PayloadTooLarge",
    "PermissionDenied",
    "RateLimited",
    "RoomNotFound",
    "SocketSpecError",
    "UnknownEvent",
    "ValidationFailed",
    "check_close_code",
)


class ErrorCode(StrEnum):
    """The ``code`` of an ``__error__`` event."""

    AUTH_ERROR = "AUTH_ERROR"
    AUTH_EXPIRED = "AUTH_EXPIRED"
    HANDLER_ERROR = "HANDLER_ERROR"
    IDLE_TIMEOUT = "IDLE_TIMEOUT"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    PERMISSION_ERROR = "PERMISSION_ERROR"
    RATE_LIMIT_ERROR = "RATE_LIMIT_ERROR"
    ROOM_NOT_FOUND = "ROOM_NOT_FOUND"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    UNKNOWN_EVENT = "UNKNOWN_EVENT"
    VALIDATION_ERROR = "VALIDATION_ERROR"


ERROR_CODES: Mapping[ErrorCode, str] = {
    ErrorCode.AUTH_ERROR: "No or bad credentials. Sent before close code 4001; with revoked ones before 4005.",
    ErrorCode.AUTH_EXPIRED: "The token ran out and was not refreshed in time. Sent before close code 4001.",
    ErrorCode.HANDLER_ERROR: "The event's handler failed; `request_id` finds the cause in the server's log.",
    ErrorCode.IDLE_TIMEOUT: "Nothing was received for `idle_timeout` seconds. Sent before close code 4003.",
    ErrorCode.PAYLOAD_TOO_LARGE: "The message is larger than `max_payload_size`. The connection stays open "
    "where the server hands the whole message over, and is closed with 1009 where it does not.",
    ErrorCode.PERMISSION_ERROR: "A guard or limit refused it: a room guard, a room without a right to it, a full room, "
    "too many rooms, or too many connections of one user (sent before close code 4008).",
    ErrorCode.RATE_LIMIT_ERROR: "Too many events, or too many rooms without a right to them in one `__resume__`; "
    "`details.retry_after` says in seconds when to try again.",
    ErrorCode.ROOM_NOT_FOUND: "The app declares its rooms and this is none of them.",
    ErrorCode.SESSION_EXPIRED: "The session reached `max_duration`. Sent before close code 4002.",
    ErrorCode.UNKNOWN_EVENT: "No handler has this name, or the name is reserved.",
    ErrorCode.VALIDATION_ERROR: "The message is not an envelope, or its payload does not fit the event's model; "
    "`details` lists what and where.",
}
"""When each error is sent."""


class CloseCode(IntEnum):
    """The WebSocket close codes a SocketSpec server sends (RFC 6455 section 7.4; 4000-4999 are private use)."""

    NORMAL = 1000
    UNSUPPORTED_DATA = 1003
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    DISCONNECTED = 4000
    AUTH_FAILED = 4001
    SESSION_EXPIRED = 4002
    IDLE_TIMEOUT = 4003
    HEARTBEAT_TIMEOUT = 4004
    REVOKED = 4005
    SLOW_CONSUMER = 4006
    RATE_LIMITED = 4007
    TOO_MANY_CONNECTIONS = 4008
    REPLACED = 4009


class CloseInfo(NamedTuple):
    """What a close code means and what a client should do."""

    reason: str
    """The reason's name, as `on_disconnect` gets it."""
    issued_when: str
    reconnect: bool
    """Whether a client should connect again by itself."""


CLOSE_CODES: Mapping[CloseCode, CloseInfo] = {
    CloseCode.NORMAL: CloseInfo("normal", "The closing handshake was asked for without another reason.", False),
    CloseCode.UNSUPPORTED_DATA: CloseInfo(
        "unsupported_data", "A binary frame arrived on a JSON connection, or a text frame on a MessagePack one.", False
    ),
    CloseCode.MESSAGE_TOO_BIG: CloseInfo("message_too_big", "A message was larger than the server reads.", False),
    CloseCode.INTERNAL_ERROR: CloseInfo("internal_error", "The server failed, for example in `on_connect`.", True),
    CloseCode.SERVICE_RESTART: CloseInfo(
        "server_shutdown", "The node is being stopped; another one will answer.", True
    ),
    CloseCode.TRY_AGAIN_LATER: CloseInfo(
        "try_again_later", "The node could not reach its cluster backend while the connection was opened.", True
    ),
    CloseCode.DISCONNECTED: CloseInfo(
        "disconnected", "Your code called `conn.disconnect()` or `socket.users.disconnect()`.", False
    ),
    CloseCode.AUTH_FAILED: CloseInfo("auth_error", "Authentication failed, or the token expired.", False),
    CloseCode.SESSION_EXPIRED: CloseInfo(
        "max_duration", "The session reached `max_duration`; a new one has to begin, with a new sign-in.", True
    ),
    CloseCode.IDLE_TIMEOUT: CloseInfo("idle_timeout", "Nothing was received for `idle_timeout` seconds.", True),
    CloseCode.HEARTBEAT_TIMEOUT: CloseInfo("heartbeat_timeout", "A heartbeat was not answered in time.", True),
    CloseCode.REVOKED: CloseInfo(
        "revoked", "The session, user or token was revoked: now, or before this connection came.", False
    ),
    CloseCode.SLOW_CONSUMER: CloseInfo("slow_consumer", "The client read too slowly and its buffer filled up.", True),
    CloseCode.RATE_LIMITED: CloseInfo("rate_limited", "The client went on sending far above its rate limit.", False),
    CloseCode.TOO_MANY_CONNECTIONS: CloseInfo(
        "too_many_connections", "The user has `max_connections_per_user` connections already.", False
    ),
    CloseCode.REPLACED: CloseInfo(
        "replaced", "A newer connection of the user took this one's place (`connection_limit_policy`).", False
    ),
}
"""What each close code means: the one table, shown in the docs and on the schema page."""


def check_close_code(code: int) -> int:
    """Return `code` if an app may close with it: 1000 or 4000-4999 (RFC 6455, 7.4). Raises `ValueError` for others."""
    if code != 1000 and not 4000 <= code <= 4999:
        raise ValueError(f"close code {code} is not yours to send; use 1000 or one of 4000-4999 (RFC 6455, 7.4)")
    return code


class SocketSpecError(Exception):
    """The root of every exception SocketSpec raises."""


class ConfigurationError(SocketSpecError):
    """An option, a handler's signature or a name cannot work. Raised at start-up; the message says what to change."""


class ContractError(SocketSpecError):
    """Strict mode: an emit or broadcast differs from what its handler declares with `Emits` or `Broadcasts`."""


class BackendError(SocketSpecError):
    """The cluster backend is out of reach, refused the command, or did not answer in time."""


class Disconnected(SocketSpecError):
    """`Connection.emit`: the connection has gone, or is being closed, so nothing that is sent reaches it any more.

    A handler need not catch it: it ends there, its dependencies are cleaned up after, and neither the log nor
    `on_error` hears of it.
    """

    def __init__(self, connection: str, reason: str = "") -> None:
        super().__init__(f"Connection {connection} has gone{f' ({reason})' if reason else ''}: nothing reaches it.")
        self.connection: str = connection
        """Its id."""
        self.reason: str = reason
        """Why it ended, as `on_disconnect` gets it."""

    def __reduce__(self) -> tuple[type[Disconnected], tuple[str, str]]:
        return type(self), (self.connection, self.reason)


class EventError(SocketSpecError):
    """An error that is sent to the client as ``__error__``. Raise it from a handler to answer in your own words.

    `message` and `details` reach the client: put nothing secret in them. `details` must be JSON-serialisable.
    """

    code: ErrorCode = ErrorCode.HANDLER_ERROR

    def __init__(
        self, message: str, *, code: ErrorCode | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        if code is not None:
            self.code = code
        self.hint: Callable[[], str] | None = None
        """A sentence for developers, such as "Did you mean 'orders:{id}'?". `str` shows it; clients get it only where
        they may know the names in it anyway."""

    def __str__(self) -> str:
        hint = "" if self.hint is None else self.hint()
        return f"{self.message} {hint}" if hint else str(self.message)


class AuthError(EventError):
    """The credentials are missing, wrong, expired or revoked."""

    code = ErrorCode.AUTH_ERROR


class PermissionDenied(EventError):
    """The client may not do this."""

    code = ErrorCode.PERMISSION_ERROR


class PayloadTooLarge(EventError):
    """The message is larger than `max_payload_size` bytes."""

    code = ErrorCode.PAYLOAD_TOO_LARGE


class RateLimited(EventError):
    """The client's bucket is empty; ``details["retry_after"]`` is in seconds."""

    code = ErrorCode.RATE_LIMIT_ERROR


class RoomNotFound(EventError):
    """The app declares its rooms, and none of the declarations matches this name."""

    code = ErrorCode.ROOM_NOT_FOUND


class UnknownEvent(EventError):
    """No handler is registered under this name, or the name is reserved."""

    code = ErrorCode.UNKNOWN_EVENT


class ValidationFailed(EventError):
    """The message is not an envelope or the payload does not fit the model."""

    code = ErrorCode.VALIDATION_ERROR
