"""What every rendered manifest must satisfy: the schemas of Kubernetes and of the operators, and rules of our own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
from pydantic import BaseModel

__all__ = ("KUBERNETES", "operator_schema", "problems", "schema_problems")

Document = Mapping[str, Any]

# It reads a version's definitions, a megabyte, for every document anew.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)

NEWEST: Final[int] = int(kubernetes_validate.latest_version().split(".")[1])
KUBERNETES: Final = tuple(f"1.{minor}" for minor in range(30, NEWEST + 1))
"""From the oldest version that the chart supports to the newest whose schemas the package ships."""
OPERATORS: Final = frozenset({"PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"})
"""Kinds that Kubernetes itself does not know."""
LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
QUALIFIED: Final = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def schema_problems(document: Document, version: str) -> list[str]:
    """What the strict schema of Kubernetes `version` says; a kind that it does not know is a problem too."""
    try:
        kubernetes_validate.validate(dict(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{document['kind']} in {version}: {error.message} at {'.'.join(map(str, error.path))}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{document['kind']} {document['apiVersion']} does not exist in {version}"]
    return []


@cache
def operator_schema(kind: str) -> dict[str, Any]:
    """The schema of an operator's kind in which no key is left to chance."""
    if kind == "HTTPRoute":  # no package has it: the part of it that the chart uses
        return _HTTP_ROUTE
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

    models: dict[str, type[BaseModel]] = {
        "PodMonitor": PodMonitor,
        "ServiceMonitor": ServiceMonitor,
        "PrometheusRule": PrometheusRule,
        "ScaledObject": ScaledObject,
    }
    schema = copy.deepcopy(models[kind].model_json_schema())
    for part in _parts(schema):
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    return schema


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _parts(value)


def _closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(properties)}


_STRINGS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: Final = {**_closed(name={"type": "string"}, labels=_STRINGS, annotations=_STRINGS), "required": ["name"]}
_HTTP_ROUTE: Final = _closed(
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata=_METADATA,
    spec={
        **_closed(
            parentRefs={"type": "array", "minItems": 1, "items": {"type": "object", "required": ["name"]}},
            hostnames={"type": "array", "maxItems": 16, "items": {"type": "string"}},
            rules={
                "type": "array",
                "items": _closed(
                    matches={
                        "type": "array",
                        "maxItems": 64,
                        "items": _closed(
                            path=_closed(type={"const": "PathPrefix"}, value={"type": "string", "pattern": "^/"})
                        ),
                    },
                    timeouts=_closed(request={"const": "0s"}, backendRequest={"const": "0s"}),
                    backendRefs={
                        "type": "array",
                        "items": _closed(name={"type": "string"}, port={"type": "integer", "maximum": 65535}),
                    },
                ),
            },
        ),
        "required": ["parentRefs", "rules"],
    },
)


def problems(documents: Iterable[Document], external: Iterable[str] = ()) -> list[str]:
    """What is wrong with a release as a whole. `external` are names of Secrets and ConfigMaps that it does not make."""
    release = list(documents)
    found = [problem for document in release for problem in _of_one(document)]
    found += _duplicates(release)
    found += _selections(release)
    found += _references(release, set(external))
    found += _ports(release)
    for document in release:
        if document["kind"] in OPERATORS:
            validator = jsonschema.Draft202012Validator(operator_schema(document["kind"]))
            found += [f"{_title(document)}: {error.message}" for error in validator.iter_errors(dict(document))]
    return found


def pods(documents: Iterable[Document]) -> Iterator[tuple[str, Document, Mapping[str, str]]]:
    """Of everything that makes pods: its title, their spec and their labels."""
    for document in documents:
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield _title(document), template["spec"], template["metadata"]["labels"]
        elif document["kind"] == "Pod":
            yield _title(document), document["spec"], document["metadata"]["labels"]


def _title(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _of_one(document: Document) -> Iterator[str]:
    name = document["metadata"]["name"]
    if not LABEL.fullmatch(name):
        yield f"{_title(document)}: not a DNS label that begins with a letter"
    for labels in _label_maps(document):
        for key, value in labels.items():
            if not (QUALIFIED.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
                yield f"{_title(document)}: the label {key}: {value} is not valid"
    for title, spec, _ in pods([document]):
        yield from _of_pod(title, spec)


def _label_maps(document: Document) -> Iterator[Mapping[str, str]]:
    yield document["metadata"].get("labels", {})
    for _, _, labels in pods([document]):
        yield labels


def _of_pod(title: str, spec: Document) -> Iterator[str]:
    security = spec.get("securityContext", {})
    expected = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if {key: security.get(key) for key in expected} != expected or security.get("runAsUser") == 0:
        yield f"{title}: not the restricted pod security: {security}"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{title}: mounts a token"
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{title}: shares a namespace of its machine"
    volumes = [volume["name"] for volume in spec.get("volumes", ())]
    if len(set(volumes)) != len(volumes):
        yield f"{title}: a volume twice among {volumes}"
    for container in spec["containers"]:
        yield from _of_container(f"{title}, container {container['name']}", container, set(volumes))
        if "startupProbe" not in container and spec.get("restartPolicy") != "Never":
            yield f"{title}: no startup probe"


def _of_container(title: str, container: Document, volumes: set[str]) -> Iterator[str]:
    if not re.fullmatch(r"[^\s:@]+(:\d+)?[^\s:@]*(:[\w.-]+|@sha256:[0-9a-f]{64})", container["image"]):
        yield f"{title}: the image {container['image']!r} has no version"
    security = container.get("securityContext", {})
    expected = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if security != expected:
        yield f"{title}: not the restricted container security: {security}"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
        yield f"{title}: no requests or no memory limit: {resources}"
    ports = {port["name"] for port in container.get("ports", ())}
    if ports and not {"readinessProbe", "livenessProbe", "startupProbe"} <= set(container):
        yield f"{title}: it listens, but has not all probes"
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        asked = container.get(probe, {}).get("httpGet") or container.get(probe, {}).get("tcpSocket")
        if asked and asked["port"] not in ports:
            yield f"{title}: the {probe} asks port {asked['port']}, which is not there"
    names = [variable["name"] for variable in container.get("env", ())]
    if len(set(names)) != len(names):
        yield f"{title}: a variable twice among {sorted(names)}"
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"{title}: mounts {mount['name']!r}, which is no volume"


def _duplicates(release: list[Document]) -> Iterator[str]:
    titles = [(document["apiVersion"].split("/")[0], _title(document)) for document in release]
    yield from (f"{title} twice" for _, title in sorted({each for each in titles if titles.count(each) > 1}))


def _selections(release: list[Document]) -> Iterator[str]:
    """Every selector selects pods of exactly one kind that this release makes; a ServiceMonitor, one Service."""
    made = [labels for _, _, labels in pods(release)]
    for document in release:
        for selector in _selectors(document):
            matches = sum(selector.items() <= labels.items() for labels in made)
            if matches != 1:
                yield f"{_title(document)}: {selector} selects {matches} kinds of pods"
        if document["kind"] == "ServiceMonitor":
            services = [each["metadata"]["labels"] for each in release if each["kind"] == "Service"]
            wanted = document["spec"]["selector"]["matchLabels"]
            matches = sum(wanted.items() <= labels.items() for labels in services)
            if matches != 1:
                yield f"{_title(document)}: selects {matches} Services"


def _selectors(document: Document) -> Iterator[Mapping[str, str]]:
    """What `document` selects pods by."""
    spec = document.get("spec", {})
    if document["kind"] in ("Deployment", "PodDisruptionBudget"):
        yield spec["selector"]["matchLabels"]
    elif document["kind"] == "Service":
        yield spec["selector"]
    elif document["kind"] == "PodMonitor":
        yield spec["selector"]["matchLabels"]
    elif document["kind"] == "NetworkPolicy":
        yield from _policy_selectors(spec)
    if document["kind"] == "Deployment":
        for spread in spec["template"]["spec"].get("topologySpreadConstraints", ()):
            yield spread["labelSelector"]["matchLabels"]


def _policy_selectors(spec: Document) -> Iterator[Mapping[str, str]]:
    yield spec["podSelector"]["matchLabels"]
    for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
        for peer in (*rule.get("from", ()), *rule.get("to", ())):
            if set(peer) == {"podSelector"}:
                yield peer["podSelector"]["matchLabels"]


def _ports(release: list[Document]) -> Iterator[str]:
    """Ports of Services are those of their pods, and what sends to a Service sends to a port that it has."""
    services = {each["metadata"]["name"]: each["spec"] for each in release if each["kind"] == "Service"}
    for name, spec in services.items():
        open_ports = {
            port["name"]
            for _, pod, labels in pods(release)
            if spec["selector"].items() <= labels.items()
            for container in pod["containers"]
            for port in container.get("ports", ())
        }
        for port in spec["ports"]:
            if port["targetPort"] not in open_ports:
                yield f"Service {name}: its pods have no port {port['targetPort']}, only {sorted(open_ports)}"
    for document in release:
        for name, wanted in _backends(document):
            if wanted not in {
                port[key] for port in services.get(name, {"ports": ()})["ports"] for key in ("name", "port")
            }:
                yield f"{_title(document)}: the Service {name} has no port {wanted}"


def _backends(document: Document) -> Iterator[tuple[str, str | int]]:
    """Services that `document` sends to, and the name or number of the port."""
    for rule in document.get("spec", {}).get("rules", ()):
        for path in rule.get("http", {}).get("paths", ()):
            yield path["backend"]["service"]["name"], path["backend"]["service"]["port"]["name"]
        for backend in rule.get("backendRefs", ()):
            yield backend["name"], backend["port"]


def _references(release: list[Document], external: set[str]) -> Iterator[str]:
    names: dict[str, dict[str, Document]] = {
        kind: {} for kind in ("Secret", "ConfigMap", "Service", "Deployment", "ServiceAccount")
    }
    for document in release:
        if document["kind"] in names:
            names[document["kind"]][document["metadata"]["name"]] = document
    for document in release:
        for kind, name, key in _referred(document):
            target = names[kind].get(name)
            if target is None and name not in external:
                yield f"{_title(document)}: refers to the {kind} {name}, which nobody makes"
            elif target is not None and key and key not in {**target.get("data", {}), **target.get("stringData", {})}:
                yield f"{_title(document)}: the {kind} {name} has no key {key}"


def _referred(document: Document) -> Iterator[tuple[str, str, str | None]]:
    """What `document` names: kind, name, and a key in it."""
    for _, spec, _ in pods([document]):
        if spec.get("serviceAccountName", "default") != "default":
            yield "ServiceAccount", spec["serviceAccountName"], None
    yield from _referred_in(document)
    for name, _ in _backends(document):
        yield "Service", name, None
    if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
        yield "Deployment", document["spec"]["scaleTargetRef"]["name"], None


_KEYED: Final = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap", "credentials": "Secret"}
_WHOLE: Final = {"secretRef": ("Secret", "name"), "configMapRef": ("ConfigMap", "name")}
_VOLUMES: Final = {"secret": ("Secret", "secretName"), "configMap": ("ConfigMap", "name")}


def _referred_in(value: Any) -> Iterator[tuple[str, str, str | None]]:
    if isinstance(value, list):
        for item in value:
            yield from _referred_in(item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _KEYED and isinstance(inner, Mapping):
                yield _KEYED[key], inner["name"], inner["key"]
            elif key in {**_WHOLE, **_VOLUMES} and isinstance(inner, Mapping):
                kind, field = {**_WHOLE, **_VOLUMES}[key]
                yield kind, inner[field], None
            elif key == "imagePullSecrets":
                yield from (("Secret", each["name"], None) for each in inner)
            else:
                yield from _referred_in(inner)


def unique(documents: Iterable[Document]) -> list[Document]:
    """`documents` without those that are equal to an earlier one."""
    return list({json.dumps(document, sort_keys=True): document for document in documents}.values())
