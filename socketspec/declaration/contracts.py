"""What a handler, or a publisher, says it sends: `Emits` and `Broadcasts`. Shown in the schema, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.payloads import PayloadType
from socketspec.errors import ConfigurationError, ContractError
from socketspec.protocol.names import check_event_name, is_reserved
from socketspec.protocol.publications import Topic

__all__ = ("Broadcasts", "Contract", "Contracts", "Emits", "check_declarations", "check_declared")


@dataclass(frozen=True, slots=True)
class Emits:
    """An event that a handler may send to the client it handles."""

    event: str
    model: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Broadcasts:
    """An event that a handler may send to a room. `room` is a name or a pattern such as ``"chat:{room}"``."""

    event: str
    room: str | None = None
    model: Any = None
    description: str = ""


class Contract(NamedTuple):
    """What `who` (its name in errors) declares to send. None: anything."""

    who: str
    emits: Sequence[Emits] | None
    broadcasts: Sequence[Broadcasts] | None

    def check_emit(self, event: str, payload: object) -> None:
        """Raises `ContractError` where this is not declared."""
        if self.emits is None:
            return
        declared = [item for item in self.emits if item.event == event]
        if not declared:
            raise ContractError(
                f"{self.who} emits {event!r}, which it does not declare "
                f"({_listed(item.event for item in self.emits)}); add Emits({event!r}, …) to emits=[…]."
            )
        _check_model(f"{self.who} emits {event!r}", declared, payload)

    def check_broadcast(self, topic: Topic, event: str, payload: object) -> None:
        """Raises `ContractError` where this is not declared."""
        if self.broadcasts is None:
            return
        room = topic.name if topic.kind == "room" else None
        what = f"{self.who} broadcasts {event!r} to {_named(topic)}"
        declared = [item for item in self.broadcasts if item.event == event and _room_fits(item.room, room)]
        if not declared:
            known = _listed(f"{item.event} → {item.room or 'everybody'}" for item in self.broadcasts)
            raise ContractError(
                f"{what}, which it does not declare ({known}); add Broadcasts({event!r}, …) to broadcasts=[…]."
            )
        _check_model(what, declared, payload)


@lru_cache(maxsize=1024)
def _payload_type(model: Any) -> PayloadType:
    return PayloadType(model)


@lru_cache(maxsize=1024)
def _pattern(source: str) -> RoomPattern:
    return RoomPattern(source)


_handling: ContextVar[Contract | None] = ContextVar("socketspec_handling", default=None)


class Contracts:
    """Checks what handlers send against what they declare, when `strict`; otherwise costs nothing.

    A handler that declares no `emits` (or no `broadcasts`) may send anything; one that does may send just that.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict

    @contextmanager
    def handling(self, contract: Contract | None) -> Iterator[None]:
        """What is sent inside is held to `contract`; with None, to none."""
        if not self.strict:
            yield
            return
        token = _handling.set(contract)
        try:
            yield
        finally:
            _handling.reset(token)

    def check_emit(self, event: str, payload: object) -> None:
        """Raises `ContractError` when the current handler does not declare this."""
        contract = _handling.get() if self.strict else None
        if contract is not None:
            contract.check_emit(event, payload)

    def check_broadcast(self, topic: Topic, event: str, payload: object) -> None:
        """Raises `ContractError` when the current handler does not declare this."""
        contract = _handling.get() if self.strict else None
        if contract is not None:
            contract.check_broadcast(topic, event, payload)


def check_declarations(event: str, tags: object, emits: object, broadcasts: object) -> None:
    """Raises `ConfigurationError` where what ``on(event, …)`` declares cannot be what was meant."""
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise ConfigurationError(f"on({event!r}, tags={tags!r}): tags must be a list, such as tags=['chat'].")
    check_declared(f"on({event!r}, emits", emits, Emits)
    check_declared(f"on({event!r}, broadcasts", broadcasts, Broadcasts)


def check_declared(option: str, declared: object, kind: type[Emits | Broadcasts]) -> None:
    """Raises `ConfigurationError` where `declared` cannot be what was meant by a list of `kind`.

    `option` begins the error's text, up to the equals sign: ``"Publisher(broadcasts"``.
    """
    if declared is None:
        return
    if isinstance(declared, str) or not isinstance(declared, Sequence):
        raise ConfigurationError(f"{option}={declared!r}): must be a list of {kind.__name__}(…).")
    for item in cast("Sequence[object]", declared):
        if not isinstance(item, kind):
            raise ConfigurationError(f"{option}=[{item!r}]): write {kind.__name__}({item!r}).")
        _check_declaration(f"{option}=[{kind.__name__}({item.event!r}, …)])", item)


def _check_declaration(where: str, item: Emits | Broadcasts) -> None:
    try:
        check_event_name(item.event)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if is_reserved(item.event):
        raise ConfigurationError(f"{where}: {item.event!r} is reserved for the protocol.")
    if item.model is not None:
        _payload_type(item.model)
    if isinstance(item, Broadcasts) and item.room is not None:
        _pattern(item.room)


def _named(topic: Topic) -> str:
    """The members of `topic`, for people. Which user it is, a log need not tell."""
    if topic.kind == "room":
        return f"room {topic.name!r}"
    return "a user" if topic.kind == "user" else "everybody"


def _room_fits(pattern: str | None, room: str | None) -> bool:
    if pattern is None or room is None:
        return pattern is None  # a declaration without a room allows any, and everybody
    return _pattern(pattern).match(room) is not None


def _check_model(what: str, declared: Sequence[Emits | Broadcasts], payload: object) -> None:
    failures: list[str] = []
    for item in declared:
        if item.model is None:
            return
        try:
            _payload_type(item.model).check(payload if payload is not None else {})
        except ContractError as error:
            failures.append(str(error))
        else:
            return
    raise ContractError(f"{what} with a payload that does not fit its declaration: {'; '.join(failures)}")


def _listed(names: Iterator[str]) -> str:
    return "declared: " + (", ".join(names) or "nothing")
