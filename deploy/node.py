"""The reference node: rooms with history, presence and typing, configured by environment variables alone.

    SOCKETSPEC_ANONYMOUS=true socketspec serve node:app

It is what the image serves unless it is told otherwise, and an example to copy from. The variables are those of
`node_settings`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import FastAPI, Response
from pydantic import StringConstraints

from node_settings import Settings, announce, read_or_exit
from socketspec import Connection, Identity, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.adapters.prometheus import mount_metrics
from socketspec.cli.demo import chat
from socketspec.cli.demo.messages import MESSAGE, TYPING, ChatMessage, InRoom, Presence, Typing
from socketspec.connection import Backpressure
from socketspec.errors import AuthError, ConfigurationError, PermissionDenied
from socketspec.identity import ANONYMOUS
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import APIKeyAuth, AuthBackend, JWTAuth
from socketspec.security.ratelimit import RateLimit

__all__ = ("app", "make_auth", "make_socket", "socket")

NOBODY: Final = "https://nobody.invalid"
"""An origin that no page has: RFC 2606 keeps the domain for nobody."""
MAX_NAMES: Final = 100
"""Names that a presence message lists; in rooms with more people, only their number is told."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Say(InRoom):
    """What somebody wants to say. Sending it twice with the same `key` says it once."""

    text: Text
    key: Key | None = None


class GuestAuth:
    """Lets everybody in, under the name of ``?name=`` if there is one."""

    async def authenticate(self, handshake: Handshake) -> Identity:
        """The guest. They are not authenticated: anybody may be called anything."""
        name = " ".join(handshake.query_params.get("name", "").split())
        if len(name) > 30 or not name.isprintable():
            raise AuthError("A name has at most 30 printable characters.")
        return Identity(user_id=name, is_authenticated=False) if name else ANONYMOUS


def make_auth(settings: Settings) -> Sequence[AuthBackend]:
    """Who may connect, by the settings. Raises `ConfigurationError` where they do not say."""
    if settings.anonymous:
        return [GuestAuth()]
    backends: list[AuthBackend] = []
    if settings.jwt_secret or settings.jwt_public_key or settings.jwks_url:
        backends.append(
            JWTAuth(
                settings.jwt_secret or None,
                settings.jwt_algorithm or None,
                public_key=settings.jwt_public_key or None,
                jwks_url=settings.jwks_url or None,
                audience=settings.jwt_audience or None,
                issuer=settings.jwt_issuer or None,
            )
        )
    if settings.api_keys:
        named = {key: Identity(user_id=user) for key, user in settings.api_keys if user is not None}
        nameless = [key for key, user in settings.api_keys if user is None]
        backends += [APIKeyAuth(keys) for keys in (named,) if keys]
        backends += [APIKeyAuth(keys) for keys in (nameless,) if keys]
    if not backends:
        raise ConfigurationError(
            "Nobody could connect, as nothing says who may. Set SOCKETSPEC_JWT_SECRET, SOCKETSPEC_JWT_PUBLIC_KEY, "
            "SOCKETSPEC_JWKS_URL or SOCKETSPEC_API_KEYS, or let everybody in with SOCKETSPEC_ANONYMOUS=true."
        )
    return backends


def make_socket(settings: Settings) -> SocketApp:
    """The app, without its events. Raises `ConfigurationError` for settings that cannot work."""
    if settings.workers > 1 and not settings.backend:
        raise ConfigurationError(
            f"SOCKETSPEC_WORKERS={settings.workers} without SOCKETSPEC_BACKEND would make as many chats that hear "
            "nothing of each other: set it to the URL of a Redis or Valkey."
        )
    if settings.workers > 1 and settings.metrics:
        raise ConfigurationError(
            f"SOCKETSPEC_WORKERS={settings.workers}: /metrics would answer for one of them, at random. Run more "
            "containers instead, or set SOCKETSPEC_METRICS=false."
        )
    rate = settings.rate
    return SocketApp(
        title="SocketSpec node",
        description="Rooms with presence, typing and history.",
        docs=bool(settings.docs_token),
        docs_access_token=settings.docs_token or None,
        auth=make_auth(settings),
        backend=settings.backend or "memory",
        allowed_origins=settings.allowed_origins or [NOBODY],
        max_payload_size=settings.max_payload_size,
        rate_limit=RateLimit(rate=rate, capacity=settings.burst or max(1.0, 3 * rate)) if rate else None,
        backpressure=Backpressure(max_node_buffer=settings.max_node_buffer or None),
        namespace=settings.namespace,
        max_connections_per_user=settings.max_connections_per_user or None,
        drain_window=settings.drain_window,
        drain_grace=settings.drain_grace,
        rooms=[
            chat.SAID,
            Room("live:{room}", description="Who is there and who is typing"),
        ],
    )


def trace() -> None:
    """Send traces to a collector, if OpenTelemetry's own variables name one. Raises `ConfigurationError`."""
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import set_tracer_provider

        from socketspec.adapters.opentelemetry import instrument
    except ImportError as missing:
        raise ConfigurationError(
            f"Traces need {missing.name}: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from None
    provider = TracerProvider()  # this, the processor and the exporter read all other variables
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    set_tracer_provider(provider)
    instrument()


settings: Settings = read_or_exit()
try:
    socket: SocketApp = make_socket(settings)
    trace()
except ConfigurationError as error:
    sys.stderr.write(f"socketspec: {error}\n")
    sys.exit(2)
announce(settings, server=False)  # unless it was started by start.py, which has said all


chat.register(socket)


@socket.on("say", tags=["chat"], ordered=True, broadcasts=[MESSAGE])
async def say(conn: Connection, payload: Say) -> None:
    """Say something to everybody in a room."""
    check_member(conn, payload.room)
    name = name_of(conn)
    message = ChatMessage(room=payload.room, name=name, text=payload.text, at=time.time())
    key = None if payload.key is None else f"{name}/{payload.key}"
    await socket.rooms.broadcast(f"chat:{payload.room}", "message", message, idempotency_key=key)


@socket.on("typing", tags=["chat"], broadcasts=[TYPING])
async def typing(conn: Connection, payload: InRoom) -> None:
    """Tell the others in a room that you are typing."""
    check_member(conn, payload.room)
    who = Typing(room=payload.room, name=name_of(conn))
    await socket.rooms.broadcast(f"live:{payload.room}", "typing", who, exclude=conn)


def check_member(conn: Connection, room: str) -> None:
    """Raise `PermissionDenied` unless `conn` is in the room."""
    if f"chat:{room}" not in conn.rooms:
        raise PermissionDenied(f"Join {room!r} before you speak in it.")


def name_of(conn: Connection) -> str:
    """What others call somebody."""
    return conn.identity.user_id or f"guest {conn.id[:6]}"


@socket.on_room_join
async def came(conn: Connection, room: str) -> None:
    """Also runs when a client resumes."""
    await announce_presence(room, joined=name_of(conn))


@socket.on_room_leave
async def went(conn: Connection, room: str) -> None:
    """Also runs when a connection drops, or the node that had it."""
    await announce_presence(room, left=name_of(conn))


async def announce_presence(room: str, *, joined: str | None = None, left: str | None = None) -> None:
    """Tell a room who is in it, as long as there are few enough to care."""
    kind, _, name = room.partition(":")
    if kind != "live":
        return
    count = await socket.rooms.count(room)
    names: list[str] = []
    if count <= MAX_NAMES:  # reading the names of a crowd for everybody who joins it would cost its size squared
        names = [member.user_id or f"guest {member.connection_id[:6]}" for member in await socket.rooms.members(room)]
    elif count > 10 * MAX_NAMES:
        return
    presence = Presence(room=name, count=count, names=names, joined=joined, left=left)
    await socket.rooms.broadcast(room, "presence", presence)


app: FastAPI = FastAPI(title="SocketSpec node", docs_url=None, redoc_url=None, openapi_url=None)
mount(socket, app, path=settings.path)
if settings.metrics:
    mount_metrics(app, token=settings.metrics_token or None)

if settings.anonymous:

    @app.get("/")
    @app.get("/page.{kind}")
    async def page(kind: str = "html") -> Response:
        """The page of ``socketspec demo``. It has no way to log in, so it is here only where nobody has to."""
        return chat.page(kind)
