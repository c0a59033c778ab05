"""An inventory and its findings as text: a table each for events, rooms, and what is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from socketspec.cli.checks.findings import Finding
from socketspec.text import one_line

__all__ = ("listed",)

_NOTHING: Final = "-"
_INDENT: Final = "  "


def listed(apps: Sequence[Mapping[str, Any]], findings: Sequence[Finding]) -> str:
    """The text, with a line end after every line."""
    lines: list[str] = []
    for app in apps:
        lines += [*_app(app), ""]
    several = len(apps) > 1
    for finding in findings:
        where = f"{finding.app}: " if finding.app and several else ""
        lines.append(f"{finding.level}: {where}{finding.message} [{finding.code}]")
    lines.append(_verdict(findings))
    return "\n".join(lines) + "\n"


def _verdict(findings: Sequence[Finding]) -> str:
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        return "Nothing looks wrong."
    return f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _app(app: Mapping[str, Any]) -> Iterator[str]:
    yield f"{app['name']}  {one_line(app['title'])} {one_line(app['version'])}, namespace {app['namespace']}"
    facts = list(_facts(app))
    widest = max(len(name) for name, _ in facts)
    for name, value in facts:
        yield f"{_INDENT}{name:{widest}}  {value}"
    for title, header, rows in _tables(app):
        yield ""
        yield f"{_INDENT}{title}"
        yield from _table(header, rows)


def _facts(app: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for place in app["mounted"] or [None]:
        if place is None:
            yield "mounted", "nowhere"
            continue
        guards = f", after {_several(place['dependencies'])}" if place["dependencies"] else ""
        late = "" if place["starts_with_the_application"] else ", starts with its first client or health probe"
        yield "mounted", f"{place['path']}{guards}{late}"
    yield "pages", ", ".join(f"{name} {url}" for name, url in app["pages"].items() if url) or "none"
    yield "backend", app["backend"]
    yield "auth", _several(app["authentication"], "none")
    yield "origins", _several(app["origins"])
    for name in ("dependencies", "middleware"):
        if app[name]:
            yield name, _several(each if isinstance(each, str) else _function(each) for each in app[name])
    limits = app["limits"]
    yield "rate limit", _rate_limit(limits["rate_limit"])
    yield "limits", ", ".join(_limits(limits))
    session = [f"{name} {value:g} s" for name, value in limits["session"].items() if value]
    yield "session", ", ".join(session) or "no limits"
    if limits["debug"]:
        yield "debug", "on"


def _limits(limits: Mapping[str, Any]) -> Iterator[str]:
    yield f"messages of {limits['max_payload_size']:,} bytes and {limits['max_payload_items']:,} values"
    yield f"{limits['max_in_flight']} handlers at once"
    yield f"{limits['max_rooms_per_connection']:,} rooms a connection"
    if limits["max_connections_per_user"] is not None:
        yield f"{limits['max_connections_per_user']:,} connections a user ({limits['connection_limit_policy']})"
    yield f"{limits['max_buffer']:,} bytes waiting ({limits['backpressure']})"


def _rate_limit(limit: Mapping[str, Any] | None) -> str:
    if limit is None:
        return "none"
    scope = f" by {limit['scope']}" if limit["scope"] else ""
    return f"{limit['rate']:g} events a second, {limit['capacity']:g} at once{scope}"


_Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def _tables(app: Mapping[str, Any]) -> Iterator[_Table]:
    header = ("event", "payload", "reply", "dependencies", "errors", "sends", "limits", "tags", "handler")
    events: list[tuple[str, ...]] = [
        (
            _event(each),
            each["payload"] or _NOTHING,
            each["reply"] or _NOTHING,
            _several(each["dependencies"]),
            _several(each["errors"]),
            _several([*_sent(each["emits"]), *_sent(each["broadcasts"], "everybody")]),
            _several(_bounds(each)),
            _several(each["tags"]),
            each["handler"],
        )
        for each in app["events"]
    ]
    rooms: list[tuple[str, ...]] = [
        (
            each["room"],
            _several(each["variables"]),
            _who_joins(each),
            _history(each["history"]),
            _NOTHING if each["max_members"] is None else f"{each['max_members']:,}",
        )
        for each in app["rooms"]
    ]
    sent: list[tuple[str, ...]] = [
        (each["event"], each["payload"] or _NOTHING, each["room"] or _NOTHING, _several(each["tags"]))
        for each in app["sent_events"]
    ]
    guards: list[tuple[str, ...]] = [
        (each["pattern"], each["function"], _several(each["dependencies"]), _several(each["guards"], "any room"))
        for each in app["guards"]
    ]
    hooks: list[tuple[str, ...]] = [
        (each["hook"], each["function"], _several(each["dependencies"])) for each in app["hooks"]
    ]
    tables: tuple[_Table, ...] = (
        ("Events", header, events),
        ("Sent by the app", ("event", "payload", "room", "tags"), sent),
        ("Rooms", ("room", "variables", "who may join", "history", "members"), rooms),
        ("Guards", ("rooms", "guard", "dependencies", "guards"), guards),
        ("Hooks", ("hook", "function", "dependencies"), hooks),
    )
    yield from (table for table in tables if table[2])
    if not app["rooms"]:
        yield "Rooms", ("none declared: the app joins clients to any room",), []


def _bounds(event: Mapping[str, Any]) -> Iterator[str]:
    yield from (_rate_limit(limit) for limit in event["rate_limits"])
    if event["timeout"] is not None:
        yield f"{event['timeout']:g} s"


def _event(event: Mapping[str, Any]) -> str:
    marks = [mark for mark in ("ordered", "deprecated") if event[mark]]
    return f"{event['event']} ({', '.join(marks)})" if marks else str(event["event"])


def _sent(declared: Iterable[Mapping[str, Any]], else_to: str = "") -> Iterator[str]:
    for each in declared:
        to = each.get("room") or else_to
        yield f"{each['event']} → {to}" if to else str(each["event"])


def _who_joins(room: Mapping[str, Any]) -> str:
    by = "clients and the app" if room["client_join"] else "whom the app joins"
    return f"{by}, if {_several(room['guards'])} lets them" if room["guards"] else by


def _history(history: Mapping[str, Any] | None) -> str:
    if history is None:
        return _NOTHING
    ttl = f", {history['ttl']:g} s" if history["ttl"] is not None else ""
    return f"{history['size']:,}{ttl}"


def _function(each: Mapping[str, Any]) -> str:
    return f"{each['function']} ({_several(each['dependencies'])})" if each["dependencies"] else str(each["function"])


def _several(names: Iterable[str], nothing: str = _NOTHING) -> str:
    return ", ".join(names) or nothing


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The columns in which there is something, each as wide as it has to be."""
    shown = [index for index in range(len(header)) if not rows or any(row[index] != _NOTHING for row in rows)]
    widths = [max(len(row[index]) for row in (header, *rows)) for index in shown]
    for row in (header, *rows):
        cells = (f"{row[index]:{width}}" for index, width in zip(shown, widths, strict=True))
        yield f"{_INDENT * 2}{'  '.join(cells)}".rstrip()
