"""MkDocs hooks: tables made from the code, the changelog as a page, and no file fetched from other hosts.

A page asks for a table with a line ``<!-- table: NAME -->``; the names are the keys of `TABLES`. Links and anchors are
checked by MkDocs itself (`make docs` fails on any warning).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts.house import PACKAGE, Room, contracts, floors, layers_of, rooms
from socketspec.adapters.prometheus import NAMES
from socketspec.connection.states import TRANSITIONS
from socketspec.errors import CLOSE_CODES, ERROR_CODES

logger = logging.getLogger("mkdocs.hooks.socketspec")

_TABLE = re.compile(r"^<!-- table: *(?P<name>[^>]*?) *-->$", re.MULTILINE)
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?(?:https?:)?//",
    re.IGNORECASE,
)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def error_codes() -> str:
    """Every `code` of an ``__error__`` event."""
    return table(("code", "sent when"), ((f"`{code}`", text) for code, text in ERROR_CODES.items()))


def close_codes() -> str:
    """Every close code, what `on_disconnect` calls it, and whether to come back."""
    return table(
        ("code", "reason", "sent when", "should the client reconnect?"),
        (
            (f"{code.value}", f"`{info.reason}`", info.issued_when, "yes" if info.reconnect else "no")
            for code, info in CLOSE_CODES.items()
        ),
    )


def connection_states() -> str:
    """The states of a connection and where each may lead."""
    return table(
        ("state", "may become"),
        (
            (f"`{state.value}`", ", ".join(sorted(f"`{after.value}`" for after in following)) or "(the end)")
            for state, following in TRANSITIONS.items()
        ),
    )


def metrics() -> str:
    """Every Prometheus metric."""
    return table(("metric", "what it says"), ((f"`{name}`", text) for name, text in NAMES.items()))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _markdown(job: str) -> str:
    """The first line of a docstring, as Markdown."""
    return job.replace("``", "`").rstrip(".")


def house_floors() -> str:
    """Every room by floor, from the roof to the ground, and the layers inside it."""

    def inside(room: Room) -> str:
        if room.is_layered:
            return " → ".join(map(_names, room.layers))
        return _names(name for layer in room.layers for name in layer) + " (in any order)" if room.layers else ""

    def rows() -> Iterator[tuple[str, ...]]:
        for number, floor in enumerate(floors()):
            for name in floor:
                room = rooms()[name]
                yield str(len(floors()) - number), f"**{name}**", inside(room)
                for folder in (folder for layer in room.layers for folder in layer):
                    if layers := layers_of(f"{PACKAGE}.{name}.{folder}"):
                        yield "", f"{name}/{folder}", " → ".join(map(_names, layers))

    return table(("floor", "room", "inside, from the top down"), rows())


def house_borders() -> str:
    """What is forbidden across all floors."""

    def exceptions(contract: Mapping[str, Any]) -> str:
        return _names(line.partition(" ->")[0].removesuffix(".**") for line in contract.get("ignore_imports", ()))

    return table(
        ("rule", "may not be imported", "by", "but by"),
        (
            (
                contract["name"],
                _names(contract["forbidden_modules"]),
                _names(contract["source_modules"]),
                exceptions(contract),
            )
            for contract in contracts()
            if contract["type"] == "forbidden"
        ),
    )


def house_files() -> str:
    """Every file of the house and its one job, by room."""
    made: list[str] = []
    for name in (name for floor in floors() for name in floor):
        room = rooms()[name]
        made.append(f"### {name}\n\n{_markdown(room.job)}.\n")
        if room.layers:
            made += [*(f"- `{file.place}`: {_markdown(file.job)}" for file in room.modules), ""]
    return "\n".join(made)


TABLES: Mapping[str, Callable[[], str]] = {
    "borders": house_borders,
    "close-codes": close_codes,
    "connection-states": connection_states,
    "error-codes": error_codes,
    "files": house_files,
    "floors": house_floors,
    "metrics": metrics,
}


def expand_tables(markdown: str, page: str) -> str:
    """`markdown` with its table requests answered. An unknown name is a warning, and so fails a strict build."""

    def answer(match: re.Match[str]) -> str:
        make = TABLES.get(match["name"])
        if make is None:
            logger.warning("%s asks for table %r; there are: %s", page, match["name"], ", ".join(TABLES))
            return match[0]
        return make()

    return _TABLE.sub(answer, markdown)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add CHANGELOG.md of the project's root as a page."""
    changelog = Path(config.config_file_path).parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables."""
    return expand_tables(markdown, page.file.src_uri)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Warn of anything a reader's browser would fetch from another host."""
    if found := _FETCHED.search(output):
        logger.warning("%s loads something from another host: %s", page.file.src_uri, found[0])
    return output
