"""The script of `helm test`, against a node as the chart configures it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deploy.charts import CHART, Helm
from tests.deploy.test_chart import only
from tests.support import ROOT, Server, free_port

SECRET = "a secret of sixty-four characters, as many as HS512 wants, or more"
WAYS: Mapping[str, Mapping[str, str]] = {
    "anonymous": {"SOCKETSPEC_ANONYMOUS": "true"},
    "API key": {"SOCKETSPEC_API_KEYS": "k3y===ada,other"},
    "token": {
        "SOCKETSPEC_JWT_SECRET": SECRET,
        "SOCKETSPEC_JWT_AUDIENCE": "shop",
        "SOCKETSPEC_JWT_ISSUER": "https://id.example",
        "SOCKETSPEC_JWT_ALGORITHM": "HS512",
    },
}


@pytest.fixture(scope="session")
def trial(helm4: Helm) -> Mapping[str, str]:
    """The variables of the test's pod that are about the node."""
    variables = only(helm4.rendered("defaults"), "Pod")["spec"]["containers"][0]["env"]
    return {each["name"]: each["value"] for each in variables if "value" in each}


def try_node(variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script as the pod does, with nothing else in its environment."""
    command = [sys.executable, str(CHART / "files/try_node.py")]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("way", WAYS)
def test_two_clients_join_and_hear_each_other(way: str, tmp_path: Path, trial: Mapping[str, str]) -> None:
    port = free_port()
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "deploy").glob("*.py")}
    command = ["socketspec.cli.main", "serve", "node:app", "--port", str(port)]
    server = Server(tmp_path, sources, command, port, WAYS[way])
    try:
        server.wait()
        variables = {**trial, "TRY_URL": server.url("/ws"), "TRY_TIMEOUT": "10"}
        done = try_node({**variables, **WAYS[way]})
        assert (done.returncode, done.stderr) == (0, "")
        assert "Both clients received" in done.stdout
        if way == "token":
            refused = try_node(variables)
            assert refused.returncode != 0
            assert "4001" in refused.stderr or "AUTH_ERROR" in refused.stderr
        if way == "anonymous":
            silent = try_node({**variables, "TRY_RECEIVE": "nothing", "TRY_TIMEOUT": "0.5"})
            assert silent.returncode != 0
            assert "did not arrive" in silent.stderr
            unknown = try_node({**variables, "TRY_JOIN": '{"event": "nonsense", "payload": {}}'})
            assert "UNKNOWN_EVENT" in unknown.stderr
    finally:
        server.kill()


def test_it_says_where_nobody_is(trial: Mapping[str, str]) -> None:
    done = try_node({**trial, "TRY_URL": f"ws://127.0.0.1:{free_port()}/ws"})
    assert done.returncode != 0
    assert "ws://127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pod_gets_the_secrets_of_the_nodes_and_the_service_s_address(helm4: Helm) -> None:
    container = only(helm4.rendered("own-app"), "Pod")["spec"]["containers"][0]
    variables = {each["name"]: each for each in container["env"]}
    assert {"SOCKETSPEC_JWT_SECRET", "SOCKETSPEC_API_KEYS", "SOCKETSPEC_JWT_ALGORITHM"} <= set(variables)
    assert variables["TRY_URL"]["value"] == "ws://chat-socketspec:80/ws"
