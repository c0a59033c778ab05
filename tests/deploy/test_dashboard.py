"""The Grafana dashboard: it parses, it names what nodes export, and nothing lies over anything else."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from socketspec.adapters.prometheus import NAMES
from tests.deploy.charts import CHART
from tests.deploy.metric_names import KNOWN, names_in, selectors
from tests.support import ROOT

BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = BOARD["panels"]
VARIABLES = {variable["name"] for variable in BOARD["templating"]["list"]}


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression and where it is."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield f"{panel['title']}/{target['refId']}", target["expr"]
    for annotation in BOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


EXPRESSIONS = dict(expressions())


def plain(expression: str) -> str:
    """`expression` as Grafana sends it: its variables replaced."""
    return expression.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$job", ".+")


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_an_expression_parses_and_names_only_metrics_that_a_node_exports(place: str) -> None:
    names = names_in(plain(EXPRESSIONS[place]))
    assert names
    assert names <= KNOWN


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_an_expression_looks_at_the_chosen_namespaces_and_jobs_alone(place: str) -> None:
    expression = plain(EXPRESSIONS[place])
    assert "$" not in expression
    for selector in selectors(expression):
        chosen = {"namespace": ".*", "job": ".+"}
        matchers = [(matcher.name, matcher.value) for matcher in selector.matchers.matchers if matcher.name in chosen]
        assert sorted(matchers) == sorted(chosen.items())


def test_all_namespaces_are_those_without_one_too() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    # A plain Prometheus gives nodes none, and `.+` would find nothing there.
    assert (variables["namespace"]["includeAll"], variables["namespace"]["allValue"]) == (True, ".*")
    assert variables["job"]["definition"] == variables["job"]["query"]["query"]
    (jobs,) = selectors(plain(variables["job"]["definition"]).removeprefix("label_values(").rpartition(",")[0])
    assert [(matcher.name, matcher.value) for matcher in jobs.matchers.matchers] == [("namespace", ".*")]


def test_every_metric_is_shown() -> None:
    shown = {name for expression in EXPRESSIONS.values() for name in names_in(plain(expression))}
    assert {name for name in NAMES if not shown & {name, f"{name}_bucket"}} == set()


def test_every_panel_takes_its_data_from_the_chosen_source() -> None:
    for panel in PANELS:
        for part in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert sorted(VARIABLES) == ["datasource", "job", "namespace"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) - {"__rate_interval", "__all"} == VARIABLES


def test_panels_have_ids_titles_and_descriptions_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert [panel["title"] for panel in PANELS if panel["type"] != "row" and not panel["description"]] == []


def test_no_panel_lies_over_another_or_beyond_the_edge() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_chart_has_the_same_dashboard() -> None:
    ours, chart = ROOT / "deploy/grafana/dashboard.json", CHART / "files/dashboard.json"
    assert ours.read_text(encoding="utf-8") == chart.read_text(encoding="utf-8"), (
        "the chart's is the source: cp helm/socketspec/files/dashboard.json deploy/grafana/dashboard.json"
    )
