"""Answers ``__resume__``: the session goes on, rooms are joined again by right, what was missed is sent.

A room's name alone lets nobody in. There is a right to a room whose guards allow it, to one that the app opens to
clients, and to one whose brought position verifies: epoch and tag cannot be guessed, so the client was in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from socketspec.backend.protocols import HistoryStore
from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.errors import BackendError, EventError, ValidationFailed
from socketspec.inbound.catching_up import CatchingUp, Held, Keep, Lag, unrecovered
from socketspec.inbound.limiter import Limiter
from socketspec.inbound.surcharge import Surcharge
from socketspec.lifecycle.admission import refusal_code
from socketspec.lifecycle.credentials import Credentials
from socketspec.membership.rooms import RoomFull, RoomMembership
from socketspec.protocol.decoding import Envelope
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.protocol.names import MAX_NAME_BYTES
from socketspec.protocol.publications import Position, Topic
from socketspec.telemetry.counters import Counters
from socketspec.text import get_logger

__all__ = ("Resume",)

logger: logging.Logger = get_logger("socketspec.events")

PATIENCE: Final = 1.0
"""Seconds that what the client sends next waits for a replay."""

MAX_EXPLAINED: Final = 20
"""Rows of an answer that say in words why a room is not recovered; `reason` says it in all."""

Row = dict[str, Any]
"""What the answer says of one room."""


class Resume:
    """Answers ``__resume__``."""

    def __init__(
        self,
        rooms: RoomMembership,
        history: HistoryStore,
        catching_up: CatchingUp,
        credentials: Credentials,
        limiter: Limiter | None,
        counters: Counters,
        tasks: Tasks,
        now: Callable[[], float],
        *,
        max_rooms: int,
    ) -> None:
        self._rooms = rooms
        self._history = history
        self._catching_up = catching_up
        self._credentials = credentials
        self._limiter = limiter
        self._counters = counters
        self._tasks = tasks
        self._now = now
        self._max_rooms = max_rooms
        self._running: dict[str, asyncio.Task[None]] = {}
        """Replays under way, by connection id."""

    async def answer(self, conn: Connection, envelope: Envelope, number: int) -> None:
        """Go on with a session, re-join rooms and replay exactly what was missed, or say that it cannot be known.

        The answer is sent before anything newer, so a client never takes a gap for the whole story. Guards run again.
        `number` is the request's.
        """
        while (running := self._running.get(conn.id)) is not None and not running.done():
            await asyncio.wait((running,))  # one replay at a time
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
            answer["session_resumed"] = conn.session.id == brought
            answer["session_expires_at"] = conn.session.expires_at
        rows, lags = await self._resume_rooms(conn, positions)
        if not conn.is_open:
            return
        answer["rooms"] = rows
        conn.send(Message("__resume__", encode_payload(answer), id=envelope.id))
        if lags:
            await self._catch_up(conn, lags)

    async def _catch_up(self, conn: Connection, lags: list[Lag]) -> None:
        """Let all rooms through. Returns before that where it takes long: the client's pings have to be answered."""
        task = self._tasks.spawn(self._run(conn, lags), name=f"replay for {conn.id}")
        if not task.done():
            self._running[conn.id] = task
            task.add_done_callback(lambda _: self._running.pop(conn.id, None))
            await asyncio.wait((task,), timeout=PATIENCE)

    async def _run(self, conn: Connection, lags: list[Lag]) -> None:
        for lag in sorted(lags, key=lambda lag: lag.is_long):  # those with nothing to replay need not wait
            await self._catching_up.run(conn, lag)

    async def _resume_session(self, conn: Connection, brought: object) -> None:
        """Go on with the session. A connection whose session is over is closed: it would outlive it otherwise."""
        try:
            await self._credentials.resume_session(conn, brought)
        except ValidationFailed:
            raise
        except EventError as error:
            conn.close(refusal_code(error), error=error)

    async def _resume_rooms(
        self, conn: Connection, positions: dict[str, Position | None]
    ) -> tuple[dict[str, Row], list[Lag]]:
        rows: dict[str, Row] = {room: {} for room in positions}  # in the order of the question
        lags: list[Lag] = []
        costs = Surcharge(conn, self._limiter, self._counters, self._now)
        keep = Keep()
        # Where tokens do not last, those with a position are the likelier ones to have a right to.
        for room, since in sorted(positions.items(), key=lambda item: item[1] is None):
            rows[room] = await self._resume_room(conn, room, since, Held(keep), costs, lags)
            if not conn.is_open:
                return rows, []
        for lag in lags:
            if lag.held.overflowed and lag.seen.last is None:
                rows[lag.room], lag.held.overflowed = unrecovered("history_lost"), False
        _shorten(rows)
        for row in rows.values():
            self._counters.count_recovery("recovered" if row["recovered"] else row["reason"])
        return rows, lags

    async def _resume_room(
        self, conn: Connection, room: str, since: Position | None, held: Held, costs: Surcharge, lags: list[Lag]
    ) -> Row:
        """Join one room, and find out what was missed. Where it has to be let through later, it is added to `lags`."""
        if room in conn.topics:
            return unrecovered("already_joined")
        if costs.is_exhausted and not self._rooms.is_open_to_clients(room):
            return costs.refuse()
        try:
            joined = await self._rooms.rejoin(conn, room, held, partial(self._verifies, since))
        except RoomFull as error:
            return unrecovered(error.code, error.message)
        except EventError as error:
            return await costs.take() or unrecovered(error.code, error.message)
        except BackendError as error:
            logger.error("Resuming room %r failed for connection %s: %s", room, conn.id, error)
            return unrecovered("failed")
        except Exception:
            logger.exception("Resuming room %r failed for connection %s", room, conn.id)
            return await costs.take() or unrecovered("failed")
        topic = conn.topics.get(room)
        if not joined or topic is None:
            return unrecovered("no_position" if joined else "already_joined")
        lag = Lag(room, topic, held, keep=held.keep)
        lags.append(lag)
        return unrecovered("no_position") if since is None else await self._begin(conn, lag, since)

    async def _verifies(self, since: Position | None, topic: Topic) -> bool:
        """Whether the client was in the room: only then it can know epoch and tag of what was published there."""
        if since is None or since.offset < 1:  # the beginning was never sent to anybody: it has no tag
            return False
        try:
            await self._history.read(topic, since=since, limit=0)
        except LookupError:
            return False
        return True

    async def _begin(self, conn: Connection, lag: Lag, since: Position) -> Row:
        try:
            return {"recovered": True, "replayed": await self._catching_up.begin(lag, since)}
        except LookupError as error:
            return unrecovered("history_lost", str(error))
        except BackendError as error:
            logger.error("Resuming room %r failed for connection %s: %s", lag.room, conn.id, error)
        except Exception:
            logger.exception("Resuming room %r failed for connection %s", lag.room, conn.id)
        return unrecovered("failed")


def _shorten(rows: dict[str, Row]) -> None:
    """Keep the answer in proportion to the question, which may name a thousand rooms."""
    explained = [row for row in rows.values() if "message" in row]
    for row in explained[MAX_EXPLAINED:]:
        del row["message"]


def _positions(payload: Mapping[str, Any], limit: int) -> dict[str, Position | None]:
    """The `rooms` of a ``__resume__``: ``{name: {"offset": int, "epoch": str, "tag": str}}``, or null for a position.

    Raises `ValidationFailed`.
    """
    rooms = payload.get("rooms", {})
    if not isinstance(rooms, dict) or len(rooms) > limit:
        raise ValidationFailed(f"`payload.rooms` must be an object of at most {limit} rooms.")
    for name in rooms:
        if len(name) > MAX_NAME_BYTES:
            raise ValidationFailed(f"{name[:80]!r}… is no room's name: one has at most {MAX_NAME_BYTES} bytes.")
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
