"""`docs/examples/orders`: its own tests, and the whole of it as it is deployed: two nodes, a worker and a Valkey."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.servers import Server as RedisServer
from tests.servers import started
from tests.support import Server, client, jwt, serving

ROOT = Path(__file__).resolve().parents[2]
ORDERS = ROOT / "docs/examples/orders"
SECRET = "of-the-tests-only-and-32-bytes-long"
OTHERS = ("anyio", "asyncio", "cloudcoil", "faker", "platformdirs", "valkey")
"""Plugins of pytest that other tests' libraries bring."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of it, as a project of its own."""
    copied = tmp_path / "orders"
    shutil.copytree(ORDERS, copied, ignore=shutil.ignore_patterns("__pycache__", "*.db"))
    return copied


def run(folder: Path, *command: str, **environment: str) -> str:
    """What a Python program of the project prints."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    ran = subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_its_own_tests_pass(folder: Path) -> None:
    disabled = [word for name in OTHERS for word in ("-p", f"no:{name}")]
    assert "5 passed" in run(folder, "-m", "pytest", "-q", "-W", "error", *disabled, "tests")


def test_its_server_is_short() -> None:
    lines = [line for path in ORDERS.glob("app/*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert 100 < len(lines) <= 180


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    """One of its own, as the application names no prefix."""
    with started():
        made = RedisServer()
    with made:
        yield made


async def test_what_the_worker_says_reaches_followers_on_every_node(folder: Path, valkey: RedisServer) -> None:
    environment = {
        "JWT_SECRET": SECRET,
        "DATABASE_URL": f"sqlite:///{folder}/orders.db",
        "SOCKETSPEC_BACKEND": valkey.url,
    }

    def node() -> Server:
        port = free_port()
        command = ["uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(port)]
        return Server(folder, {}, command, port, environment)

    def token(user: str, role: str) -> dict[str, str]:
        return {"authorization": f"Bearer {jwt(SECRET, sub=user, role=role)}"}

    first = node()
    with serving(first):
        second = node()
        with serving(second):
            async with (
                client(first.url("/ws"), headers=token("ada", "customer")) as ada,
                client(second.url("/ws"), headers=token("sue", "support")) as sue,
            ):
                order = await ada.call("orders.place", {"item": "soup"})
                await sue.call("orders.follow", {"id": order["id"]})
                run(folder, "worker.py", str(order["id"]), **environment)
                for conn in (ada, sue):
                    message = await conn.receive()
                    assert (message["event"], message["payload"]) == ("order_changed", {**order, "state": "ready"})
