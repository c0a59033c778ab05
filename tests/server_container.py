"""A Valkey or Redis in a container, where an engine answers. Import it from `tests.servers`."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import warnings
from typing import Any, Self

from tests.server_process import Broken, ask, eventually, ran

__all__ = ("Container", "container_engine")

IMAGE = os.environ.get("SOCKETSPEC_TEST_IMAGE", "docker.io/valkey/valkey:8")


@functools.cache
def container_engine() -> str:
    """The engine that answers, like "docker 27.3"; "" where none does."""
    try:
        docker = importlib.import_module("docker")  # by name: the package has no types
    except ImportError:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker's client leaves its socket open where nobody answers
        # what is wrong decides nothing: no socket, no permission and no answer all mean that there is none to use
        try:
            client = docker.from_env(timeout=5)
            client.ping()
            version = client.version()["Version"]
            client.close()
        except (docker.errors.DockerException, OSError):
            return ""
        finally:
            gc.collect()
    return f"engine {version}"


class Container:
    """A server in a container made by testcontainers. Raises `Broken` where the engine cannot run it."""

    def __init__(self, image: str = IMAGE) -> None:
        # its own helper that removes containers would be one more image to fetch; this one is stopped below
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.core.container import DockerContainer

        self._container: Any = None
        try:
            self._container = DockerContainer(image).with_exposed_ports(6379)
            self._container.start()
            self.host: str = self._container.get_container_host_ip()
            self.port = int(self._container.get_exposed_port(6379))
            fields = eventually(self._fields, f"{image} answers", within=30)
        except Exception as error:  # whatever the engine raises, the sentence is the same
            self.stop()
            raise Broken(f"a container engine answers, but does not run {image}: {error}") from error
        name = "valkey" if "valkey_version" in fields else "redis"
        ran.setdefault(f"{name} {fields[f'{name}_version']} in a container")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://{self.host}:{self.port}"

    def ask(self, *words: str | bytes | int | float, timeout: float = 5.0) -> Any:
        """Send one command; the reply."""
        return ask(self.port, *words, host=self.host, timeout=timeout)

    def stop(self) -> None:
        """End and remove the container."""
        if self._container is not None:
            self._container.stop()

    def _fields(self) -> dict[str, str]:
        lines = str(self.ask("INFO", "server")).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)
