"""Broadcasts while a tracer is installed: they do what they do without one, and their spans belong together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from socketspec import History, Room, SocketApp
from socketspec.adapters.opentelemetry import instrument, uninstrument
from socketspec.backend.memory import MemoryBackend
from socketspec.errors import BackendError
from socketspec.protocol.publications import Publication, Topic
from socketspec.testing import TestClient
from tests.watching import until

trace = pytest.importorskip("opentelemetry.sdk.trace")
exporting = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


@pytest.fixture
def spans() -> Iterator[Any]:
    """Keeps the spans that have ended."""
    kept, provider = in_memory.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(exporting.SimpleSpanProcessor(kept))
    instrument(provider)
    yield kept
    uninstrument()
    provider.shutdown()


async def test_a_traced_broadcast_is_kept_sent_once_and_answered_like_any_other(spans: Any) -> None:
    app = SocketApp(rooms=[Room("hall", history=History())])
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "hall")
        first = await app.rooms.broadcast("hall", "paid", {"n": 1}, idempotency_key="k")
        second = await app.rooms.broadcast("hall", "paid", {"n": 1}, idempotency_key="k")
        assert first.position is not None
        assert (first.nodes, second.position) == (1, first.position)
        assert await conn.receive() == {"event": "paid", "payload": {"n": 1}}
        await conn.connection.emit("end")
        assert (await conn.receive())["event"] == "end"
        assert len(await app.rooms.history("hall")) == 1
        ended = {span.name: span for span in spans.get_finished_spans()}
        assert set(ended) == {"publish paid", "fan-out paid"}
        assert ended["fan-out paid"].context.trace_id in {
            span.context.trace_id for span in spans.get_finished_spans() if span.name == "publish paid"
        }
        attributes = ended["fan-out paid"].attributes
        assert (attributes["socketspec.members"], attributes["messaging.destination.name"]) == (1, "hall")


async def test_a_traced_broadcast_that_fails_raises_what_any_other_raises(spans: Any) -> None:
    class Away(MemoryBackend):
        def __init__(self) -> None:
            super().__init__()
            publish = self.broker.publish

            async def fails(topic: Topic, *arguments: Any, **options: Any) -> Any:
                if topic.kind == "room":
                    raise BackendError("redis is gone")
                return await publish(topic, *arguments, **options)

            self.broker.publish = fails  # type: ignore[method-assign]  # as a broker that is away

    app = SocketApp(backend=Away())
    async with TestClient(app):
        with pytest.raises(BackendError):
            await app.rooms.broadcast("hall", "paid")
        assert [span.name for span in spans.get_finished_spans()] == ["publish paid"]


async def test_a_message_for_many_that_is_written_in_slices_ends_its_span_once(spans: Any) -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conns = [await client.connect() for _ in range(300)]
        for conn in conns:
            await app.rooms.join(conn.connection, "hall")
        for number in range(5):
            await app.rooms.broadcast("hall", f"n{number}")
        for conn in conns:
            assert [(await conn.receive())["event"] for _ in range(5)] == [f"n{number}" for number in range(5)]

        def fan_outs() -> list[str]:
            return sorted(span.name for span in spans.get_finished_spans() if span.name.startswith("fan-out"))

        await until(lambda: len(fan_outs()) >= 5)
        await asyncio.sleep(0)
        assert fan_outs() == [f"fan-out n{number}" for number in range(5)]


async def test_what_comes_without_a_trace_has_no_span_here(spans: Any) -> None:
    backend = MemoryBackend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        await backend.broker.publish(Topic("/", "all", ""), Publication("from a node that traces nothing", b"{}"))
        assert (await conn.receive())["event"] == "from a node that traces nothing"
        assert spans.get_finished_spans() == ()
