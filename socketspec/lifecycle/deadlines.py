"""What happens at a connection's deadlines: heartbeats, warnings, and closing in time."""

from __future__ import annotations

from socketspec.connection.connection import Connection
from socketspec.connection.states import State
from socketspec.errors import AuthError, CloseCode, ErrorCode, EventError
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.session.clock import Action

__all__ = ("due",)


def due(conn: Connection, now: float) -> float | None:
    """Do what is due for `conn` and return its next deadline, if there is one. The timing wheel calls this."""
    if conn.state is State.AUTHENTICATING:
        conn.close(CloseCode.AUTH_FAILED, error=AuthError("No credentials arrived in time."))
    if not conn.is_open:
        return None
    if conn.held:  # its pongs may have arrived, but we are not reading: its silence says nothing
        conn.clock.last_heard = now
    for action in conn.clock.due(now):
        _do(conn, action, now)
    return conn.clock.next_deadline()


def _do(conn: Connection, action: Action, now: float) -> None:
    if action.is_terminal:
        _close(conn, action)
    elif action is Action.PING:
        if conn.transport.can_ping:
            conn.transport.ping()
        else:
            conn.send(Message("__ping__"))
    elif action is Action.IDLE_WARNING:
        idle_timeout = conn.session.config.idle_timeout or 0.0
        _warn(conn, "__idle_warning__", conn.clock.last_active + idle_timeout - now)
    elif action is Action.EXPIRY_WARNING:
        _warn(conn, "__session_expiring__", (conn.clock.expires_at or now) - now)
    elif action is Action.TOKEN_WARNING:
        _warn(conn, "__auth_expiring__", (conn.clock.token_expires_at or now) - now)


def _warn(conn: Connection, event: str, seconds: float) -> None:
    conn.send(Message(event, encode_payload({"expires_in": round(max(seconds, 0.0), 3)})))


def _close(conn: Connection, action: Action) -> None:
    if action is Action.HEARTBEAT_TIMEOUT:
        conn.close(CloseCode.HEARTBEAT_TIMEOUT)
    elif action is Action.IDLE_TIMEOUT:
        error = EventError("Nothing was received for too long.", code=ErrorCode.IDLE_TIMEOUT)
        conn.close(CloseCode.IDLE_TIMEOUT, error=error)
    elif action is Action.SESSION_EXPIRED:
        error = EventError("The session reached its maximum duration.", code=ErrorCode.SESSION_EXPIRED)
        conn.close(CloseCode.SESSION_EXPIRED, error=error)
    else:
        error = EventError("The token expired. Connect with a new one.", code=ErrorCode.AUTH_EXPIRED)
        conn.close(CloseCode.AUTH_FAILED, "auth_expired", error=error)
