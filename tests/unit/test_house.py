"""The house has floors: no circle of imports, counting those for type checkers, and the engine is handed to few.

import-linter (`make contracts`) holds which floor may import which. This looks at the source text, so an import inside
a function or behind ``if TYPE_CHECKING`` counts like any other.
"""

from __future__ import annotations

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from scripts.house import ROOT, imports_of, modules

MODULES = {name: module.path for name, module in modules().items()}


def graph() -> dict[str, frozenset[str]]:
    return {name: module.imports for name, module in modules().items()}


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


def test_only_tests_of_the_runtime_name_the_engine_all_others_have_one_door_to_it() -> None:
    """`tests/engines.py` is the door, and says why there is one. `app.engine` is the app's own, for its own tests."""
    inside = [path for path in ROOT.glob("tests/unit/**/*.py") if "runtime" not in path.parts]
    outside = [*ROOT.glob("tests/contract/**/*.py"), *ROOT.glob("tests/*.py")]
    looking = [path for path in (*inside, *outside) if path.name != "engines.py" and names_the_engine(path)]
    assert [path for path in looking if path.parent.name != "app"] == []
    assert not [path for path in looking if "socketspec.runtime.engine" in imports_of(parsed(path), set(MODULES))]


def names_the_engine(path: Path) -> bool:
    """Whether a test imports the engine, or takes it from an app."""
    tree = parsed(path)
    taken = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return "socketspec.runtime.engine" in imports_of(tree, set(MODULES)) or not taken.isdisjoint(
        ("engine", "ensure_started")
    )


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_package_hands_on_names_of_its_own_only(name: str) -> None:
    """But for `backend`: whoever writes one finds all that its protocols speak of in the same place."""
    package = importlib.import_module(name)
    handed_on = set(getattr(package, "__all__", ()))
    imports = [node for node in ast.walk(parsed(MODULES[name])) if isinstance(node, ast.ImportFrom) and node.module]
    foreign = {
        node.module
        for node in imports
        if not f"{node.module}.".startswith(f"{name}.") and handed_on & {alias.name for alias in node.names}
    }
    assert foreign == ({"socketspec.protocol.publications"} if name == "socketspec.backend" else set())


@pytest.mark.parametrize("name", MODULES)
def test_a_file_says_its_one_job_in_its_first_line_and_has_at_most_400_lines(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    documented = ast.get_docstring(ast.parse(source)) or ""
    assert documented.partition("\n")[0].endswith((".", "?", ":", "!")), "a whole sentence"
