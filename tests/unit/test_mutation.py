"""The small changes by which the tests themselves are tested."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.changes import changes
from tests.mutation.mutate import numbered, read_equivalent, read_missed

EXAMPLE = '''
LIMIT = 10  # a declaration: not changed


class Queue:
    size: int = 0

    async def push(self, item: "str") -> bool:
        """Ten at most."""
        if self.size >= LIMIT and not self.open:
            logger.warning("full of %d", LIMIT)
            raise ValueError(f"no room for {item}")
        async with self.lock:
            await self.send(item,
                            last=True)
        self.size += 1
        return (self.size
                > 5)
'''


def names(source: str) -> list[str]:
    return [name for _, name in numbered(changes(source))]


def test_each_change_is_one_that_a_programmer_might_make() -> None:
    assert sorted(names(EXAMPLE)) == sorted(
        f"Queue.push: {old}  →  {new}"
        for old, new in [
            ("self.size >= LIMIT and (not self.open)", "not (self.size >= LIMIT and (not self.open))"),
            ("self.size >= LIMIT and (not self.open)", "self.size >= LIMIT or not self.open"),
            ("self.size >= LIMIT and (not self.open)", "not self.open"),
            ("self.size >= LIMIT and (not self.open)", "self.size >= LIMIT"),
            ("self.size >= LIMIT", "self.size > LIMIT"),
            ("self.size >= LIMIT", "self.size < LIMIT"),
            ("not self.open", "self.open"),
            ("logger.warning('full of %d', LIMIT)", "pass"),
            ("raise ValueError(f'no room for {item}')", "pass"),
            ("self.lock", "__import__('contextlib').nullcontext()"),
            ("await self.send(item, last=True)", "pass"),
            ("await self.send(item, last=True)", "self.send(item, last=True)"),
            ("self.send(item, last=True)", "self.send(item)"),
            ("True", "False"),
            ("self.size += 1", "pass"),
            ("1", "2"),
            ("return self.size > 5", "return None"),
            ("self.size > 5", "self.size >= 5"),
            ("self.size > 5", "self.size <= 5"),
            ("5", "6"),
        ]
    )


def test_a_change_touches_its_own_lines_only() -> None:
    lines = EXAMPLE.splitlines()
    for change in changes(EXAMPLE):
        changed = change.source.splitlines()
        assert len(changed) == len(lines)
        differing = [number for number, (one, two) in enumerate(zip(lines, changed, strict=True), 1) if one != two]
        assert differing, change.name
        assert change.lines.start <= differing[0] <= differing[-1] < change.lines.stop
        assert lines[change.scope.start - 1].lstrip().startswith("async def push")
        ast.parse(change.source)


@pytest.mark.parametrize(
    "source",
    [
        "def f() -> None:\n    pass\n",
        "def f(x: int = 5, *, y: str = 'a') -> 'str': ...\n",
        "def __repr__(self):\n    return 'x' + self.name\n",
        "def f():\n    'Docs of 5 > 3.'\n",
        "def f(x):\n    return\n",
        "def f(x):\n    y = spawn(x, name='label')\n",
        "def f():\n    logger.debug('only for people', 5)\n",
    ],
)
def test_what_is_not_code_or_makes_no_difference_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_changes_of_the_same_name_are_numbered_in_order() -> None:
    assert names("def f(x):\n    x.a(); x.a()\n") == ["f: x.a()  →  pass", "f: x.a()  →  pass  (2)"]


def test_what_nobody_could_notice_is_listed_with_its_reason() -> None:
    text = "# Only costs time.\nf: 1  →  2\n\ng: a  →  b\n# Another.\nh: c  →  d\n"
    assert read_equivalent(text) == {
        "f: 1  →  2": "Only costs time.",
        "g: a  →  b": "Only costs time.",
        "h: c  →  d": "Another.",
    }


def test_what_a_campaign_printed_says_what_to_ask_again() -> None:
    printed = "3 tests\n\nNOT NOTICED (2 tests pass): f: (1): 2  →  3  (2)\n@@ -1 +1 @@\n-f\nf.py: 5 changes"
    assert read_missed(printed) == {"f: (1): 2  →  3  (2)"}
