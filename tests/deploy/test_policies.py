"""What checkov's policies say of the chart's objects and of the Dockerfile: nothing that is not excused here by name.

Compose files are no format of checkov's: it finds nothing to look at in deploy/compose.yaml.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from scripts import deploy_tools
from tests.deploy.charts import VALUES, Helm
from tests.support import ROOT

# Half a minute of it, at first, is checkov's installation.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EXCUSED: Final = {
    "CKV2_K8S_6 Pod": "no NetworkPolicy: networkPolicy.enabled makes one for the pod of `helm test`, too",
    "CKV_K8S_8 Pod": "no liveness probe: the pod of `helm test` runs to its end, within activeDeadlineSeconds",
    "CKV_K8S_9 Pod": "no readiness probe: no Service selects the pod of `helm test`",
    "CKV_K8S_11": "no CPU limit: throttling shows as latency; what is requested is what is guaranteed",
    "CKV_K8S_15": "not pulled at every start: a tag is a version and never moves; image.pullPolicy changes it",
    "CKV_K8S_21": "no namespace: `--namespace` says it, and Helm's conventions for charts are against repeating it",
    "CKV_K8S_35": "secrets as variables: the node is configured by SOCKETSPEC_* alone; they come from a Secret",
    "CKV_K8S_40 Deployment": "no user id: `userId: null` leaves it to the platform, and OpenShift refuses any other",
    "CKV_K8S_43": "no digest: it is known when the image was pushed, and then image.digest takes it",
}
"""Why a check may fail, by its id, and by its id and kind where it may fail for objects of this kind alone."""
AMENDED: Final = frozenset({"CKV2_K8S_6", "CKV_K8S_15", "CKV_K8S_40", "CKV_K8S_43"})
"""Checks whose excuse names a value: with the values of production none of them fails."""
BAD_POD: Final = """\
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  hostNetwork: true
  containers: [{name: bad, image: bad, securityContext: {privileged: true}}]
"""
BAD_DOCKERFILE: Final = "FROM python\nRUN sudo true\nEXPOSE 22\n"


@dataclass(frozen=True)
class Result:
    """What one check says of one object, or of one Dockerfile."""

    passed: bool
    check: str
    name: str
    file: str
    resource: str

    @property
    def excuse(self) -> str | None:
        """The key of `EXCUSED` that lets it fail."""
        keys = (self.check, f"{self.check} {self.resource.partition('.')[0]}")
        return next((key for key in keys if key in EXCUSED), None)

    def __str__(self) -> str:
        return f"{self.file}: {self.resource}: {self.check} {self.name}"


@dataclass(frozen=True)
class Run:
    """One run of checkov over everything."""

    reports: list[dict[str, Any]]
    folder: Path

    @property
    def results(self) -> list[Result]:
        """All that it checked, the deliberately bad included."""
        return [
            Result(
                verdict == "passed", found["check_id"], found["check_name"], found["file_path"][1:], found["resource"]
            )
            for report in self.reports
            for verdict in ("passed", "failed")
            for found in report["results"][f"{verdict}_checks"]
        ]

    @property
    def failures(self) -> list[Result]:
        """What fails of ours."""
        return [result for result in self.results if not result.passed and not result.file.startswith("bad/")]


@pytest.fixture(scope="module")
def run(helm4: Helm, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """checkov's run over the Dockerfile, the chart with every values file of the matrix, and something bad of each."""
    folder = tmp_path_factory.mktemp("policies")
    for name, values in VALUES.items():  # each a release of its own: policies of one do not cover pods of another
        (folder / f"{name}.yaml").write_text(helm4.template(values, release=name), encoding="utf-8")
    shutil.copy(ROOT / "deploy/Dockerfile", folder)
    bad = folder / "bad"
    bad.mkdir()
    (bad / "pod.yaml").write_text(BAD_POD, encoding="utf-8")
    (bad / "Dockerfile").write_text(BAD_DOCKERFILE, encoding="utf-8")
    return Run(checkov(folder), folder)


def checkov(folder: Path) -> list[dict[str, Any]]:
    """checkov's reports on the files of `folder`, which needs no network, no account and nobody's configuration."""
    try:
        program = deploy_tools.checkov()
    except deploy_tools.Missing as error:
        pytest.skip(f"checkov: make deploy-tools; {error}")
    options = ("--framework", "kubernetes", "dockerfile", "--skip-download", "--compact", "--output", "json")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "CKV_SKIP_PACKAGE_UPDATE_CHECK": "true"}
    done = subprocess.run(
        [program, "--directory", folder, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, f"the bad ones make it fail, but not break: {done.stderr[-3000:]}"
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def test_nothing_fails_that_is_not_excused(run: Run) -> None:
    assert [str(result) for result in run.failures if result.excuse is None] == []


def test_every_excuse_is_still_needed(run: Run) -> None:
    assert sorted(EXCUSED.keys() - {result.excuse for result in run.failures}) == []


def test_what_is_left_to_values_passes_with_those_of_production(run: Run) -> None:
    checks = [result for result in run.results if result.file == "production.yaml" and result.check in AMENDED]
    assert {result.check for result in checks} == AMENDED
    assert [str(result) for result in checks if not result.passed] == []


def test_every_workload_is_looked_at_and_nothing_excuses_itself(run: Run) -> None:
    rendered = {
        (path.name, f"{document['kind']}.default.{document['metadata']['name']}")
        for path in run.folder.glob("*.yaml")
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document and document["kind"] in ("Deployment", "Pod")
    }
    assert len({file for file, _ in rendered}) == len(VALUES)
    assert rendered - {(result.file, result.resource) for result in run.results} == set()
    assert "Dockerfile" in {result.file for result in run.results}
    summaries = [report["summary"] for report in run.reports]
    assert [(summary["skipped"], summary["parsing_errors"]) for summary in summaries] == [(0, 0)] * 2


def test_what_is_bad_is_found(run: Run) -> None:
    found = {(result.file, result.check) for result in run.results if not result.passed}
    privileged, host_network = ("bad/pod.yaml", "CKV_K8S_16"), ("bad/pod.yaml", "CKV_K8S_19")
    root, ssh, no_healthcheck = (("bad/Dockerfile", f"CKV_DOCKER_{number}") for number in (3, 1, 2))
    assert {privileged, host_network, root, ssh, no_healthcheck} <= found
