"""What a publisher asks of the servers, as data: the commands, and how their replies are read. No I/O happens here.

`Publisher` and `AsyncPublisher` differ only in how they carry a `Request` out.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.publishing import parse_receipt, publish_any_command, publish_command
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.presence.commands import count_command, parse_count
from socketspec.cluster.publishers.wording import first_error, has_failed, many_failed
from socketspec.cluster.stores.history import parse_read, read_command
from socketspec.cluster.stores.sessions import revoke_command
from socketspec.declaration.contracts import Broadcasts, Contract, compile_broadcasts
from socketspec.declaration.events import Event
from socketspec.declaration.rooms import DeclaredRooms, Room, no_history
from socketspec.declaration.sending import Contracts, DeclaredSends
from socketspec.errors import BackendError, ConfigurationError
from socketspec.protocol.names import check_namespace, check_outbound, check_room_name, check_user_id
from socketspec.protocol.orders import KEPT, control_topic, disconnect_order, revoke_order
from socketspec.protocol.publications import Position, Publication, Receipt, RoomMessage, Topic, room_message
from socketspec.session.revocation import check_ttl, revocation_subjects
from socketspec.telemetry.tracing import installed

__all__ = ("MAX_BATCH", "Many", "Request", "Requests")

MAX_BATCH: Final = 500
"""Publications that one round trip of `broadcast_many` carries."""
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payloads at which a batch is sent though it has fewer publications."""

_RECORDED: Final = (
    "The revocation is recorded, so that what it names is refused from now on; but what is open may have stayed open: "
    "call revoke again when this is mended."
)

T = TypeVar("T")


Outcomes: TypeAlias = Sequence[Sequence[Any]]
"""For each stage of a request that was begun, a reply or a `BackendError` for each of its commands."""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """Commands to run in stages, each when the one before is done. `parse` is given all their replies in one list.

    `troubles` says for each stage what it means when it fails, as what follows is not done, and what came before is.
    """

    stages: tuple[tuple[Command, ...], ...]
    parse: Callable[[list[Any]], T]
    troubles: tuple[str, ...] = ()

    def result(self, outcomes: Outcomes) -> T:
        """The result of what became of the commands. Raises `BackendError`."""
        error = first_error(outcomes[-1])
        if error is None:
            return self.parse([reply for replies in outcomes for reply in replies])
        trouble = self.troubles[len(outcomes) - 1] if self.troubles else ""
        if not trouble:
            raise error
        raise BackendError(f"{trouble} {error}") from error


class Many:
    """Messages for many rooms, in as many round trips as it takes."""

    def __init__(self, batches: Sequence[tuple[Command, ...]]) -> None:
        self.batches: Sequence[tuple[Command, ...]] = batches
        self._outcomes: list[Any] = []

    def took(self, outcomes: Sequence[Any]) -> None:
        """Take what became of the next batch. Raises `BackendError` for one that has failed, with all the numbers."""
        self._outcomes += outcomes
        if has_failed(outcomes):
            error = many_failed(self._outcomes, sum(map(len, self.batches)))
            raise error from first_error(outcomes)

    def receipts(self) -> list[Receipt]:
        """The receipts of all, when all have been taken."""
        return [parse_receipt(reply) for reply in self._outcomes]


class Requests:
    """Makes requests, after the checks that an app makes before it sends.

    `rooms` and `broadcasts` are the app's declarations, as far as the publisher knows them. Raises `ConfigurationError`
    for declarations that cannot work. Its methods raise `ValueError` for a name or an event that cannot be one,
    `TypeError` for a payload that cannot be encoded, and `ContractError` for one that `broadcasts` does not allow.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        namespace: str = "/",
        rooms: Sequence[Room | str] = (),
        broadcasts: Sequence[Broadcasts | Event[Any]] = (),
    ) -> None:
        self._keys = keys
        self._unreadable = Unreadable()
        try:
            self._namespace = check_namespace(namespace)
        except ValueError as error:
            raise ConfigurationError(f"Publisher: {error}.") from None
        self._rooms = DeclaredRooms.of("Publisher", rooms)
        declared = compile_broadcasts("Publisher(broadcasts", broadcasts) or None
        contract = Contract("The publisher", emits=None, broadcasts=declared)
        self._contracts = Contracts(DeclaredSends(), strict=declared is not None, contract=contract)

    def broadcast(
        self,
        room: str,
        event: str,
        payload: object,
        exclude: str | Iterable[str],
        idempotency_key: str | None,
        namespace: str | None,
    ) -> Request[Receipt]:
        """Send to a room."""
        topic = self._topic("room", check_room_name(room), namespace)
        publication = self._publication(topic, event, payload, exclude)
        return Request(((self._publish(topic, publication, _check_key(idempotency_key)),),), _first_receipt)

    def broadcast_many(self, messages: Iterable[tuple[str, str, object]], namespace: str | None) -> Many:
        """Send to many rooms. All messages are checked and encoded now, before the first is sent."""
        batches: list[tuple[Command, ...]] = []
        commands: list[Command] = []
        size = 0
        for number, message in enumerate(messages, 1):
            given: object = message  # untyped code passes anything
            if not isinstance(given, tuple | list) or len(given) != 3:
                raise ValueError(f"broadcast_many: message {number} must be (room, event, payload), not {given!r:.100}")
            room, event, payload = message
            try:
                topic = self._topic("room", check_room_name(room), namespace)
                publication = self._publication(topic, event, payload)
            except Exception as error:
                error.add_note(f"broadcast_many: message {number}; none was sent")
                raise
            commands.append(self._publish(topic, publication, None))
            size += len(publication.payload)
            if len(commands) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                batches.append(tuple(commands))
                commands, size = [], 0
        if commands:
            batches.append(tuple(commands))
        return Many(batches)

    def broadcast_all(
        self, event: str, payload: object, exclude: str | Iterable[str], namespace: str | None
    ) -> Request[Receipt]:
        """Send to everybody in a namespace."""
        topic = self._topic("all", "", namespace)
        return self._send(topic, self._publication(topic, event, payload, exclude))

    def send_to_user(self, user_id: str, event: str, payload: object, namespace: str | None) -> Request[Receipt]:
        """Send to a user's connections."""
        topic = self._topic("user", check_user_id(user_id), namespace)
        return self._send(topic, self._publication(topic, event, payload))

    def disconnect_user(self, user_id: str, code: int, reason: str, namespace: str | None) -> Request[int]:
        """Count a user's connections, then have every node close them."""
        topic = self._topic("user", check_user_id(user_id), namespace)
        order = disconnect_order(user=user_id, code=code, reason=reason)
        stages = (count_command(self._keys, topic),), (self._order(topic.namespace, order),)
        troubles = "Nobody was disconnected, as it is unknown how many are connected.", ""
        return Request(stages, lambda replies: self._counted(topic, replies), troubles)

    def revoke(
        self,
        session: str | None,
        user: str | None,
        token_id: str | None,
        ttl: float,
        reason: str,
        namespace: str | None,
    ) -> Request[None]:
        """Record it, and then have every node close what is open: clients that are closed come back at once."""
        check_ttl(ttl)
        where = self._checked_namespace(namespace)
        subjects = revocation_subjects(where, session=session, user=user, token_id=token_id)
        records = tuple(revoke_command(self._keys, subject, ttl=ttl) for subject in subjects)
        stages = records, (self._order(where, revoke_order(subjects, reason)),)
        return Request(stages, _nothing, ("", _RECORDED))

    def count(self, room: str, namespace: str | None) -> Request[int]:
        """Count the members of a room."""
        topic = self._topic("room", check_room_name(room), namespace)
        return Request(((count_command(self._keys, topic),),), lambda replies: self._counted(topic, replies))

    def history(
        self, room: str, limit: int | None, since: Position | None, namespace: str | None
    ) -> Request[list[RoomMessage]]:
        """Read what a room keeps."""
        topic = self._topic("room", check_room_name(room), namespace)
        _check_range(limit, since)
        declared = self._rooms.find(room)
        if declared is not None and declared.history is None:
            raise no_history(room)

        def parse(replies: list[Any]) -> list[RoomMessage]:
            where, unreadable = self._keys.stream(topic), self._unreadable
            found = parse_read(replies[0], topic, where, unreadable, since=since, limit=limit)
            return [room_message(kept) for kept in found]

        return Request(((read_command(self._keys, topic, since=since, limit=limit),),), parse)

    def _counted(self, topic: Topic, replies: list[Any]) -> int:
        return parse_count(replies[0], self._keys.nodes(topic), self._unreadable)

    def _send(self, topic: Topic, publication: Publication) -> Request[Receipt]:
        command = publish_command(self._keys, topic, publication, None, epoch="", tag="")
        return Request(((command,),), _first_receipt)

    def _order(self, namespace: str, order: Publication) -> Command:
        epoch, tag = secrets.token_hex(8), secrets.token_hex(4)
        return publish_command(self._keys, control_topic(namespace), order, KEPT, epoch=epoch, tag=tag)

    def _publish(self, topic: Topic, publication: Publication, key: str | None) -> Command:
        epoch, tag = secrets.token_hex(8), secrets.token_hex(4)
        declared = self._rooms.find(topic.name)
        if declared is None:
            return publish_any_command(self._keys, topic, publication, key, epoch=epoch, tag=tag)
        return publish_command(self._keys, topic, publication, declared.history, key, epoch=epoch, tag=tag)

    def _publication(self, topic: Topic, event: str, payload: object, exclude: str | Iterable[str] = ()) -> Publication:
        check_outbound(event)
        encoded = self._contracts.broadcast(topic, event, payload)
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
        return Publication(event=event, payload=encoded, exclude=excluded, trace=trace)

    def _topic(self, kind: Any, name: str, namespace: str | None) -> Topic:
        return Topic(self._checked_namespace(namespace), kind, name)

    def _checked_namespace(self, namespace: str | None) -> str:
        return self._namespace if namespace is None else check_namespace(namespace)


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


def _nothing(_: list[Any]) -> None:
    return None
