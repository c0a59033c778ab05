"""The project that the page "Bigger applications" shows is a program: it starts, and its own tests pass."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "docs/examples/bigger_applications"


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PROJECT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shop", "test_shop")]:
        del sys.modules[name]


@pytest.mark.usefixtures("project")
def test_its_tests_pass() -> None:
    module = importlib.import_module("test_shop")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        asyncio.run(test())


def test_every_file_of_it_is_shown() -> None:
    page = (ROOT / "docs/how-to/bigger-applications.md").read_text(encoding="utf-8")
    shown = re.findall(r'-8<-- "(docs/examples/bigger_applications/.+?)"', page)
    files = [path for path in PROJECT.rglob("*.py") if path.stat().st_size]
    assert sorted(shown) == sorted(path.relative_to(ROOT).as_posix() for path in files)
