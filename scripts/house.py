"""Reads the house from its sources: every module, its one job, what it imports, and the floors of pyproject.toml.

A *room* is what stands directly in `socketspec/`: a package, or a file alone. Imports are read from the source text, so
one inside a function counts like any other.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "socketspec"
FOLDERS: Final = {PACKAGE: PACKAGE, f"{PACKAGE}.adapters": "adapters", f"{PACKAGE}.cluster": "cluster"}
"""Where the modules of a package are. The last two are folders of their own; in `socketspec/` stand links to them."""


class Module(NamedTuple):
    """One file of Python."""

    name: str
    """As it is imported: ``socketspec.inbound.dispatch``; a package for its ``__init__``."""
    path: Path
    job: str
    """The first line of its docstring."""
    imports: frozenset[str]
    """The modules of this project that it imports, also inside functions."""

    @property
    def room(self) -> str:
        """The room it belongs to; empty for the package itself."""
        return self.name.removeprefix(PACKAGE).lstrip(".").partition(".")[0]

    @property
    def place(self) -> str:
        """Its path below `socketspec/`, where `adapters` and `cluster` are found, too."""
        place = self.path.relative_to(ROOT).as_posix()
        return place.removeprefix(f"{PACKAGE}/")


class Room(NamedTuple):
    """A package of the house, or a file that stands alone."""

    name: str
    job: str
    modules: tuple[Module, ...]
    """Its files, without the ``__init__`` of packages."""
    imports: frozenset[str]
    """The other rooms that it imports."""
    layers: tuple[tuple[str, ...], ...]
    """Its files and folders, from the top to the ground."""
    is_layered: bool
    """Whether a contract says so: then those of one layer do not import each other. Else all are in one layer."""


def find_modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project, by the name that it is imported by."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if package == PACKAGE and f"{PACKAGE}.{parts[0]}" in FOLDERS:
                continue
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


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


@cache
def modules() -> Mapping[str, Module]:
    """Every module, by name."""
    paths = dict(find_modules())
    found: dict[str, Module] = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        job = (ast.get_docstring(tree) or "").partition("\n")[0]
        found[name] = Module(name, path, job, frozenset(imports_of(tree, set(paths)) - {name}))
    return found


@cache
def contracts() -> Sequence[Mapping[str, Any]]:
    """What import-linter enforces, as pyproject.toml says it."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = configuration["tool"]["importlinter"]["contracts"]
    return found


def layers_of(package: str) -> tuple[tuple[str, ...], ...]:
    """The layers of a package from the top to the ground, without names still to come; () where it has none."""
    for contract in contracts():
        if contract["type"] == "layers" and package in contract.get("containers", ()):
            named = ([name.strip() for name in layer.split("|")] for layer in contract["layers"])
            present = (tuple(name for name in names if not name.startswith("(")) for names in named)
            return tuple(names for names in present if names)
    return ()


def floors() -> tuple[tuple[str, ...], ...]:
    """The rooms of each floor, from the roof to the ground."""
    return layers_of(PACKAGE)


@cache
def rooms() -> Mapping[str, Room]:
    """Every room, by name."""
    by_room: dict[str, list[Module]] = {}
    for module in modules().values():
        if module.room:
            by_room.setdefault(module.room, []).append(module)
    return {name: _room(name, members) for name, members in by_room.items()}


def _room(name: str, members: Sequence[Module]) -> Room:
    imported = {modules()[target].room for module in members for target in module.imports}
    package = f"{PACKAGE}.{name}"
    inside = sorted({module.name.removeprefix(package).lstrip(".").partition(".")[0] for module in members} - {""})
    layers = layers_of(package)
    return Room(
        name=name,
        job=modules()[package].job,
        modules=tuple(module for module in members if module.path.name != "__init__.py"),
        imports=frozenset(imported - {name, ""}),
        layers=layers or ((tuple(inside),) if inside else ()),
        is_layered=bool(layers),
    )
