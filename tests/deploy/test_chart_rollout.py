"""How the chart paces a rollout, what it takes where others use it, and what its documentation says of the image."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from socketspec.errors import ConfigurationError
from socketspec.security.origins import OriginPolicy
from tests.deploy.charts import CHART, VALUES, Helm, HelmError, chart_file
from tests.deploy.manifests import pods
from tests.support import ROOT

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def rollout(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of the nodes' Deployment."""
    (spec,) = (
        each["spec"]
        for each in documents
        if each["kind"] == "Deployment" and each["metadata"]["labels"]["app.kubernetes.io/component"] == "node"
    )
    return dict(spec)


def peak(spec: dict[str, Any], pods: int, window: int, start: int = 3) -> int:
    """Most of `pods` that drain at once, where Kubernetes rolls them out and one is ready `start` seconds later.

    Pods that are ending are not counted: as many new ones are made as are missing to pods and surge, and an old one
    goes as soon as a new one has been ready for minReadySeconds.
    """
    surge = math.ceil(pods * int(spec["strategy"]["rollingUpdate"]["maxSurge"].rstrip("%")) / 100)
    old, available, coming, leaving, most = pods, 0, list[int](), list[int](), 0
    for now in range(10**6):
        arrived = [since for since in coming if now - since >= start + spec["minReadySeconds"]]
        coming = [since for since in coming if since not in arrived]
        available += len(arrived)
        leaving = [since for since in leaving if now - since < window]
        going = min(old, old + available - pods)
        old -= going
        leaving += [now] * going
        coming += [now] * min(pods + surge - old - available - len(coming), pods - available - len(coming))
        most = max(most, len(leaving))
        if not old:
            return most
    raise AssertionError("the rollout does not end")


class TestPace:
    @pytest.mark.parametrize("name", VALUES)
    def test_a_pod_counts_when_the_clients_of_the_last_are_back(self, helm4: Helm, name: str) -> None:
        spec = rollout(helm4.rendered(name))
        (window,) = (
            int(variable["value"])
            for variable in spec["template"]["spec"]["containers"][0]["env"]
            if variable["name"] == "SOCKETSPEC_DRAIN_WINDOW"
        )
        assert spec["minReadySeconds"] == window
        assert spec["progressDeadlineSeconds"] == window + 600

    @pytest.mark.parametrize("pods", [1, 4, 10, 40])
    def test_no_more_pods_drain_at_once_than_the_surge_has(self, helm4: Helm, pods: int) -> None:
        spec = rollout(helm4.documents({"drain": {"windowSeconds": 300}}))
        assert peak(spec, pods, 300) == math.ceil(pods / 4)
        assert peak({**spec, "minReadySeconds": 5}, pods, 300) == pods, "this is what it is there to prevent"

    def test_both_can_be_chosen(self, helm4: Helm) -> None:
        chosen = {"minReadySeconds": 0, "progressDeadlineSeconds": 60, "maxSurge": "100%"}
        spec = rollout(helm4.documents({"drain": {"windowSeconds": 300}, "rollout": chosen}))
        assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (0, 60)
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "100%", "maxUnavailable": 0}

    def test_nothing_is_said_where_empty_is_given(self, helm: Helm) -> None:
        given = ("--set", "rollout.minReadySeconds=,rollout.progressDeadlineSeconds=,drain.windowSeconds=60")
        spec = rollout(helm.documents(None, *given))
        assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (60, 660)

    def test_one_pod_leaves_in_the_time_that_an_autoscaler_gives_it(self, helm4: Helm) -> None:
        for window, period in ((300, 300), (600, 600), (7200, 1800)):
            values = {
                "redis": {"url": "redis://redis"},
                "drain": {"windowSeconds": window},
                "autoscaling": {"enabled": True, "scaleDown": {"periodSeconds": period}},
            }
            assert helm4.documents(values)


class TestDependency:
    """The chart as a dependency of another, with `condition: socketspec.enabled`."""

    @staticmethod
    def parent(folder: Path, *, condition: bool = True) -> Path:
        """A chart that has a copy of ours."""
        shutil.copytree(CHART, folder / "charts/socketspec")
        ours = {"name": "socketspec", "version": chart_file("Chart.yaml")["version"], "repository": ""}
        named = {"condition": "socketspec.enabled"} if condition else {}
        chart = {"apiVersion": "v2", "name": "shop", "version": "1.0.0", "dependencies": [{**ours, **named}]}
        (folder / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
        return folder

    @pytest.mark.parametrize("enabled", [True, False])
    def test_its_condition_turns_it_on_and_off(self, helm: Helm, tmp_path: Path, enabled: bool) -> None:
        given = f"socketspec.enabled={str(enabled).lower()}"
        text = helm.run("template", "chat", str(self.parent(tmp_path)), "--set", given)
        assert ("kind: Deployment" in text) is enabled

    def test_without_a_condition_false_is_refused_rather_than_ignored(self, helm: Helm, tmp_path: Path) -> None:
        parent = self.parent(tmp_path, condition=False)
        with pytest.raises(HelmError, match=r"turns nothing off by itself: .* name it as the condition"):
            helm.run("template", "chat", str(parent), "--set", "socketspec.enabled=false")


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example",
        "HTTPS://Shop.example:8443",
        "http://localhost:65535",
        "http://10.0.0.1",
        "http://[::1]:3000",
        "chrome-extension://abcdef",
        "https://my_shop.example",
        "null",
        "*",
        "shop.example",
        "https://shop.example/",
        "https://shop.example/path",
        "https://*.example",
        "https://shop.example:0",
        "https://shop.example:65536",
        "https://shop.example.",
        "https://-.example",
        "https://a b.example",
        "https://user@shop.example",
        "wss://shop.example",
        "WS://shop.example",
        "https://" + "a" * 512,
        "https://müller.example",
    ],
)
def test_the_schema_takes_the_origins_that_the_node_takes(origin: str) -> None:
    schema = SCHEMA["properties"]["config"]["properties"]["allowedOrigins"]
    try:
        OriginPolicy([origin])
    except ConfigurationError:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([origin], schema)
    else:
        jsonschema.validate([origin], schema)


@pytest.mark.parametrize("name", ["chat.example", "*.chat.example", "localhost", "1.example", "xn--mller-kva.example"])
def test_host_names_that_the_cluster_takes_pass(helm4: Helm, name: str) -> None:
    values = {
        "ingress": {"enabled": True, "hosts": [name], "tls": [{"hosts": [name]}]},
        "route": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": [name]},
    }
    assert helm4.documents(values)


def test_kernel_settings_are_those_of_the_nodes_pods_alone(helm4: Helm) -> None:
    wanted = [{"name": "net.ipv4.ip_local_port_range", "value": "1024 65535"}]
    found = {
        spec["containers"][0]["name"]: spec["securityContext"].get("sysctls")
        for _, spec, _ in pods(helm4.documents(VALUES["production"]))
    }
    assert found == {"node": wanted, "test": None}


class TestDocs:
    """What stands in the documentation about the chart and the image."""

    PAGES = sorted((ROOT / "docs/deploy").glob("*.md"))
    DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")

    def test_the_port_of_a_collector_is_that_of_the_exporter_in_the_image(self) -> None:
        assert "exporter-otlp-proto-http" in self.DOCKERFILE
        assert "exporter-otlp-proto-grpc" not in self.DOCKERFILE
        texts = [path.read_text(encoding="utf-8") for path in (*self.PAGES, *VALUES.values())]
        assert not any("4317" in text for text in texts), "that is OTLP over gRPC"
        assert any("4318" in text for text in texts)

    def test_kernel_settings_are_where_the_chart_has_them(self) -> None:
        text = (ROOT / "docs/deploy/scaling.md").read_text(encoding="utf-8")
        assert "`podSecurityContext.sysctls`" in text
        assert "`securityContext.sysctls`" not in text
        assert SCHEMA["properties"]["podSecurityContext"]["properties"]["sysctls"]

    def test_whether_the_image_has_uvloop_is_said(self) -> None:
        text = " ".join((ROOT / "docs/deploy/serve.md").read_text(encoding="utf-8").split())
        assert ("[the image](image.md) runs without it" in text) is ("uvloop" not in self.DOCKERFILE)
