"""`EventRouter`: events, hooks, guards and rooms of one part of an application, in a module of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from socketspec.app.declarations import Declaration, Declarations
from socketspec.connection.connection import Connection
from socketspec.declaration.declared_errors import compile_errors
from socketspec.declaration.events import Event
from socketspec.declaration.groups import (
    Path,
    RouterOptions,
    given_middleware,
    given_tags,
    given_timeout,
)
from socketspec.declaration.habits import refuse_as_router
from socketspec.declaration.options import knows_options
from socketspec.declaration.registry import Registry
from socketspec.declaration.rooms import DeclaredRooms, Room
from socketspec.declaration.savepoints import Restore, saved
from socketspec.declaration.signatures import listed
from socketspec.declaration.specs import EventOptions
from socketspec.errors import ConfigurationError, EventError
from socketspec.protocol.names import check_event_name
from socketspec.security.ratelimit import RateLimit, given_rate_limit

__all__ = ("EventRouter", "Including")

T = TypeVar("T")

_NO_ROUTER: Final = (
    "An EventRouter is no router of FastAPI's, and no application: write socket.include_router(router), and "
    "mount(socket, app), with `from socketspec.adapters.fastapi import mount`."
)


class Including(Declarations):
    """What routers can be included in: an app, or another router."""

    def __init__(self, shown: str) -> None:
        super().__init__(shown)
        self._routers: list[EventRouter] = []
        self._paths: set[tuple[int, str]] = set()

    def include_router(
        self, router: EventRouter, *, prefix: str = "", tags: Sequence[str] = (), dependencies: Sequence[Any] = ()
    ) -> None:
        """Have everything that `router` declares, now or later.

        `prefix` stands before the router's own, `tags` and `dependencies` come before its. Included again with another
        prefix, its events are there under both; what is not about its events alone (hooks, guards, rooms, typed events)
        is there once. Raises `ConfigurationError` for a router that is there already, that would include itself, or
        whose declarations cannot stand beside those that are there; then nothing of it is taken.
        """
        where = f"{self._shown}.include_router("
        _check_router(where, router)
        if router is self or router.includes(self):
            raise ConfigurationError(f"{where}…): the router would include itself. Include it in one direction only.")
        options = RouterOptions(
            prefix=_prefix(f"{where}…, prefix", prefix),
            tags=given_tags(f"{where}…, tags", tags),
            dependencies=listed(where.removesuffix("("), dependencies),
        )
        if (id(router), prefix) in self._paths:
            raise ConfigurationError(
                f"{where}…): this router is included already{f' with the prefix {prefix!r}' if prefix else ''}. "
                "Include it once, or again with another prefix=."
            )
        with self._as_a_whole():
            router.send_to(self, () if options.is_empty else (options,))
        self._paths.add((id(router), prefix))
        self._routers.append(router)

    def declare(self, declaration: Declaration) -> None:
        """Have what was declared here, in all its places or, where it raises `ConfigurationError`, in none."""
        with self._as_a_whole():
            self.take(declaration)

    def save(self) -> Restore:
        """What puts back what is declared here, and wherever this is included, as it is now."""
        raise NotImplementedError

    @contextmanager
    def _as_a_whole(self) -> Iterator[None]:
        restore = self.save()
        try:
            yield
        except BaseException:
            restore()
            raise

    def includes(self, other: object) -> bool:
        """Whether `other` is a router that is included here, directly or by another one."""
        return any(router is other or router.includes(other) for router in self._routers)


class EventRouter(Including):
    """Events of one part of an application, to be included in a `SocketApp` as FastAPI's routers are.

        router = EventRouter(prefix="orders.", tags=["orders"], dependencies=[Depends(staff)])

        @router.on("place")             # clients send "orders.place"
        async def place(conn: Connection, order: Order) -> Receipt: ...

        socket.include_router(router)

    What it is given holds for each of its events: `prefix` stands before their names, `tags` and `errors` are added to
    theirs, `dependencies` run before theirs, for each event, and `middleware` inside the app's and around theirs.
    `rate_limit` is one bucket that its events share, for each connection or whom its scope says; `timeout`, in seconds,
    is for those that have none of their own. `rooms` are declared as those of `SocketApp` are.

    `middleware` and `on_error` are for its events only. Other hooks, guards, rooms and typed events are the app's: the
    prefix does not apply to the names of rooms and of events that are sent. What is declared after the router was
    included counts as well. A router that is included nowhere does nothing.

    Raises `ConfigurationError` for what cannot be meant.
    """

    @knows_options("EventRouter")
    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[Any] = (),
        middleware: Sequence[Callable[..., Any]] = (),
        errors: Sequence[type[EventError]] = (),
        rate_limit: RateLimit | str | None = None,
        timeout: float | timedelta | None = None,
        rooms: Sequence[Room | str] = (),
    ) -> None:
        super().__init__("router")
        self._options = RouterOptions(
            prefix=_prefix("EventRouter(prefix", prefix),
            tags=given_tags("EventRouter(tags", tags),
            dependencies=listed("EventRouter", dependencies),
            middleware=given_middleware("EventRouter(middleware", middleware),
            errors=compile_errors("EventRouter(errors", errors),
            rate_limit=given_rate_limit("EventRouter(rate_limit", rate_limit),
            timeout=given_timeout("EventRouter(timeout", timeout),
        )
        self._draft = Registry(Connection, draft=True)
        self._draft.groups((self._options,))  # whatever could not work later is refused now
        self._declared: list[tuple[Declaration, Path]] = []
        self._targets: list[tuple[Including, Path]] = []
        declared = DeclaredRooms.of("EventRouter", rooms).rooms
        if declared:
            self._declared.append((Declaration(lambda registry, _: registry.rooms.add(declared), is_app_wide=True), ()))

    def __repr__(self) -> str:
        return f"EventRouter(prefix={self._options.prefix!r}, events={sorted(self._draft.events)})"

    def take(self, declaration: Declaration, path: Path = ()) -> None:
        """Have what was declared here, or on something that came by `path`. Raises `ConfigurationError`."""
        declaration.apply(self._draft, (self._options, *path))
        self._declared.append((declaration, path))
        for target, outer in self._targets:
            target.take(declaration, (*outer, self._options, *path))

    def save(self) -> Restore:
        """What puts back what is declared here, and wherever this is included, as it is now."""
        parts = (
            self._draft.save(),
            saved(self._declared, self._targets),
            *(target.save() for target in {id(target): target for target, _ in self._targets}.values()),
        )

        def restore() -> None:
            for part in parts:
                part()

        return restore

    def send_to(self, target: Including, outer: Path) -> None:
        """Have `target` take everything that is declared here, now or later, by way of `outer`."""
        for declaration, path in self._declared:
            target.take(declaration, (*outer, self._options, *path))
        self._targets.append((target, outer))

    @overload
    def event(self, event: Event[T], /) -> Event[T]: ...
    @overload
    def event(
        self, event: str, model: type[T], /, *, room: str | None = None, description: str = "", tags: Sequence[str] = ()
    ) -> Event[T]: ...

    def event(self, event: str | Event[Any], model: Any = None, /, **options: Any) -> Event[Any]:
        """Declare an event that the app sends, as `SocketApp.event` does. It can be sent once the router is included.

        The router's prefix does not apply to it: clients and workers know it by the name that is written here.
        """
        made: Event[Any] = event if isinstance(event, Event) else Event(event, model, **options)

        def apply(registry: Registry, path: Path) -> None:
            registry.add_typed_event(made)
            if registry.sender is not None:
                made.attach(registry.sender)

        self.declare(Declaration(apply, is_app_wide=True))
        return made

    def _check_event(self, options: EventOptions, event: str) -> None:
        options.name((self._options,))

    if not TYPE_CHECKING:  # it has no such attributes; this only tells those who include it in a FastAPI application

        def __getattr__(self, name: str) -> NoReturn:
            refuse_as_router(name, _NO_ROUTER)
            raise AttributeError(f"'EventRouter' object has no attribute {name!r}")

    async def __call__(self, *scope: object) -> NoReturn:
        """What a server, or ``app.mount``, calls. Raises `ConfigurationError` that says what to write."""
        raise ConfigurationError(_NO_ROUTER)


def _prefix(where: str, prefix: str) -> str:
    given: Any = prefix  # untyped code passes anything
    if not isinstance(given, str):
        raise ConfigurationError(f"{where}={prefix!r}): prefix must be a str such as 'orders.'.")
    if prefix:
        try:
            check_event_name(f"{prefix}x")
        except ValueError as error:
            raise ConfigurationError(f"{where}={prefix!r}): no event can begin with it: {error}.") from None
    return prefix


def _check_router(where: str, router: object) -> None:
    if isinstance(router, EventRouter):
        return
    shown = getattr(router, "__name__", None) or type(router).__name__
    hint = "Pass an EventRouter."
    if isinstance(router, Including):
        hint = "An app is mounted by itself; move its events to an EventRouter, and include that."
    elif type(router).__module__.partition(".")[0] in ("fastapi", "starlette"):
        hint = (
            "FastAPI's routers are for HTTP: put the socket on one with mount(socket, router), from "
            "socketspec.adapters.fastapi, and write `router = EventRouter()` for events."
        )
    elif hasattr(router, "__path__") or hasattr(router, "__file__"):
        hint = "That is the module: pass the router in it, such as orders.router."
    raise ConfigurationError(f"{where}{shown}) takes no {type(router).__name__}. {hint}")
