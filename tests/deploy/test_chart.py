"""The chart as Helm 3 and Helm 4 render it, over a matrix of values."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest
import yaml

import node_settings
from socketspec import __version__
from tests.deploy.charts import CHART, VALUES, Helm, HelmError, chart_file
from tests.deploy.manifests import KUBERNETES, OPERATORS, problems, schema_problems, unique

EXTERNAL = {
    "production": {"registry", "chat-secrets", "chat-redis"},
    "own-app": {"database", "shop", "shop-modules"},
}
"""Secrets and ConfigMaps of the matrix that the user makes."""
REDIS = {"redis": {"url": "redis://redis:6379/0"}}


def only(documents: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    """The one document of `kind` whose name ends with `suffix`."""
    found = [each for each in documents if each["kind"] == kind and each["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def node_pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of the pods of SocketSpec."""
    (deployment,) = (
        each
        for each in documents
        if each["kind"] == "Deployment" and each["metadata"]["labels"]["app.kubernetes.io/component"] == "node"
    )
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def environment(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The variables of a node: a value, or a pair of a Secret's name and its key."""
    found: dict[str, Any] = {}
    for variable in node_pod(documents)["containers"][0]["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = (reference["name"], reference["key"]) if reference else variable["value"]
    return found


@pytest.mark.parametrize("name", VALUES)
def test_helm_lints_it_strictly(helm: Helm, name: str) -> None:
    helm.run("lint", "--strict", "--values", str(VALUES[name]), str(CHART))


@pytest.mark.parametrize("name", VALUES)
def test_what_is_rendered_keeps_our_rules(helm4: Helm, name: str) -> None:
    assert problems(helm4.rendered(name), EXTERNAL.get(name, ())) == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_is_rendered_is_valid_in_kubernetes(helm4: Helm, version: str) -> None:
    documents = unique(document for name in VALUES for document in helm4.rendered(name))
    core = [document for document in documents if document["kind"] not in OPERATORS]
    assert [problem for document in core for problem in schema_problems(document, version)] == []


@pytest.mark.parametrize("name", VALUES)
def test_helm_3_renders_what_helm_4_renders(helm3: Helm, helm4: Helm, name: str) -> None:
    assert helm3.rendered(name) == helm4.rendered(name)


def test_it_renders_for_the_oldest_kubernetes_and_not_before(helm: Helm) -> None:
    helm.template(None, "--kube-version", "1.30.0")
    helm.template(None, "--kube-version", "v1.30.5-gke.1")
    with pytest.raises(HelmError, match=r"1\.30"):
        helm.template(None, "--kube-version", "1.29.9")


def test_the_chart_installs_this_version_of_the_package() -> None:
    assert chart_file("Chart.yaml")["appVersion"] == __version__


@pytest.mark.parametrize("release", ["1chat", "chat-" + "x" * 48, "a.b", "socketspec"])
def test_a_release_of_any_name_has_valid_objects_or_is_refused_with_advice(helm4: Helm, release: str) -> None:
    values = {**REDIS, "valkey": {"enabled": False}, "metrics": {"dashboard": {"enabled": True}}}
    if release[0].isdigit():
        with pytest.raises(HelmError, match="must begin with a letter: set fullnameOverride"):
            helm4.template(values, release=release)
    else:
        assert problems(helm4.documents(values, release=release)) == []


class TestStopping:
    def test_the_grace_period_is_the_sum_of_what_a_stop_takes_and_ten(self, helm4: Helm) -> None:
        pod = node_pod(helm4.rendered("production"))
        assert pod["terminationGracePeriodSeconds"] == 10 + 300 + 2 * 30 + 10
        assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
        variables = environment(helm4.rendered("production"))
        assert (variables["SOCKETSPEC_DRAIN_WINDOW"], variables["SOCKETSPEC_DRAIN_GRACE"]) == ("300", "30")

    def test_by_default_it_is_what_the_image_needs(self, helm4: Helm) -> None:
        assert node_pod(helm4.rendered("defaults"))["terminationGracePeriodSeconds"] == 5 + 10 + 2 * 10 + 10

    def test_no_pod_goes_before_another_is_ready(self, helm4: Helm) -> None:
        for name in VALUES:
            deployment = only(helm4.rendered(name), "Deployment", "s" if name == "bare" else "socketspec")
            assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0

    def test_pods_that_serve_nobody_never_keep_a_machine_from_being_drained(self, helm4: Helm) -> None:
        spec = only(helm4.rendered("defaults"), "PodDisruptionBudget")["spec"]
        assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")

    def test_a_sleep_of_zero_which_old_versions_refuse_is_left_out(self, helm4: Helm) -> None:
        assert "lifecycle" not in node_pod(helm4.rendered("bare"))["containers"][0]


class TestProbes:
    def test_readiness_asks_for_all_and_the_others_for_life(self, helm4: Helm) -> None:
        container = node_pod(helm4.rendered("defaults"))["containers"][0]
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        live = "/socket-health?check=live"
        assert paths == {"startup": live, "readiness": "/socket-health", "liveness": live}


class TestWithoutRedis:
    @pytest.mark.parametrize(
        "values",
        [
            {"replicas": 2},
            {"autoscaling": {"enabled": True}},
            {"autoscaling": {"enabled": True, "kind": "keda"}},
            {"autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 1}},
        ],
        ids=str,
    )
    def test_more_than_one_node_is_refused_with_a_sentence(self, helm: Helm, values: dict[str, Any]) -> None:
        with pytest.raises(HelmError, match=r"each pod has rooms of its own: set redis\.url or redis\.existingSecret"):
            helm.template(values)

    @pytest.mark.parametrize(
        "redis",
        [REDIS, {"redis": {"existingSecret": {"name": "mine"}}}, {"valkey": {"enabled": True}}],
        ids=["url", "secret", "valkey"],
    )
    def test_any_redis_is_enough(self, helm4: Helm, redis: dict[str, Any]) -> None:
        for values in ({"replicas": 2}, {"autoscaling": {"enabled": True}}):
            assert problems(helm4.documents({**values, **redis}), {"mine"}) == []

    def test_one_node_needs_none(self, helm4: Helm) -> None:
        assert "SOCKETSPEC_BACKEND" not in environment(helm4.rendered("defaults"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two redis": ({**REDIS, "valkey": {"enabled": True}}, "exclude each other"),
    "scale by nothing": ({**REDIS, "autoscaling": {"enabled": True, "cpu": 0}}, "by what"),
    "more than most": ({**REDIS, "autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 8}}, "more than"),
    "share of nothing": (
        {**REDIS, "autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}},
        r"resources\.requests\.cpu",
    ),
    "keda without prometheus": (
        {**REDIS, "autoscaling": {"enabled": True, "kind": "keda", "connections": 5}},
        "serverAddress",
    ),
    "connections unseen": (
        {**REDIS, "autoscaling": {"enabled": True, "connections": 5}, "metrics": {"enabled": False}},
        r"metrics\.enabled",
    ),
    "monitor of nothing": ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "turns off"),
    "ingress of nobody": ({"ingress": {"enabled": True}}, r"ingress\.hosts"),
    "route of nobody": ({"route": {"enabled": True}}, r"route\.parentRefs"),
    "two keys": ({"auth": {"jwt": {"secret": "s", "jwksUrl": "https://id.example"}}}, "exclude each other"),
    "nobody kept out": ({"auth": {"anonymous": True, "apiKeys": ["k"]}}, "would keep nobody out"),
    "tokens of nobody": ({"auth": {"jwt": {"issuer": "https://id.example"}}}, "nothing verifies them"),
    "burst of nothing": ({"config": {"rate": 0, "burst": 5}}, r"set config\.rate"),
    "key of no secret": ({"existingSecret": {"keys": {"apiKeys": "keys"}}}, r"Set existingSecret\.name"),
    "said twice": (
        {"docs": {"token": "t"}, "existingSecret": {"name": "s", "keys": {"docsToken": "docs"}}},
        "say the same",
    ),
    "the chart's own": ({"extraEnv": [{"name": "SOCKETSPEC_DRAIN_WINDOW", "value": "1"}]}, r"drain\.windowSeconds"),
    "workers": ({"extraEnv": [{"name": "SOCKETSPEC_WORKERS", "value": "4"}]}, "replicas: one process a pod"),
    "pods that drain at once": (
        {**REDIS, "autoscaling": {"enabled": True}, "drain": {"windowSeconds": 600}},
        r"periodSeconds is 300, but a pod takes 600 seconds .* Set it to 600",
    ),
    "window beyond any period": (
        {
            **REDIS,
            "autoscaling": {"enabled": True, "scaleDown": {"periodSeconds": 1799}},
            "drain": {"windowSeconds": 3600},
        },
        "Set it to 1800",
    ),
    "deadline before its time": (
        {"drain": {"windowSeconds": 300}, "rollout": {"progressDeadlineSeconds": 300}},
        r"progressDeadlineSeconds is 300, but a new pod counts only after rollout\.minReadySeconds, 300",
    ),
    "enabled of nobody": ({"enabled": False}, "turns nothing off by itself"),
    "all and some": ({"config": {"allowedOrigins": ["*", "https://shop.example"]}}, "keep it alone"),
    "scrapes that overlap": (
        {"metrics": {"serviceMonitor": {"interval": "5s", "scrapeTimeout": "10s"}}},
        "scrapeTimeout is 10s, longer than .* 5s",
    ),
    "scrapes in other units": (
        {"metrics": {"serviceMonitor": {"interval": "1m30s", "scrapeTimeout": "90001ms"}}},
        "longer than",
    ),
    "scrapes of pods that overlap": (
        {"metrics": {"podMonitor": {"interval": "5s", "scrapeTimeout": "10s"}}},
        r"metrics\.podMonitor\.scrapeTimeout is 10s, longer than .* 5s",
    ),
    "volume of ours": ({"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, "the chart's for /tmp: give it another"),
    "volume twice": ({"extraVolumes": [{"name": "a", "emptyDir": {}}] * 2}, "second volume a: give it another"),
    "volume of that name once rendered": (
        {"extraVolumes": [{"name": "{{ .Release.Name }}", "emptyDir": {}}, {"name": "chat", "emptyDir": {}}]},
        "second volume chat",
    ),
    "place of ours": (
        {
            "extraVolumes": [{"name": "a", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "a", "mountPath": "/tmp/"}],  # noqa: S108 # a place in a pod
        },
        "at /tmp/, where the chart's own volume is",
    ),
    "place twice": (
        {
            "extraVolumes": [{"name": "a", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a/"}],
        },
        "at /a/ twice",
    ),
    "mount of nothing": ({"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]}, "which is no volume"),
    "no json": ({"test": {"join": "nojson"}}, r"test\.join is nothing that a client could send"),
    "no object": ({"test": {"publish": "[1]"}}, r"test\.publish is nothing that a client could send"),
    "no event": ({"test": {"join": '{"payload": {}}'}}, r"test\.join is nothing that a client could send"),
    "twice": ({"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "sets A twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_that_a_schema_cannot_see_is_refused_with_a_sentence(helm: Helm, case: str) -> None:
    values, sentence = REFUSED[case]
    with pytest.raises(HelmError, match=sentence):
        helm.template(values)


def test_every_variable_that_the_chart_sets_is_refused_elsewhere(helm4: Helm) -> None:
    ours = {name for values in VALUES for name in environment(helm4.rendered(values)) if name.startswith("SOCKETSPEC")}
    assert {"SOCKETSPEC_BACKEND", "SOCKETSPEC_JWKS_URL", "SOCKETSPEC_RATE"} <= ours
    for name in sorted(ours):
        with pytest.raises(HelmError, match=f"extraEnv must not set {name};"):
            helm4.template({"extraEnv": [{"name": name, "value": "x"}]})


def test_the_reference_node_takes_every_variable_that_it_gets(helm4: Helm) -> None:
    for name in VALUES:
        given = environment(helm4.rendered(name))
        ours = {key: value for key, value in given.items() if key.startswith("SOCKETSPEC_")}
        settings = node_settings.read(
            {key: "secret" if isinstance(value, tuple) else value for key, value in ours.items()}
        )
        assert settings.port == 8000, name
        assert bool(settings.backend) == ("SOCKETSPEC_BACKEND" in ours), name
    assert {f"SOCKETSPEC_{field.name.upper()}" for field in dataclasses.fields(node_settings.Settings)} >= set(ours)


def test_every_setting_of_the_node_is_what_the_value_says(helm4: Helm) -> None:
    values = {
        "app": "shop:app",
        "config": {
            "namespace": "/shop",
            "path": "/live",
            "allowedOrigins": ["https://a.example", "https://b.example"],
            "rate": 2.5,
            "burst": 7,
            "maxPayloadSize": 1000,
            "maxNodeBuffer": 50_000_000,
            "maxConnectionsPerUser": 3,
            "maxConnections": 4000,
            "maxConnectionsPerAddress": 50,
            "acceptsPerSecond": 200,
            "forwardedAllowIps": "10.0.0.0/8",
            "logLevel": "debug",
            "logFormat": "text",
        },
        "drain": {"windowSeconds": 60, "graceSeconds": 20},
        "auth": {"jwt": {"publicKey": "PEM", "algorithm": "ES256", "audience": "shop", "issuer": "https://id.example"}},
        "metrics": {"enabled": False},
    }
    assert node_settings.read(environment(helm4.documents(values))) == node_settings.Settings(
        app="shop:app",
        namespace="/shop",
        path="/live",
        allowed_origins=("https://a.example", "https://b.example"),
        rate=2.5,
        burst=7,
        max_payload_size=1000,
        max_node_buffer=50_000_000,
        max_connections_per_user=3,
        max_connections=4000,
        max_connections_per_address=50,
        accepts_per_second=200,
        forwarded_allow_ips="10.0.0.0/8",
        log_level="debug",
        log_format="text",
        drain_window=60.0,
        drain_grace=20.0,
        jwt_public_key="PEM",
        jwt_algorithm="ES256",
        jwt_audience="shop",
        jwt_issuer="https://id.example",
        metrics=False,
    )


def test_defaults_are_those_of_the_reference_node(helm4: Helm) -> None:
    default, rendered = node_settings.Settings(), node_settings.read(environment(helm4.rendered("defaults")))
    assert dataclasses.replace(rendered, log_format=default.log_format) == default


class TestSecrets:
    def test_what_is_secret_stands_in_the_secret_alone(self, helm4: Helm) -> None:
        values = {
            "redis": {"url": "redis://:pa55word@redis:6379/0"},
            "auth": {"jwt": {"secret": "pa55word-jwt"}, "apiKeys": ["pa55word-key=ada"]},
            "docs": {"token": "pa55word-docs"},
            "metrics": {"token": "pa55word-metrics"},
        }
        documents = helm4.documents(values)
        held = [base64.b64decode(value).decode() for value in only(documents, "Secret")["data"].values()]
        assert ["pa55word" in value for value in held] == [True] * 5
        others = [each for each in documents if each["kind"] != "Secret"]
        assert "pa55word" not in yaml.safe_dump(others)

    def test_existing_secrets_are_used_and_none_is_made(self, helm4: Helm) -> None:
        documents = helm4.rendered("production")
        assert [each for each in documents if each["kind"] == "Secret"] == []
        variables = environment(documents)
        assert variables["SOCKETSPEC_BACKEND"] == ("chat-redis", "url")
        assert variables["SOCKETSPEC_API_KEYS"] == ("chat-secrets", "api-keys")
        assert variables["SOCKETSPEC_METRICS_TOKEN"] == ("chat-secrets", "metrics")

    def test_a_secret_that_changes_is_a_new_version_of_the_pods(self, helm4: Helm) -> None:
        def stamp(url: str) -> str:
            deployment = only(helm4.documents({"redis": {"url": url}}), "Deployment")
            value: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/secrets"]
            return value

        assert stamp("redis://a") != stamp("redis://b")
        assert stamp("redis://a") == stamp("redis://a")


class TestScaling:
    def test_an_hpa_replaces_the_number_of_replicas_and_leaves_slowly(self, helm4: Helm) -> None:
        documents = helm4.rendered("production")
        assert "replicas" not in only(documents, "Deployment")["spec"]
        spec = only(documents, "HorizontalPodAutoscaler")["spec"]
        pods, cpu = spec["metrics"]
        assert pods["pods"]["metric"]["name"] == "socketspec_connections"
        assert pods["pods"]["target"] == {"type": "AverageValue", "averageValue": "8000"}
        assert cpu["resource"]["target"] == {"type": "Utilization", "averageUtilization": 60}
        down = spec["behavior"]["scaleDown"]
        assert down["stabilizationWindowSeconds"] >= 600
        assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]

    def test_keda_comes_instead_of_an_hpa(self, helm4: Helm) -> None:
        documents = helm4.rendered("keda")
        assert [each for each in documents if each["kind"] == "HorizontalPodAutoscaler"] == []
        connections, cpu = only(documents, "ScaledObject")["spec"]["triggers"]
        assert (
            connections["metadata"]["query"]
            == 'sum(socketspec_connections{namespace="shop",service="chat-socketspec"})'
        )
        assert connections["authenticationRef"] == {"name": "prometheus"}
        assert cpu["type"] == "cpu"


class TestTraffic:
    def egress(self, documents: list[dict[str, Any]]) -> dict[int, Any]:
        rules = only(documents, "NetworkPolicy", "socketspec")["spec"]["egress"]
        return {port["port"]: rule.get("to") for rule in rules for port in rule["ports"]}

    def test_pods_reach_dns_redis_keys_and_what_is_added(self, helm4: Helm) -> None:
        reached = self.egress(helm4.rendered("production"))
        assert reached == {53: None, 5353: None, 6380: [{"ipBlock": {"cidr": "10.1.2.0/24"}}], 8443: None, 4318: None}

    def test_ports_of_the_url_are_opened(self, helm4: Helm) -> None:
        assert set(self.egress(helm4.rendered("gateway"))) == {53, 5353, 6379, 26379, 26380}

    @pytest.mark.parametrize(
        ("url", "ports"),
        [
            ("redis://r", {6379}),
            ("rediss://user:p%40ss:w@r:7000/1?x=:9", {6379, 7000}),
            ("redis+cluster://a:7001,b:7002", {6379, 7001, 7002}),
            ("valkey+sentinel://a/primary", {6379, 26379}),
            ("redis://[::1]/0", {6379}),
            ("redis://[::1]:6400/0", {6379, 6400}),
        ],
    )
    def test_ports_of_any_url_are_found(self, helm4: Helm, url: str, ports: set[int]) -> None:
        reached = self.egress(helm4.documents({"redis": {"url": url}, "networkPolicy": {"enabled": True}}))
        assert set(reached) - {53, 5353} == ports

    def test_only_the_named_and_the_test_may_connect(self, helm4: Helm) -> None:
        (rule,) = only(helm4.rendered("production"), "NetworkPolicy", "socketspec")["spec"]["ingress"]
        namespaces = [peer["namespaceSelector"]["matchLabels"] for peer in rule["from"] if "namespaceSelector" in peer]
        names = [labels["kubernetes.io/metadata.name"] for labels in namespaces]
        components = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for peer in rule["from"]
            if "podSelector" in peer
        ]
        assert (names, components) == (["ingress-nginx", "monitoring"], ["test"])

    def test_only_nodes_reach_the_small_valkey_and_it_reaches_nobody(self, helm4: Helm) -> None:
        spec = only(helm4.rendered("valkey"), "NetworkPolicy", "valkey")["spec"]
        ((peer,),) = [rule["from"] for rule in spec["ingress"]]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "node"
        assert spec["egress"] == []
        assert spec["policyTypes"] == ["Ingress", "Egress"]


class TestExposure:
    def test_ingress_nginx_keeps_connections_for_an_hour_of_silence(self, helm4: Helm) -> None:
        ingress = only(helm4.rendered("production"), "Ingress")
        assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"

    def test_sockets_alone_are_public_by_default(self, helm4: Helm) -> None:
        (rule,) = only(helm4.rendered("production"), "Ingress")["spec"]["rules"]
        assert [path["path"] for path in rule["http"]["paths"]] == ["/ws"]
        (rule,) = only(helm4.rendered("gateway"), "HTTPRoute")["spec"]["rules"]
        assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/ws"}}]

    @pytest.mark.parametrize(("tls", "entry"), [([], "web"), ([{"hosts": ["a.example"]}], "websecure")])
    def test_traefik_listens_where_the_certificate_is(self, helm4: Helm, tls: list[Any], entry: str) -> None:
        values = {"ingress": {"enabled": True, "flavor": "traefik", "hosts": ["a.example"], "tls": tls}}
        annotations = only(helm4.documents(values), "Ingress")["metadata"]["annotations"]
        assert annotations["traefik.ingress.kubernetes.io/router.entrypoints"] == entry

    def test_annotations_of_the_user_win(self, helm4: Helm) -> None:
        own = {"nginx.ingress.kubernetes.io/proxy-read-timeout": "60"}
        values = {"ingress": {"enabled": True, "hosts": ["a.example"], "annotations": own}}
        assert own.items() <= only(helm4.documents(values), "Ingress")["metadata"]["annotations"].items()

    def test_a_route_has_no_timeout(self, helm4: Helm) -> None:
        (rule,) = only(helm4.rendered("gateway"), "HTTPRoute")["spec"]["rules"]
        assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}

    def test_the_port_says_that_it_speaks_websocket(self, helm4: Helm) -> None:
        (port,) = only(helm4.rendered("defaults"), "Service")["spec"]["ports"]
        assert port["appProtocol"] == "kubernetes.io/ws"


class TestMetrics:
    def test_the_monitor_sends_the_token_that_the_nodes_want(self, helm4: Helm) -> None:
        for name, kind, secret in (
            ("own-app", "ServiceMonitor", "chat-socketspec"),
            ("production", "PodMonitor", "chat-secrets"),
        ):
            spec = only(helm4.rendered(name), kind)["spec"]
            (endpoint,) = spec["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
            assert endpoint["authorization"]["credentials"]["name"] == secret

    def test_rules_and_dashboard_are_the_files(self, helm4: Helm) -> None:
        documents = helm4.rendered("production")
        assert only(documents, "PrometheusRule")["spec"] == chart_file("files/rules.yaml")
        text = only(documents, "ConfigMap", "dashboard")["data"]["socketspec.json"]
        assert yaml.safe_load(text) == chart_file("files/dashboard.json")


def test_labels_of_the_user_never_replace_those_that_select(helm4: Helm) -> None:
    mine = {"app.kubernetes.io/name": "mine", "app.kubernetes.io/component": "mine", "team": "a"}
    values = {"commonLabels": mine, "podLabels": mine, "valkey": {"enabled": True}}
    documents = helm4.documents(values)
    assert problems(documents) == []
    assert all(each["metadata"]["labels"]["team"] == "a" for each in documents)


def test_the_platform_may_choose_the_user(helm4: Helm) -> None:
    assert "runAsUser" not in node_pod(helm4.rendered("bare"))["securityContext"]
    assert node_pod(helm4.rendered("defaults"))["securityContext"]["runAsUser"] == 10001
