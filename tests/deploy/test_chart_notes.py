"""NOTES.txt: what Helm says when it has installed the chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.charts import CHART, VALUES, Helm
from tests.deploy.test_chart import REDIS

ANONYMOUS = {"auth": {"anonymous": True}}
OPEN = "WARNING: /metrics is open to whoever reaches"


@pytest.fixture
def notes(helm4: Helm, tmp_path: Path) -> Any:
    """Renders them for a values file, or for values. Helm 4 needs no cluster for that, Helm 3 does."""

    def render(values: Path | dict[str, Any]) -> str:
        if isinstance(values, dict):
            path = tmp_path / "values.yaml"
            path.write_text(json.dumps(values), encoding="utf-8")
            values = path
        options = ("--namespace", "shop", "--dry-run=client", "--values", str(values))
        return helm4.run("install", "chat", str(CHART), *options).partition("\nNOTES:\n")[2]

    return render


@pytest.mark.parametrize("name", VALUES)
def test_they_begin_with_what_is_wrong_or_with_what_is_there(notes: Any, name: str) -> None:
    text: str = notes(VALUES[name])
    closed = name in ("defaults", "bare", "gateway", "keda")
    assert text.startswith("NOBODY CAN CONNECT YET" if closed else "socketspec ")
    assert ("helm test" in text) == (not closed), "nodes that do not start cannot be tried"
    assert "\n\n\n" not in text
    assert "<no value>" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "ws://" in text


def test_the_first_sentence_says_what_to_add(notes: Any) -> None:
    first, rest = notes({**REDIS}).split("\n\n", 1)
    for value in ("auth.jwt.jwksUrl", "auth.jwt.secret", "auth.jwt.publicKey", "auth.apiKeys", "existingSecret"):
        assert value in first
    assert "auth.anonymous=true" in first
    assert "helm upgrade chat <chart> --namespace shop --reuse-values --set auth.jwt.jwksUrl=" in first
    assert rest.startswith("socketspec ")


@pytest.mark.parametrize(
    "values",
    [
        {"app": "shop:app"},
        {"extraEnvFrom": [{"secretRef": {"name": "auth"}}]},
        {"auth": {"jwt": {"publicKey": "PEM"}}},
        {"existingSecret": {"name": "s", "keys": {"apiKeys": "k"}}},
    ],
    ids=str,
)
def test_where_somebody_may_connect_it_does_not_say_that_nobody_can(notes: Any, values: dict[str, Any]) -> None:
    assert "NOBODY" not in notes(values)


class TestWhereItIs:
    def test_an_ingress_says_each_of_its_hosts(self, notes: Any) -> None:
        hosts = {"enabled": True, "hosts": ["a.example", "b.example"]}
        assert "From outside: ws://a.example/ws\nFrom outside: ws://b.example/ws\n" in notes({"ingress": hosts})
        assert "From outside: wss://chat.example/ws\n" in notes(VALUES["production"])

    def test_a_route_says_its_host_or_that_it_is_the_gateways(self, notes: Any) -> None:
        assert "From outside: wss://chat.example/ws (ws:// where" in notes(VALUES["gateway"])
        route = {"enabled": True, "parentRefs": [{"name": "public"}]}
        assert "From outside: /ws at any host name of the Gateway's listeners\n" in notes({"route": route})

    @pytest.mark.parametrize(
        ("kind", "sentence"),
        [
            ("LoadBalancer", "From outside: ws://ADDRESS:81/ws"),
            ("NodePort", "From outside: ws://MACHINE:NODEPORT/ws"),
            ("ClusterIP", "kubectl port-forward service/chat-socketspec 8080:81 --namespace shop"),
        ],
    )
    def test_a_service_says_how_it_is_reached(self, notes: Any, kind: str, sentence: str) -> None:
        text: str = notes({"service": {"type": kind, "port": 81}})
        assert sentence in text
        assert ("port-forward" in text) == (kind == "ClusterIP")


class TestWhoMayConnect:
    def test_everybody_but_no_web_page_where_no_origin_is_allowed(self, notes: Any) -> None:
        text = notes(ANONYMOUS)
        assert "Everybody may connect (auth.anonymous), except for web pages" in text
        assert "--set 'config.allowedOrigins={http://localhost:8080}'" in text

    def test_everybody_and_the_pages_that_are_allowed(self, notes: Any) -> None:
        text = notes({**ANONYMOUS, "config": {"allowedOrigins": ["https://a.example"]}})
        assert "Everybody may connect (auth.anonymous), and so may pages of https://a.example.\n" in text


class TestMetrics:
    @pytest.mark.parametrize(
        ("values", "way"),
        [
            ({"service": {"type": "LoadBalancer"}}, "the LoadBalancer."),
            ({"service": {"type": "NodePort"}}, "the NodePort."),
            ({"ingress": {"enabled": True, "hosts": ["a.example"], "paths": ["/"]}}, "the Ingress."),
            ({"ingress": {"enabled": True, "hosts": ["a.example"], "paths": ["/ws", "/metrics/"]}}, "the Ingress."),
            ({"ingress": {"enabled": True, "hosts": ["a.example"]}, "config": {"path": "/"}}, "the Ingress."),
            ({"route": {"enabled": True, "parentRefs": [{"name": "a"}], "paths": ["/"]}}, "the HTTPRoute."),
        ],
        ids=str,
    )
    def test_they_warn_where_metrics_are_public(self, notes: Any, values: dict[str, Any], way: str) -> None:
        assert f"{OPEN} {way} Set metrics.token or existingSecret.keys.metricsToken.\n" in notes(values)
        for closed in (
            {"metrics": {"token": "t"}},
            {"metrics": {"enabled": False}},
            {"existingSecret": {"name": "s", "keys": {"metricsToken": "m"}}},
        ):
            assert OPEN not in notes({**values, **closed})

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"ingress": {"enabled": True, "hosts": ["a.example"], "paths": ["/ws", "/metricsx"]}},
            {"ingress": {"enabled": False, "paths": ["/"]}},
            {"route": {"enabled": True, "parentRefs": [{"name": "a"}]}},
        ],
        ids=str,
    )
    def test_they_do_not_where_only_the_cluster_reaches_them(self, notes: Any, values: dict[str, Any]) -> None:
        assert OPEN not in notes(values)


class TestOfHelmTest:
    CREDENTIAL = "test.tokenSecret.name"
    MESSAGES = "set test.join, test.publish and test.receive to events of shop:app."

    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            ({"auth": {"jwt": {"jwksUrl": "https://id.example/keys"}}}, True),
            ({"auth": {"jwt": {"publicKey": "PEM"}}}, True),
            ({"extraEnvFrom": [{"secretRef": {"name": "auth"}}]}, True),
            ({"auth": {"jwt": {"publicKey": "PEM"}}, "test": {"tokenSecret": {"name": "t"}}}, False),
            ({"auth": {"jwt": {"publicKey": "PEM"}, "apiKeys": ["k"]}}, False),
            ({"auth": {"jwt": {"secret": "s"}}}, False),
            ({"existingSecret": {"name": "s", "keys": {"jwtSecret": "k"}}}, False),
            (ANONYMOUS, False),
        ],
        ids=str,
    )
    def test_they_ask_for_a_token_where_the_pod_has_none(
        self, notes: Any, values: dict[str, Any], wanted: bool
    ) -> None:
        text = notes(values)
        assert "Try it: helm test chat --namespace shop --logs\n" in text
        assert (self.CREDENTIAL in text) == wanted
        assert self.MESSAGES not in text

    def test_they_ask_for_messages_where_the_app_is_another(self, notes: Any) -> None:
        values = {"app": "shop:app", **ANONYMOUS}
        assert self.MESSAGES in notes(values)
        assert self.MESSAGES not in notes({**values, "test": {"join": '{"event": "enter"}'}})

    def test_without_the_test_they_do_not_speak_of_it(self, notes: Any) -> None:
        assert "helm test" not in notes({**ANONYMOUS, "test": {"enabled": False}})
