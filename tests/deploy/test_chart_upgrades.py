"""What an upgrade changes, and what it must leave as it is."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from tests.deploy.charts import CHART, VALUES, Helm
from tests.deploy.test_chart import REDIS, only

SCALED: Mapping[str, Any] = {
    **REDIS,
    "autoscaling": {"enabled": True},
    "serviceAccount": {"create": False},
    "podDisruptionBudget": {"enabled": False},
    "test": {"enabled": False},
}
KINDS = {"v1": ("Service", "Secret"), "apps/v1": ("Deployment",), "autoscaling/v2": ("HorizontalPodAutoscaler",)}
"""What `SCALED` renders, by the API that has it."""
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/chat-socketspec"


def answers(replicas: int | None) -> dict[str, Any]:
    """What the API of a cluster says, by path; it has our Deployment where `replicas` is given."""
    groups = [
        {"name": api.split("/")[0], "versions": [{"groupVersion": api, "version": api.split("/")[1]}]}
        for api in KINDS
        if "/" in api
    ]
    found: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for api, kinds in KINDS.items():
        resources = [
            {"name": f"{kind.lower()}s", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
            for kind in kinds
        ]
        place = "apis" if "/" in api else "api"
        found[f"/{place}/{api}"] = {"kind": "APIResourceList", "groupVersion": api, "resources": resources}
    if replicas is not None:
        found[DEPLOYMENT] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "chat-socketspec",
                "namespace": "shop",
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {"meta.helm.sh/release-name": "chat", "meta.helm.sh/release-namespace": "shop"},
            },
            "spec": {"replicas": replicas},
        }
    return found


@contextmanager
def cluster(replicas: int | None) -> Iterator[str]:
    """The address of something that answers Helm's questions like a cluster."""
    known = answers(replicas)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self.send_response(200 if path in known else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(known.get(path, missing)).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def asked_in(helm: Helm, replicas: int | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of the nodes' Deployment, as it is rendered with such a cluster to look into."""
    with cluster(replicas) as address:
        options = ("--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address)
        spec: dict[str, Any] = only(helm.documents(values, *options), "Deployment")["spec"]
    return spec


class TestReplicas:
    @pytest.mark.parametrize("replicas", [0, 1, 7])
    def test_autoscaling_leaves_the_number_of_pods_as_it_is(self, helm: Helm, replicas: int) -> None:
        assert asked_in(helm, replicas, SCALED)["replicas"] == replicas

    def test_an_installation_leaves_it_to_the_autoscaler(self, helm: Helm) -> None:
        assert "replicas" not in asked_in(helm, None, SCALED)

    def test_without_a_cluster_to_look_into_it_is_left_to_the_autoscaler(self, helm: Helm) -> None:
        assert "replicas" not in only(helm.documents(SCALED), "Deployment")["spec"]

    def test_without_autoscaling_it_is_what_is_asked_for(self, helm4: Helm) -> None:
        assert asked_in(helm4, 7, {**SCALED, "autoscaling": {"enabled": False}, "replicas": 3})["replicas"] == 3


@pytest.mark.parametrize("name", VALUES)
def test_a_new_version_of_the_chart_alone_starts_no_pod_again(helm4: Helm, name: str, tmp_path: Path) -> None:
    def templates(chart: Path) -> dict[str, Any]:
        given = ("--namespace", "shop", "--values", str(VALUES[name]), "--set", "image.tag=1.2.3")
        documents = yaml.safe_load_all(helm4.run("template", "chat", str(chart), *given))
        return {
            each["metadata"]["name"]: each["spec"]["template"] for each in documents if each["kind"] == "Deployment"
        }

    later = shutil.copytree(CHART, tmp_path / "socketspec")
    about = yaml.safe_load((later / "Chart.yaml").read_text(encoding="utf-8"))
    (later / "Chart.yaml").write_text(
        json.dumps({**about, "version": "9.8.7", "appVersion": "9.8.7"}), encoding="utf-8"
    )
    assert templates(later) == templates(CHART)


class TestSecret:
    def test_it_holds_what_is_given_as_data_of_which_helm_removes_what_is_gone(self, helm: Helm) -> None:
        # Keys of stringData that a later version has not would stay: helm/helm#10010.
        token, key = 'ü: "{{ . }}" # =\n', "k3y=ada"
        secret = only(helm.documents({"docs": {"token": token}, "auth": {"apiKeys": [key, "b"]}}), "Secret")
        assert "stringData" not in secret
        held = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
        assert held == {"docs-token": token, "api-keys": f"{key},b"}
