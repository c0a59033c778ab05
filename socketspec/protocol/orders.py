"""Orders between nodes, as data: close a user's connections, close these connections, close what was revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from socketspec.errors import check_close_code
from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.publications import History, Publication, Topic
from socketspec.text import close_reason

__all__ = ("CHECK", "KEPT", "control_topic", "disconnect_order", "revoke_order")

MAX_ORDER: Final = 1000
"""Connections that one order may name; more become several orders."""


KEPT: Final = History(size=1000, ttl=600.0)
"""How many orders are kept, and for how long after the last one, for nodes that could not hear them."""
CHECK: Final = Publication(event="check", payload=b"{}")
"""What a backend tells its own node: orders may have been missed, so check every connection for revocations."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    code: int
    reason: str
    user: str | None = None
    connections: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Revoke:
    subjects: tuple[str, ...]
    reason: str


DISCONNECT: TypeAdapter[Disconnect] = TypeAdapter(Disconnect)
REVOKE: TypeAdapter[Revoke] = TypeAdapter(Revoke)


def control_topic(namespace: str) -> Topic:
    """Where a namespace's nodes hear orders."""
    return Topic(namespace, "control", "")


def disconnect_order(
    *, user: str | None = None, connections: Sequence[str] = (), code: int, reason: str
) -> Publication:
    """Close all connections of `user`, and those with the ids `connections`. Raises `ValueError` for a bad code."""
    order: dict[str, Any] = {"code": check_close_code(int(code)), "reason": close_reason(reason)}
    if user is not None:
        order["user"] = user
    if connections:
        order["connections"] = list(connections)
    return Publication(event="disconnect", payload=encode_payload(order))


def revoke_order(subjects: Sequence[str], reason: str) -> Publication:
    """Close all connections of `subjects` (see `revocation_subjects`) with 4005."""
    order = {"subjects": list(subjects), "reason": close_reason(reason)}
    return Publication(event="revoke", payload=encode_payload(order))
