"""The metrics of real nodes, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from prometheus_client.parser import text_string_to_metric_families

from socketspec.adapters.prometheus import NAMES
from socketspec.cluster.commands.keys import Keys
from socketspec.protocol.orders import control_topic
from socketspec.protocol.publications import Topic
from tests.servers import Server as Redis
from tests.support import Server, client, fetch, refused, serving

APP = """
import os

from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.adapters.prometheus import mount_metrics
from socketspec.errors import PermissionDenied
from socketspec.security.ratelimit import RateLimit

app = FastAPI()
shared = SocketApp(backend=os.environ["REDIS_URL"], allowed_origins=["https://ours.example"])
alone = SocketApp(namespace="/alone", health_url=None, rate_limit=RateLimit(rate=0.001, capacity=3), backend="memory")


@shared.on("join")
async def join(conn: Connection, payload: dict):
    await shared.rooms.join(conn, payload["room"])


@shared.on("say")
async def say(conn: Connection, payload: dict):
    await shared.rooms.broadcast(payload["room"], "said", payload)


@shared.on("fail")
async def fail(conn: Connection, payload: dict):
    if payload.get("how") == "refused":
        raise PermissionDenied("no")
    raise RuntimeError("broken on purpose")


@alone.on("hello")
async def hello(conn: Connection):
    return {}


mount(shared, app)
mount(alone, app, path="/alone")
mount_metrics(app)
mount_metrics(app, "/guarded", token="let me see")
"""


@pytest.fixture(scope="module")
def node(standalone_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("metrics")
    options = ("--ws", "socketspec.adapters.uvicorn:WebSocketProtocol")
    server = Server.start(folder, APP, options=options, environment={"REDIS_URL": standalone_server.url})
    with serving(server, expected=["RuntimeError: broken on purpose"]):
        yield server


class Scrape:
    """One reading of all metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((f"socketspec_{name}", frozenset(labels.items())), 0.0)


async def scrape(node: Server) -> Scrape:
    answer = await fetch(node, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return Scrape(answer.text)


async def test_every_metric_is_there_and_documented(node: Server) -> None:
    found = {name for name in (await scrape(node)).families if name.startswith("socketspec_")}
    assert found == {name.removesuffix("_total") for name in NAMES}


async def test_connections_events_and_fanout_are_counted(node: Server) -> None:
    before = await scrape(node)
    async with client(node.url("/ws")) as ada, client(node.url("/ws")) as bob:
        for each in (ada, bob):
            await each.call("join", {"room": "counted"})
        await ada.send("say", {"room": "counted", "text": "x" * 100})
        for each in (ada, bob):
            assert (await each.receive())["event"] == "said"
        await ada.send("fail", {"how": "refused"})
        await ada.error()
        await ada.send("fail")
        await ada.error()
        await ada.send("nobody's")
        await ada.error()
        await ada.connection.send("nonsense")
        await ada.error()
        during = await scrape(node)

        def grown(name: str, **labels: str) -> float:
            return during(name, namespace="/", **labels) - before(name, namespace="/", **labels)

        assert grown("connections") == grown("connections_opened_total") == 2
        assert grown("joins_total") == 2
        assert grown("rooms") == 1
        for event, outcome in (
            ("join", "ok"),
            ("say", "ok"),
            ("fail", "refused"),
            ("fail", "error"),
            ("unknown", "unknown"),
            ("unknown", "malformed"),
        ):
            assert grown("events_received_total", event=event, outcome=outcome) == (2 if event == "join" else 1)
        assert grown("handler_seconds_count", event="say") == 1
        assert grown("broadcasts_total") == 1
        assert grown("fanout_recipients_sum") == 2
        assert grown("messages_sent_total") >= 2 + 2 + 4
        assert grown("sent_bytes_total") > 200
        assert grown("received_bytes_total") > 100
        assert during("draining", namespace="/") == 0
    await until_async(node, "connections", before("connections", namespace="/"))
    after = await scrape(node)
    assert after("connections_closed_total", namespace="/", reason="client_closed") >= 2
    assert after("leaves_total", namespace="/") - before("leaves_total", namespace="/") == 2


async def until_async(node: Server, name: str, value: float) -> None:
    found: list[float] = []

    async def look() -> None:
        found.append((await scrape(node))(name, namespace="/"))

    for _ in range(100):
        await look()
        if found[-1] == value:
            return
    raise AssertionError(f"{name} stays {found[-1]}, not {value}")


async def test_what_became_of_resumed_rooms_is_counted(node: Server) -> None:
    async with client(node.url("/ws"), subprotocols=["socketspec.v1.json"]) as ada:
        await ada.receive()
        rooms = {"log": {"offset": 0, "epoch": "none", "tag": ""}, "plain": {"offset": 3, "epoch": "x", "tag": "y"}}
        await ada.send("__resume__", {"rooms": rooms})
        answer = (await ada.receive())["payload"]["rooms"]
        assert [answer[room]["recovered"] for room in rooms] == [False, False]
        reasons = [answer[room]["reason"] for room in rooms]
    now = await scrape(node)
    assert sum(now("recoveries_total", namespace="/", outcome=reason) for reason in set(reasons)) == 2


async def test_refusals_and_limits_are_counted(node: Server) -> None:
    assert await refused(node.url("/ws"), origin="https://theirs.example") == 403
    async with client(node.url("/alone")) as ada:
        for _ in range(5):
            await ada.send("hello", id=1)
        replies = [await ada.receive() for _ in range(5)]
        assert sorted(reply["event"] for reply in replies) == ["__ack__"] * 3 + ["__error__"] * 2
    now = await scrape(node)
    assert now("handshakes_refused_total", namespace="/", status="403") == 1
    assert now("rate_limited_total", namespace="/alone") == 2


async def test_the_backend_measures_itself(node: Server) -> None:
    name = (await fetch(node, "/socket-health")).json()["node"]
    last: list[Scrape] = []

    async def lagged() -> None:
        last.append(await scrape(node))

    await lagged()
    while not last[-1]("publish_lag_seconds_count", node=name):  # a probe every 1.5 s
        await lagged()
    now = last[-1]
    assert now("backend_ready", node=name) == 1
    assert now("backend_seconds_count", node=name) > 0
    assert 0 < now("publish_lag_seconds_sum", node=name) < 5
    info = [labels for (metric, labels) in now.samples if metric == "socketspec_node_info"]
    assert {dict(labels)["node"] for labels in info} >= {name}


async def test_what_cannot_be_read_is_counted(node: Server, standalone_server: Redis) -> None:
    name = (await fetch(node, "/socket-health")).json()["node"]
    before = await scrape(node)
    for reason in ("version", "foreign"):  # counted from the first scrape on, so that an increase can be seen
        sample = "socketspec_frames_unreadable_total", frozenset({"node": name, "reason": reason}.items())
        assert sample in before.samples
    keys = Keys()
    async with client(node.url("/ws")) as ada:
        await ada.call("join", {"room": "strange"})
        channel = keys.channel(Topic("/", "room", "strange"))
        for data in (b"\x07new", b"text"):
            standalone_server.ask("SPUBLISH", channel, data)
        standalone_server.ask("SPUBLISH", keys.channel(control_topic("/")), b"\x01" + msgpack.packb(["reboot", b"{}"]))
        await ada.send("say", {"room": "strange"})
        assert (await ada.receive())["event"] == "said"
        now = await scrape(node)
    for metric, label, value in (
        ("frames_unreadable_total", "reason", "version"),
        ("frames_unreadable_total", "reason", "foreign"),
        ("unreadable_values_total", "kind", "order"),
    ):
        labels = {"node": name, label: value}
        assert now(metric, **labels) == before(metric, **labels) + 1


async def test_a_token_keeps_strangers_out(node: Server) -> None:
    assert (await fetch(node, "/guarded")).status == 401
    assert (await fetch(node, "/guarded", {"Authorization": "Bearer guess"})).status == 401
    assert (await fetch(node, "/guarded", {"Authorization": "Bearer let me see"})).status == 200
