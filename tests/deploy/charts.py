"""Rendering the chart with a real Helm, and what the chart's folder says about its values."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import ROOT

__all__ = ("CHART", "OF_HELM", "VALUES", "Helm", "HelmError", "values_of")

CHART: Final = ROOT / "helm/socketspec"
VALUES: Final = {path.stem: path for path in sorted((Path(__file__).parent / "values").glob("*.yaml"))}
"""Values files by name: the matrix that every check of a rendered chart goes through."""
OF_HELM: Final = frozenset({"global", "enabled"})
"""Values at the top that the schema allows for the sake of charts that have this one as a dependency."""

Document = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the text is what it said."""


class Helm:
    """A helm binary of one major version."""

    def __init__(self, program: Path, major: int) -> None:
        self.major = major
        self._program = program

    def run(self, *arguments: str) -> str:
        """Its standard output. Raises `HelmError` for a failure."""
        with tempfile.TemporaryDirectory() as home:  # nobody's own configuration or plugins
            folders = {f"HELM_{kind}_HOME": home for kind in ("CACHE", "CONFIG", "DATA")}
            environment = {"PATH": os.environ["PATH"], "HOME": home, **folders}
            done = subprocess.run(
                [self._program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
            )
        if done.returncode:
            raise HelmError(done.stderr + done.stdout)
        return done.stdout

    def template(self, values: Path | Mapping[str, Any] | None = None, *options: str, release: str = "chat") -> str:
        """The chart rendered, as text. `values` is a file or the values themselves."""
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(values, Mapping):
                path = Path(folder) / "values.yaml"
                path.write_text(json.dumps(values), encoding="utf-8")
                values = path
            given = ("--values", str(values)) if values else ()
            return self.run("template", release, str(CHART), "--namespace", "shop", *given, *options)

    def documents(
        self, values: Path | Mapping[str, Any] | None = None, *options: str, release: str = "chat"
    ) -> list[Document]:
        """The chart rendered, as objects. A key that stands twice in a map is an error."""
        text = self.template(values, *options, release=release)
        return [document for document in yaml.load_all(text, _UniqueKeys) if document]

    def rendered(self, name: str) -> list[Document]:
        """The documents of the values file `name` of the matrix, rendered once."""
        return _rendered(self, name)


@cache
def _rendered(helm: Helm, name: str) -> list[Document]:
    return helm.documents(VALUES[name])


class _UniqueKeys(yaml.CSafeLoader):  # the one in C: charts are long
    """YAML lets a later key replace an earlier one; what Helm sends to Kubernetes must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{sorted(twice)} twice in one map{node.start_mark}"
        return super().construct_mapping(node, deep)


def values_of(values: Any, schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of `values`, down to where `schema` lets the user choose the keys."""
    if isinstance(values, dict) and schema.get("additionalProperties") is False and _is_section(values, schema):
        for key, value in values.items():
            yield from values_of(value, schema["properties"][key], f"{prefix}{key}.")
    else:
        yield prefix.removesuffix(".")


def _is_section(values: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether all keys that there can be have a default: otherwise it is one value, such as `resources`."""
    is_top = "global" in schema["properties"]
    return set(schema["properties"]) - (OF_HELM if is_top else frozenset[str]()) == set(values)


def chart_file(name: str) -> Any:
    """A YAML or JSON file of the chart, parsed."""
    return yaml.safe_load((CHART / name).read_text(encoding="utf-8"))


def templates() -> dict[str, str]:
    """The text of every template, without comments."""
    comment = re.compile(r"\{\{-?\s*/\*.*?\*/\s*-?\}\}", re.DOTALL)
    return {
        str(path.relative_to(CHART)): comment.sub("", path.read_text(encoding="utf-8"))
        for path in sorted((CHART / "templates").rglob("*"))
        if path.is_file()
    }
