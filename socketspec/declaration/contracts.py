"""What a handler, or a publisher, says it sends: `Emits` and `Broadcasts`. Shown in the schema, and held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError, ContractError
from socketspec.protocol.encoding import Encoded, encode_payload
from socketspec.protocol.names import check_event_name, is_reserved
from socketspec.protocol.publications import Topic

__all__ = (
    "Broadcasts",
    "Contract",
    "Declared",
    "Emits",
    "check_sent_name",
    "compile_broadcasts",
    "compile_emits",
    "encode_as",
    "named",
)


@dataclass(frozen=True, slots=True)
class Emits:
    """An event that a handler may send to the client it handles.

    With a `model`, what is sent is validated and filtered by it, as a reply is by its return annotation.
    """

    event: str
    model: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Broadcasts:
    """An event that a handler may send to a room. `room` is a name or a pattern such as ``"chat:{room}"``.

    With a `model`, what is sent is validated and filtered by it, as a reply is by its return annotation.
    """

    event: str
    room: str | None = None
    model: Any = None
    description: str = ""


class Declared(NamedTuple):
    """One declaration of something that is sent, compiled."""

    event: str
    to: Literal["client", "room", "any"]
    """Whom it is sent to: the client that is handled, the members of a room, or both."""
    room: RoomPattern | None
    """The rooms it is sent to; None: any, and everybody."""
    model: OutboundType | None
    """None: anything."""
    description: str = ""

    def fits_room(self, room: str | None) -> bool:
        """Whether it is about this room; None: everybody, or a user."""
        if self.room is None or room is None:
            return self.room is None
        return self.room.match(room) is not None


class Contract(NamedTuple):
    """What `who` (its name in errors) declares to send. None: anything."""

    who: str
    emits: tuple[Declared, ...] | None
    broadcasts: tuple[Declared, ...] | None

    @property
    def has_models(self) -> bool:
        """Whether it says of anything what it has to look like."""
        return any(item.model is not None for item in (*(self.emits or ()), *(self.broadcasts or ())))

    def emitted(self, event: str) -> list[Declared]:
        """What it declares of an event for the client."""
        return [item for item in self.emits or () if item.event == event]

    def broadcast(self, topic: Topic, event: str) -> list[Declared]:
        """What it declares of an event for others."""
        room = topic.name if topic.kind == "room" else None
        return [item for item in self.broadcasts or () if item.event == event and item.fits_room(room)]

    def refuse_emit(self, event: str) -> ContractError:
        """The error for an event that it does not declare."""
        known = ", ".join(item.event for item in self.emits or ()) or "nothing"
        return ContractError(
            f"{self.who} emits {event!r}, which it does not declare (declared: {known}); "
            f"add Emits({event!r}, …) to emits=[…]."
        )

    def refuse_broadcast(self, topic: Topic, event: str) -> ContractError:
        """The error for an event that it does not declare."""
        listed = (f"{item.event} → {item.room.source if item.room else 'everybody'}" for item in self.broadcasts or ())
        return ContractError(
            f"{self.who} broadcasts {event!r} to {named(topic)}, which it does not declare "
            f"(declared: {', '.join(listed) or 'nothing'}); add Broadcasts({event!r}, …) to broadcasts=[…]."
        )


def named(topic: Topic) -> str:
    """The members of `topic`, for people. Which user it is, a log need not tell."""
    if topic.kind == "room":
        return f"room {topic.name!r}"
    return "a user" if topic.kind == "user" else "everybody"


def encode_as(declared: Sequence[Declared], payload: object, what: str) -> bytes:
    """Encode `payload` as the model of one of these declarations: of several, the one that is closest to it.

    `what` begins the `ContractError` that is raised where it fits none.
    """
    if isinstance(payload, Encoded):
        return payload
    models = [item.model for item in declared if item.model is not None]
    if len(models) < len(declared) or not models:
        return encode_payload(payload)
    value = {} if payload is None else payload
    failures: list[str] = []
    for model in sorted(models, key=lambda model: model.distance(value)):
        try:
            return model.encode(value)
        except ContractError as error:
            failures.append(str(error))
    raise ContractError(f"{what} with a payload that does not fit its declaration: {'; '.join(failures)}")


def compile_emits(option: str, given: object) -> tuple[Declared, ...] | None:
    """Compile what ``emits=`` was given. `option` begins errors, up to the equals sign: ``"on('act', emits"``.

    Raises `ConfigurationError` where it cannot be what was meant.
    """
    return _compiled(option, given, Emits)


def compile_broadcasts(option: str, given: object) -> tuple[Declared, ...] | None:
    """Compile what ``broadcasts=`` was given, as `compile_emits` does."""
    return _compiled(option, given, Broadcasts)


def _compiled(option: str, given: object, kind: type[Emits | Broadcasts]) -> tuple[Declared, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{option}={given!r}): must be a list of {kind.__name__}(…).")
    return tuple(_one(option, item, kind) for item in cast("Iterable[object]", given))


def _one(option: str, item: object, kind: type[Emits | Broadcasts]) -> Declared:
    declared = getattr(item, "declared", None)
    if isinstance(declared, Declared):  # an `Event`
        return declared
    if not isinstance(item, kind):
        raise ConfigurationError(f"{option}=[{item!r}]): write {kind.__name__}({item!r}).")
    where = f"{option}=[{kind.__name__}({item.event!r}, …)])"
    check_sent_name(where, item.event)
    model = None if item.model is None else OutboundType(item.model, what=where)
    if isinstance(item, Broadcasts):
        room = None if item.room is None else RoomPattern(item.room)
        return Declared(item.event, "room", room, model, item.description)
    return Declared(item.event, "client", None, model, item.description)


def check_sent_name(where: str, event: str) -> None:
    """Raises `ConfigurationError`, which `where` begins, for a name that nothing of an app's can be sent by."""
    try:
        check_event_name(event)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if is_reserved(event):
        raise ConfigurationError(f"{where}: {event!r} is reserved for the protocol.")
