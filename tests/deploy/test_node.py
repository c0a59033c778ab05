"""The reference node: its settings, and the node itself as a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node_settings
import start
from node_settings import Settings, SettingsError, read
from socketspec.errors import ConfigurationError
from tests.support import Client, Server, client, fetch, free_port, jwt, refused, serving

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRET = "a-secret-of-more-than-thirty-two-bytes"

VALUES: Mapping[str, tuple[str, object]] = {
    "APP": ("shop.web:app", "shop.web:app"),
    "HOST": ("::", "::"),
    "PORT": ("80", 80),
    "WORKERS": ("4", 4),
    "BACKEND": ("redis://:hunter2@cache:6379/0", "redis://:hunter2@cache:6379/0"),
    "NAMESPACE": ("/shop", "/shop"),
    "PATH": ("/live", "/live"),
    "DRAIN_WINDOW": ("2.5", 2.5),
    "DRAIN_GRACE": ("0", 0.0),
    "ALLOWED_ORIGINS": ("https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
    "JWT_SECRET": ("hunter2", "hunter2"),
    "JWT_PUBLIC_KEY": ("-----BEGIN\\nEND-----", "-----BEGIN\nEND-----"),
    "JWKS_URL": ("https://issuer.example/jwks.json", "https://issuer.example/jwks.json"),
    "JWT_ALGORITHM": ("ES256", "ES256"),
    "JWT_AUDIENCE": ("shop", "shop"),
    "JWT_ISSUER": ("https://issuer.example", "https://issuer.example"),
    "API_KEYS": ("hunter2,padded===ada", (("hunter2", None), ("padded==", "ada"))),
    "ANONYMOUS": ("YES", True),
    "RATE": ("0.5", 0.5),
    "BURST": ("7", 7),
    "MAX_PAYLOAD_SIZE": ("1024", 1024),
    "MAX_NODE_BUFFER": ("2000000", 2_000_000),
    "MAX_CONNECTIONS_PER_USER": ("3", 3),
    "MAX_CONNECTIONS": ("4000", 4000),
    "MAX_CONNECTIONS_PER_ADDRESS": ("50", 50),
    "ACCEPTS_PER_SECOND": ("200", 200),
    "DOCS_TOKEN": ("hunter2", "hunter2"),
    "METRICS": ("off", False),
    "METRICS_TOKEN": ("hunter2", "hunter2"),
    "LOG_LEVEL": ("WARNING", "warning"),
    "LOG_FORMAT": ("json", "json"),
    "FORWARDED_ALLOW_IPS": ("10.0.0.0/8", "10.0.0.0/8"),
    "ROOT_PATH": ("/chat", "/chat"),
}
NEEDS = {"JWT_ALGORITHM": "JWT_PUBLIC_KEY", "JWT_AUDIENCE": "JWT_SECRET", "JWT_ISSUER": "JWKS_URL"}
"""Variables that make no sense without another one."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SOCKETSPEC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, _clean: None) -> ModuleType:
    """The module, imported as an anonymous node would."""
    monkeypatch.setenv("SOCKETSPEC_ANONYMOUS", "true")
    import node

    return node


def variables(**values: str) -> dict[str, str]:
    return {f"SOCKETSPEC_{name}": value for name, value in values.items()}


def problems(**values: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(variables(**values))
    return caught.value.problems


# Settings


def test_without_variables_everything_has_its_default() -> None:
    assert read({"PATH": "/bin", "OTEL_SERVICE_NAME": "chat"}) == Settings()


@pytest.mark.parametrize("name", [one.name.upper() for one in fields(Settings)])
def test_every_variable_is_read(name: str) -> None:
    text, value = VALUES[name]
    given = {name: text} | {other: VALUES[other][0] for other in (NEEDS.get(name),) if other}
    assert getattr(read(variables(**given)), name.lower()) == value
    assert getattr(Settings(), name.lower()) != value
    if name != "METRICS_TOKEN":
        assert read(variables(**{name: "  "})) == Settings(), "set to nothing is not set"


@pytest.mark.parametrize("token", ["", "  "])
def test_a_metrics_token_that_is_empty_does_not_open_the_metrics(token: str) -> None:
    (problem,) = problems(METRICS_TOKEN=token)
    assert problem.startswith("SOCKETSPEC_METRICS_TOKEN is empty")


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("APP", "main", "module:attribute"),
        ("PORT", "0", "from 1 to 65535"),
        ("PORT", "eighty", "from 1 to 65535"),
        ("PORT", "tcp://10.0.0.1:8000", "enableServiceLinks: false"),
        ("WORKERS", "-1", "from 1 to 1024"),
        ("PATH", "ws", "begins with /"),
        ("ROOT_PATH", "/a b", "begins with /"),
        ("DRAIN_WINDOW", "10s", "less than 86400"),
        ("DRAIN_GRACE", "nan", "less than 86400"),
        ("RATE", "-1", "0 or more"),
        ("BURST", "0", "from 1"),
        ("METRICS", "maybe", "true or false"),
        ("LOG_LEVEL", "loud", "critical, error, warning, info, debug"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("API_KEYS", "abc=", "needs a user"),
        ("API_KEYS", "=ada", "key=user"),
        ("API_KEYS", "a=ada,a=bob", "twice"),
    ],
)
def test_a_value_that_cannot_be_used_says_what_to_write(name: str, text: str, advice: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"SOCKETSPEC_{name}=")
    assert advice in problem


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PROT", "Did you mean SOCKETSPEC_PORT?"),
        ("ALLOWED_ORIGIN", "Did you mean SOCKETSPEC_ALLOWED_ORIGINS?"),
        ("REDIS_URL", "There are SOCKETSPEC_APP, SOCKETSPEC_HOST,"),
        ("SERVICE_HOST", "enableServiceLinks: false"),
        ("VALKEY_PORT_6379_TCP", "enableServiceLinks: false"),
    ],
)
def test_a_variable_that_does_not_exist_is_refused_with_a_hint(name: str, hint: str) -> None:
    (problem,) = problems(**{name: "1"})
    assert problem.startswith(f"SOCKETSPEC_{name} is no variable")
    assert hint in problem


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert len(problems(PORT="x", WORKERS="x", PROT="x", JWT_ISSUER="x")) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"JWT_SECRET": "s", "JWKS_URL": "u"},
        {"JWT_PUBLIC_KEY": "k", "JWT_SECRET": "s"},
        {"JWT_AUDIENCE": "shop"},
        {"ANONYMOUS": "true", "JWT_SECRET": "s"},
        {"ANONYMOUS": "true", "API_KEYS": "k"},
        {"RATE": "0", "BURST": "3"},
    ],
)
def test_variables_that_contradict_each_other_are_refused_by_name(given: dict[str, str]) -> None:
    (problem,) = problems(**given)
    assert all(f"SOCKETSPEC_{name}" in problem for name in given)


def test_no_secret_is_shown_nor_in_the_repr_nor_in_a_complaint() -> None:
    secret = {one.name.upper() for one in fields(Settings) if one.metadata["secret"]}
    assert secret == {name for name, (text, _) in VALUES.items() if "hunter2" in text}
    assert {"BACKEND", "JWT_SECRET", "API_KEYS", "DOCS_TOKEN", "METRICS_TOKEN"} == secret
    settings = read(variables(**{name: VALUES[name][0] for name in secret}))
    shown = settings.shown()
    assert "hunter2" not in f"{shown}{settings!r}"
    assert shown["SOCKETSPEC_BACKEND"] == "redis://***@cache:6379/0"
    assert {shown[f"SOCKETSPEC_{name}"] for name in secret - {"BACKEND"}} == {"***"}
    assert "hunter2" not in str(problems(API_KEYS="hunter2,hunter2"))


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1).map("pa55".__add__))
def test_a_backends_password_is_never_shown(password: str) -> None:
    for url in (
        f"redis://:{password}@cache:6379/0",
        f"rediss+sentinel://ada:{password}@h1,h2/main?sentinel_password={password.replace('&', '')}",
        f"redis://cache/0?password={password.replace('&', '')}",
        f"{password}@cache",
    ):
        assert "pa55" not in read(variables(BACKEND=url)).shown()["SOCKETSPEC_BACKEND"]


def test_what_is_not_secret_is_shown_as_it_would_be_written() -> None:
    visible = {name: text for name, (text, _) in VALUES.items() if name in ("APP", "PORT", "DRAIN_WINDOW", "PATH")}
    shown = read(variables(**visible)).shown()
    assert {name: shown[f"SOCKETSPEC_{name}"] for name in visible} == visible
    assert shown["SOCKETSPEC_METRICS"] == "true"
    assert shown["SOCKETSPEC_BACKEND"] == ""
    long = read(variables(JWT_PUBLIC_KEY="-----BEGIN\n" + "x" * 500)).shown()["SOCKETSPEC_JWT_PUBLIC_KEY"]
    assert "\n" not in long
    assert len(long) < 120


def test_the_documentation_has_the_table_of_variables() -> None:
    assert node_settings.table() in (DEPLOY.parent / "docs" / "deploy" / "image.md").read_text(encoding="utf-8")


def test_the_chart_sets_only_variables_that_exist() -> None:
    named = {
        name
        for path in (ROOT / "helm").rglob("*")
        if path.suffix in (".tpl", ".yaml", ".py", ".md")
        for name in re.findall(r"SOCKETSPEC_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    }
    known = set(Settings().shown())
    assert named <= known, named - known


# What the node makes of its settings


def test_limits_and_rooms_are_those_of_the_settings(node: ModuleType) -> None:
    given = variables(ANONYMOUS="true", RATE="2", MAX_PAYLOAD_SIZE="99", MAX_CONNECTIONS_PER_USER="3", NAMESPACE="/n")
    made = node.make_socket(read(given)).settings
    assert (made.rate_limit.rate, made.rate_limit.capacity) == (2, 6)
    assert (made.max_payload_size, made.max_connections_per_user, made.namespace) == (99, 3, "/n")
    assert node.make_socket(read(variables(ANONYMOUS="true", RATE="0"))).settings.rate_limit is None
    assert node.make_socket(read(variables(ANONYMOUS="true", BURST="5"))).settings.rate_limit.capacity == 5


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({}, "SOCKETSPEC_ANONYMOUS=true"),
        ({"ANONYMOUS": "true", "WORKERS": "2"}, "SOCKETSPEC_BACKEND"),
        ({"ANONYMOUS": "true", "WORKERS": "2", "BACKEND": "redis://cache"}, "SOCKETSPEC_METRICS=false"),
    ],
)
def test_a_node_that_could_not_work_says_why(node: ModuleType, given: dict[str, str], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(advice)):
        node.make_socket(read(variables(**given)))


def test_the_settings_become_arguments_of_socketspec_serve() -> None:
    assert start.arguments(read(variables(APP="main:app", PORT="80", LOG_FORMAT="json")), ["--deflate"]) == [
        "serve",
        "main:app",
        "--host=0.0.0.0",
        "--port=80",
        "--workers=1",
        "--drain-window=10.0",
        "--drain-grace=10.0",
        "--log-level=info",
        "--log-format=json",
        "--deflate",
    ]
    more = start.arguments(read(variables(ROOT_PATH="/chat/", FORWARDED_ALLOW_IPS="*")))
    assert more[-2:] == ["--root-path=/chat", "--forwarded-allow-ips=*"]


# The node as a process


@contextmanager
def running(
    folder: Path, given: Mapping[str, str] | None = None, *, with_serve: bool = False, **values: str
) -> Iterator[Server]:
    """A node: as the image starts it, or by ``socketspec serve node:app``."""
    port = free_port()
    command = ["start"]
    if with_serve:
        command = ["socketspec.cli.main", "serve", "node:app", "--port", str(port)]
    environment = variables(
        **{"HOST": "127.0.0.1", "PORT": str(port), "DRAIN_WINDOW": "0.2", **(given or {}), **values}
    )
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{DEPLOY}"
    with serving(server := Server(folder, {}, command, port, environment)):
        yield server


async def until(someone: Client, event: str, **payload: object) -> Any:
    """The payload of the next `event` that has these values."""
    async with asyncio.timeout(5):
        while True:
            message = await someone.receive()
            if message["event"] == event and payload.items() <= message["payload"].items():
                return message["payload"]


async def enter(someone: Client, room: str = "lobby") -> Any:
    await someone.send("join", {"room": room}, id="join")
    return await until(someone, "__ack__")


@pytest.mark.parametrize("with_serve", [False, True])
async def test_guests_talk_to_each_other_and_everything_else_is_there(tmp_path: Path, with_serve: bool) -> None:
    with running(tmp_path, with_serve=with_serve, ANONYMOUS="true") as server:
        async with client(server.url("/ws?name=Ada")) as ada, client(server.url("/ws")) as nameless:
            assert (await enter(ada))["history"] == []
            await enter(nameless)
            assert "Ada" in (await until(ada, "presence", count=2))["names"]
            await nameless.send("typing", {"room": "lobby"})
            assert (await until(ada, "typing"))["name"].startswith("guest ")
            await ada.send("say", {"room": "lobby", "text": " hello "})
            for someone in (ada, nameless):
                said = await until(someone, "message")
                assert (said["name"], said["text"]) == ("Ada", "hello")
            assert [kept["message"]["text"] for kept in (await enter(nameless))["history"]] == ["hello"]
            await ada.send("say", {"room": "elsewhere", "text": "hello"})
            assert (await until(ada, "__error__"))["code"] == "PERMISSION_ERROR"
            metrics = (await fetch(server, "/metrics")).text
            assert 'socketspec_connections{namespace="/"} 2.0' in metrics
        assert (await fetch(server, "/socket-health")).json()["ready"] is True
        assert "<title>" in (await fetch(server, "/")).text
        assert (await fetch(server, "/page.js")).status == 200
        assert (await fetch(server, "/page.py")).status == 404
        assert (await fetch(server, "/socket-docs")).status == 404
        assert "SOCKETSPEC_ANONYMOUS=true\n" in server.log
        assert ("SOCKETSPEC_PORT=" in server.log) is not with_serve, "only what is true is printed"


@pytest.mark.parametrize("command", [["start"], ["socketspec.cli.main", "serve", "node:app", "--port", "0"]])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "socketspec: Nobody could connect, as nothing says who may."),
        ({"PROT": "80"}, "socketspec: SOCKETSPEC_PROT is no variable of a node. Did you mean SOCKETSPEC_PORT?"),
        ({"JWKS_URL": "http://issuer.example"}, "socketspec: JWTAuth: jwks_url is http"),
        ({"ANONYMOUS": "true", "ALLOWED_ORIGINS": "example.com"}, "socketspec: allowed_origins: 'example.com'"),
        ({"ANONYMOUS": "true", "BACKEND": "rides://cache"}, "socketspec: No backend is installed for 'rides'"),
    ],
)
def test_it_refuses_to_start_with_a_sentence_and_no_traceback(
    command: list[str], given: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    environment = {**os.environ, **variables(**given), "PYTHONPATH": f"{ROOT}{os.pathsep}{DEPLOY}"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def rejected(url: str, **headers: str) -> int:
    """The code with which a client is sent away."""
    async with client(url, headers=headers) as someone:
        await until(someone, "__error__")
        return (await someone.closed())[0]


async def test_tokens_and_keys_let_in_and_nothing_secret_is_printed(tmp_path: Path) -> None:
    keys = "first-key=bob,second-key"
    given = {"JWT_SECRET": SECRET, "JWT_ISSUER": "us", "API_KEYS": keys, "MAX_CONNECTIONS_PER_USER": "9"}
    with running(tmp_path, given) as server:
        token = jwt(SECRET, sub="ada", iss="us")
        for headers, name in (
            ({"Authorization": f"Bearer {token}"}, "ada"),
            ({"X-API-Key": "first-key"}, "bob"),
            ({"X-API-Key": "second-key"}, "key:"),
        ):
            async with client(server.url("/ws"), headers=headers) as someone:
                await enter(someone)
                await someone.send("say", {"room": "lobby", "text": "me"})
                assert (await until(someone, "message"))["name"].startswith(name)
        assert await rejected(server.url("/ws")) == 4001
        assert await rejected(server.url("/ws"), authorization=f"Bearer {jwt(SECRET, iss='them')}") == 4001
        assert (await fetch(server, "/")).status == 404, "the demo's page is for guests"
        for secret in (SECRET, token, "first-key", "second-key"):
            assert secret not in server.log
        assert "SOCKETSPEC_JWT_SECRET=***\n" in server.log


async def test_pages_with_tokens_and_origins(tmp_path: Path) -> None:
    given = {
        "ANONYMOUS": "true",
        "METRICS_TOKEN": "m-token",
        "DOCS_TOKEN": "d-token",
        "PATH": "/live",
        "ALLOWED_ORIGINS": "https://shop.example",
    }
    with running(tmp_path, given) as server:
        assert (await fetch(server, "/metrics")).status == 401
        assert (await fetch(server, "/metrics", {"Authorization": "Bearer m-token"})).status == 200
        assert (await fetch(server, "/socket-docs")).status == 401
        assert (await fetch(server, "/socket-docs?token=d-token")).status == 200
        async with client(server.url("/live"), origin="https://shop.example") as someone:
            await enter(someone)
        assert await refused(server.url("/live"), origin="https://other.example") == 403
        assert await refused(server.url("/ws")) in (403, 404)


async def test_without_origins_no_page_may_connect_and_metrics_can_be_off(tmp_path: Path) -> None:
    with running(tmp_path, ANONYMOUS="true", METRICS="false") as server:
        assert await refused(server.url("/ws"), origin="https://shop.example") == 403
        assert await refused(server.url("/ws"), origin="null") == 403
        assert (await fetch(server, "/metrics")).status == 404


async def test_sigterm_drains_and_the_log_is_json_if_wanted(tmp_path: Path) -> None:
    given = {"ANONYMOUS": "true", "LOG_FORMAT": "json", "DRAIN_WINDOW": "1"}
    with running(tmp_path, given) as server:
        async with client(server.url("/ws?name=Ada")) as ada:
            await enter(ada)
            server.process.send_signal(signal.SIGTERM)
            await server.logged("Draining: 1 connections")
            assert (await until(ada, "__server_shutdown__"))["reconnect_in"] > 0
            assert (await ada.closed())[0] == 1012
        assert await asyncio.to_thread(server.process.wait, 15) == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert lines[0]["settings"]["SOCKETSPEC_LOG_FORMAT"] == "json"


async def test_the_log_is_json_where_the_command_says_so_from_the_first_line_on(tmp_path: Path) -> None:
    port = free_port()
    command = ["socketspec.cli.main", "serve", "node:app", "--port", str(port), "--log-format", "json"]
    environment = {**variables(JWT_SECRET="short"), "PYTHONPATH": f"{ROOT}:{DEPLOY}"}
    server = Server(tmp_path / "node", {}, command, port, environment)
    with serving(server):
        assert await rejected(server.url("/ws")) == 4001
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert any(line.get("settings", {}).get("SOCKETSPEC_JWT_SECRET") == "***" for line in lines)
    assert any("the secret has 5 bytes" in line["message"] for line in lines)


async def test_two_workers_share_the_port_and_a_backend(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    backend = request.getfixturevalue("standalone_server").url + "?prefix=two-workers"
    with running(tmp_path, ANONYMOUS="true", WORKERS="2", METRICS="false", BACKEND=backend) as server:
        await server.logged("(?s)Application startup complete.*Application startup complete", within=20)
        async with client(server.url("/ws")) as ada, client(server.url("/ws")) as bob:
            await enter(ada)
            await enter(bob)
            await ada.send("say", {"room": "lobby", "text": "hello"})
            assert (await until(bob, "message"))["text"] == "hello"
        assert server.log.count("SOCKETSPEC_WORKERS=2") == 1


async def test_an_app_of_ones_own_is_served_the_same_way(tmp_path: Path) -> None:
    source = (
        "from socketspec import SocketApp\nfrom socketspec.adapters.asgi import ASGIApp\napp = ASGIApp(SocketApp())\n"
    )
    (tmp_path / "mine.py").write_text(source)
    with running(tmp_path, APP="mine:app") as server:
        assert (await fetch(server, "/socket-health")).json()["ready"] is True
        assert "SOCKETSPEC_APP=mine:app\n" in server.log


def test_the_health_check_tells_a_node_that_answers_from_one_that_does_not(tmp_path: Path) -> None:
    with running(tmp_path, ANONYMOUS="true") as server:
        assert start.is_alive(variables(HOST="0.0.0.0", PORT=str(server.port)))
        port = str(server.port)
    assert not start.is_alive(variables(PORT=port))
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "start.py"), "health"], env={"SOCKETSPEC_PORT": port}, check=False, timeout=30
    )
    assert done.returncode == 1


async def test_traces_go_to_the_collector_that_opentelemetrys_variables_name(tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
                patch.setenv("OTEL_SERVICE_NAME", "a-chat")
                with running(tmp_path, ANONYMOUS="true") as server:
                    async with client(server.url("/ws")) as ada:
                        await enter(ada)
        finally:
            collector.shutdown()
            thread.join()
    assert {path for path, _ in received} == {"/v1/traces"}
    spans = b"".join(body for _, body in received)
    assert b"handle join" in spans
    assert b"a-chat" in spans
