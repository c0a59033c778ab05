"""What an app can do, as JSON: its events with their models, rooms, errors and close codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from socketspec.declaration.declared_errors import DeclaredError
from socketspec.declaration.groups import Limit
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.registry import EventSpec, Registry
from socketspec.declaration.rooms import Room
from socketspec.errors import CLOSE_CODES, ERROR_CODES, ConfigurationError
from socketspec.pages.json_values import finite
from socketspec.protocol.formats import SUBPROTOCOLS
from socketspec.protocol.names import CLIENT_EVENTS, RESERVED_EVENTS

__all__ = ("build_schema",)


BUILT_IN: Final = frozenset(code.value for code in ERROR_CODES)


class Described(Protocol):
    """What the schema says of an app's options."""

    @property
    def namespace(self) -> str: ...

    @property
    def max_payload_size(self) -> int: ...

    @property
    def max_payload_items(self) -> int: ...

    @property
    def auth(self) -> Iterable[object]: ...


def build_schema(
    *, title: str, version: str, description: str, settings: Described, registry: Registry, rooms: Iterable[Room]
) -> dict[str, Any]:
    """The schema of everything registered so far. Models are JSON Schema 2020-12, as Pydantic makes it."""
    return {
        "title": title,
        "version": version,
        "description": description,
        "namespace": settings.namespace,
        "subprotocols": list(SUBPROTOCOLS),
        "max_payload_size": settings.max_payload_size,
        "max_payload_items": settings.max_payload_items,
        "authentication": [type(backend).__name__ for backend in settings.auth],
        "events": [_event(spec) for spec in registry.events.values()],
        "sent_events": [
            {
                "event": event.name,
                "room": event.room,
                "description": event.description,
                "tags": list(event.tags),
                "payload": _sent(event.declared.model),
            }
            for event in registry.typed_events.values()
        ],
        "rooms": [
            {
                "name": room.name,
                "description": room.description,
                "max_members": room.max_members,
                "client_join": room.client_join,
                "history": None if room.history is None else {"size": room.history.size, "ttl": room.history.ttl},
            }
            for room in rooms
        ],
        "reserved_events": sorted(RESERVED_EVENTS),
        "client_events": sorted(CLIENT_EVENTS),
        "errors": [
            *({"code": code.value, "meaning": meaning} for code, meaning in ERROR_CODES.items()),
            *(_error(error) for code, error in registry.errors.by_code.items() if code not in BUILT_IN),
        ],
        "close_codes": [
            {"code": code.value, "reason": info.reason, "issued_when": info.issued_when, "reconnect": info.reconnect}
            for code, info in CLOSE_CODES.items()
        ],
    }


def _event(spec: EventSpec) -> dict[str, Any]:
    return {
        "event": spec.name,
        "description": spec.description,
        "tags": list(spec.tags),
        "deprecated": spec.deprecated,
        "ordered": spec.ordered,
        "timeout": spec.timeout,
        "rate_limits": [_limit(bucket.limit) for bucket in spec.buckets],
        "payload": _tidy(spec.plan.payload) if spec.plan.payload is not None else None,
        "ack": _reply(spec.plan.reply),
        "errors": [_error(error) for error in spec.errors],
        "emits": [
            {"event": item.event, "description": item.description, "payload": _sent(item.model)}
            for item in spec.contract.emits or ()
        ],
        "broadcasts": [
            {
                "event": item.event,
                "room": None if item.room is None else item.room.source,
                "description": item.description,
                "payload": _sent(item.model),
            }
            for item in spec.contract.broadcasts or ()
        ],
    }


def _limit(limit: Limit) -> dict[str, Any]:
    scope = limit.scope if limit.scope is None or isinstance(limit.scope, str) else "function"
    return {"rate": limit.rate, "capacity": limit.capacity, "scope": scope}


def _error(error: DeclaredError) -> dict[str, Any]:
    return {"code": error.code, "meaning": error.description, "details": _sent(error.details)}


def _sent(model: OutboundType | None) -> dict[str, Any] | None:
    return None if model is None else _tidy(model)


def _reply(reply: OutboundType | None) -> dict[str, Any] | None:
    """The schema of a handler's replies; None where nothing is declared, or that there are none."""
    return None if reply is None or reply.is_nothing else _tidy(reply)


def _tidy(model: PayloadType | OutboundType) -> dict[str, Any]:
    """A model's JSON Schema, as JSON can carry it; one that has none says so in its place."""
    try:
        schema: dict[str, Any] = finite(model.json_schema())
    except ConfigurationError as error:
        return {"description": f"{error}"}
    return schema
