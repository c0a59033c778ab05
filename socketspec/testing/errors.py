"""What a test is told: a refused handshake, a failed event, the end of a connection, and what came instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from socketspec.errors import EventError, SocketSpecError

__all__ = ("ConnectionClosed", "EventFailed", "HandshakeRefused", "Unexpected")


class HandshakeRefused(SocketSpecError):
    """The server refused the opening handshake with an HTTP `status`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status: int = status
        self.text: str = text
        """The body of the answer, or the reason of the close before the accept."""


class ConnectionClosed(SocketSpecError):
    """The connection was closed and everything sent before has been received."""

    def __init__(self, code: int, reason: str, circumstances: str = "") -> None:
        super().__init__(f"closed with {code} ({reason}){circumstances}")
        self.code: int = code
        self.reason: str = reason


class EventFailed(EventError):
    """The server answered an event with ``__error__``. `code`, `message` and `details` are as they were sent."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        super().__init__(str(payload.get("message", "")), details=payload.get("details"))
        self.code: str = str(payload.get("code", ""))
        self.event: str | None = payload.get("event")
        """The event that failed; None where the error is not about one."""
        self.request_id: str = str(payload.get("request_id", ""))
        """Stands in the server's log, beside the cause."""

    def __str__(self) -> str:
        details = f" {self.details}" if self.details else ""
        return f"{self.event or 'a message'} failed with {self.code}: {self.message}{details}"


class Unexpected(AssertionError):
    """Another message came than the test expects."""
