"""Prometheus metrics of every `SocketApp` in the process.

    mount_metrics(app)                                # GET /metrics of a FastAPI or Starlette application
    REGISTRY.register(SocketSpecCollector())          # beside metrics of your own

To count costs an addition; everything else happens when the metrics are asked for, in a thread. Labels have a bounded
number of values: events are those the app registered, reasons those of the close-code table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from socketspec.extras import install

try:
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(f"Metrics need prometheus-client: {install('metrics')}") from _error

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from socketspec import __version__
from socketspec.backend.protocols import BackendFigures, Measured
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import token_of
from socketspec.runtime.engine import Engine
from socketspec.runtime.engines import engines as running_engines
from socketspec.runtime.engines import everywhere, gate
from socketspec.security.bearer import BearerSecret
from socketspec.security.secret_options import check_secret
from socketspec.telemetry.counters import Histogram

__all__ = ("NAMES", "SocketSpecCollector", "mount_metrics")

NAMES: Final[Mapping[str, str]] = {
    "socketspec_connections": "Open connections of this node.",
    "socketspec_max_connections": "Connections that this process may have, of all apps; with `socketspec serve`.",
    "socketspec_full_refused_total": "Connections refused because this process had all that it may have.",
    "socketspec_address_refused_total": "Connections refused because their address had all that it may have.",
    "socketspec_made_room_total": "Connections without a request that were closed to make room.",
    "socketspec_connections_opened_total": "Connections whose handshake was accepted.",
    "socketspec_connections_closed_total": "Connections that ended, by reason.",
    "socketspec_handshakes_refused_total": "Handshakes refused, by HTTP status.",
    "socketspec_auth_failures_total": "Connections closed because their credentials were missing or refused.",
    "socketspec_rooms": "Rooms with a member on this node.",
    "socketspec_joins_total": "Rooms joined by connections of this node.",
    "socketspec_leaves_total": "Rooms left by connections of this node.",
    "socketspec_events_received_total": "Messages from clients, by event and outcome.",
    "socketspec_recoveries_total": "Rooms that clients resumed, by outcome: recovered, or the reason why not.",
    "socketspec_handler_seconds": "How long handlers took, their dependencies and middleware included.",
    "socketspec_broadcasts_total": "Messages published by this node's own code.",
    "socketspec_messages_sent_total": "Messages written to connections or queued for them.",
    "socketspec_fanout_recipients": "Members of this node that a published message went to.",
    "socketspec_fanout_seconds": "How long writing to a topic's members took, a slice at a time.",
    "socketspec_received_bytes_total": "Bytes of messages from clients.",
    "socketspec_sent_bytes_total": "Bytes of messages to clients.",
    "socketspec_buffered_bytes": "Bytes that wait because clients do not take them.",
    "socketspec_waiting_bytes": "Bytes that wait in the buffers of all connections, what waits for several once.",
    "socketspec_max_waiting_bytes": "Bytes that may: `max_node_buffer`.",
    "socketspec_shed_total": "Connections closed as slow because too much waited for all of them together.",
    "socketspec_slow_consumers_total": "Connections closed because they read too slowly.",
    "socketspec_messages_dropped_total": "Messages dropped by a backpressure policy.",
    "socketspec_rate_limited_total": "Messages refused by the rate limit.",
    "socketspec_draining": "1 while connections are being let go.",
    "socketspec_backend_ready": "1 while this node hears what is published, measured.",
    "socketspec_backend_seconds": "How long requests to the backend took.",
    "socketspec_backend_failures_total": "Requests to the backend that failed.",
    "socketspec_backend_waiting_bytes": "Bytes of requests that wait to be sent to the backend.",
    "socketspec_publish_lag_seconds": "From publishing to hearing it on this node, measured by probes.",
    "socketspec_resubscribed_total": "Subscriptions that were lost and had to be made again.",
    "socketspec_frames_unreadable_total": "Messages of nodes and publishers that were dropped unread, by reason.",
    "socketspec_unreadable_values_total": "Values in the backend that were passed over unread, by kind.",
    "socketspec_node_info": "The node's name among the nodes, and the version it runs.",
}
"""Every metric and what it means; ``_total`` marks counters. Histograms add ``_bucket``, ``_sum`` and ``_count``."""


class SocketSpecCollector(Collector):
    """Reads the figures of `engines` at each scrape; None: those of every engine in the process."""

    def __init__(self, engines: Sequence[Engine] | None = None) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client for each scrape."""
        engines = self._engines if self._engines is not None else _engines(everywhere())
        for name, read in _COUNTERS.items():
            yield _plain(CounterMetricFamily(name, NAMES[name], labels=["namespace"]), engines, read)
        for name, read in _GAUGES.items():
            yield _plain(GaugeMetricFamily(name, NAMES[name], labels=["namespace"]), engines, read)
        yield from _server()
        yield from _labelled(engines)
        yield from _histograms(engines)
        yield from _backends(engines)


def mount_metrics(app: Starlette | Router, path: str = "/metrics", *, token: str | None = None) -> None:
    """Serve the metrics of every `SocketApp` of the process, and of the process itself, at ``GET {path}``.

    With `token`, it has to be sent as ``Authorization: Bearer``. Raises `ConfigurationError` for a path that is taken
    and for an empty token.
    """
    check_secret("mount_metrics(token=…)", token, without="None shows the metrics to everybody.")
    router = app.router if isinstance(app, Starlette) else app
    if any(isinstance(route, Route) and route.path == path for route in router.routes):
        raise ConfigurationError(f"There is a route at {path!r} already; mount the metrics at another path.")
    secret = None if token is None else BearerSecret(token)

    async def metrics(request: Request) -> Response:
        if secret is not None and not secret.matches(token_of(request.headers.get("authorization", ""))):
            return PlainTextResponse("Send the token as Authorization: Bearer.\n", 401)
        body = await asyncio.to_thread(_render, _engines(running_engines()))
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    router.routes.append(Route(path, metrics, methods=["GET"], include_in_schema=False))


def _engines(found: Iterable[object]) -> list[Engine]:
    return [engine for engine in found if isinstance(engine, Engine)]


def _render(engines: Sequence[Engine]) -> bytes:
    collected = CollectorRegistry()
    ProcessCollector("", lambda: "self", "/proc", collected)
    PlatformCollector(collected)
    GCCollector(collected)
    collected.register(SocketSpecCollector(engines))
    return generate_latest(collected)


_COUNTERS: Final[Mapping[str, Callable[[Engine], float]]] = {
    "socketspec_connections_opened_total": lambda engine: engine.counters.opened,
    "socketspec_auth_failures_total": lambda engine: engine.counters.auth_failures,
    "socketspec_joins_total": lambda engine: engine.counters.joins,
    "socketspec_leaves_total": lambda engine: engine.counters.leaves,
    "socketspec_broadcasts_total": lambda engine: engine.counters.broadcasts,
    "socketspec_messages_sent_total": lambda engine: engine.counters.sent,
    "socketspec_received_bytes_total": lambda engine: engine.counters.received_bytes,
    "socketspec_sent_bytes_total": lambda engine: engine.counters.sent_bytes,
    "socketspec_slow_consumers_total": lambda engine: engine.counters.slow_consumers,
    "socketspec_shed_total": lambda engine: engine.waiting.closed,
    "socketspec_messages_dropped_total": lambda engine: engine.counters.dropped,
    "socketspec_rate_limited_total": lambda engine: engine.counters.rate_limited,
}
_GAUGES: Final[Mapping[str, Callable[[Engine], float]]] = {
    "socketspec_connections": lambda engine: len(engine.connections),
    "socketspec_rooms": lambda engine: sum(topic.kind == "room" for topic in engine.hub.topics),
    "socketspec_buffered_bytes": lambda engine: sum(
        conn.transport.buffered for conn in list(engine.connections.values())
    ),
    "socketspec_waiting_bytes": lambda engine: engine.waiting.size,
    "socketspec_max_waiting_bytes": lambda engine: engine.waiting.limit,
    "socketspec_draining": lambda engine: int(engine.stopping),
}


def _plain(
    family: CounterMetricFamily | GaugeMetricFamily, engines: Sequence[Engine], read: Callable[[Engine], float]
) -> Metric:
    """A metric that is one number of each engine."""
    for engine in engines:
        family.add_metric([engine.settings.namespace], read(engine))
    return family


def _server() -> Iterator[Metric]:
    """The figures of the server around the apps; no numbers where it is not ours."""
    most = GaugeMetricFamily("socketspec_max_connections", NAMES["socketspec_max_connections"], labels=[])
    refused, address_refused, made_room = (
        CounterMetricFamily(f"socketspec_{name}_total", NAMES[f"socketspec_{name}_total"], labels=[])
        for name in ("full_refused", "address_refused", "made_room")
    )
    found = gate()
    if found is not None:
        most.add_metric([], found.max_connections)
        refused.add_metric([], found.refused)
        address_refused.add_metric([], found.address_refused)
        made_room.add_metric([], found.dropped)
    yield from (most, refused, address_refused, made_room)


def _labelled(engines: Sequence[Engine]) -> Iterator[Metric]:
    def family(name: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, NAMES[name], labels=["namespace", *labels])

    closed = family("socketspec_connections_closed_total", "reason")
    refused = family("socketspec_handshakes_refused_total", "status")
    events = family("socketspec_events_received_total", "event", "outcome")
    recoveries = family("socketspec_recoveries_total", "outcome")
    for engine in engines:
        namespace = engine.settings.namespace
        for outcome, count in engine.counters.recoveries.copy().items():
            recoveries.add_metric([namespace, outcome], count)
        for reason, count in engine.counters.closed.copy().items():
            closed.add_metric([namespace, reason], count)
        for status, count in engine.counters.refused.copy().items():
            refused.add_metric([namespace, str(status)], count)
        for (event, outcome), count in engine.counters.events.copy().items():
            events.add_metric([namespace, event, outcome], count)
    yield from (closed, refused, events, recoveries)


def _histograms(engines: Sequence[Engine]) -> Iterator[Metric]:
    recipients = _histogram("socketspec_fanout_recipients", "namespace")
    seconds = _histogram("socketspec_fanout_seconds", "namespace")
    handlers = _histogram("socketspec_handler_seconds", "namespace", "event")
    for engine in engines:
        namespace = engine.settings.namespace
        _add(recipients, [namespace], engine.counters.fanout_recipients)
        _add(seconds, [namespace], engine.counters.fanout_seconds)
        for event, histogram in engine.counters.handler_seconds.copy().items():
            _add(handlers, [namespace, event], histogram)
    yield from (recipients, seconds, handlers)


def _backends(engines: Sequence[Engine]) -> Iterator[Metric]:
    """The figures of each backend, once: apps of the same URL share theirs."""
    backends = {id(engine.backend): engine.backend for engine in engines}.values()
    info = InfoMetricFamily("socketspec_node", NAMES["socketspec_node_info"], labels=["node"])
    ready = GaugeMetricFamily("socketspec_backend_ready", NAMES["socketspec_backend_ready"], labels=["node"])
    waiting = GaugeMetricFamily(
        "socketspec_backend_waiting_bytes", NAMES["socketspec_backend_waiting_bytes"], labels=["node"]
    )
    failures, resubscribed = (
        CounterMetricFamily(name, NAMES[name], labels=["node"])
        for name in ("socketspec_backend_failures_total", "socketspec_resubscribed_total")
    )
    frames, values = (
        CounterMetricFamily(name, NAMES[name], labels=["node", label])
        for name, label in (
            ("socketspec_frames_unreadable_total", "reason"),
            ("socketspec_unreadable_values_total", "kind"),
        )
    )
    seconds, lag = (_histogram(f"socketspec_{name}_seconds", "node") for name in ("backend", "publish_lag"))
    for backend in backends:
        node = [backend.node]
        info.add_metric(node, {"version": __version__})
        figures = backend.figures() if isinstance(backend, Measured) else _NOTHING
        ready.add_metric(node, int(figures.ready))
        waiting.add_metric(node, figures.waiting_bytes)
        failures.add_metric(node, figures.failures)
        resubscribed.add_metric(node, figures.restored)
        for reason, count in figures.unreadable_frames.items():
            frames.add_metric([*node, reason], count)
        orders = sum(engine.orders.unreadable for engine in engines if engine.backend is backend)
        for kind, count in {**figures.unreadable_values, "order": orders}.items():
            values.add_metric([*node, kind], count)
        _add(seconds, node, figures.seconds)
        _add(lag, node, figures.lag)
    yield from (info, ready, waiting, failures, resubscribed, frames, values, seconds, lag)


_NOTHING: Final = BackendFigures(True, 0, 0, Histogram(()), Histogram(()))
"""The figures of a backend within the process."""


def _histogram(name: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, NAMES[name], labels=labels)


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), list(histogram.counts), strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    family.add_metric(labels, buckets, histogram.sum)
