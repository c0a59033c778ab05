"""Every error SocketSpec raises or sends, and every close code, in one place.

The exceptions, by what is at fault::

    SocketSpecError
    ├── ConfigurationError      you, at start-up: an option, a signature, a name that cannot work
    ├── ContractError           you: what is sent differs from its declaration
    ├── BackendError            the cluster backend: out of reach, refusing, or too late
    ├── Disconnected            nobody: the connection that something was sent to has gone
    └── EventError              sent to the client as ``__error__``; raise one to answer a client with your own words
        ├── AuthError           AUTH_ERROR
        ├── PermissionDenied    PERMISSION_ERROR
        ├── PayloadTooLarge     PAYLOAD_TOO_LARGE
        ├── RateLimited         RATE_LIMIT_ERROR
        ├── RoomNotFound        ROOM_NOT_FOUND
        ├── TimedOut            TIMEOUT_ERROR
        ├── UnknownEvent        UNKNOWN_EVENT
        └── ValidationFailed    VALIDATION_ERROR

A handler may let `Disconnected` go: it ends, and that is no failure.
Any other exception of a handler is answered with ``HANDLER_ERROR`` and a request id; its text goes to the log only.
The docs pages on errors and close codes are made from the tables below.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from types import FrameType
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import to_jsonable_python

from socketspec.error_classes import check_attributes, is_object, validated, well_formed

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
    "TimedOut",
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
    NOT_FOUND = "NOT_FOUND"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    PERMISSION_ERROR = "PERMISSION_ERROR"
    RATE_LIMIT_ERROR = "RATE_LIMIT_ERROR"
    REFUSED = "REFUSED"
    ROOM_NOT_FOUND = "ROOM_NOT_FOUND"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    TIMEOUT_ERROR = "TIMEOUT_ERROR"
    UNKNOWN_EVENT = "UNKNOWN_EVENT"
    VALIDATION_ERROR = "VALIDATION_ERROR"


ERROR_CODES: Mapping[ErrorCode, str] = {
    ErrorCode.AUTH_ERROR: "No or bad credentials. Sent before close code 4001; with revoked ones before 4005.",
    ErrorCode.AUTH_EXPIRED: "The token ran out and was not refreshed in time. Sent before close code 4001.",
    ErrorCode.HANDLER_ERROR: "The event's handler failed; `request_id` finds the cause in the server's log.",
    ErrorCode.IDLE_TIMEOUT: "Nothing was received for `idle_timeout` seconds. Sent before close code 4003.",
    ErrorCode.NOT_FOUND: "What the event asks for does not exist: a dependency raised `HTTPException(404)`.",
    ErrorCode.PAYLOAD_TOO_LARGE: "The message is larger than `max_payload_size`. The connection stays open "
    "where the server hands the whole message over, and is closed with 1009 where it does not.",
    ErrorCode.PERMISSION_ERROR: "A guard or limit refused it: a room guard, a room without a right to it, a full room, "
    "too many rooms, or too many connections of one user (sent before close code 4008).",
    ErrorCode.RATE_LIMIT_ERROR: "Too many events, or too many rooms without a right to them in one `__resume__`; "
    "`details.retry_after` says in seconds when to try again.",
    ErrorCode.REFUSED: "The app refused it in its own words, and gave no code of its own; or a dependency did, with "
    "another 4xx `HTTPException`.",
    ErrorCode.ROOM_NOT_FOUND: "The app declares its rooms and this is none of them, or a guard takes other variables.",
    ErrorCode.SESSION_EXPIRED: "The session reached `max_duration`. Sent before close code 4002.",
    ErrorCode.TIMEOUT_ERROR: "The event took longer than its `timeout`, `details.timeout` in seconds, and was ended. "
    "Whether anything was done is not known.",
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
    """A reply, an event or an error's details differ from what is declared of them.

    In strict mode, so does an event that its handler does not declare with `Emits` or `Broadcasts`.
    """


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

    Declare kinds of your own, with a code and, if there is more to say, a model of the details::

        class SoldOut(EventError):
            code = "SOLD_OUT"
            details: SoldOutDetails

    `message` and `details` reach the client: put nothing secret in them. Without a message, the class's `message` is
    sent, else the first line of its docstring. Details of a declared type are validated when the error is made, which
    raises `ContractError` where they do not fit, and nothing else of them is sent. A class raises `ConfigurationError`
    for a code that is malformed or belongs to SocketSpec, and for a type of the details that is no object; an error
    `ValueError` for such a code, where it is no `ErrorCode`, and `TypeError` for details that are no object.
    """

    code: str = ErrorCode.REFUSED
    message: str = ""
    details: Any
    """A dict, or an object of the type that the class declares."""
    details_type: ClassVar[Any] = None
    """The type of the details that the class declares; None: a dict of anything."""
    _details: ClassVar[TypeAdapter[Any] | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__ != __name__:
            _check_declared_code(cls)
            try:
                check_attributes(cls, EventError)
            except ValueError as error:
                raise ConfigurationError(f"{cls.__qualname__}: {error}") from None
            declared = _declared_details(cls, inspect.currentframe())
            if declared is not None:
                cls.details_type, cls._details = declared

    def __init__(self, message: str | None = None, *, code: str | None = None, details: object = None) -> None:
        if message is None:
            message = self.message or (type(self).__doc__ or "").strip().partition("\n")[0]
        super().__init__(message)
        self.message = message
        if self._details is not None:
            try:
                self.details = validated(self._details, details)
            except ValueError as error:
                message = f"{type(self).__qualname__}: the details do not fit their type: {error}"
                raise ContractError(message) from error.__cause__
        elif details is None or isinstance(details, Mapping):
            self.details = dict(details or {})
        elif isinstance(details, str | bytes | int | float | list | tuple | set | frozenset):
            raise TypeError(
                f"{type(self).__name__}(details={type(details).__name__}): details are an object. Write a dict such as "
                'details={"left": 3}, or a model'
            )
        else:
            self.details = details
        if code is not None:
            self.code = code if isinstance(code, ErrorCode) or code == self.code else _free(well_formed(code))
        self.hint: Callable[[], str] | None = None
        """A sentence for developers, such as "Did you mean 'orders:{id}'?". `str` shows it; clients get it only where
        they may know the names in it anyway."""

    def __str__(self) -> str:
        hint = "" if self.hint is None else self.hint()
        return f"{self.message} {hint}" if hint else str(self.message)

    def sent_details(self) -> dict[str, Any]:
        """The details as they are sent. Raises whatever the serializing of them does; `TypeError` for no object."""
        details: Any = self.details
        if self._details is not None and details is not None:
            details = self._details.dump_python(details, mode="json", by_alias=True, warnings=False)
        elif details is None:  # as its declared type allows
            details = {}
        elif not isinstance(details, dict):
            details = to_jsonable_python(details, by_alias=True)
        if not isinstance(details, dict):
            raise TypeError(f"details must be an object, not {type(self.details).__name__}")
        return details


_FOR_ALL: Final = frozenset({ErrorCode.REFUSED, ErrorCode.NOT_FOUND})
"""Our codes that say no more than an app may say itself."""


def _free(code: str) -> str:
    """`code`, if an app may use it. Raises `ValueError` for one that clients know as SocketSpec's."""
    if code in {known.value for known in ErrorCode} - _FOR_ALL:
        raise ValueError(
            f"{code!r} is SocketSpec's own code. Choose another one, or use the error of socketspec.errors that has it"
        )
    return code


def _check_declared_code(cls: type[EventError]) -> None:
    code: Any = vars(cls).get("code")
    if code is None:
        return
    try:
        well_formed(code)
    except ValueError as error:
        raise ConfigurationError(f"{cls.__qualname__}: {error}.") from None
    inherited = [base.code for base in cls.__mro__[1:] if issubclass(base, EventError) and base is not EventError]
    if code in {known.value for known in ErrorCode} and code not in inherited:
        raise ConfigurationError(
            f"{cls.__qualname__}: {code!r} is SocketSpec's own code. Choose another one, or subclass the error of "
            "socketspec.errors that has it."
        )


def _declared_details(cls: type[EventError], frame: FrameType | None) -> tuple[Any, TypeAdapter[Any]] | None:
    """What is made of the annotation of `details` in the body of `cls`. `frame`: that of its `__init_subclass__`."""
    outside = None if frame is None else frame.f_back
    try:
        declared: Any = inspect.get_annotations(cls).get("details")
        if isinstance(declared, str):
            names = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
            declared = eval(declared, dict(names), {} if outside is None else dict(outside.f_locals))  # noqa: S307 # the user's own annotation, as typing.get_type_hints does
        if declared in (None, Any, object, dict, dict[str, Any]):
            return None
        if not is_object(declared):
            raise ConfigurationError(
                f"{cls.__qualname__}: details are an object, and {getattr(declared, '__name__', declared)} is none. "
                "Put it into a field of a model, and write `details: ThatModel`."
            )
        return declared, TypeAdapter(declared)
    except (NameError, PydanticUserError) as error:
        raise ConfigurationError(
            f"{cls.__qualname__}: the type of `details` cannot be used: {error}. Define it before the error."
        ) from error


class AuthError(EventError):
    """The credentials are missing, wrong, expired or revoked."""

    code: str = ErrorCode.AUTH_ERROR


class PermissionDenied(EventError):
    """The client may not do this."""

    code: str = ErrorCode.PERMISSION_ERROR


class PayloadTooLarge(EventError):
    """The message is larger than `max_payload_size` bytes."""

    code: str = ErrorCode.PAYLOAD_TOO_LARGE


class RateLimited(EventError):
    """The client's bucket is empty; ``details["retry_after"]`` is in seconds."""

    code: str = ErrorCode.RATE_LIMIT_ERROR


class RoomNotFound(EventError):
    """The app declares its rooms, and none of the declarations matches this name."""

    code: str = ErrorCode.ROOM_NOT_FOUND


class TimedOut(EventError):
    """The event took longer than the `timeout` that is declared for it."""

    code: str = ErrorCode.TIMEOUT_ERROR


class UnknownEvent(EventError):
    """No handler is registered under this name, or the name is reserved."""

    code: str = ErrorCode.UNKNOWN_EVENT


class ValidationFailed(EventError):
    """The message is not an envelope or the payload does not fit the model."""

    code: str = ErrorCode.VALIDATION_ERROR
