"""Every Python example of README.md, CONTRIBUTING.md and docs/ is executed. The conventions are in CONTRIBUTING.md.

An example is one ```python fence, alone in a fresh module. An HTML comment on the line before a fence changes that:
``<!-- continues -->`` runs it in the module of the fence before; ``<!-- no-run: the reason -->`` leaves it out;
``<!-- pytest -->`` has pytest run it, as a test file beside the page's ``main.py``.
Functions called ``test_…`` in an example are called as well.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]

MAX_NOT_RUN = 0
"""How many examples may be marked ``no-run``. Raise it only for an example that no test could run."""

SHELL_COMMANDS_RUN = ("make help",)
"""Commands in ```bash fences that are executed; of the others only targets and extras are checked."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_TITLE = re.compile(r'title="(?P<title>[^"]*)"')
_ENVIRONMENT = re.compile(r"Publisher\((?!server)")
"""Examples with a publisher that takes its backend from the environment; they get a server."""
_FILE = re.compile(r'--8<-- "docs/examples/[^"]+"')
"""A fence that shows a file of an example: those are programs with tests of their own."""
_MARKER = re.compile(r"^<!-- *(?P<name>continues|no-run|pytest)(?:: *(?P<reason>.*?))? *-->$")


class Fence(NamedTuple):
    """One fenced block of a page."""

    page: Path
    line: int
    """Where its first line of code is, counted from 1."""
    language: str
    source: str
    marker: str
    """The comment before it, if it is an HTML comment; else empty."""
    title: str = ""
    """The name of its file, if it has one."""

    @property
    def place(self) -> str:
        """Where to find it, for people."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


class Example(NamedTuple):
    """Fences that run one after the other in one module."""

    fences: tuple[Fence, ...]

    def __str__(self) -> str:
        return self.fences[0].place


def read_fences(page: Path) -> Iterator[Fence]:
    """The fences of a page, in order. Raises `ValueError` for one that is never closed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number, before = 0, ""
    while number < len(lines):
        line = lines[number]
        number += 1
        opening = _FENCE.match(line)
        if opening is None:
            before = line.strip() or before
            continue
        body: list[str] = []
        first = number + 1
        while number < len(lines) and lines[number].strip() != opening["ticks"]:
            body.append(lines[number].removeprefix(opening["indent"]))
            number += 1
        if number == len(lines):
            raise ValueError(f"{page.name}:{first - 1}: this fence is never closed")
        number += 1
        marker = before if before.startswith("<!--") else ""
        title = _TITLE.search(opening["info"])
        language = opening["info"].split(" ")[0].strip()
        yield Fence(page, first, language, "\n".join(body) + "\n", marker, title["title"] if title else "")
        before = ""


FENCES = [fence for page in PAGES for fence in read_fences(page)]
PYTHON = [fence for fence in FENCES if fence.language == "python" and not _FILE.fullmatch(fence.source.strip())]


def marker_of(fence: Fence) -> tuple[str, str]:
    """The marker's name and reason; two empty strings without one."""
    found = _MARKER.match(fence.marker)
    return (found["name"], found["reason"] or "") if found else ("", "")


def collect_examples(fences: list[Fence]) -> list[Example]:
    """Every example that is to be run."""
    examples: list[list[Fence]] = []
    for fence in fences:
        name, _ = marker_of(fence)
        if name in ("no-run", "pytest"):
            continue
        if name == "continues" and examples and examples[-1][0].page == fence.page:
            examples[-1].append(fence)
        else:
            examples.append([fence])
    return [Example(tuple(fences)) for fences in examples]


EXAMPLES = collect_examples(PYTHON)


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A fresh module that `sys.modules` knows: annotations of models are resolved through it."""
    fresh = ModuleType("docs_example")
    sys.modules[fresh.__name__] = fresh
    yield fresh
    del sys.modules[fresh.__name__]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_of_the_documentation_runs(
    example: Example,
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(_ENVIRONMENT.search(fence.source) for fence in example.fences):
        monkeypatch.setenv("SOCKETSPEC_BACKEND", request.getfixturevalue("standalone_server").url)
    for fence in example.fences:
        # Empty lines in front give tracebacks the line number on the page.
        source = "\n" * (fence.line - 1) + fence.source
        exec(compile(source, str(fence.page), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- our own pages
    for name, value in list(vars(module).items()):
        if name.startswith("test_") and inspect.isfunction(value):
            result = value()
            if inspect.iscoroutine(result):
                asyncio.run(result)


TEST_FILES = [fence for fence in PYTHON if marker_of(fence)[0] == "pytest"]


@pytest.mark.parametrize("fence", TEST_FILES, ids=lambda fence: fence.place)
def test_a_test_file_of_the_documentation_passes_as_its_readers_run_it(fence: Fence, tmp_path: Path) -> None:
    (main,) = [other for other in PYTHON if other.page == fence.page and other.title == "main.py"]
    (tmp_path / "main.py").write_text(main.source, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    (tmp_path / fence.title).write_text(fence.source, encoding="utf-8")
    off = [f"-pno:{name}" for name in ("cloudcoil", "faker", "platformdirs", "valkey")]  # as our own tests run
    command = [sys.executable, "-m", "pytest", "-q", *off]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{fence.source.count('def test_')} passed" in run.stdout, "none is skipped"


SAMPLE_PAGE = """\
Text.

```python title="main.py"
first = 1
```
<!-- continues -->

```python
second = first + 1
```

!!! note

    ```python
    if True:
        third = 3
    ```

<!-- no-run: needs a server of its own -->
```python
fourth()
```
"""


def test_markers_join_fences_and_leave_them_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(SAMPLE_PAGE, encoding="utf-8")
    fences = list(read_fences(page))
    sources = [[fence.source for fence in example.fences] for example in collect_examples(fences)]
    assert sources == [["first = 1\n", "second = first + 1\n"], ["if True:\n    third = 3\n"]]
    assert marker_of(fences[-1]) == ("no-run", "needs a server of its own")
    assert [fence.line for fence in fences] == [4, 9, 15, 21]


def test_a_fence_that_is_never_closed_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="never closed"):
        list(read_fences(page))


def test_there_are_examples_on_the_first_screen_and_in_the_tutorial() -> None:
    pages = {example.fences[0].page for example in EXAMPLES}
    tutorial = {page for page in PAGES if page.parent.name == "tutorial" and page.name != "index.md"}
    files = {
        fence.page for fence in FENCES if _FILE.fullmatch(fence.source.strip())
    }  # an example with tests of its own
    assert {ROOT / "README.md", ROOT / "docs" / "index.md", *tutorial} <= pages | files


def test_python_fences_say_python_so_that_none_escapes() -> None:
    assert not [fence.place for fence in FENCES if fence.language in ("py", "python3", "py3", "Python", "pycon")]


def test_every_fence_names_its_language() -> None:
    assert not [fence.place for fence in FENCES if not re.fullmatch(r"[a-z]+", fence.language)]


def test_comments_before_python_fences_are_known_markers() -> None:
    unknown = [fence.place for fence in PYTHON if fence.marker and not _MARKER.match(fence.marker)]
    assert not unknown, "use <!-- continues --> or <!-- no-run: the reason -->"


def test_a_fence_continues_only_another_one_of_its_page() -> None:
    first = {fence.page: fence for fence in reversed(PYTHON)}
    assert not [fence.place for fence in first.values() if marker_of(fence)[0] == "continues"]


def test_examples_that_do_not_run_have_reasons_and_are_few() -> None:
    not_run = [(fence, reason) for fence in PYTHON for name, reason in [marker_of(fence)] if name == "no-run"]
    assert not [fence.place for fence, reason in not_run if len(reason) < 10]
    assert len(not_run) <= MAX_NOT_RUN


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence.language == "json"], ids=lambda f: f.place)
def test_a_json_example_is_json(fence: Fence) -> None:
    for line in fence.source.split("\n\n"):
        json.loads(line)


def shell_lines() -> list[tuple[str, str]]:
    """Each command of the ```bash fences, with its place."""
    return [
        (line.strip(), fence.place)
        for fence in FENCES
        if fence.language == "bash"
        for line in fence.source.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def test_make_targets_in_the_documentation_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [(found, place) for line, place in shell_lines() for found in re.findall(r"\bmake ([a-z-]+)", line)]
    assert named
    assert not [(target, place) for target, place in named if target not in targets]


def test_extras_in_the_documentation_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [
        (extra.strip(), page.name)
        for page in PAGES
        for group in re.findall(r"socketspec\[([a-z, ]+)\]", page.read_text(encoding="utf-8"))
        for extra in group.split(",")
    ]
    assert named
    assert not [item for item in named if item[0] not in project["optional-dependencies"]]


def test_nobody_is_told_to_install_another_projects_release() -> None:
    texts = [*PAGES, *ROOT.glob("socketspec/**/*.py"), *ROOT.glob("adapters/**/*.py"), *ROOT.glob("cluster/**/*.py")]
    named = re.compile(r"pip install (?:-\S+ )*['\"]?socketspec\b[^`\n]*")
    said = {found for text in texts for found in named.findall(text.read_text(encoding="utf-8"))}
    assert said == {"pip install socketspec"}  # in the sentence that warns of it


@pytest.mark.parametrize("command", SHELL_COMMANDS_RUN)
def test_a_listed_shell_command_of_the_documentation_works(command: str) -> None:
    assert any(line.partition("#")[0].strip() == command for line, _ in shell_lines()), "no page shows it any more"
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
