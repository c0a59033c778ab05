"""What users add to the chart's objects: templates in their values, containers, networks, where pods run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.charts import Helm, HelmError
from tests.deploy.test_chart import environment, node_pod, only

LITERAL = "{{ .Release.Name }}-of-{{ .Release.Namespace }}"
NOTE = {"example.com/of": LITERAL}
TEMPLATES: dict[str, Any] = {
    "extraEnv": [
        {"name": "OF", "value": LITERAL},
        {"name": "REVISION", "value": "1{{ .Release.Revision }}"},
        {"name": "COLON", "value": 'x{{ ": y" }}'},
        {"name": "BRACES", "value": '{{ "{{" }} .x }}'},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": LITERAL, "key": "k", "optional": True}}},
    ],
    "extraEnvFrom": [{"secretRef": {"name": LITERAL}}],
    "extraVolumes": [{"name": "more", "projected": {"defaultMode": 292, "sources": [{"secret": {"name": LITERAL}}]}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more", "subPath": LITERAL, "readOnly": True}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more", "annotations": NOTE}}],
    "initContainers": [{"name": "migrate", "image": "example/migrate:1", "args": [LITERAL]}],
    "sidecars": [{"name": "agent", "image": "example/agent:1", "args": [LITERAL]}],
    "podAnnotations": NOTE,
    "serviceAccount": {"annotations": NOTE},
    "service": {"annotations": NOTE},
    "ingress": {"enabled": True, "hosts": ["chat.example"], "annotations": NOTE},
    "route": {"enabled": True, "parentRefs": [{"name": "public"}], "annotations": NOTE},
    "metrics": {"dashboard": {"enabled": True, "annotations": NOTE}},
}


class TestTemplates:
    def test_annotations_are_templates_wherever_they_are(self, helm: Helm) -> None:
        documents = helm.documents(TEMPLATES)
        metadata = [document["metadata"] for document in documents]
        metadata.append(only(documents, "Deployment")["spec"]["template"]["metadata"])
        noted = [
            each["annotations"]["example.com/of"]
            for each in metadata
            if "example.com/of" in each.get("annotations", {})
        ]
        assert noted == ["chat-of-shop"] * 7

    def test_variables_volumes_and_containers_are_templates(self, helm: Helm) -> None:
        documents = helm.documents(TEMPLATES)
        variables, pod = environment(documents), node_pod(documents)
        assert (variables["OF"], variables["KEY"]) == ("chat-of-shop", ("chat-of-shop", "k"))
        node, sidecar = pod["containers"]
        assert (node["envFrom"], sidecar["name"]) == ([{"secretRef": {"name": "chat-of-shop"}}], "agent")
        assert node["volumeMounts"][1]["subPath"] == "chat-of-shop"
        assert [container["args"] for container in (sidecar, *pod["initContainers"])] == [["chat-of-shop"]] * 2
        assert pod["volumes"][1]["projected"] == {"defaultMode": 292, "sources": [{"secret": {"name": "chat-of-shop"}}]}

    def test_what_comes_out_stays_a_string_and_braces_can_be_kept(self, helm: Helm) -> None:
        variables = environment(helm.documents(TEMPLATES))
        assert (variables["REVISION"], variables["COLON"], variables["BRACES"]) == ("11", "x: y", "{{ .x }}")

    def test_secrets_are_no_templates(self, helm4: Helm) -> None:
        one, other = ({"docs": {"token": text}} for text in (LITERAL, "chat-of-shop"))
        assert only(helm4.documents(one), "Secret")["data"] != only(helm4.documents(other), "Secret")["data"]


class TestContainers:
    def test_sidecars_come_after_the_node_and_are_taken_as_they_are(self, helm4: Helm) -> None:
        sidecar = {"name": "agent", "image": "example/agent", "securityContext": {"runAsUser": 5}}
        early = {"name": "proxy", "image": "example/proxy", "restartPolicy": "Always"}
        pod = node_pod(helm4.documents({"sidecars": [sidecar], "initContainers": [early]}))
        assert [container["name"] for container in pod["containers"]] == ["node", "agent"]
        assert (pod["containers"][1], pod["initContainers"]) == (sidecar, [early])

    def test_there_are_none_by_default(self, helm4: Helm) -> None:
        pod = node_pod(helm4.rendered("defaults"))
        assert "initContainers" not in pod
        assert len(pod["containers"]) == 1


class TestService:
    def test_a_load_balancer_keeps_addresses_and_lets_in_whom_it_is_told_to(self, helm4: Helm) -> None:
        ranges = ["10.0.0.0/8", "2001:db8::/32"]
        service = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ranges}
        spec = only(helm4.documents({"service": service}), "Service")["spec"]
        assert (spec["externalTrafficPolicy"], spec["loadBalancerSourceRanges"]) == ("Local", ranges)

    def test_by_default_both_are_the_clusters(self, helm4: Helm) -> None:
        spec = only(helm4.rendered("gateway"), "Service")["spec"]
        assert spec["type"] == "LoadBalancer"
        assert {"externalTrafficPolicy", "loadBalancerSourceRanges"}.isdisjoint(spec)

    @pytest.mark.parametrize(
        ("service", "sentence"),
        [
            ({"externalTrafficPolicy": "Local"}, r"set service\.type to NodePort or LoadBalancer"),
            ({"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}, r"but service\.type is NodePort"),
            ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1"]}, "loadBalancerSourceRanges"),
        ],
    )
    def test_what_the_api_server_would_refuse_is_refused(
        self, helm: Helm, service: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(HelmError, match=sentence):
            helm.template({"service": service})


def test_dns_is_reached_on_its_pods_ports_and_openshifts_are_5353(helm4: Helm) -> None:
    def ports(values: dict[str, Any], suffix: str) -> list[tuple[int, str]]:
        policy = only(helm4.documents({"networkPolicy": {"enabled": True, **values}}), "NetworkPolicy", suffix)
        return [(port["port"], port["protocol"]) for port in policy["spec"]["egress"][0]["ports"]]

    for suffix in ("socketspec", "test"):
        assert ports({}, suffix) == [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")]
        assert ports({"dns": {"ports": [1053]}}, suffix) == [(1053, "UDP"), (1053, "TCP")]


def test_valkey_runs_where_it_is_told_to(helm4: Helm) -> None:
    where = {"nodeSelector": {"pool": "small"}, "tolerations": [{"key": "small", "operator": "Exists"}]}
    deployment = only(helm4.documents({"valkey": {"enabled": True, **where}}), "Deployment", "valkey")
    assert where.items() <= deployment["spec"]["template"]["spec"].items()


class TestMonitors:
    def test_a_pod_monitor_sees_pods_of_the_nodes_and_labels_them_as_a_service_monitor_would(self, helm4: Helm) -> None:
        # PromQL of the rules, the dashboard and KEDA must not depend on which of the two it is.
        labels = {"release": "prometheus"}
        values = {"metrics": {"token": "t", "podMonitor": {"enabled": True, "interval": "15s", "labels": labels}}}
        monitor = only(helm4.documents(values), "PodMonitor")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert labels.items() <= monitor["metadata"]["labels"].items()
        assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("http", "/metrics", "15s")
        given = {each["targetLabel"]: each["replacement"] for each in endpoint["relabelings"]}
        assert given == {"job": "chat-socketspec", "service": "chat-socketspec"}
        assert endpoint["authorization"]["credentials"] == {"name": "chat-socketspec", "key": "metrics-token"}

    def test_production_scrapes_pods_so_that_their_drain_is_seen(self, helm4: Helm) -> None:
        kinds = [document["kind"] for document in helm4.rendered("production")]
        assert ("PodMonitor" in kinds, "ServiceMonitor" in kinds) == (True, False)

    @pytest.mark.parametrize(
        ("metrics", "sentence"),
        [
            ({"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}, "keep one of them"),
            ({"enabled": False, "podMonitor": {"enabled": True}}, r"metrics\.podMonitor\.enabled would watch"),
            ({"podMonitor": {"interval": "5s"}}, r"metrics\.podMonitor\.scrapeTimeout is 10s, longer"),
        ],
    )
    def test_monitors_that_cannot_work_are_refused(self, helm: Helm, metrics: dict[str, Any], sentence: str) -> None:
        with pytest.raises(HelmError, match=sentence):
            helm.template({"metrics": metrics})


class TestOfHelmTest:
    def test_the_pod_stays_so_that_its_log_can_be_read(self, helm4: Helm) -> None:
        # What is deleted when it succeeds is gone before `helm test --logs` asks: helm/helm#9098.
        hooks = [
            each for each in helm4.rendered("defaults") if each["metadata"].get("annotations", {}).get("helm.sh/hook")
        ]
        policies = {each["kind"]: each["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for each in hooks}
        assert policies == {"Pod": "before-hook-creation", "ConfigMap": "before-hook-creation"}

    def test_its_account_is_that_of_the_nodes_or_another(self, helm4: Helm) -> None:
        def account(values: dict[str, Any]) -> str:
            name: str = only(helm4.documents(values), "Pod")["spec"]["serviceAccountName"]
            return name

        assert account({}) == "chat-socketspec"
        assert account({"serviceAccount": {"create": False}}) == "default"
        assert account({"test": {"serviceAccountName": "tests"}}) == "tests"
