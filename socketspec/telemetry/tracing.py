"""The seam for distributed tracing: spans around handling, publishing and fan-out, in a trace that spans all nodes.

Nothing is traced until a `Tracing` is installed; `socketspec.adapters.opentelemetry.instrument` does that.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from socketspec.protocol.encoding import Span
from socketspec.protocol.publications import Topic

__all__ = ("Handling", "Tracing", "install", "installed")


class Handling(Protocol):
    """A handler that is under way."""

    def ended(self, outcome: str, error: Exception | None) -> None:
        """How it went: ``ok``, ``refused`` or ``error``, as in the metrics, and what it raised."""
        ...


class Tracing(Protocol):
    """What a tracing library has to do for us. No call may raise or block."""

    def handling(self, namespace: str, event: str, connection: str, request: str) -> AbstractContextManager[Handling]:
        """Around a handler and its answer. `request` is the id that the client gets in an error."""
        ...

    def current(self) -> tuple[str, str] | None:
        """The ids of the current trace and span, in hexadecimal; None outside of traces."""
        ...

    def publishing(self, topic: Topic, event: str) -> AbstractContextManager[str]:
        """Around a publish. What it yields travels with the message: a W3C ``traceparent``, or ``""``."""
        ...

    def carried(self) -> str:
        """The current context, to travel with a message that is published without `publishing`."""
        ...

    def delivering(self, topic: Topic, event: str, trace: str, members: int) -> Span:
        """From the arrival of a message at this node until it has been written to its `members` here."""
        ...


_tracing: Tracing | None = None


def install(tracing: Tracing | None) -> None:
    """Trace with `tracing` from now on, in the whole process; None: not at all."""
    global _tracing
    _tracing = tracing


def installed() -> Tracing | None:
    """The tracing in use; None if nothing is traced."""
    return _tracing
