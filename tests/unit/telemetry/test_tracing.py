"""Spans by OpenTelemetry: what becomes of them when handlers refuse and fail, and their ids in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from socketspec import Connection, SocketApp
from socketspec.adapters.opentelemetry import instrument, uninstrument
from socketspec.errors import PermissionDenied
from socketspec.logs import JsonFormatter
from socketspec.protocol.publications import Topic
from socketspec.telemetry.tracing import installed
from socketspec.testing import TestClient
from tests.unit.telemetry.test_logs import lines, the

__all__ = ("lines",)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(provider)
    yield exporter
    uninstrument()
    provider.shutdown()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def make_app() -> SocketApp:
    app = SocketApp()

    @app.on("work")
    async def work(conn: Connection) -> None:
        logging.getLogger("mine").info("works")

    @app.on("refuse")
    async def refuse(conn: Connection) -> None:
        raise PermissionDenied("Not you.")

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise ValueError("broken")

    @app.on("hide")
    async def hide(conn: Connection) -> None:
        raise Unprintable

    return app


async def answered(event: str, exporter: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, Any]]:
    async with TestClient(make_app()) as client:
        conn = await client.connect()
        await conn.send(event, id=1)
        answer = await conn.receive()
    (span,) = [span for span in exporter.get_finished_spans() if span.name == f"handle {event}"]
    return span, answer


@pytest.mark.parametrize(
    ("event", "outcome", "status", "recorded"),
    [
        ("work", "ok", StatusCode.UNSET, []),
        ("refuse", "refused", StatusCode.UNSET, []),
        ("fail", "error", StatusCode.ERROR, ["exception"]),
        ("hide", "error", StatusCode.ERROR, []),
    ],
)
async def test_only_a_failure_makes_a_span_an_error(
    event: str, outcome: str, status: StatusCode, recorded: list[str], exporter: InMemorySpanExporter
) -> None:
    span, answer = await answered(event, exporter)
    assert span.attributes is not None
    assert span.attributes["socketspec.outcome"] == outcome
    assert span.status.status_code is status
    assert [one.name for one in span.events] == recorded
    if outcome != "ok":
        assert span.attributes["socketspec.request"] == answer["payload"]["request_id"]


@pytest.mark.parametrize(
    ("event", "message"), [("work", "works"), ("fail", "Handling 'fail'"), ("refuse", "PERMISSION_ERROR")]
)
async def test_what_is_logged_while_an_event_is_handled_has_the_ids_of_its_trace(
    event: str, message: str, exporter: InMemorySpanExporter, lines: list[dict[str, Any]]
) -> None:
    span, _ = await answered(event, exporter)
    assert span.context is not None
    logged = the(lines, message)
    assert logged["trace_id"] == format_trace_id(span.context.trace_id)
    assert logged["span_id"] == format_span_id(span.context.span_id)
    assert "trace_id" not in JsonFormatter().format(logging.makeLogRecord({"msg": "outside"}))


class OtherHeaders(TextMapPropagator):
    """As B3 and Jaeger do: no `traceparent`."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return context or Context()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        return

    @property
    def fields(self) -> set[str]:
        return set()


def test_a_trace_goes_on_whatever_propagator_the_process_uses(exporter: InMemorySpanExporter) -> None:
    tracing = installed()
    assert tracing is not None
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(OtherHeaders())
    try:
        with tracing.publishing(Topic("/", "room", "r"), "said") as carried:
            pass
        tracing.delivering(Topic("/", "room", "r"), "said", carried, 1).end()
    finally:
        propagate.set_global_textmap(before)
    published, delivered = exporter.get_finished_spans()
    assert delivered.parent is not None
    assert published.context is not None
    assert delivered.parent.span_id == published.context.span_id
