"""The page on security: every promise stands beside a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| (?P<promise>[^|]+) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \|$", re.MULTILINE)
PROMISES = [match.groups() for match in _ROW.finditer(PAGE)]


def test_the_page_has_promises_and_each_row_of_its_tables_is_one() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(PROMISES) > 20
    assert len(rows) - rows.count("| promise | test |") == len(PROMISES)


@pytest.mark.parametrize(("promise", "file", "test"), PROMISES)
def test_the_test_beside_a_promise_is_there(promise: str, file: str, test: str) -> None:
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), promise
