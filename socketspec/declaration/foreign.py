"""What FastAPI would provide on an HTTP route, known by its shape: the core imports neither FastAPI nor Starlette."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn, get_args

from pydantic.fields import FieldInfo

from socketspec.declaration.signatures import EMPTY, Argument, bare, is_union
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake

__all__ = ("Place", "handshake_view", "parameter_of", "refuse_fastapi", "security_scopes_of", "view_of")

Place = Literal["query", "header", "cookie", "path"]
"""Where in a handshake a parameter is."""

_PLACES: Final[dict[str, Place]] = {"Query": "query", "Header": "header", "Cookie": "cookie", "Path": "path"}

_IN_PAYLOAD = "make it a field of the payload's model"
_ALONE = "behind `conn: Connection`, and in dependencies, annotate it with that class alone"
_HINTS: Final = {
    "Request": "take HTTPConnection, which HTTP routes and events have alike, or `conn: Connection`",
    "HTTPConnection": _ALONE,
    "WebSocket": _ALONE,
    "Header": _IN_PAYLOAD,
    "Cookie": _IN_PAYLOAD,
    "Query": _IN_PAYLOAD,
    "Path": _IN_PAYLOAD,
    "Body": _IN_PAYLOAD,
    "Form": _IN_PAYLOAD,
    "UploadFile": _IN_PAYLOAD,
    "Response": "return the reply's payload instead",
    "BackgroundTasks": "start the work in the handler",
    "SecurityScopes": _ALONE,
}


def _name_of(cls: type[Any], names: Any) -> str | None:
    """The first of `names` that `cls` or a base of it has, if that is FastAPI's or Starlette's."""
    for base in cls.__mro__:
        if base.__name__ in names and base.__module__.partition(".")[0] in ("fastapi", "starlette"):
            return base.__name__
    return None


def parameter_of(argument: Argument) -> tuple[Place, FieldInfo] | None:
    """Where FastAPI's ``Query()``, ``Header()``, ``Cookie()`` or ``Path()`` says the argument comes from."""
    _, metadata = bare(argument.annotation)
    for value in (argument.default, *reversed(metadata)):
        if isinstance(value, FieldInfo) and (name := _name_of(type(value), _PLACES)) is not None:
            return _PLACES[name], value
    return None


def view_of(argument: Argument) -> type[Any] | None:
    """`WebSocket` or `HTTPConnection` (or a subclass), if the argument is annotated so."""
    inner, _ = bare(argument.annotation)
    if isinstance(inner, type) and _name_of(inner, ("WebSocket", "HTTPConnection", "Request")):
        return None if _name_of(inner, ("Request",)) else inner
    return None


def security_scopes_of(argument: Argument) -> type[Any] | None:
    """FastAPI's `SecurityScopes`, if the argument is annotated so."""
    inner, _ = bare(argument.annotation)
    return inner if isinstance(inner, type) and _name_of(inner, ("SecurityScopes",)) else None


def refuse_fastapi(argument: Argument, owner: str) -> bool:
    """Raise `ConfigurationError` if FastAPI, not SocketSpec, would provide this argument on an HTTP route.

    True for a `Request` that has a default: FastAPI leaves the default for WebSockets, and so does SocketSpec.
    """
    inner, metadata = bare(argument.annotation)
    options: tuple[Any, ...] = get_args(inner) if is_union(inner) else (inner,)
    found_types: list[type[Any]] = [type(value) for value in (argument.default, *metadata)]
    found_types += [option for option in options if isinstance(option, type)]
    for found in found_types:
        name = _name_of(found, _HINTS)
        if name == "Request" and argument.default is not EMPTY:
            return True
        if name is not None:
            raise ConfigurationError(
                f"{owner}: parameter {argument.name!r} wants FastAPI's {name}, which is not available on a WebSocket "
                f"event; {_HINTS[name]}."
            )
    return False


def handshake_view(cls: type[Any]) -> Callable[[Handshake], Any]:
    """Makes read-only `cls`es of handshakes; `cls` is what `view_of` gave."""
    view = _read_only(cls)
    is_socket = _name_of(cls, ("WebSocket",)) is not None

    def look(handshake: Handshake) -> Any:
        scope = handshake.scope or handshake.as_scope()
        return view(scope, _refuse, _refuse) if is_socket else view(scope)

    return look


async def _refuse(*_: object) -> NoReturn:
    raise RuntimeError(
        "This is a view of the opening handshake: the connection is SocketSpec's, which sends and receives. Send with "
        "`conn.emit`, close with `conn.disconnect`, and refuse by raising HTTPException or WebSocketException."
    )


def _read_only(cls: type[Any]) -> type[Any]:
    """A subclass of `cls` whose coroutines all raise."""
    asynchronous = [
        name
        for name in dir(cls)
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(getattr(cls, name)) or inspect.isasyncgenfunction(getattr(cls, name)))
    ]

    async def method(self: object, *_: object, **__: object) -> NoReturn:
        await _refuse()

    return type(f"Handshake{cls.__name__}", (cls,), dict.fromkeys(asynchronous, method))
