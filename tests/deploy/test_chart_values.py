"""values.yaml, its schema, the README and the templates say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.deploy.charts import CHART, OF_HELM, Helm, HelmError, chart_file, templates, values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS = chart_file("values.yaml")
PATHS = sorted(values_of(DEFAULTS, SCHEMA))
ROW = re.compile(r"^\| `(?P<path>[\w.]+)` \| `(?P<default>.*?)` \| (?P<text>.+) \|$", re.MULTILINE)


def documented() -> dict[str, re.Match[str]]:
    """The rows of the README's tables, by path."""
    return {row["path"]: row for row in ROW.finditer((CHART / "README.md").read_text(encoding="utf-8"))}


def used(text: str) -> set[str]:
    """Paths that a template names in full."""
    return set(re.findall(r"\.Values\.([\w.]*\w)", text))


def sections(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema whose keys are ours."""
    if "properties" in schema:
        yield path, schema
        for name, inner in schema["properties"].items():
            yield from sections(inner, f"{path}.{name}".lstrip("."))
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from sections(schema[part], f"{path}[]")


def test_every_value_is_in_the_readme_with_its_default_and_the_other_way_round() -> None:
    rows = documented()
    assert sorted(rows) == PATHS
    for path, row in rows.items():
        value = DEFAULTS
        for key in path.split("."):
            value = value[key]
        shown = row["default"]
        assert (shown == value) or json.loads(shown) == value, path


def test_every_value_is_described_in_values_yaml() -> None:
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    for path in PATHS:
        depth, key = path.count("."), path.rpartition(".")[2]
        places = [index for index, line in enumerate(lines) if re.match(rf"{'  ' * depth}{key}:", line)]
        assert any(lines[index - 1].strip().startswith("#") for index in places), path


def is_used(path: str, text: str) -> bool:
    """Whether the template `text` names `path`: in full, or its section and then, inside `with`, its own name."""
    named, parts = used(text), path.split(".")
    if path in named:
        return True
    for depth in range(1, len(parts)):
        if ".".join(parts[:depth]) in named and re.search(rf"[\w ($]\.{re.escape('.'.join(parts[depth:]))}\b", text):
            return True
    return False


def test_every_value_is_used() -> None:
    texts = templates().values()
    assert [path for path in PATHS if not any(is_used(path, text) for text in texts)] == []


def test_every_used_value_exists() -> None:
    known = set(PATHS) | {
        ".".join(path.split(".")[:depth]) for path in PATHS for depth in range(1, path.count(".") + 1)
    }
    named = {path for text in templates().values() for path in used(text)}
    assert {path for path in named if path not in known and not path.startswith("resources.")} == set()


def test_the_schema_knows_every_value_and_no_other() -> None:
    leaves = set()
    for path, section in sections(SCHEMA):
        if "[]" not in path and path not in PATHS:
            leaves |= {f"{path}.{name}".lstrip(".") for name in section["properties"]}
    inner = {path for path, _ in sections(SCHEMA)}
    assert {leaf for leaf in leaves if leaf not in inner or leaf in PATHS} - OF_HELM == set(PATHS)


def test_the_schema_leaves_no_section_open() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert [path for path, section in sections(SCHEMA) if section.get("additionalProperties") is not False] == []


def test_the_defaults_are_valid() -> None:
    jsonschema.validate(DEFAULTS, SCHEMA)


def typos() -> Iterator[Any]:
    """For every section of the values, one with a key that is not there."""
    for path, _ in sections(SCHEMA):
        if "[]" not in path:
            values: dict[str, Any] = {"typo": 1}
            for key in reversed(path.split(".") if path else []):
                values = {key: values}
            yield pytest.param(path, values, id=path or "top")


@pytest.mark.parametrize(("path", "values"), list(typos()))
def test_a_typo_is_rejected_in_every_section(path: str, values: dict[str, Any]) -> None:
    def merge(into: Any, more: Any) -> Any:
        return {**into, **{k: merge(into.get(k, {}), v) for k, v in more.items()}} if isinstance(more, dict) else more

    errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(merge(DEFAULTS, values)))
    assert [".".join(map(str, error.path)) for error in errors] == [path]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"replica": 2}, "replica"),
        ({"redis": {"uri": "redis://r"}}, "redis"),
        ({"replicas": "3"}, "replicas"),
        ({"redis": {"url": "http://r"}}, "redis"),
        ({"drain": {"windowSeconds": 1.5}}, "windowSeconds"),
        ({"drain": None}, "drain"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"extraEnv": [{"name": "A", "valu": "1"}]}, "extraEnv"),
        ({"app": "no module"}, "app"),
        ({"config": {"path": "ws"}}, "path"),
        ({"config": {"allowedOrigins": ["shop.example"]}}, "allowedOrigins"),
        ({"config": {"allowedOrigins": ["https://shop.example/"]}}, "allowedOrigins"),
        ({"ingress": {"hosts": ["https://a.example"]}}, "hosts"),
        ({"ingress": {"hosts": ["10.0.0.1"]}}, "hosts"),
        ({"ingress": {"tls": [{"hosts": ["a.example:443"]}]}}, "hosts"),
        ({"route": {"hostnames": ["https://a.example"]}}, "hostnames"),
        ({"route": {"hostnames": ["Chat.example"]}}, "hostnames"),
        ({"extraVolumes": [{"emptyDir": {}}]}, "extraVolumes"),
        ({"extraVolumeMounts": [{"name": "modules"}]}, "extraVolumeMounts"),
        ({"metrics": {"serviceMonitor": {"interval": "1s1m"}}}, "interval"),
        ({"rollout": {"minReadySeconds": "5"}}, "minReadySeconds"),
        ({"podSecurityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": 1}]}}, "sysctls"),
        ({"enabled": "true"}, "enabled"),
    ],
    ids=str,
)
def test_helm_rejects_what_the_schema_rejects(helm: Helm, values: dict[str, Any], place: str) -> None:
    with pytest.raises(HelmError, match=place):
        helm.template(values)
