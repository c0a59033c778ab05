"""The alert rules, checked by Prometheus' own tool and against the metrics that a node exports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.charts import CHART
from tests.deploy.metric_names import HISTOGRAMS, KNOWN, names_in, selectors
from tests.support import ROOT

FOLDER = ROOT / "deploy/prometheus"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]


def run(promtool: Path, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules(promtool: Path) -> None:
    run(promtool, "check", "rules", "--lint-fatal", "rules.yaml")


def test_every_alert_fires_where_it_should_and_stays_quiet_beside(promtool: Path) -> None:
    run(promtool, "test", "rules", "rules_test.yaml")


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    checked = [check for test in TESTS for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checked if check.get("exp_alerts")} == set(ALERTS)
    assert {check["alertname"] for check in checked if not check.get("exp_alerts")} == set(ALERTS)


def test_the_chart_has_the_same_rules() -> None:
    ours, chart = FOLDER / "rules.yaml", CHART / "files/rules.yaml"
    assert ours.read_text(encoding="utf-8") == chart.read_text(encoding="utf-8"), (
        "the chart's is the source: cp helm/socketspec/files/rules.yaml deploy/prometheus/rules.yaml"
    )


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_only_metrics_that_a_node_exports(alert: str) -> None:
    names = names_in(ALERTS[alert]["expr"])
    assert names
    assert names <= KNOWN


def test_the_tests_feed_only_series_that_a_node_exports() -> None:
    series = {each["series"].partition("{")[0] for test in TESTS for each in test["input_series"]}
    assert series <= KNOWN


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_who_what_and_how_bad(alert: str) -> None:
    rule = ALERTS[alert]
    assert alert.startswith("SocketSpec")
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert re.search(r"\{\{ \$labels\.(job|event) \}\}", rule["annotations"]["summary"])
    assert rule["annotations"]["description"].endswith((".", "?"))
    assert "for" in rule


@pytest.mark.parametrize("alert", ALERTS)
def test_no_alert_selects_by_the_label_that_two_systems_call_namespace(alert: str) -> None:
    matched = [matcher.name for each in selectors(ALERTS[alert]["expr"]) for matcher in each.matchers.matchers]
    assert "namespace" not in matched


def test_the_names_are_those_that_the_documentation_of_metrics_promises() -> None:
    promised = {"socketspec_handler_seconds", "socketspec_fanout_seconds", "socketspec_fanout_recipients"}
    promised |= {"socketspec_backend_seconds", "socketspec_publish_lag_seconds"}
    assert promised == HISTOGRAMS
