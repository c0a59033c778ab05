"""A trace goes from whoever publishes, through Redis, to the fan-out of every node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from socketspec import Connection, SocketApp
from socketspec.adapters.opentelemetry import instrument, uninstrument
from socketspec.cluster import Publisher, RedisBackend
from socketspec.cluster.commands.envelope import decode
from socketspec.protocol.publications import Publication
from socketspec.testing import TestClient
from tests.node_frames import frame
from tests.servers import Server
from tests.watching import until


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(provider)
    exporter.tracer = provider.get_tracer("tests")  # type: ignore[attr-defined]  # kept beside what it exports to
    yield exporter
    uninstrument()
    provider.shutdown()


def tracer(spans: InMemorySpanExporter) -> Tracer:
    found: Tracer = spans.tracer  # type: ignore[attr-defined]  # see above
    return found


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


@asynccontextmanager
async def node(url: str) -> AsyncIterator[tuple[SocketApp, TestClient]]:
    socket = SocketApp(backend=RedisBackend(url, prefix="traced"))

    @socket.on("say")
    async def say(conn: Connection) -> None:
        await socket.rooms.broadcast("r", "said", {})

    @socket.on_connect
    async def enter(conn: Connection) -> None:
        await socket.rooms.join(conn, "r")

    async with TestClient(socket) as client:
        yield socket, client


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert child.context is not None
    assert parent.context is not None
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )


async def test_from_a_handler_or_a_request_to_the_fan_out_on_every_node(
    standalone_server: Server, spans: InMemorySpanExporter
) -> None:
    async with node(standalone_server.url) as (one, here), node(standalone_server.url) as (_, there):
        ada, bob = await here.connect(), await there.connect()
        await ada.send("say")
        await ada.receive()
        await bob.receive()
        await until(lambda: len(named(spans, "fan-out said")) == 2)
        (handled,) = named(spans, "handle say")
        (published,) = named(spans, "publish said")
        assert is_child(published, handled)
        assert all(is_child(fan_out, published) for fan_out in named(spans, "fan-out said"))
        assert published.attributes is not None
        assert published.attributes["messaging.destination.name"] == "r"
        spans.clear()
        with tracer(spans).start_as_current_span("GET /orders") as request:
            await one.rooms.broadcast("r", "said", {})
        await until(lambda: len(named(spans, "fan-out said")) == 2)
        trace_ids = {span.context.trace_id for span in spans.get_finished_spans() if span.context is not None}
        assert trace_ids == {request.get_span_context().trace_id}


async def test_from_backend_code_to_the_fan_out(standalone_server: Server, spans: InMemorySpanExporter) -> None:
    async with node(standalone_server.url) as (_, client):
        ada = await client.connect()
        with Publisher(standalone_server.url, prefix="traced") as publisher:
            with tracer(spans).start_as_current_span("task") as task:
                await asyncio.to_thread(publisher.broadcast, "r", "said", {})
            await ada.receive()
        await until(lambda: named(spans, "fan-out said"))
        (fan_out,) = named(spans, "fan-out said")
        assert fan_out.parent is not None
        assert fan_out.parent.span_id == task.get_span_context().span_id


async def test_without_a_trace_messages_carry_nothing_and_no_span_is_made(
    standalone_server: Server, spans: InMemorySpanExporter
) -> None:
    uninstrument()
    async with node(standalone_server.url) as (_, client):
        ada = await client.connect()
        await ada.send("say")
        await ada.receive()
    assert spans.get_finished_spans() == ()


def test_a_trace_survives_the_envelope_and_a_long_one_costs_only_itself() -> None:
    carried = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    publication = Publication("e", b"{}", ("x",), trace=carried)
    assert decode(frame(publication)) == publication
    assert decode(frame(publication._replace(exclude=()))) == publication._replace(exclude=())
    assert decode(frame(publication._replace(trace="x" * 200))) == publication._replace(trace="")
