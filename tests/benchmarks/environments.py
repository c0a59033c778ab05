"""Environments of the peers, made at the first run below ``.bench/`` (ignored by git)."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.benchmarks.stage import Platform

HOME: Final = Path(__file__).parents[2] / ".bench"
SERVER: Final = ("uvicorn", "websockets")
PEERS: Final[dict[str, tuple[str, ...]]] = {
    "socketio": ("python-socketio", "redis", "hiredis", *SERVER),
    "channels": ("channels", "channels_redis", "hiredis", *SERVER),
    "chanx": ("chanx[fast-channels]", "fast-channels[redis]", "hiredis", *SERVER),
    "published": ("socketspec==0.1.2", "fastapi", "msgpack", *SERVER),
}
NEEDS: Final = {"socketio": "socketio", "channels": "channels_redis", "chanx": "chanx", "published": "socketspec.app"}
"""What has to be importable for an environment to be of use."""


def _pip(python: Path | str, *arguments: str) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _interpreter(name: str, home: Path, source: str) -> str:
    """The Python that has a peer installed. Raises `RuntimeError` saying why there is none."""
    folder = home / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        print(f"installing {', '.join(PEERS[name])} into {folder}", file=sys.stderr, flush=True)
        try:
            venv.create(folder, with_pip=True, clear=True)
            _pip(python, *PEERS[name])
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"could not be installed: {error}") from None
        ready.touch()
    if name == "published" and source:
        site = next((folder / "lib").glob("python*")) / "site-packages"
        (site / "published.pth").write_text(f"import sys; sys.path.insert(0, {source!r})\n")
    looked = subprocess.run([python, "-P", "-c", f"import {NEEDS[name]}"], capture_output=True, text=True, check=False)
    if looked.returncode:
        reason = (looked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"what the package registry has does not run: {reason}")
    return str(python)


def _uvloop(home: Path) -> str:
    """The folder that has uvloop, for all environments alike."""
    folder = home / "uvloop"
    if not folder.exists():
        _pip(sys.executable, "--target", str(folder), "uvloop")
    return str(folder)


def prepare(wanted: list[str], home: Path, loop: str, published: str) -> tuple[Platform, list[str]]:
    """The platform with the environments that are there, and remarks about those that are not."""
    pythons: dict[str, str] = {}
    remarks: list[str] = []
    for name in wanted:
        try:
            pythons[name] = _interpreter(name, home, published)
        except RuntimeError as error:
            remarks.append(f"{name}: {error}")
    if loop == "auto":
        loop = "uvloop" if find_spec("uvloop") else "asyncio"
    return Platform(pythons, loop, _uvloop(home) if loop == "uvloop" else ""), remarks
