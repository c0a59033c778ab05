"""Re-join rooms after a reconnect, and replay exactly what was missed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from socketspec.backend.protocols import HistoryStore
from socketspec.connection.connection import Connection
from socketspec.errors import BackendError, EventError, ValidationFailed
from socketspec.fanout.hub import Hub
from socketspec.lifecycle.admission import refusal_code
from socketspec.lifecycle.credentials import Credentials
from socketspec.membership.rooms import RoomMembership
from socketspec.protocol.envelopes import Envelope
from socketspec.protocol.messages import Message, encode_payload
from socketspec.protocol.publications import Position
from socketspec.telemetry.counters import Counters

__all__ = ("Resume",)

logger: logging.Logger = logging.getLogger("socketspec.events")

MAX_HELD: Final = 10_000
"""Messages of a room that wait for a client while its history is read."""


class _Held:
    """Takes a room's live messages while its history is read: `MAX_HELD` of them, beyond which it is not recovered."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.overflowed = False

    def __call__(self, *messages: Message) -> None:
        if len(self.messages) + len(messages) <= MAX_HELD:
            self.messages += messages
        else:
            self.overflowed = True


class _Resumed(NamedTuple):
    """What resuming one room came to."""

    result: dict[str, Any]
    missed: list[Message]
    held: _Held
    last: Position | None = None
    """What the client has seen when `missed` has been sent; None where that is not known."""


class Resume:
    """Answers ``__resume__``: the session goes on, rooms are joined again, what was missed is sent."""

    def __init__(
        self,
        rooms: RoomMembership,
        history: HistoryStore,
        hub: Hub,
        credentials: Credentials,
        counters: Counters,
        *,
        max_rooms: int,
    ) -> None:
        self._rooms = rooms
        self._history = history
        self._hub = hub
        self._credentials = credentials
        self._counters = counters
        self._max_rooms = max_rooms

    async def answer(self, conn: Connection, envelope: Envelope, number: int) -> None:
        """Go on with a session, re-join rooms and replay exactly what was missed, or say that it cannot be known.

        The answer is sent before anything newer, so a client never takes a gap for the whole story. Guards run again.
        `number` is the request's.
        """
        try:
            brought = envelope.payload.get("session")
            positions = _positions(envelope.payload, self._max_rooms)
            if brought is not None:
                await self._resume_session(conn, brought)
        except ValidationFailed as error:
            conn.send_error(error, event=envelope.event, id=envelope.id, number=number)
            return
        answer: dict[str, Any] = {}
        if brought is not None:
            if not conn.is_open:
                return
            answer["session_expires_at"] = conn.session.expires_at
        resumed = {room: await self._resume_room(conn, room, since) for room, since in positions.items()}
        for room, outcome in resumed.items():
            if outcome.held.overflowed:  # perhaps only while the rooms after it were read
                resumed[room] = _failed(outcome.held, "history_lost")
        for outcome in resumed.values():
            self._counters.count_recovery("recovered" if outcome.result["recovered"] else outcome.result["reason"])
        answer["rooms"] = {room: outcome.result for room, outcome in resumed.items()}
        conn.send(Message("__resume__", encode_payload(answer), id=envelope.id))
        for room, outcome in resumed.items():
            for message in outcome.missed:
                conn.send(message)
            self._release(conn, room, outcome)

    async def _resume_session(self, conn: Connection, brought: object) -> None:
        """Go on with the session. A connection whose session is over is closed: it would outlive it otherwise."""
        try:
            await self._credentials.resume_session(conn, brought)
        except ValidationFailed:
            raise
        except EventError as error:
            conn.close(refusal_code(error), error=error)

    async def _resume_room(self, conn: Connection, room: str, since: Position | None) -> _Resumed:
        held = _Held()
        if room in conn.topics:
            return _failed(held, "already_joined")
        try:
            await self._rooms.join(conn, room, held)
            topic = conn.topics.get(room)
            if topic is None or since is None:
                return _failed(held, "no_position")
            try:
                missed = await self._history.read(topic, since=since)
            except LookupError as error:
                return _failed(held, "history_lost", str(error))
        except EventError as error:
            return _failed(held, error.code, error.message)
        except BackendError as error:
            logger.error("Resuming room %r failed for connection %s: %s", room, conn.id, error)
            return _failed(held, "failed")
        except Exception:
            logger.exception("Resuming room %r failed for connection %s", room, conn.id)
            return _failed(held, "failed")
        if held.overflowed or not _is_contiguous(missed, since):
            return _failed(held, "history_lost")
        messages = [Message(item.event, item.payload, room=room, position=item.position) for item in missed]
        last = missed[-1].position if missed else since
        return _Resumed({"recovered": True, "replayed": len(messages)}, messages, held, last)

    def _release(self, conn: Connection, room: str, outcome: _Resumed) -> None:
        """Send what arrived meanwhile and is not among the replayed, then let the room through directly."""
        last = outcome.last
        for message in outcome.held.messages:
            if not _is_seen(message, last):
                conn.send(message)
        topic, write = conn.topics.get(room), conn.transport.write
        if topic is None or not conn.is_open:
            return
        if last is None:
            self._hub.add(topic, conn.id, write)
            return

        def write_unseen(*messages: Message) -> None:
            # A fan-out under way may still come with what was replayed; with the first newer one it is past that.
            newer = [message for message in messages if not _is_seen(message, last)]
            if newer:
                self._hub.add(topic, conn.id, write)
                write(*newer)

        self._hub.add(topic, conn.id, write_unseen)


def _failed(held: _Held, reason: str, message: str | None = None) -> _Resumed:
    result = {"recovered": False, "reason": reason}
    return _Resumed(result if message is None else {**result, "message": message}, [], held)


def _is_seen(message: Message, last: Position | None) -> bool:
    position = message.position
    if last is None or position is None or position.epoch != last.epoch:
        return False
    return position.offset <= last.offset


def _is_contiguous(publications: Any, since: Position) -> bool:
    offsets = [item.position.offset for item in publications if item.position is not None]
    return offsets == list(range(since.offset + 1, since.offset + 1 + len(publications)))


def _positions(payload: Mapping[str, Any], limit: int) -> dict[str, Position | None]:
    """The `rooms` of a ``__resume__``: ``{name: {"offset": int, "epoch": str, "tag": str}}``."""
    rooms = payload.get("rooms", {})
    if not isinstance(rooms, dict) or len(rooms) > limit:
        raise ValidationFailed(f"`payload.rooms` must be an object of at most {limit} rooms.")
    return {name: _position(name, value) for name, value in rooms.items()}


def _position(name: str, value: Any) -> Position | None:
    if value is None:
        return None
    if isinstance(value, dict):
        offset, epoch, tag = value.get("offset"), value.get("epoch"), value.get("tag", "")
        if type(offset) is int and 0 <= offset < 2**63 and isinstance(epoch, str) and isinstance(tag, str):
            return Position(offset, epoch, tag)
    raise ValidationFailed(
        f"The position of {name[:80]!r} must be null or "
        '{"offset": integer, "epoch": string, "tag": string}, as its last message said.'
    )
