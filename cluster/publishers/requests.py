"""What a publisher asks of the servers, as data: the commands, and how their replies are read. No I/O happens here.

`Publisher` and `AsyncPublisher` differ only in how they carry a `Request` out.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic_core import from_json

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.publishing import parse_receipt, publish_any_command, publish_command
from socketspec.cluster.stores.history import parse_read, read_command
from socketspec.cluster.stores.sessions import revoke_command
from socketspec.declaration.contracts import Broadcasts
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.rooms import Room
from socketspec.errors import ConfigurationError, ContractError
from socketspec.protocol.messages import encode_payload
from socketspec.protocol.names import check_event_name, check_namespace, check_room_name, check_user_id, is_reserved
from socketspec.protocol.orders import control_topic, disconnect_order, revoke_order
from socketspec.protocol.publications import Position, Publication, Receipt, RoomMessage, Topic
from socketspec.session.revocation import MAX_TTL, revocation_subjects
from socketspec.telemetry.tracing import installed

__all__ = ("MAX_BATCH", "Request", "Requests")

MAX_BATCH: Final = 500
"""Publications that one round trip of `broadcast_many` carries."""
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payloads at which a batch is sent though it has fewer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """Commands to run in stages, each when the one before is done, and what their replies mean, all in one list."""

    stages: tuple[tuple[Command, ...], ...]
    parse: Callable[[list[Any]], T]


class Requests:
    """Makes requests, after the checks that an app makes before it sends.

    `rooms` and `broadcasts` are the app's declarations, as far as they are known here. Raises `ConfigurationError` for
    declarations that cannot work. Its methods raise `ValueError` for a name or an event that cannot be one,
    `TypeError` for a payload that cannot be encoded, and `ContractError` for one that `broadcasts` does not allow.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        namespace: str = "/",
        rooms: Sequence[Room | str] = (),
        broadcasts: Sequence[Broadcasts] = (),
    ) -> None:
        self._keys = keys
        try:
            self._namespace = check_namespace(namespace)
        except ValueError as error:
            raise ConfigurationError(f"Publisher: {error}.") from None
        patterns = [(RoomPattern(room.name), room) for room in _rooms(rooms)]
        self._rooms = sorted(patterns, key=lambda item: item[0].specificity)
        self._contract = _Contract(broadcasts)

    def broadcast(
        self,
        room: str,
        event: str,
        payload: object,
        exclude: str | Iterable[str],
        idempotency_key: str | None,
        namespace: str | None,
    ) -> Request[Receipt]:
        """To a room."""
        topic = self._topic("room", check_room_name(room), namespace)
        publication = self._publication(room, event, payload, exclude)
        return Request(((self._publish(topic, publication, _check_key(idempotency_key)),),), _first_receipt)

    def batches(
        self, messages: Iterable[tuple[str, str, object]], namespace: str | None
    ) -> Iterator[Request[list[Receipt]]]:
        """To many rooms, in as many requests as it takes."""
        commands: list[Command] = []
        size = 0
        for number, message in enumerate(messages, 1):
            given: object = message  # untyped code passes anything
            if not isinstance(given, tuple | list) or len(given) != 3:
                raise ValueError(f"broadcast_many: message {number} must be (room, event, payload), not {given!r:.100}")
            room, event, payload = message
            topic = self._topic("room", check_room_name(room), namespace)
            publication = self._publication(room, event, payload)
            commands.append(self._publish(topic, publication, None))
            size += len(publication.payload)
            if len(commands) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                yield Request((tuple(commands),), _receipts)
                commands, size = [], 0
        if commands:
            yield Request((tuple(commands),), _receipts)

    def broadcast_all(
        self, event: str, payload: object, exclude: str | Iterable[str], namespace: str | None
    ) -> Request[Receipt]:
        """To everybody in a namespace."""
        publication = self._publication(None, event, payload, exclude)
        return self._send(self._topic("all", "", namespace), publication)

    def send_to_user(self, user_id: str, event: str, payload: object, namespace: str | None) -> Request[Receipt]:
        """To a user's connections."""
        topic = self._topic("user", check_user_id(user_id), namespace)
        return self._send(topic, self._publication(None, event, payload))

    def disconnect_user(self, user_id: str, code: int, reason: str, namespace: str | None) -> Request[int]:
        """Count a user's connections, then have every node close them."""
        topic = self._topic("user", check_user_id(user_id), namespace)
        order = disconnect_order(user=user_id, code=code, reason=reason)
        counting = Command("HVALS", None, (self._keys.nodes(topic),))
        return Request(((counting,), (self._order(topic.namespace, order),)), lambda replies: _sum(replies[0]))

    def revoke(
        self,
        session: str | None,
        user: str | None,
        token_id: str | None,
        ttl: float,
        reason: str,
        namespace: str | None,
    ) -> Request[None]:
        """Record it, then have every node close what is open: who is closed comes back at once."""
        if isinstance(ttl, bool) or not 0 < ttl <= MAX_TTL:
            raise ValueError(f"revoke(ttl={ttl!r}) must be more than 0 seconds and at most 10 years")
        where = self._checked_namespace(namespace)
        subjects = revocation_subjects(where, session=session, user=user, token_id=token_id)
        records = tuple(revoke_command(self._keys, subject, ttl=ttl) for subject in subjects)
        return Request((records, (self._order(where, revoke_order(subjects, reason)),)), _nothing)

    def count(self, room: str, namespace: str | None) -> Request[int]:
        """How many are in a room."""
        topic = self._topic("room", check_room_name(room), namespace)
        return Request(((Command("HVALS", None, (self._keys.nodes(topic),)),),), lambda replies: _sum(replies[0]))

    def history(
        self, room: str, limit: int | None, since: Position | None, namespace: str | None
    ) -> Request[list[RoomMessage]]:
        """What a room keeps."""
        topic = self._topic("room", check_room_name(room), namespace)
        _check_range(limit, since)
        declared = self._declaration(room)
        if declared is not None and declared.history is None:
            raise ValueError(f"room {room!r} keeps no history; declare Room({room!r}, history=History(…))")

        def parse(replies: list[Any]) -> list[RoomMessage]:
            return [_message(kept) for kept in parse_read(replies[0], topic, since=since, limit=limit)]

        return Request(((read_command(self._keys, topic, since=since, limit=limit),),), parse)

    def _send(self, topic: Topic, publication: Publication) -> Request[Receipt]:
        command = publish_command(self._keys, topic, publication, None, epoch="", tag="")
        return Request(((command,),), _first_receipt)

    def _order(self, namespace: str, order: Publication) -> Command:
        return publish_command(self._keys, control_topic(namespace), order, None, epoch="", tag="")

    def _publish(self, topic: Topic, publication: Publication, key: str | None) -> Command:
        epoch, tag = secrets.token_hex(8), secrets.token_hex(4)
        declared = self._declaration(topic.name)
        if declared is None:
            return publish_any_command(self._keys, topic, publication, key, epoch=epoch, tag=tag)
        return publish_command(self._keys, topic, publication, declared.history, key, epoch=epoch, tag=tag)

    def _publication(
        self, room: str | None, event: str, payload: object, exclude: str | Iterable[str] = ()
    ) -> Publication:
        if is_reserved(event):
            raise ValueError(f"event {event!r} is reserved for the protocol; names of your own do not begin with __")
        check_event_name(event)
        self._contract.check(room, event, payload)
        some: object = exclude  # untyped code passes anything
        if not isinstance(some, Iterable):
            raise TypeError(f"exclude: pass ids of connections, not {type(some).__name__}")
        excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        for item in excluded:
            given: object = item
            if not isinstance(given, str):
                raise TypeError(f"exclude: pass ids of connections, not {type(given).__name__}")
        tracing = installed()
        trace = "" if tracing is None else tracing.carried()
        return Publication(event=event, payload=encode_payload(payload), exclude=excluded, trace=trace)

    def _topic(self, kind: Any, name: str, namespace: str | None) -> Topic:
        return Topic(self._checked_namespace(namespace), kind, name)

    def _checked_namespace(self, namespace: str | None) -> str:
        return self._namespace if namespace is None else check_namespace(namespace)

    def _declaration(self, room: str) -> Room | None:
        for pattern, declared in self._rooms:
            if pattern.match(room) is not None:
                return declared
        return None


class _Contract:
    """What a publisher may send, where it was told: then just that, as for a handler."""

    def __init__(self, broadcasts: Sequence[Broadcasts]) -> None:
        if not all(isinstance(item, Broadcasts) for item in _untyped(broadcasts)):
            raise ConfigurationError(f"Publisher(broadcasts={broadcasts!r}): use [Broadcasts(event, …)].")
        self._declared: dict[str, list[tuple[RoomPattern | None, PayloadType | None]]] = {}
        for item in broadcasts:
            try:
                check_event_name(item.event)
            except ValueError as error:
                raise ConfigurationError(f"Publisher(broadcasts=[Broadcasts({item.event!r}, …)]): {error}.") from None
            if is_reserved(item.event):
                raise ConfigurationError(f"Publisher: Broadcasts({item.event!r}) is reserved for the protocol.")
            pattern = None if item.room is None else RoomPattern(item.room)
            model = None if item.model is None else PayloadType(item.model)
            self._declared.setdefault(item.event, []).append((pattern, model))

    def check(self, room: str | None, event: str, payload: object) -> None:
        """Raises `ContractError`. `room` is None for everybody and for a user."""
        if not self._declared:
            return
        where = f"to room {room!r}" if room is not None else "to no room"
        fitting = [
            model
            for pattern, model in self._declared.get(event, ())
            if pattern is None or (room is not None and pattern.match(room) is not None)
        ]
        if not fitting:
            known = ", ".join(
                f"{name} → {pattern.source if pattern is not None else 'anybody'}"
                for name, items in self._declared.items()
                for pattern, _ in items
            )
            raise ContractError(
                f"The publisher's broadcasts do not declare {event!r} {where}; add Broadcasts({event!r}) to {known}."
            )
        failures: list[str] = []
        for model in fitting:
            if model is None:
                return
            try:
                model.check({} if payload is None else payload)
            except ContractError as error:
                failures.append(str(error))
            else:
                return
        raise ContractError(f"{event!r} {where}: {'; '.join(failures)}")


def _rooms(rooms: Sequence[Room | str]) -> list[Room]:
    if isinstance(rooms, str) or not all(isinstance(room, Room | str) for room in _untyped(rooms)):
        raise ConfigurationError(f'Publisher(rooms={rooms!r}) must be a list such as [Room("chat:{{name}}")].')
    return [Room(room) if isinstance(room, str) else room for room in rooms]


def _untyped(items: Iterable[object]) -> Iterable[object]:
    return items


def _check_key(key: str | None) -> str | None:
    given: object = key  # untyped code passes anything
    if given is not None and not (isinstance(given, str) and given):
        raise ValueError(f"idempotency_key={given!r} must be a non-empty str or None")
    return key


def _check_range(limit: object, since: object) -> None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ValueError(f"history(limit={limit!r}) must be a whole number, 0 or more, or None")
    if not isinstance(since, Position | None):
        raise TypeError(f"history(since={since!r}) must be a Position or None")


def _first_receipt(replies: list[Any]) -> Receipt:
    return parse_receipt(replies[0])


def _receipts(replies: list[Any]) -> list[Receipt]:
    return [parse_receipt(reply) for reply in replies]


def _sum(counts: Any) -> int:
    return sum(int(count) for count in counts)


def _nothing(_: list[Any]) -> None:
    return None


def _message(publication: Publication) -> RoomMessage:
    return RoomMessage(publication.event, from_json(publication.payload), *(publication.position or Position(0, "")))
