"""OpenTelemetry spans for SocketSpec, from whoever publishes to every node's fan-out.

    from socketspec.adapters.opentelemetry import instrument

    instrument()      # once, at start; the SDK is configured as ever: OTEL_* variables or code

The trace context travels inside the messages between nodes. So the span of an HTTP request that broadcasts, or of a
Celery task that uses a `Publisher`, is the ancestor of the fan-out spans on all nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from socketspec.extras import install

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(f"Tracing needs opentelemetry-api: {install('otel')}") from _error

from socketspec import __version__
from socketspec.protocol.encoding import Span
from socketspec.protocol.publications import Topic
from socketspec.telemetry import tracing

__all__ = ("instrument", "uninstrument")

_HEADER = "traceparent"
_W3C = TraceContextTextMapPropagator()  # not the global one: it may write other headers, and differ between nodes


def instrument(provider: trace.TracerProvider | None = None) -> None:
    """Trace from now on, in the whole process, with `provider`'s tracer (None: the global one's)."""
    tracing.install(_OpenTelemetry(trace.get_tracer("socketspec", __version__, provider)))


def uninstrument() -> None:
    """Trace no more."""
    tracing.install(None)


class _OpenTelemetry:
    """`telemetry.tracing.Tracing` by the OpenTelemetry API. Attributes are those of its messaging conventions."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def handling(self, namespace: str, event: str, connection: str, request: str) -> Iterator[_Handling]:
        with self._tracer.start_as_current_span(
            f"handle {event}",
            kind=SpanKind.SERVER,
            attributes={
                "socketspec.namespace": namespace,
                "socketspec.event": event,
                "socketspec.connection": connection,
                "socketspec.request": request,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield _Handling(span)

    def current(self) -> tuple[str, str] | None:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    @contextmanager
    def publishing(self, topic: Topic, event: str) -> Iterator[str]:
        attributes = _attributes(topic, event, "send")
        with self._tracer.start_as_current_span(f"publish {event}", kind=SpanKind.PRODUCER, attributes=attributes):
            yield self.carried()

    def carried(self) -> str:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get(_HEADER, "")

    def delivering(self, topic: Topic, event: str, trace: str, members: int) -> Span:
        return self._tracer.start_span(
            f"fan-out {event}",
            context=_W3C.extract({_HEADER: trace}),
            kind=SpanKind.CONSUMER,
            attributes={**_attributes(topic, event, "process"), "socketspec.members": members},
        )


class _Handling:
    """The span of one event's handler."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def ended(self, outcome: str, error: Exception | None) -> None:
        self._span.set_attribute("socketspec.outcome", outcome)
        if error is None or outcome != "error":  # a handler that refuses has not failed
            return
        self._span.set_status(StatusCode.ERROR, type(error).__name__)
        with suppress(Exception):  # it calls `str` on the exception, which is the user's code
            self._span.record_exception(error)


def _attributes(topic: Topic, event: str, operation: str) -> dict[str, str]:
    # There may be many rooms, and their names may name people: they are on spans, which are sampled, never on metrics.
    return {
        "messaging.system": "socketspec",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic.name,
        "socketspec.namespace": topic.namespace,
        "socketspec.topic.kind": topic.kind,
        "socketspec.event": event,
    }
