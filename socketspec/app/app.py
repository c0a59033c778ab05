"""`SocketApp`: what you declare events, rooms, hooks and limits on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

from socketspec.app.declarations import Declaration
from socketspec.app.events import AppEvents
from socketspec.app.misuse import Callers, Misuse
from socketspec.app.rooms import Rooms
from socketspec.app.router import Including
from socketspec.app.sessions import Sessions
from socketspec.app.sync import Sync
from socketspec.app.users import Users
from socketspec.app.whereabouts import engine_here
from socketspec.backend.protocols import Backend
from socketspec.backend.resolve import resolve_backend
from socketspec.concurrency.elsewhere import ELSEWHERE
from socketspec.concurrency.timing_wheel import Loop
from socketspec.connection.connection import Connection
from socketspec.connection.outbox import Backpressure
from socketspec.declaration.events import Event
from socketspec.declaration.groups import Path, given_timeout
from socketspec.declaration.habits import refuse_habit
from socketspec.declaration.options import check_flag, check_text
from socketspec.declaration.registry import Registry
from socketspec.declaration.rooms import DeclaredRooms, Room
from socketspec.declaration.savepoints import Restore, saved
from socketspec.declaration.signatures import listed
from socketspec.declaration.specs import EventOptions
from socketspec.declaration.whole import check_whole
from socketspec.errors import BackendError
from socketspec.pages.pages import HealthReport, Pages
from socketspec.pages.schema import build_schema
from socketspec.protocol.decoding import MAX_ITEMS
from socketspec.runtime import engines
from socketspec.runtime.development import unless_given
from socketspec.runtime.engine import Engine
from socketspec.runtime.settings import Settings, auth_backends, drain_seconds, path
from socketspec.security.auth import Auth
from socketspec.security.origins import OriginPolicy
from socketspec.security.ratelimit import RateLimit, given_rate_limit
from socketspec.security.secret_options import check_secret
from socketspec.session.config import SessionConfig
from socketspec.text import get_logger

__all__ = ("SocketApp",)


class SocketApp(Misuse, Including):
    """A WebSocket application. Declare events on it with decorators, then mount it.

    Args:
        docs: serve the schema page at `docs_url` and its JSON at ``{docs_url}/schema``. None: in ``socketspec dev``
            only.
        docs_url: path of the schema page.
        docs_access_token: if set, a request for the page has to bring it, as ``Authorization: Bearer`` or ``?token=``.
            Details of the health report are told to those who bring it, and to nobody else.
        auth: an auth backend, a function ``async def (handshake) -> Identity | None``, or several of them that are
            tried in order. None: everybody may connect.
        backend: ``"memory"``, a URL such as ``"redis://host:6379/0"``, or a `Backend`. None: what the environment
            variable ``SOCKETSPEC_BACKEND`` says, else ``"memory"``.
        allowed_origins: exact origins such as ``"https://myapp.com"``; ``["*"]`` allows all.
        max_payload_size: bytes a message may have.
        max_payload_items: values in arrays and objects, counted together, that a message may have.
        rate_limit: a token bucket for inbound events, as a `RateLimit` or a text such as ``"10/s"``. None: no limit.
        timeout: seconds that an event may take where neither it nor its router says otherwise. None: any number.
        session: how long connections last, idle and heartbeat limits.
        rooms: the app's rooms. If any are given, there are no others.
        events: what the app sends, see `socketspec.Event`; `event` declares more.
        dependencies: ``[Depends(…)]`` that run at every opening handshake, before it is accepted: what one raises
            refuses the client. What they open ends with the connection.
        namespace: begins with "/". Apps of different namespaces hear nothing of each other.
        debug: show failures to clients and a live event feed at `debug_url`. Never in production. None: only in
            ``socketspec dev``.
        debug_url: path of the event feed.
        title, version, description: shown in the schema.
        backpressure: what happens to clients that read too slowly.
        max_in_flight: handlers that may run at once for one connection; while that many run, reading pauses.
        max_rooms_per_connection: rooms one connection may be in.
        max_connections_per_user: connections one authenticated user may have at once, on all nodes. None: no limit.
        connection_limit_policy: what happens at that limit. ``"reject"`` refuses the new connection with 4008,
            ``"evict_oldest"`` lets it in and closes the user's oldest with 4009.
        auth_timeout: seconds a client has for its first message, if an auth backend takes credentials by message
            (``first_message=True``).
        strict: check what handlers send against their `Emits` and `Broadcasts`. None: only with `debug`.
        health_url: path of the health report; None: not served.
        drain_window: seconds over which connections leave when the node stops, evenly. 0: all at once. None: what the
            environment variable ``SOCKETSPEC_DRAIN_WINDOW`` says, else 10.
        drain_grace: seconds that handlers have to finish after that. None: ``SOCKETSPEC_DRAIN_GRACE``, else 10.
        drain_url: path that begins to drain the app and answers when it is done: for Kubernetes' preStop, on servers
            that cannot drain at SIGTERM. Needs `drain_token`. None: not served.
        drain_token: what a request for that path has to bring as ``Authorization: Bearer``.

    Raises `ConfigurationError` for options that cannot work, saying what to change.
    """

    def __init__(
        self,
        *,
        docs: bool | None = None,
        docs_url: str = "/socket-docs",
        docs_access_token: str | None = None,
        auth: Auth | Sequence[Auth] | None = None,
        backend: str | Backend | None = None,
        allowed_origins: Sequence[str] = ("*",),
        max_payload_size: int = 65536,
        max_payload_items: int = MAX_ITEMS,
        rate_limit: RateLimit | str | None = None,
        timeout: float | timedelta | None = None,
        session: SessionConfig | None = None,
        rooms: Sequence[Room | str] = (),
        events: Sequence[Event[Any]] = (),
        dependencies: Sequence[Any] = (),
        namespace: str = "/",
        debug: bool | None = None,
        debug_url: str = "/socket-debug",
        title: str = "SocketSpec",
        version: str = "0.1.0",
        description: str = "",
        backpressure: Backpressure | None = None,
        max_in_flight: int = 16,
        max_rooms_per_connection: int = 1000,
        max_connections_per_user: int | None = None,
        connection_limit_policy: Literal["reject", "evict_oldest"] = "reject",
        auth_timeout: float = 10.0,
        strict: bool | None = None,
        health_url: str | None = "/socket-health",
        drain_window: float | None = None,
        drain_grace: float | None = None,
        drain_url: str | None = None,
        drain_token: str | None = None,
    ) -> None:
        check_secret("SocketApp(docs_access_token=…)", docs_access_token, without="None shows the pages to everybody.")
        check_secret("SocketApp(drain_token=…)", drain_token, without="Leave it out where there is no drain_url.")
        docs, debug = unless_given(docs), unless_given(debug)
        check_flag("SocketApp(docs", docs)
        for name, text in (("title", title), ("version", version), ("description", description)):
            check_text(f"SocketApp({name}", text)
        docs_url, debug_url = path("docs_url", docs_url), path("debug_url", debug_url)
        self.title: str = title
        self.version: str = version
        self.description: str = description
        self.settings: Settings = Settings(
            namespace=namespace,
            auth=auth_backends(auth),
            origins=OriginPolicy(allowed_origins),
            max_payload_size=max_payload_size,
            max_payload_items=max_payload_items,
            rate_limit=given_rate_limit("SocketApp(rate_limit", rate_limit),
            session=SessionConfig() if session is None else session,
            backpressure=Backpressure() if backpressure is None else backpressure,
            max_in_flight=max_in_flight,
            max_rooms_per_connection=max_rooms_per_connection,
            max_connections_per_user=max_connections_per_user,
            connection_limit_policy=connection_limit_policy,
            auth_timeout=auth_timeout,
            drain_window=drain_seconds("drain_window", drain_window),
            drain_grace=drain_seconds("drain_grace", drain_grace),
            strict=debug if strict is None else strict,
            debug=debug,
            public_schema=docs and docs_access_token is None,
        )
        self._engine: Engine | None = None
        super().__init__("socket")
        self._declared = DeclaredRooms.of("SocketApp", rooms)
        self._taken: set[Declaration] = set()
        self.registry: Registry = Registry(
            Connection, self._declared, timeout=given_timeout("SocketApp(timeout", timeout)
        )
        self.registry.dependencies = listed("SocketApp", dependencies)
        self.registry.add_auth(self.settings.auth)
        self.registry.at_handshake("SocketApp")  # whatever could not work later is refused now
        self.callers: Callers = Callers(self.ensure_started, lambda: self._engine)
        self.rooms: Rooms = Rooms(self._declared, self.callers.engine)
        self.users: Users = Users(self.callers.engine)
        self.event: AppEvents = AppEvents(
            self.registry, self.rooms, self.users, lambda: self._engine is not None, events
        )
        self.sessions: Sessions = Sessions(self.callers.engine)
        self.sync: Sync = Sync(self.rooms, self.users, self.sessions, lambda: self._engine)
        self.pages: Pages = Pages(
            schema=self.schema,
            health=self._health,
            drain=self.drain,
            events_since=self._events_since,
            docs_url=docs_url if docs else None,
            debug_url=debug_url if debug else None,
            health_url=path("health_url", health_url) if health_url is not None else None,
            token=docs_access_token,
            drain_url=path("drain_url", drain_url) if drain_url is not None else None,
            drain_token=drain_token,
        )
        self._backend: Backend = resolve_backend(backend)
        self.clock: Loop | None = None
        """What its next engine tells the time by; None: the event loop. A test client's clock can be moved."""
        self._was_started = False
        self._starting: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __repr__(self) -> str:
        return f"SocketApp(namespace={self.settings.namespace!r}, events={sorted(self.registry.events)})"

    def take(self, declaration: Declaration, path: Path = ()) -> None:
        """Have what was declared here, or on a router that came by `path`. Raises `ConfigurationError`."""
        if declaration not in self._taken:
            declaration.apply(self.registry, path)
            if declaration.is_app_wide:
                self._taken.add(declaration)

    def save(self) -> Restore:
        """What puts back what is declared here as it is now."""
        parts = self.registry.save(), saved(self._taken)

        def restore() -> None:
            for part in parts:
                part()

        return restore

    def _check_event(self, options: EventOptions, event: str) -> None:
        options.name(())
        refuse_habit(event)

    @property
    def dependency_overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """For tests: what to call in the place of a dependency, as in FastAPI."""
        return self.registry.overrides.own

    @dependency_overrides.setter
    def dependency_overrides(self, overrides: dict[Callable[..., Any], Callable[..., Any]]) -> None:
        self.registry.overrides.own = overrides

    @property
    def engine(self) -> Engine | None:
        """The running engine; None while the app is not started."""
        return self._engine

    @property
    def backend(self) -> Backend:
        """What connects the nodes, started or not."""
        return self._backend

    @property
    def node(self) -> str:
        """This process's name among the nodes of its backend, as ``__connect__`` and the health report show it."""
        return self._backend.node

    async def ensure_started(self) -> Engine:
        """The running engine, started now if it is not. Raises `BackendError`.

        An app runs in one event loop at a time. From another one meanwhile, this raises `RuntimeError`; once that event
        loop has ended, with or without `stop`, the app starts anew.
        """
        engine = self._engine_here()
        if engine is not None:
            return engine
        loop = asyncio.get_running_loop()
        if self._starting is None or self._starting[0] is not loop:
            if self._starting is not None and self._starting[1].locked() and self._starting[0].is_running():
                raise RuntimeError(ELSEWHERE)
            self._starting = loop, asyncio.Lock()
        async with self._starting[1]:
            engine = self._engine_here()
            if engine is None:
                check_whole(self.registry, self._declared)
                engine = Engine(self.settings, self.registry, self._declared, self._backend, self.clock)
                await engine.start()
                self._engine = engine
                self._was_started = True
        return engine

    async def start_if_never_started(self) -> None:
        """Start the app, unless it has been before; where it cannot, the health report goes on to say so.

        Asked for its health, an app whose lifespan nobody runs gets ready: a sub-application's is run by no framework.
        """
        if self._was_started:
            return
        try:
            await self.ensure_started()
        except (BackendError, RuntimeError) as error:
            get_logger("socketspec").error("The app cannot start: %s", error)

    def _engine_here(self) -> Engine | None:
        """See `engine_here`. An engine whose event loop has ended is forgotten."""
        self._engine = engine_here(self._engine)
        return self._engine

    async def drain(self, *, window: float | None = None, grace: float | None = None) -> int:
        """Let every connection go, announced and evenly over `window` seconds, without cutting a handler off.

        New connections are refused with 503 and the health report says "stopping". Returns how many connections there
        were, once the last has left, or `grace` seconds after the window at the latest. None: as the app's options
        say. Calls after the first wait for the same drain. `stop` drains by itself.
        """
        engine = self._engine_here()
        return 0 if engine is None else await asyncio.shield(engine.begin_drain(window, grace))

    async def stop(self, *, grace: float | None = None, window: float | None = None) -> None:
        """Drain (see `drain`), then cancel what does not finish within `grace` seconds, and close everything."""
        engine = self._engine_here()
        if engine is None:
            return
        try:
            await engine.stop(grace=grace, window=window)
        finally:
            # Only now: a hook that broadcasts while the app stops would otherwise start another engine.
            if self._engine is engine:
                self._engine = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Engine]:
        """Run the app: start it, and stop it at the end. `mount` does this for you."""
        engine = await self.ensure_started()
        try:
            yield engine
        finally:
            await self.stop()

    def schema(self) -> dict[str, Any]:
        """The app's events, errors and close codes as a JSON-ready dict: what ``{docs_url}/schema`` serves."""
        return build_schema(
            title=self.title,
            version=self.version,
            description=self.description,
            settings=self.settings,
            registry=self.registry,
            rooms=self.rooms.declared,
        )

    async def _health(self) -> HealthReport:
        """For the health page: whether this node should get new connections."""
        try:
            engine = self._engine_here()
        except RuntimeError as error:  # another event loop's, or in a process that was forked from the app's
            return HealthReport("out_of_touch", False, str(error), self.node, 0)
        if engine is None:
            return HealthReport("not_started", False, "not started", self.node, 0)
        if engine.stopping:
            return HealthReport("stopping", False, "stopping", self.node, len(engine.connections))
        try:
            ready, detail = await engine.backend.health()
        except BackendError as error:
            ready, detail = False, str(error)
        gate = engines.gate()
        if ready and gate is not None and gate.is_full:
            return HealthReport("busy", False, "as many connections as it may have", self.node, len(engine.connections))
        return HealthReport("ok" if ready else "out_of_touch", ready, detail, self.node, len(engine.connections))

    def _events_since(self, number: int) -> list[dict[str, Any]]:
        """For the debug page: the feed's events numbered above `number`."""
        feed = None if self._engine is None else self._engine.feed
        return [] if feed is None else feed.since(number)
