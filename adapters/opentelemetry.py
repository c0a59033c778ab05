"""OpenTelemetry spans for SocketSpec, from whoever publishes to every node's fan-out.

    from socketspec.adapters.opentelemetry import instrument

    instrument()      # once, at start; the SDK is configured as ever: OTEL_* variables or code

The trace context travels inside the messages between nodes. So the span of an HTTP request that broadcasts, or of a
Celery task that uses a `Publisher`, is the ancestor of the fan-out spans on all nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import SpanKind
except ImportError as _error:
    raise ImportError("Tracing needs opentelemetry-api: pip install 'socketspec[otel]'") from _error

from socketspec import __version__, tracing
from socketspec.backend import Topic

__all__ = ("instrument", "uninstrument")

_HEADER = "traceparent"


def instrument(provider: trace.TracerProvider | None = None) -> None:
    """Trace from now on, in the whole process, with `provider`'s tracer (None: the global one's)."""
    tracing.install(_OpenTelemetry(trace.get_tracer("socketspec", __version__, provider)))


def uninstrument() -> None:
    """Trace no more."""
    tracing.install(None)


class _OpenTelemetry:
    """`socketspec.tracing.Tracing` by the OpenTelemetry API. Attributes are those of its messaging conventions."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def handling(self, namespace: str, event: str, connection: str) -> AbstractContextManager[object]:
        return self._tracer.start_as_current_span(
            f"handle {event}",
            kind=SpanKind.SERVER,
            attributes={
                "socketspec.namespace": namespace,
                "socketspec.event": event,
                "socketspec.connection": connection,
            },
        )

    @contextmanager
    def publishing(self, topic: Topic, event: str) -> Iterator[str]:
        attributes = _attributes(topic, event, "send")
        with self._tracer.start_as_current_span(f"publish {event}", kind=SpanKind.PRODUCER, attributes=attributes):
            yield self.carried()

    def carried(self) -> str:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier.get(_HEADER, "")

    def delivering(self, topic: Topic, event: str, trace: str, members: int) -> tracing.Span:
        return self._tracer.start_span(
            f"fan-out {event}",
            context=propagate.extract({_HEADER: trace}),
            kind=SpanKind.CONSUMER,
            attributes={**_attributes(topic, event, "process"), "socketspec.members": members},
        )


def _attributes(topic: Topic, event: str, operation: str) -> dict[str, str]:
    # Rooms may be many and may name people: a room's name is on spans, which are sampled, and never on metrics.
    return {
        "messaging.system": "socketspec",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic.name,
        "socketspec.namespace": topic.namespace,
        "socketspec.topic.kind": topic.kind,
        "socketspec.event": event,
    }
