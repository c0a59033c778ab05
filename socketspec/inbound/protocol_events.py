"""The protocol's own events that a client may send: ``__ping__ __pong__ __refresh_auth__ __resume__``."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from socketspec.connection.connection import Connection
from socketspec.connection.states import State
from socketspec.errors import AuthError, BackendError, CloseCode, EventError, ValidationFailed
from socketspec.identity import Identity
from socketspec.inbound.resume import Resume
from socketspec.lifecycle.admission import Admissions, refusal_code
from socketspec.lifecycle.credentials import Credentials
from socketspec.lifecycle.opening import Opening
from socketspec.protocol.decoding import Envelope
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.text import get_logger

__all__ = ("ProtocolEvents",)

logger: logging.Logger = get_logger("socketspec.events")


class ProtocolEvents:
    """Answers the protocol's own events."""

    def __init__(self, admissions: Admissions, opening: Opening, credentials: Credentials, resume: Resume) -> None:
        self._admissions = admissions
        self._opening = opening
        self._credentials = credentials
        self._resume = resume

    def handle(self, conn: Connection, envelope: Envelope, number: int) -> Coroutine[Any, Any, None] | None:
        """Answer one reserved event of `CLIENT_EVENTS`, as the request with this number."""
        if envelope.event == "__pong__":
            return None
        if envelope.event == "__ping__":
            conn.send(Message("__pong__", id=envelope.id))
            return None
        if envelope.event == "__refresh_auth__":
            return self._refresh_auth(conn, envelope, number)
        return self._resume.answer(conn, envelope, number)

    def refuse_unauthenticated(self, conn: Connection) -> None:
        """A client that has yet to authenticate sent something else."""
        error = AuthError('Send {"event": "__refresh_auth__", "payload": {"token": …}} first.')
        conn.close(CloseCode.AUTH_FAILED, error=error)

    async def _refresh_auth(self, conn: Connection, envelope: Envelope, number: int) -> None:
        first = conn.state is State.AUTHENTICATING
        try:
            identity = await self._authenticate(conn, envelope)
            if first:
                await self._opening.first_message(conn, identity)  # says __connect__ before anything else
            elif identity.user_id != conn.identity.user_id:
                raise AuthError("The new token belongs to another user. Open a new connection for it.")
            else:
                await self._credentials.refresh(conn, identity)
        except EventError as error:
            if first:
                conn.close(refusal_code(error), error=error)
            else:
                conn.send_error(error, event=envelope.event, id=envelope.id, number=number)
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
        if not self._admissions.wants_tokens:
            raise AuthError("This server does not use tokens.")
        return await self._admissions.authenticate(conn.handshake.with_token(token))
