"""The tools that these tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import deploy_tools
from tests.deploy.charts import Helm


@pytest.fixture(scope="session", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each Helm that the chart supports."""
    return _helm(request.param)


@pytest.fixture(scope="session")
def helm3() -> Helm:
    """The oldest Helm alone."""
    return _helm(3)


@pytest.fixture(scope="session")
def helm4() -> Helm:
    """The newest Helm alone, where nothing depends on its version."""
    return _helm(4)


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' own checker."""
    try:
        return deploy_tools.promtool()
    except deploy_tools.Missing as error:
        pytest.skip(f"promtool: make deploy-tools; {error}")


_helms: dict[int, Helm] = {}


def _helm(major: int) -> Helm:
    if major not in _helms:
        try:
            _helms[major] = Helm(deploy_tools.helm(major), major)
        except deploy_tools.Missing as error:
            pytest.skip(f"Helm {major}: make deploy-tools; {error}")
    return _helms[major]
