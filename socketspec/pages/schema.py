"""What an app can do, as JSON: its events with their models, rooms, errors and close codes."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from socketspec.declaration.payloads import PayloadType
from socketspec.errors import CLOSE_CODES, ERROR_CODES
from socketspec.protocol.formats import SUBPROTOCOLS
from socketspec.protocol.names import CLIENT_EVENTS, RESERVED_EVENTS

if TYPE_CHECKING:
    from socketspec.app.app import SocketApp
    from socketspec.declaration.registry import EventSpec

__all__ = ("build_schema",)


def build_schema(app: SocketApp) -> dict[str, Any]:
    """The schema of everything registered so far. Models are JSON Schema 2020-12, as Pydantic makes it."""
    return {
        "title": app.title,
        "version": app.version,
        "description": app.description,
        "namespace": app.settings.namespace,
        "subprotocols": list(SUBPROTOCOLS),
        "max_payload_size": app.settings.max_payload_size,
        "authentication": [type(backend).__name__ for backend in app.settings.auth],
        "events": [_event(spec) for spec in app.registry.events.values()],
        "rooms": [
            {
                "name": room.name,
                "description": room.description,
                "max_members": room.max_members,
                "history": None if room.history is None else {"size": room.history.size, "ttl": room.history.ttl},
            }
            for room in app.rooms.declared
        ],
        "reserved_events": sorted(RESERVED_EVENTS),
        "client_events": sorted(CLIENT_EVENTS),
        "errors": [{"code": code.value, "meaning": meaning} for code, meaning in ERROR_CODES.items()],
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
        "payload": spec.plan.payload.json_schema() if spec.plan.payload is not None else None,
        "ack": _reply(spec.plan.returns),
        "emits": [
            {"event": item.event, "description": item.description, "payload": _model(item.model)}
            for item in spec.contract.emits or ()
        ],
        "broadcasts": [
            {"event": item.event, "room": item.room, "description": item.description, "payload": _model(item.model)}
            for item in spec.contract.broadcasts or ()
        ],
    }


def _model(model: Any) -> dict[str, Any] | None:
    return None if model is None else PayloadType(model).json_schema("serialization")


def _reply(returns: Any) -> dict[str, Any] | None:
    """The schema of a return annotation; None where it says nothing that Pydantic understands."""
    if returns in (None, NoneType, Any):
        return None
    try:
        return TypeAdapter(returns).json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None
