"""Draws the house of docs/architecture.md from its sources, so that the picture cannot drift.

    python scripts/architecture.py

writes docs/assets/architecture.svg. `make format` does it; a test compares the file with a fresh drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from scripts.house import PACKAGE, ROOT, Room, floors, layers_of, modules, rooms

PICTURE: Final = ROOT / "docs/assets/architecture.svg"
COLUMN: Final = ("runtime", "inbound", "lifecycle", "membership", "connection", "fanout", "backend", "protocol")
"""The rooms that a message passes on its way, from the top down; they are marked."""

WIDTH: Final = 780
MARGIN: Final = 12
GUTTER: Final = 34
"""Room on the left, for the arrow that says which way imports go."""
GAP: Final = 7
INDENT: Final = 14
"""How far the further lines of a folder's files are set in."""
PADDING: Final = 11
LINE: Final = 15
TITLE: Final = 21
BESIDE: Final = 5
"""How much lower than the room's name the files beside it begin."""
SPLIT: Final = 0.36
"""The part of a wide room's width that its name and job get; the rest is for its files."""

# Dark text on its own light ground, or the reverse: readable whatever the page around it looks like.
STYLE: Final = (
    "svg{--ground:#ffffff;--band:#eef1f5;--room:#ffffff;--edge:#b6bfcc;--ink:#1d2430;--soft:#566072;--mark:#00796b}"
    "@media(prefers-color-scheme:dark){svg{--ground:#171b24;--band:#1f2530;--room:#2a313f;--edge:#4d586b;"
    "--ink:#e8ecf3;--soft:#a9b4c6;--mark:#4db6ac}}"
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:var(--ink)}"
    ".name{font-family:ui-monospace,monospace;font-size:13.5px;font-weight:700}"
    ".file{font-family:ui-monospace,monospace;font-size:11.5px}"
    ".soft{fill:var(--soft);font-size:11px}"
)


class Text(NamedTuple):
    """One line of text, in a class of the style; an empty one is half as high."""

    text: str
    kind: str = ""
    indent: float = 0.0

    @property
    def height(self) -> float:
        """What it takes, with the space to the next one."""
        return LINE if self.text else LINE / 3


LEGEND: Final = Text("lies on the way of a message. In “one · two”, neither of the files imports the other.", "soft")


class Box(NamedTuple):
    """A room with the lines to be written in it: its name and job, and beside them or below the files."""

    room: Room
    width: float
    about: Sequence[Text]
    files: Sequence[Text]
    wide: bool

    @property
    def height(self) -> float:
        """What the longer of two columns takes, or both of them one below the other."""
        about = TITLE + sum(line.height for line in self.about)
        files = sum(line.height for line in self.files)
        return (max(about, files + BESIDE) if self.wide else about + files) + PADDING - 4


def width_of(text: str, kind: str = "") -> float:
    """About how wide a line is; fonts differ, so it is measured generously."""
    if kind == "name":
        return len(text) * 8.3
    if kind == "file":
        return len(text) * 7.1
    return len(text) * (5.9 if kind == "soft" else 6.3)


def wrap(parts: Sequence[str], width: float, *, kind: str, between: str = " ", first: str = "") -> list[Text]:
    """`parts` in as few lines as they fit into, the first of them after `first`."""
    lines: list[Text] = []
    line, empty = first, first
    hanging = INDENT if first.endswith("/ ") else 0
    for part in parts:
        longer = line + part if line == empty else line + between + part
        if line != empty and width_of(longer, kind) + (hanging if lines else 0) > width:
            lines.append(Text(line + between.rstrip(), kind, hanging if lines else 0))
            longer, empty = part, ""
        line = longer
    return [*lines, Text(line, kind, hanging if lines else 0)]


def _files(room: Room, width: float) -> list[Text]:
    """A line for each layer inside the room; a folder's files follow its name."""
    lines: list[Text] = []
    for layer in room.layers:
        folders = {name: inside for name in layer if (inside := _inside(room, name))}
        alone = [name for name in layer if name not in folders]
        if alone:
            lines += wrap(alone, width, kind="file", between=" · " if room.is_layered else ", ")
        for name, inside in folders.items():
            lines += wrap(inside, width, kind="file", between=", ", first=f"{name}/ ")
    return lines


def _inside(room: Room, folder: str) -> list[str]:
    """The files of a folder of the room, from the top down if it has layers; none if it is a file."""
    package = f"{PACKAGE}.{room.name}.{folder}"
    files = [file.name.removeprefix(f"{package}.") for file in room.modules if file.name.startswith(f"{package}.")]
    order = [name for layer in layers_of(package) for name in layer]
    return sorted(files, key=order.index) if order else files


def _imports(room: Room, width: float) -> list[Text]:
    order = [name for floor in floors() for name in floor]
    imported = sorted(room.imports, key=order.index)
    return wrap(imported, width, kind="soft", between=", ", first="imports ") if imported else []


def box(room: Room, width: float, *, wide: bool) -> Box:
    """Lay a room out. A wide one has its files beside its job, any other below."""
    job = room.job.replace("`", "").rstrip(".").split(" ")
    inner = width - 2 * PADDING
    left, right = (inner * SPLIT, inner * (1 - SPLIT) - PADDING) if wide else (inner, inner)
    files = [*_files(room, right), *_imports(room, right)]
    return Box(room, width, wrap(job, left, kind=""), files if wide else [Text(""), *files], wide)


def _draw(made: Box, x: float, y: float, height: float) -> Iterator[str]:
    room = made.room
    yield f"<g><title>{escape(f'{room.name}: {room.job}')}</title>"
    yield (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{made.width:.1f}' height='{height:.1f}' rx='5' fill='var(--room)' "
        "stroke='var(--edge)'/>"
    )
    if room.name in COLUMN:
        yield f"<rect x='{x:.1f}' y='{y:.1f}' width='5' height='{height:.1f}' rx='2.5' fill='var(--mark)'/>"
    left, top = x + PADDING, y + TITLE - 3
    yield _text(left, top, Text(room.name if room.layers else f"{room.name}.py", "name"))
    below = top + LINE + 1
    yield from _column(made.about, left, below)
    if made.wide:
        yield from _column(made.files, left + (made.width - 2 * PADDING) * SPLIT + PADDING, y + BESIDE + 11)
    else:
        yield from _column(made.files, left, below + sum(line.height for line in made.about))
    yield "</g>"


def _column(lines: Sequence[Text], x: float, y: float) -> Iterator[str]:
    for line in lines:
        if line.text:
            yield _text(x + line.indent, y, line)
        y += line.height


def _text(x: float, y: float, line: Text) -> str:
    kind = f" class='{line.kind}'" if line.kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}'{kind}>{escape(line.text)}</text>"


def _floor(names: Sequence[str], house: Mapping[str, Room], y: float) -> tuple[list[str], float]:
    """A band with its rooms side by side, the marked ones first; what is drawn, and how high it is."""
    ordered = sorted(names, key=lambda name: name not in COLUMN)
    width = WIDTH - 2 * MARGIN - GUTTER
    each = (width - GAP * (len(ordered) + 1)) / len(ordered)
    boxes = [box(house[name], each, wide=len(ordered) == 1) for name in ordered]
    height = max(made.height for made in boxes)
    left = MARGIN + GUTTER
    drawn = [
        f"<rect x='{left}' y='{y:.1f}' width='{width}' height='{height + 2 * GAP:.1f}' rx='8' fill='var(--band)'/>"
    ]
    for number, made in enumerate(boxes):
        drawn += _draw(made, left + GAP + number * (each + GAP), y + GAP, height)
    return drawn, height + 2 * GAP


def _arrow(top: float, bottom: float) -> Iterator[str]:
    x = MARGIN + GUTTER / 2 - 4
    yield f"<path d='M{x} {top} V{bottom - 8:.1f}' stroke='var(--soft)' stroke-width='1.5' fill='none'/>"
    yield f"<path d='M{x - 5} {bottom - 10:.1f} L{x} {bottom:.1f} L{x + 5} {bottom - 10:.1f} Z' fill='var(--soft)'/>"
    middle = (top + bottom) / 2
    yield (
        f"<text x='{x - 5}' y='{middle:.1f}' class='soft' text-anchor='middle' "
        f"transform='rotate(-90 {x - 5} {middle:.1f})'>a file imports what lies below it</text>"
    )


def svg() -> str:
    """The house: a band for each floor, in it a box for each room."""
    house, levels = rooms(), floors()
    title = f"The {len(house)} rooms of {PACKAGE} on {len(levels)} floors"
    names = "; ".join(" beside ".join(floor) for floor in levels)
    description = f"From the roof to the ground: {names}. A room imports rooms of floors below its own, and no others."
    drawn: list[str] = []
    y = float(MARGIN)
    for floor in levels:
        band, height = _floor(floor, house, y)
        drawn += band
        y += height + GAP
    drawn += _arrow(MARGIN + 6, y - GAP - 4)
    drawn.append(
        f"<rect x='{MARGIN + GUTTER}' y='{y:.1f}' width='5' height='12' rx='2.5' fill='var(--mark)'/>"
        + _text(
            MARGIN + GUTTER + 12,
            y + 10,
            LEGEND,
        )
    )
    height = y + 24
    return "\n".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' role='img' "
            "aria-labelledby='house-title house-description'>",
            f"<title id='house-title'>{escape(title)}</title>",
            f"<desc id='house-description'>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            f"<rect width='{WIDTH}' height='{height:.0f}' rx='10' fill='var(--ground)'/>",
            *drawn,
            "</svg>\n",
        )
    )


def write(picture: Path = PICTURE) -> bool:
    """Draw the house into `picture`; whether anything changed."""
    fresh = svg()
    if picture.exists() and picture.read_text(encoding="utf-8") == fresh:
        return False
    picture.write_text(fresh, encoding="utf-8")
    return True


if __name__ == "__main__":
    print(f"{PICTURE.relative_to(ROOT)}: {'drawn anew' if write() else 'up to date'}, {len(modules())} modules")
