"""Errors at start-up: each says what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.errors import ConfigurationError


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"alowed_origins": ["*"]}, "Did you mean 'allowed_origins'"),
        ({"xyzzy": 1}, "The options are docs, docs_url"),
        ({"namespace": "chat"}, 'does not start with "/"'),
        ({"namespace": 5}, "namespace"),
        ({"allowed_origins": ["myapp.com"]}, "https://myapp.com"),
        ({"allowed_origins": "https://myapp.com"}, r"\["),
        ({"backend": "redis2://host"}, r"No backend is installed for 'redis2'.*pip install 'redis>="),
        ({"backend": "nonsense"}, "check the URL"),
        ({"backend": 42}, 'must be "memory", a URL or a Backend'),
        ({"rate_limit": 10}, "RateLimit\\(rate=10, capacity=20\\)"),
        ({"session": {"idle_timeout": 3}}, "SessionConfig\\(idle_timeout=300\\)"),
        ({"backpressure": 5}, "Backpressure\\(max_buffer="),
        ({"auth": SimpleNamespace()}, "is not an auth backend; pass JWTAuth"),
        ({"docs": True, "docs_url": "docs"}, "must be a path that begins with /"),
        ({"health_url": "/"}, "is not / alone"),
        ({"debug": True, "debug_url": 5}, "must be a path"),
        ({"rooms": "lobby"}, "must be a list such as"),
        ({"rooms": [5]}, "must be a list such as"),
        ({"rooms": ["chat:{room"]}, "chat:"),
        ({"max_payload_size": 0}, "must be a whole number greater than 0"),
        ({"max_payload_size": True}, "must be a whole number"),
        ({"max_in_flight": 1.5}, "must be a whole number"),
        ({"max_rooms_per_connection": -1}, "must be a whole number"),
        ({"auth_timeout": float("nan")}, "must be a number greater than 0"),
        ({"auth_timeout": "10"}, "must be a number greater than 0"),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused_with_advice(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        SocketApp(**options)


def test_an_event_has_one_handler() -> None:
    socket = SocketApp()

    @socket.on("say")
    async def first(conn: Connection) -> None: ...

    with pytest.raises(ConfigurationError, match=r"already has the handler .*first.*; rename one of the two"):

        @socket.on("say")
        async def second(conn: Connection) -> None: ...


@pytest.mark.parametrize(("name", "advice"), [("__ping__", "without __ around"), ("", "name"), ("a\nb", "name")])
def test_a_name_that_is_not_yours_is_refused(name: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        SocketApp().on(name)


def no_parameters() -> None: ...
def unresolvable(conn: Connection, payload: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point
def extra_parameter(conn: Connection, payload: dict[str, str], other: int) -> None: ...


@pytest.mark.parametrize("handler", [no_parameters, unresolvable, extra_parameter, 5])
def test_a_handler_that_cannot_be_called_is_refused_at_registration(handler: Any) -> None:
    with pytest.raises(ConfigurationError):
        SocketApp().on("say")(handler)


def _middleware(socket: SocketApp) -> Callable[[Any], Any]:
    return socket.middleware


REGISTRARS: dict[str, Callable[[SocketApp], Callable[[Any], Any]]] = {
    "on_connect": lambda socket: socket.on_connect,
    "on_disconnect": lambda socket: socket.on_disconnect,
    "on_error": lambda socket: socket.on_error,
    "on_room_join": lambda socket: socket.on_room_join,
    "on_room_leave": lambda socket: socket.on_room_leave,
    "room_guard": lambda socket: socket.room_guard("a:{b}"),
    "middleware": _middleware,
}


async def too_few() -> None: ...
async def too_many(a: Any, b: Any, c: Any, d: Any, e: Any) -> None: ...


@pytest.mark.parametrize("registrar", REGISTRARS)
@pytest.mark.parametrize("function", [too_few, too_many, 5])
def test_a_hook_with_the_wrong_signature_is_refused(registrar: str, function: Any) -> None:
    with pytest.raises(ConfigurationError):
        REGISTRARS[registrar](SocketApp())(function)


def test_middleware_must_be_async() -> None:
    def plain(conn: Any, event: str, payload: Any, next_handler: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="must be async def"):
        SocketApp().middleware(plain)


def test_a_guard_must_take_its_patterns_variables() -> None:
    async def guard(conn: Connection, other: str) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="section"):
        SocketApp().room_guard("admin:{section}")(guard)


def test_decorators_return_the_function_itself() -> None:
    socket = SocketApp()

    async def handler(conn: Connection) -> None: ...

    assert socket.on("a")(handler) is handler
    assert socket.on_connect(handler) is handler


def test_an_app_shows_its_namespace_and_events() -> None:
    assert repr(SocketApp(namespace="/chat")) == "SocketApp(namespace='/chat', events=[])"
