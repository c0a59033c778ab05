"""The reserved events a client may send: ``__ping__ __pong__ __refresh_auth__ __resume__``."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from socketspec.connection.connection import Connection
from socketspec.connection.states import State
from socketspec.errors import AuthError, BackendError, CloseCode, EventError, ValidationFailed
from socketspec.identity import Identity
from socketspec.lifecycle.admission import refusal_code
from socketspec.protocol.envelopes import Envelope
from socketspec.protocol.messages import Message, encode_payload
from socketspec.protocol.publications import Position
from socketspec.telemetry.context import about

if TYPE_CHECKING:
    from socketspec.runtime.engine import Engine
from socketspec.inbound.resume import Held, Resumed, is_contiguous, is_seen, positions_of

__all__ = ("ClientEvents",)

logger: logging.Logger = logging.getLogger("socketspec.events")


class ClientEvents:
    """Answers the protocol's own events."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handle(self, conn: Connection, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Answer one reserved event of `CLIENT_EVENTS`."""
        if envelope.event == "__pong__":
            return None
        if envelope.event == "__ping__":
            conn.send(Message("__pong__", id=envelope.id))
            return None
        if envelope.event == "__refresh_auth__":
            return self._refresh_auth(conn, envelope)
        if conn.state is not State.OPEN:
            self.refuse_unauthenticated(conn)
            return None
        return self._resume(conn, envelope)

    def refuse_unauthenticated(self, conn: Connection) -> None:
        """A client that has yet to authenticate sent something else."""
        error = AuthError('Send {"event": "__refresh_auth__", "payload": {"token": …}} first.')
        conn.close(CloseCode.AUTH_FAILED, error=error)

    async def _refresh_auth(self, conn: Connection, envelope: Envelope) -> None:
        first = conn.state is State.AUTHENTICATING
        opening = self._engine.opening
        try:
            identity = await self._authenticate(conn, envelope)
            if first:
                await opening.first_message(conn, identity)  # says __connect__ before anything else
            elif identity.user_id != conn.identity.user_id:
                raise AuthError("The new token belongs to another user. Open a new connection for it.")
            else:
                await opening.refreshed(conn, identity)
        except EventError as error:
            if first:
                conn.close(refusal_code(error), error=error)
            else:
                _refuse(conn, envelope, error)
            return
        except BackendError as error:
            if not first:
                raise
            logger.error("Authenticating connection %s failed: %s", conn.id, error)
            conn.close(CloseCode.TRY_AGAIN_LATER)
            return
        conn.send(Message("__ack__", encode_payload({"token_expires_at": identity.token_expires_at}), id=envelope.id))

    async def _authenticate(self, conn: Connection, envelope: Envelope) -> Identity:
        token = envelope.payload.get("token")
        if not isinstance(token, str) or not token:
            raise ValidationFailed("`payload.token` must be a non-empty string.")
        if not self._engine.settings.auth:
            raise AuthError("This server does not use tokens.")
        return await self._engine.opening.authenticate(conn.handshake.with_token(token))

    async def _resume(self, conn: Connection, envelope: Envelope) -> None:
        """Go on with a session, re-join rooms and replay exactly what was missed, or say that it cannot be known.

        The answer is sent before anything newer, so a client never takes a gap for the whole story. Guards run again.
        """
        try:
            brought = envelope.payload.get("session")
            positions = positions_of(envelope.payload, self._engine.settings.max_rooms_per_connection)
        except ValidationFailed as error:
            _refuse(conn, envelope, error)
            return
        answer: dict[str, Any] = {}
        if brought is not None:
            if not await self._resume_session(conn, brought, envelope):
                return
            answer["session_expires_at"] = conn.session.expires_at
        resumed = {room: await self._resume_room(conn, room, since) for room, since in positions.items()}
        for room, outcome in resumed.items():
            if outcome.held.overflowed:  # perhaps only while the rooms after it were read
                resumed[room] = Resumed({"recovered": False, "reason": "history_lost"}, [], outcome.held)
        for outcome in resumed.values():
            self._engine.counters.count_recovery(
                "recovered" if outcome.result["recovered"] else outcome.result["reason"]
            )
        answer["rooms"] = {room: outcome.result for room, outcome in resumed.items()}
        conn.send(Message("__resume__", encode_payload(answer), id=envelope.id))
        for room, outcome in resumed.items():
            for message in outcome.missed:
                conn.send(message)
            self._release(conn, room, outcome)

    async def _resume_session(self, conn: Connection, brought: object, envelope: Envelope) -> bool:
        """Whether the connection may go on. One whose session is over is closed: it would outlive it otherwise."""
        try:
            await self._engine.opening.resume_session(conn, brought)
        except ValidationFailed as error:
            _refuse(conn, envelope, error)
            return False
        except EventError as error:
            conn.close(refusal_code(error), error=error)
        return conn.is_open

    async def _resume_room(self, conn: Connection, room: str, since: Position | None) -> Resumed:
        held = Held()
        if room in conn.topics:
            return Resumed({"recovered": False, "reason": "already_joined"}, [], held)
        try:
            await self._engine.rooms.join_through(conn, room, held)
        except EventError as error:
            return Resumed({"recovered": False, "reason": error.code, "message": error.message}, [], held)
        except BackendError as error:
            logger.error("Resuming room %r failed for connection %s: %s", room, conn.id, error)
            return Resumed({"recovered": False, "reason": "failed"}, [], held)
        except Exception:
            logger.exception("Resuming room %r failed for connection %s", room, conn.id)
            return Resumed({"recovered": False, "reason": "failed"}, [], held)
        topic = conn.topics.get(room)
        if topic is None or since is None:
            return Resumed({"recovered": False, "reason": "no_position"}, [], held)
        try:
            missed = await self._engine.backend.history.read(topic, since=since)
        except LookupError as error:
            return Resumed({"recovered": False, "reason": "history_lost", "message": str(error)}, [], held)
        except BackendError as error:
            logger.error("Reading the history of %r failed for connection %s: %s", room, conn.id, error)
            return Resumed({"recovered": False, "reason": "failed"}, [], held)
        except Exception:
            logger.exception("Reading the history of %r failed for connection %s", room, conn.id)
            return Resumed({"recovered": False, "reason": "failed"}, [], held)
        if held.overflowed or not is_contiguous(missed, since):
            return Resumed({"recovered": False, "reason": "history_lost"}, [], held)
        messages = [Message(item.event, item.payload, room=room, position=item.position) for item in missed]
        last = missed[-1].position if missed else since
        return Resumed({"recovered": True, "replayed": len(messages)}, messages, held, last)

    def _release(self, conn: Connection, room: str, outcome: Resumed) -> None:
        """Send what arrived meanwhile and is not among the replayed, then let the room through directly."""
        last = outcome.last
        for message in outcome.held.messages:
            if not is_seen(message, last):
                conn.send(message)
        topic = conn.topics.get(room)
        if topic is None or not conn.is_open:
            return
        hub = self._engine.hub
        if last is None:
            hub.add(topic, conn)
            return

        def write(*messages: Message) -> None:
            # A fan-out under way may still come with what was replayed; with the first newer one it is past that.
            newer = [message for message in messages if not is_seen(message, last)]
            if newer:
                hub.add(topic, conn)
                conn.transport.write(*newer)

        hub.add(topic, conn, write)


def _refuse(conn: Connection, envelope: Envelope, error: EventError) -> None:
    handled = about.get()  # the dispatcher has set it
    conn.send_error(error, event=envelope.event, id=envelope.id, number=0 if handled is None else handled[3])
