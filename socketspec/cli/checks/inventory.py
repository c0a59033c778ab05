"""Everything that is registered on an app, as a JSON-ready dict in the order in which it was declared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from socketspec.app.app import SocketApp
from socketspec.app.mounts import Mounted
from socketspec.cli.checks.names import called, covers, dependencies_of, function_name, type_name
from socketspec.declaration.groups import Limit
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.registry import EventSpec, Hook, Registry
from socketspec.declaration.rooms import Room
from socketspec.declaration.signatures import Scope, innermost
from socketspec.runtime.settings import Settings

__all__ = ("inventory",)


def inventory(name: str, socket: SocketApp, places: Sequence[Mounted]) -> dict[str, Any]:
    """What `socket` registers. `places`: where it is mounted; `name`: what it is called in its module."""
    registry, settings = socket.registry, socket.settings
    return {
        "name": name,
        "title": socket.title,
        "version": socket.version,
        "namespace": settings.namespace,
        "mounted": [_place(place) for place in places],
        "pages": {name: _page(url, places) for name, url in _pages(socket)},
        "backend": type(socket.backend).__name__,
        "authentication": [_auth(backend) for backend in settings.auth],
        "origins": ["*"] if settings.origins.allows_all else sorted(settings.origins.origins),
        "dependencies": called(dependency.dependency for dependency, _ in registry.dependencies),
        "middleware": [_function(each) for each in registry.middleware],
        "hooks": [_hook(kind, each) for kind, hooks in _hooks(registry) for each in hooks],
        "events": [_event(spec) for spec in registry.events.values()],
        "sent_events": [
            {"event": event.name, "room": event.room, "payload": type_name(event.declared.model), "tags": [*event.tags]}
            for event in registry.typed_events.values()
        ],
        "rooms": [_room(room, registry) for room in socket.rooms.declared],
        "guards": [
            {
                "pattern": guard.pattern.source,
                **_function(guard.function),
                "guards": [
                    room.name for room in socket.rooms.declared if guard.pattern.overlaps(RoomPattern(room.name))
                ],
            }
            for guard in registry.guards
        ],
        "errors": list(registry.errors.by_code),
        "limits": _limits(settings),
    }


def _pages(socket: SocketApp) -> Iterable[tuple[str, str | None]]:
    pages = socket.pages
    return ("docs", pages.docs_url), ("debug", pages.debug_url), ("health", pages.health_url)


def _page(url: str | None, places: Sequence[Mounted]) -> str | None:
    """Where a page is: routers put their prefix before it."""
    return url if url is None or not places else f"{places[0].prefix}{url}"


def _place(place: Mounted) -> dict[str, Any]:
    return {
        "path": place.path,
        "dependencies": called(place.dependencies),
        "starts_with_the_application": place.starts_with_it,
    }


def _function(function: Any) -> dict[str, Any]:
    return {"function": function_name(function), "dependencies": dependencies_of(function)}


def _hooks(registry: Registry) -> Iterable[tuple[str, list[Hook]]]:
    for kind in ("on_connect", "on_disconnect", "on_error", "on_room_join", "on_room_leave"):
        yield kind, getattr(registry, kind)


def _hook(kind: str, hook: Hook) -> dict[str, Any]:
    return {"hook": kind, **_function(hook)}


def _auth(backend: Any) -> str:
    function = backend.authenticate
    own = type(backend).__module__.startswith("socketspec.runtime")  # the wrapper around a function
    return function_name(function) if own else type(backend).__name__


def _event(spec: EventSpec) -> dict[str, Any]:
    names = Scope(spec.caller_locals or {}, getattr(innermost(spec.function), "__module__", None))
    listed = called(each.dependency for each, _ in spec.dependencies)
    own = dependencies_of(spec.function, names)
    return {
        "event": spec.name,
        "handler": spec.plan.name,
        "payload": type_name(spec.plan.payload),
        "reply": type_name(spec.plan.reply),
        "dependencies": [*listed, *(each for each in own if each not in listed)],
        "errors": [error.code for error in spec.errors],
        "emits": [{"event": item.event, "payload": type_name(item.model)} for item in spec.contract.emits or ()],
        "broadcasts": [
            {
                "event": item.event,
                "room": None if item.room is None else item.room.source,
                "payload": type_name(item.model),
            }
            for item in spec.contract.broadcasts or ()
        ],
        "rate_limits": [_rate_limit(bucket.limit) for bucket in spec.buckets],
        "timeout": spec.timeout,
        "middleware": [function_name(each) for group in spec.groups for each in group.middleware]
        + [function_name(each) for each in spec.middleware],
        "tags": list(spec.tags),
        "ordered": spec.ordered,
        "deprecated": spec.deprecated,
    }


def _room(room: Room, registry: Registry) -> dict[str, Any]:
    pattern = RoomPattern(room.name)
    guards = [guard for guard in registry.guards if guard.pattern.overlaps(pattern)]
    return {
        "room": room.name,
        "variables": list(pattern.variables),
        "client_join": room.client_join,
        "guards": [function_name(guard.function) for guard in guards],
        "guarded": any(covers(guard.pattern, pattern) for guard in guards),
        "history": None if room.history is None else {"size": room.history.size, "ttl": room.history.ttl},
        "max_members": room.max_members,
        "description": room.description,
    }


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "max_payload_size": settings.max_payload_size,
        "max_payload_items": settings.max_payload_items,
        "rate_limit": _rate_limit(settings.rate_limit),
        "max_in_flight": settings.max_in_flight,
        "max_rooms_per_connection": settings.max_rooms_per_connection,
        "max_connections_per_user": settings.max_connections_per_user,
        "connection_limit_policy": settings.connection_limit_policy,
        "max_buffer": settings.backpressure.max_buffer,
        "backpressure": settings.backpressure.policy,
        "session": asdict(settings.session),
        "strict": settings.strict,
        "debug": settings.debug,
    }


def _rate_limit(limit: Limit | None) -> dict[str, Any] | None:
    if limit is None:
        return None
    scope = limit.scope if limit.scope is None or isinstance(limit.scope, str) else function_name(limit.scope)
    return {"rate": limit.rate, "capacity": limit.capacity, "scope": scope, "max_violations": limit.max_violations}
