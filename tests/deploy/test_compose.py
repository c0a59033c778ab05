"""The compose file: what it says fits together, and its nodes, Valkey and nginx run as plain processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from node_settings import Settings, read
from tests.support import Client, Server, client, free_port, refused, serving

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NODES = [name for name, service in SERVICES.items() if "build" in service]
NGINX = (DEPLOY / "compose" / "nginx.conf").read_text(encoding="utf-8")
PROMETHEUS = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))


def substituted(text: str) -> str:
    """`text` as Compose reads it where nothing is set: with the defaults of ``${NAME:-default}``."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def environment(node: str) -> dict[str, str]:
    """A node's variables."""
    given: dict[str, str] = SERVICES[node]["environment"]
    assert all(isinstance(value, str) for value in given.values()), "Compose wants text: quote it"
    return {name: substituted(value) for name, value in given.items()}


def settings(node: str) -> Settings:
    """A node's settings. Raises what the node itself would refuse to start with."""
    return read(environment(node))


# What it says


def test_there_are_three_nodes_that_differ_in_nothing() -> None:
    assert NODES == ["node1", "node2", "node3"]
    assert SERVICES["node1"] == SERVICES["node2"] == SERVICES["node3"]
    assert settings("node1").anonymous
    assert settings("node1").log_format == "json"


def test_the_image_is_built_from_the_repository() -> None:
    build = SERVICES["node1"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_a_node_has_the_time_to_drain() -> None:
    one = settings("node1")
    grace = int(SERVICES["node1"]["stop_grace_period"].removesuffix("s"))
    assert grace == one.drain_window + 2 * one.drain_grace + 10


def test_the_nodes_share_the_valkey_that_waits_until_it_answers() -> None:
    backend = settings("node1").backend
    found = re.fullmatch(r"redis://(\w+):6379/0", backend)
    assert found is not None
    assert found[1] in SERVICES
    assert SERVICES["node1"]["depends_on"] == {found[1]: {"condition": "service_healthy"}}
    assert "healthcheck" in SERVICES[found[1]]
    assert "noeviction" in SERVICES[found[1]]["command"]


def test_what_services_depend_on_exists_and_has_a_health_check_where_that_is_waited_for() -> None:
    for name, service in SERVICES.items():
        wanted = service.get("depends_on", [])
        assert set(wanted) <= set(SERVICES), name
        for other in wanted if isinstance(wanted, dict) else ():
            assert "healthcheck" in SERVICES[other] or other in NODES, "the image has one"


def test_every_file_that_is_mounted_exists_and_every_volume_is_declared() -> None:
    used = set()
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert target.startswith("/"), volume
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), f"{name} mounts {source}"
                assert mode == ["ro"], volume
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_what_is_in_a_folder_of_a_volume_is_not_hidden_by_it() -> None:
    for name, service in SERVICES.items():
        targets = [volume.split(":")[1] for volume in service.get("volumes", [])]
        hidden = [(a, b) for a in targets for b in targets if a != b and a.startswith(f"{b}/")]
        assert not hidden, name


def test_ports_are_open_to_this_machine_alone_and_each_once() -> None:
    ports = [substituted(port) for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 3
    assert not [name for name in (*NODES, "valkey") if "ports" in SERVICES[name]]


@pytest.mark.parametrize("name", list(SERVICES))
def test_every_service_runs_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name not in NODES:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-\w+)?", service["image"]), "a version, not latest"


def test_the_proxy_has_every_node_and_listens_where_its_port_is() -> None:
    assert re.findall(r"server (\w+):(\d+)", NGINX) == [(node, str(settings(node).port)) for node in NODES]
    (port,) = SERVICES["proxy"]["ports"]
    assert re.findall(r"listen (\d+)", NGINX) == [substituted(port).split(":")[2]]
    assert set(SERVICES["proxy"]["depends_on"]) == set(NODES)


def test_pages_of_the_published_port_may_connect_and_no_others() -> None:
    (port,) = SERVICES["proxy"]["ports"]
    published = substituted(port).split(":")[1]
    assert settings("node1").allowed_origins == (f"http://localhost:{published}", f"http://127.0.0.1:{published}")


def test_prometheus_asks_every_node_and_knows_the_alerts() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{node}:{settings(node).port}" for node in NODES]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert settings("node1").metrics
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert {*PROMETHEUS["rule_files"], "/etc/prometheus/prometheus.yml"} <= mounted
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    (source,) = yaml.safe_load((DEPLOY / "compose" / "grafana-datasource.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "compose" / "grafana-dashboards.yaml").read_text())["providers"]
    assert (source["url"], source["type"]) == ("http://prometheus:9090", "prometheus")
    dashboard = mounted["./grafana/dashboard.json"]
    assert Path(dashboard).parent.as_posix() == provider["options"]["path"]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    variables = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["templating"]["list"]
    assert ("datasource", "prometheus") in [(one["type"], one["query"]) for one in variables]


# The same as processes


class Topology(NamedTuple):
    """What runs."""

    port: int
    """The proxy's."""
    nodes: tuple[Server, ...]
    log: Path
    """nginx's."""

    def url(self, path: str = "/ws") -> str:
        """Through the proxy."""
        return f"ws://127.0.0.1:{self.port}{path}"


def _node(folder: Path, name: str, backend: str) -> Server:
    port = free_port()
    given = environment(name) | {
        "SOCKETSPEC_HOST": "127.0.0.1",
        "SOCKETSPEC_PORT": str(port),
        "SOCKETSPEC_BACKEND": backend,
        "SOCKETSPEC_DRAIN_WINDOW": "0.5",
        "SOCKETSPEC_FORWARDED_ALLOW_IPS": "127.0.0.1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{DEPLOY}",
    }
    return Server(folder / name, {}, ["start"], port, given)


@contextmanager
def _proxy(folder: Path, nodes: tuple[Server, ...]) -> Iterator[int]:
    """nginx with the file that is mounted, but for what is of the container: names of hosts, the port, the paths."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if nginx is None:
        pytest.skip("nginx: scripts/tools")
    port = free_port()
    config = NGINX.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{folder}/")  # noqa: S108
    for name, node in zip(NODES, nodes, strict=True):
        config = config.replace(f"server {name}:8000", f"server 127.0.0.1:{node.port}")
    config = config.replace("/dev/stderr", f"{folder}/nginx.log").replace("/dev/stdout", f"{folder}/nginx.log")
    config = re.sub(r"worker_rlimit_nofile .*|worker_processes .*", "", config)  # of a container, not of this machine
    (folder / "nginx.conf").write_text(config)
    command = [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-g", "daemon off;"]
    with (folder / "nginx.out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait_for_port(process, port, folder)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _wait_for_port(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nginx does not listen:\n{(folder / 'nginx.out').read_text()}")


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Topology]:
    """Three nodes, a Valkey, and nginx before them."""
    folder = tmp_path_factory.mktemp("compose")
    backend = f"{request.getfixturevalue('standalone_server').url}?prefix=compose"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SOCKETSPEC_")]:
            patch.delenv(name)
        nodes = tuple(_node(folder, name, backend) for name in NODES)
    with serving(*nodes), _proxy(folder, nodes) as port:
        yield Topology(port, nodes, folder / "nginx.log")


async def until(someone: Client, event: str) -> Any:
    """The payload of the next `event`."""
    async with asyncio.timeout(10):
        while True:
            message = await someone.receive(10)
            if message["event"] == event:
                return message["payload"]


async def enter(someone: Client, room: str) -> str:
    """Join a room; the name of the node that it happened on."""
    node: str = (await until(someone, "__connect__"))["node"]
    await someone.send("join", {"room": room}, id=1)
    await until(someone, "__ack__")
    return node


JSON = ["socketspec.v1.json"]


async def test_people_on_all_three_nodes_talk_through_the_proxy(topology: Topology) -> None:
    origin = settings("node1").allowed_origins[0]
    people = [
        client(topology.url(f"/ws?name=guest{n}&token=t0k3n"), subprotocols=JSON, origin=origin) for n in range(6)
    ]
    async with people[0] as a, people[1] as b, people[2] as c, people[3] as d, people[4] as e, people[5] as f:
        everybody = [a, b, c, d, e, f]
        nodes = [await enter(someone, "lobby") for someone in everybody]
        assert len(set(nodes)) == 3, "the proxy spreads them"
        await a.send("say", {"room": "lobby", "text": "hello"})
        for someone in everybody:
            assert await until(someone, "message") == {"room": "lobby", "name": "guest0", "text": "hello"} | {
                "at": pytest.approx(time.time(), abs=60)
            }
    log = topology.log.read_text()
    assert '"GET /ws" 101' in log
    assert "t0k3n" not in log
    assert not [node for node in topology.nodes if "t0k3n" in node.log]


async def test_large_messages_pages_and_origins_pass_and_metrics_do_not(topology: Topology) -> None:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{topology.port}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    async with client(topology.url(), subprotocols=JSON) as someone:
        await enter(someone, "large")
        await someone.send("say", {"room": "large", "text": "x" * 60_000})
        assert len((await until(someone, "message"))["text"]) == 60_000
    assert "<title>" in (await asyncio.to_thread(get, "/"))[1]
    assert json.loads((await asyncio.to_thread(get, "/socket-health"))[1])["ready"] is True
    assert (await asyncio.to_thread(get, "/metrics"))[0] == 404
    assert await refused(topology.url(), origin="https://other.example") == 403
    assert topology.nodes[0].get("/metrics").status == 200


async def test_a_node_that_stops_sends_its_people_to_the_others_through_the_proxy(topology: Topology) -> None:
    """The last test: it ends a node."""
    leaving = topology.nodes[0]
    name = leaving.get("/socket-health").json()["node"]
    async with asyncio.timeout(30):
        for _ in range(9):
            async with client(topology.url(), subprotocols=JSON) as someone:
                if await enter(someone, "moving") != name:
                    continue
                leaving.process.terminate()
                assert (await until(someone, "__server_shutdown__"))["reconnect_in"] >= 0
                # While it still drains and after: whoever comes is taken in by the others.
                for _ in range(6):
                    async with client(topology.url(), subprotocols=JSON) as other:
                        assert await enter(other, "moving") != name
            break
        else:
            raise AssertionError("the proxy never chose the node")
    assert await asyncio.to_thread(leaving.process.wait, 15) == 0
