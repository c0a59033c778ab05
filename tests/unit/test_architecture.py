"""docs/architecture.md says what is so: its picture is fresh, every name on it exists, its tables are the contracts."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET

from scripts import architecture, docs_hooks
from scripts.house import ROOT, Module, floors, rooms

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"[\w/]+\.py(?::[\w.]+)?")
_FOLDER = re.compile(r"[\w/]+/")


def files() -> list[Module]:
    """Every file of the house."""
    return [file for room in rooms().values() for file in room.modules]


def named_places() -> list[str]:
    """Every ``path.py:name`` of the page."""
    return sorted({code for code in _CODE.findall(PAGE) if _FILE.fullmatch(code)})


def defined_in(tree: ast.AST) -> set[str]:
    """What a source defines: functions, classes, constants, and with a dot what stands in its classes."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {node.name, *(f"{node.name}.{inner}" for inner in defined_in(node))}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(place: str) -> bool:
    """Whether there is such a file, and in it such a name."""
    file, _, name = place.partition(":")
    path = next((path for path in (ROOT / "socketspec" / file, ROOT / file) if path.is_file()), None)
    return path is not None and (not name or name in defined_in(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_file_and_function_that_the_page_names_exists() -> None:
    places = named_places()
    assert len(places) > 50
    assert not [place for place in places if not exists(place)]


def test_every_folder_that_the_page_names_exists() -> None:
    named = {code for code in _CODE.findall(PAGE) if _FOLDER.fullmatch(code)}
    assert named
    assert not [folder for folder in named if not any((base / folder).is_dir() for base in (ROOT, ROOT / "socketspec"))]


def test_a_name_that_does_not_exist_would_be_noticed() -> None:
    source = "LIMIT = 1\nclass A:\n    kind: int = 2\n    def b(self): ...\nasync def c(): ...\n"
    assert defined_in(ast.parse(source)) == {"LIMIT", "A", "A.kind", "A.b", "c"}
    assert exists("protocol/names.py:is_reserved")
    assert not exists("protocol/names.py:is_unheard_of")
    assert not exists("protocol/unheard_of.py")


def test_the_picture_is_what_would_be_drawn_now() -> None:
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == architecture.svg(), "the house has changed: draw it anew with `make format`"


def test_the_picture_has_every_room_and_file_a_title_and_a_description() -> None:
    picture = ET.fromstring(architecture.svg())  # noqa: S314 - we have made it ourselves
    space = "{http://www.w3.org/2000/svg}"
    title, description = picture.find(f"{space}title"), picture.find(f"{space}desc")
    assert title is not None
    assert description is not None
    assert picture.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
    words = set(re.findall(r"\w+", " ".join(text.text or "" for text in picture.iter(f"{space}text"))))
    assert not [room for room in rooms() if room not in words]
    assert not [file.place for file in files() if file.path.stem not in words]


def test_nothing_in_the_picture_runs_over_its_box() -> None:
    for floor in floors():
        for name in floor:
            wide = len(floor) == 1
            width = architecture.WIDTH / len(floor)
            made = architecture.box(rooms()[name], width, wide=wide)
            left, right = (architecture.SPLIT, 1 - architecture.SPLIT) if wide else (1.0, 1.0)
            for line, share in [(line, left) for line in made.about] + [(line, right) for line in made.files]:
                assert architecture.width_of(line.text, line.kind) <= width * share, line.text


def test_the_marked_rooms_are_passed_from_the_top_down() -> None:
    height = {name: number for number, floor in enumerate(floors()) for name in floor}
    assert list(architecture.COLUMN) == sorted(architecture.COLUMN, key=height.__getitem__)


def test_every_room_has_a_floor_and_every_import_leads_down() -> None:
    height = {name: number for number, floor in enumerate(floors()) for name in floor}
    assert set(height) == set(rooms())
    leads = [(room.name, below) for room in rooms().values() for below in room.imports]
    assert not [(name, below) for name, below in leads if height[name] >= height[below]]


def test_the_tables_name_every_room_file_and_border() -> None:
    table = docs_hooks.house_floors()
    assert not [name for name in rooms() if f"| **{name}** |" not in table]
    listed = docs_hooks.house_files()
    assert not [file.place for file in files() if f"- `{file.place}`: " not in listed and rooms()[file.room].layers]
    assert "`redis`" in docs_hooks.house_borders()


def test_names_that_are_still_to_come_are_left_out() -> None:
    assert not [name for floor in floors() for name in floor if not name.isidentifier()]


def test_contributing_says_the_same_in_one_line() -> None:
    line = " → ".join(" · ".join(f"`{name}`" for name in floor) for floor in floors())
    assert " ".join(line.split()) in " ".join(CONTRIBUTING.split())
    assert "docs/architecture.md" in CONTRIBUTING
