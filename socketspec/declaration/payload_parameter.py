"""The parameter of a handler that gets the payload: what may be one, and what to write where one stands elsewhere."""

from __future__ import annotations

from typing import Final

from pydantic.fields import FieldInfo

from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.signatures import EMPTY, Argument, Signature
from socketspec.errors import ConfigurationError

__all__ = ("HANDLER", "misplaced", "payload_of")

HANDLER: Final = "A handler looks like this: async def handler(conn: Connection, payload: Model) -> Reply | None"
"""How to write a handler, for messages."""


def payload_of(argument: Argument, signature: Signature) -> PayloadType:
    """The payload that `argument` declares. Raises `ConfigurationError` for what can be none."""
    annotation = dict if argument.annotation is EMPTY else argument.annotation
    if isinstance(argument.default, FieldInfo):
        raise ConfigurationError(
            f"{signature.owner}: the default of parameter {argument.name!r}, the payload, is a Field(), which is for "
            f"fields of models. Write the value itself: {argument.name}: Model = Model(…)."
        )
    try:
        return PayloadType(annotation, namespace=signature.namespace, default=argument.default)
    except ConfigurationError as error:
        name = argument.name
        query = (
            "" if argument.default is EMPTY else f"For the handshake's query, write {name}: Annotated[…, Query()] = …. "
        )
        raise ConfigurationError(
            f"{signature.owner}: parameter {name!r} is the payload. {error} {query}{HANDLER}"
        ) from error


def misplaced(argument: Argument, owner: str, payload: str | None) -> str:
    """What to say of an argument that looks like a payload, and is not where it stands; `payload` has its place."""
    if payload is None:
        return (
            f"{owner}: parameter {argument.name!r} looks like the payload, which is given by position. "
            f"Put it behind the connection, before the `*`. {HANDLER}"
        )
    return (
        f"{owner}: the payload is {payload!r}, and an event has only one, so nothing provides {argument.name!r}. "
        f"Make one model that has both as fields, or write {argument.name}=Depends(…). {HANDLER}"
    )
