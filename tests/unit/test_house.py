"""The house has floors: no circle of imports, counting those for type checkers, and the engine is handed to few.

import-linter (`make contracts`) holds which floor may import which. This looks at the source text, so an import inside
a function or behind ``if TYPE_CHECKING`` counts like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"socketspec": "socketspec", "socketspec.adapters": "adapters", "socketspec.cluster": "cluster"}
LINKS = {"adapters", "cluster"}
"""Folders of their own at the top; what stands in `socketspec/` are links to them."""


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if package == "socketspec" and parts[0] in LINKS:
                continue
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(_modules())


def imports_of(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules of `known` that a source imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (named & known) or {node.module}
    return found & known


def graph() -> dict[str, set[str]]:
    return {
        name: imports_of(ast.parse(path.read_text(encoding="utf-8")), set(MODULES)) - {name}
        for name, path in MODULES.items()
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_a_circle_would_be_found_also_behind_type_checking_and_inside_functions() -> None:
    guarded = ast.parse("if TYPE_CHECKING:\n    from a import b\ndef f():\n    import a.c\n    from a.d import name")
    assert imports_of(guarded, {"a", "a.b", "a.c", "a.d"}) == {"a.b", "a.c", "a.d"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_the_project_is_imported_for_type_checkers_only(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    assert not [imported for guard in guards for imported in imports_of(guard, set(MODULES))]


def test_only_the_roof_is_handed_the_engine() -> None:
    engine = "socketspec.runtime.engine"
    holders = {name for name, imported in graph().items() if engine in imported}
    allowed = ("socketspec.adapters.", "socketspec.app.", "socketspec.testing")
    assert holders
    assert not [name for name in holders if not name.startswith(allowed)]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_says_its_one_job_in_its_first_line_and_has_at_most_400_lines(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    documented = ast.get_docstring(ast.parse(source)) or ""
    assert documented.partition("\n")[0].strip()
