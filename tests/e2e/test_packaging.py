"""What is released works: sdist → wheel → a clean environment → the complete example of the how-to, over a socket."""

from __future__ import annotations

import asyncio
import email
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

import socketspec
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SECRET = "super-secret"  # the one of the how-to's complete example
ORIGIN = "https://myapp.com"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMPLETE_EXAMPLE = """\
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig

socket = SocketApp(
    docs=True,
    docs_url="/socket-docs",
    auth=JWTAuth(secret="super-secret", algorithm="HS256"),
    allowed_origins=["https://myapp.com"],
    rate_limit=RateLimit(rate=20, capacity=50),
    session=SessionConfig(max_duration=7200, idle_timeout=300),
    namespace="/",
)

app = FastAPI(title="My WebSocket API")
mount(socket, app, path="/ws")
"""


class Built(NamedTuple):
    """What `python -m build` made."""

    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command away from the source tree's own packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this tree, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


def make_environment(folder: Path, *requirements: str) -> Path:
    """A clean virtual environment with `requirements`; its interpreter."""
    folder = folder.resolve()
    # Without a pip of its own, and nothing compiled ahead: that would take longer than all the rest.
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if importlib.util.find_spec("uv") is not None:
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *requirements, cwd=folder)
    else:
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
        run(*pip, *requirements, cwd=folder)
    return python


@pytest.fixture(scope="module")
def bare(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its plain dependencies only."""
    return make_environment(tmp_path_factory.mktemp("bare") / "venv", str(built.wheel))


@pytest.fixture(scope="module")
def with_fastapi(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its `fastapi` extra."""
    return make_environment(
        tmp_path_factory.mktemp("fastapi") / "venv", f"socketspec[fastapi] @ {built.wheel.as_uri()}"
    )


def source_files() -> set[str]:
    """Every file that users are meant to get, by its name in the wheel."""
    folders = {"socketspec": "socketspec", "adapters": "socketspec/adapters", "cluster": "socketspec/cluster"}
    return {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, name in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_source_file_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"socketspec/adapters/fastapi.py", "socketspec/py.typed"} <= inside
    assert inside == source_files()


def test_the_sdist_holds_every_source_file_with_the_linked_folders_as_subpackages(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    inside = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert source_files() <= inside
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= inside
    assert not [name for name in inside if name.startswith(("adapters/", "cluster/"))]
    assert not [member.name for member in members if member.issym() or member.islnk()]


def test_metadata_has_the_version_of_the_package(built: Built) -> None:
    metadata = wheel_metadata(built.wheel)
    assert metadata["Version"] == socketspec.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_wheel_without_extras_imports_no_framework(bare: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.metadata, socketspec; socketspec.SocketApp()\n"
        "assert socketspec.__version__ == importlib.metadata.version('socketspec')\n"
        "assert not {'fastapi', 'starlette', 'uvicorn', 'redis'} & set(sys.modules)\n"
        "print(socketspec.__file__)"
    )
    done = run(bare, "-I", "-c", code, cwd=tmp_path)
    assert str(bare.parents[1]) in done.stdout


def test_the_fastapi_adapter_without_its_extra_says_what_to_install(bare: Path, tmp_path: Path) -> None:
    done = run(bare, "-I", "-c", "import socketspec.adapters.fastapi", cwd=tmp_path, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ModuleNotFoundError"))
    assert "pip install 'fastapi>=" in last


@pytest.fixture(scope="module")
def server(with_fastapi: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The complete example on stock uvicorn in the clean environment; its port."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "main.py").write_text(COMPLETE_EXAMPLE, encoding="utf-8")
    port = free_port()
    log = folder / "uvicorn.log"
    command = [str(with_fastapi), "-m", "uvicorn", "main:app", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for_answer(port, process, log)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def wait_for_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers. Raises `AssertionError` with its log when it does not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5):
                return
        except OSError:
            time.sleep(0.05)  # polling a port: there is nothing to wait on
    raise AssertionError(f"uvicorn did not start:\n{log.read_text()}")


def make_token() -> str:
    return jwt.encode({"sub": "ada", "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")


@pytest.mark.filterwarnings("ignore:The HMAC key is")  # the how-to's secret is short; the text is PyJWT's
async def test_a_good_token_connects_to_the_complete_example(server: int) -> None:
    headers = {"Authorization": f"Bearer {make_token()}"}
    url = f"ws://127.0.0.1:{server}/ws"
    async with connect(url, additional_headers=headers, origin=Origin(ORIGIN)) as client:
        await client.send('{"event": "nothing_registered", "id": 7}')
        answer = json.loads(await asyncio.wait_for(client.recv(), 10))
    assert answer["event"] == "__error__"
    assert answer["id"] == 7
    assert answer["payload"]["code"] == "UNKNOWN_EVENT"


@pytest.mark.filterwarnings("ignore:The HMAC key is")
async def test_a_good_token_in_the_query_connects_to_the_complete_example(server: int) -> None:
    async with connect(f"ws://127.0.0.1:{server}/ws?token={make_token()}", origin=Origin(ORIGIN)) as client:
        await client.send('{"event": "__ping__"}')
        answer = json.loads(await asyncio.wait_for(client.recv(), 10))
    assert answer["event"] == "__pong__"


async def test_no_token_gets_an_auth_error_and_close_code_4001(server: int) -> None:
    async with connect(f"ws://127.0.0.1:{server}/ws", origin=Origin(ORIGIN)) as client:
        first = json.loads(await asyncio.wait_for(client.recv(), 10))
        assert first["event"] == "__error__"
        assert first["payload"]["code"] == "AUTH_ERROR"
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4001


async def test_a_page_of_another_origin_is_refused_with_403_before_the_upgrade(server: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{server}/ws", origin=Origin("https://evil.example"))
    assert refused.value.response.status_code == 403


def test_the_docs_page_is_served_from_the_wheel(server: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server}/socket-docs", timeout=10) as response:
        page = response.read().decode()
    assert response.status == 200
    assert "<html" in page
