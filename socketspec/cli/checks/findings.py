"""What looks wrong in an app: what its start would refuse, as errors, and what is seldom meant, as warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from socketspec.app.app import SocketApp
from socketspec.app.mounts import Mounted, place_problems
from socketspec.cli.checks.names import called, covers
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.rooms import DeclaredRooms
from socketspec.declaration.whole import problems
from socketspec.errors import ConfigurationError
from socketspec.text import one_line

__all__ = ("Finding", "findings", "refused")


class Finding(NamedTuple):
    """One thing that looks wrong."""

    level: Literal["error", "warning"]
    code: str
    """A short name of its kind, which stays the same."""
    app: str
    """Which app it is about; empty: none can be told."""
    message: str
    """What is wrong, and what to write."""


_Checks = Iterator[tuple[str, str]]


def refused(message: object, app: str = "", code: str = "refused") -> Finding:
    """What the app's start, or already its import, refuses."""
    return Finding("error", code, app, one_line(message))


def findings(name: str, socket: SocketApp, places: Sequence[Mounted]) -> list[Finding]:
    """What looks wrong in `socket`, mounted at `places`; the errors first."""
    errors = [refused(problem, name) for problem in problems(socket.registry, DeclaredRooms(socket.rooms.declared))]
    errors += [refused(problem, name) for problem in place_problems(socket, places)]
    for spec in socket.registry.events.values():
        try:
            socket.registry.handler(spec)
        except ConfigurationError as error:
            errors.append(refused(error, name))
    looks: tuple[Callable[[], _Checks], ...] = (
        lambda: _access(socket, places),
        lambda: _rooms(socket, places),
        lambda: _exposure(socket),
        lambda: _places(name, socket, places),
        lambda: _schemas(socket),
    )
    return [*errors, *(Finding("warning", code, name, text) for look in looks for code, text in look())]


def _is_open(socket: SocketApp, places: Sequence[Mounted]) -> bool:
    """Whether nothing decides who may connect."""
    registry = socket.registry
    decides = socket.settings.auth or registry.dependencies or registry.on_connect
    return not decides and not (places and all(place.dependencies for place in places))


def _access(socket: SocketApp, places: Sequence[Mounted]) -> _Checks:
    if _is_open(socket, places):
        yield (
            "no_auth",
            "everybody may connect: there is no auth, no dependency of the handshake and no on_connect hook. "
            "Write SocketApp(auth=…), or mount(…, dependencies=[Depends(signed_in)])",
        )
    if socket.settings.origins.allows_all:
        yield (
            "any_origin",
            "pages of every origin may connect, with their visitors' cookies. "
            'Write SocketApp(allowed_origins=["https://example.com"])',
        )


def _rooms(socket: SocketApp, places: Sequence[Mounted]) -> _Checks:
    for room in socket.rooms.declared:
        pattern = RoomPattern(room.name)
        guards = [guard for guard in socket.registry.guards if guard.pattern.overlaps(pattern)]
        if not room.client_join or any(covers(guard.pattern, pattern) for guard in guards):
            continue
        write = f"Write @socket.room_guard({room.name!r})"
        if guards:
            some = ", ".join(repr(guard.pattern.source) for guard in guards)
            yield "partly_guarded", f"clients may join rooms of {room.name!r} that the guards of {some} miss. {write}"
        elif _is_open(socket, places):
            yield (
                "open_room",
                f"everybody may join {room.name!r}: clients may, and there is neither guard nor auth. {write}",
            )


def _exposure(socket: SocketApp) -> _Checks:
    settings = socket.settings
    if settings.debug and settings.public_schema:
        yield (
            "public_debug",
            "debug=True with docs that everybody may read: failures and every event are shown to anybody. "
            "Write debug=False in production, and docs_access_token=…",
        )
    elif settings.debug:
        yield "debug", "debug=True shows failures to clients. Write debug=False in production"


def _places(name: str, socket: SocketApp, places: Sequence[Mounted]) -> _Checks:
    if not places and not socket.callers.served:
        variable = name.rpartition(":")[2] or "socket"
        yield (
            "not_mounted",
            f"no client can reach it: it is mounted nowhere. Write mount({variable}, app), with "
            "`from socketspec.adapters.fastapi import mount`",
        )
    for place in places:
        missed = [each for each in place.passed_by if each not in place.dependencies]
        if missed:
            shown = ", ".join(called(missed))
            yield (
                "dependencies_not_run",
                f"{shown} does not run at {place.path}: frameworks run what an application depends on for its own "
                f"routes, not for those of an application mounted in it. Write mount(…, dependencies=[Depends(…)])",
            )


def _schemas(socket: SocketApp) -> _Checks:
    for spec in socket.registry.events.values():
        sent = [item.model for item in (*(spec.contract.emits or ()), *(spec.contract.broadcasts or ()))]
        for model in (spec.plan.payload, spec.plan.reply, *sent):
            if model is not None:
                yield from _schema(f"the event {spec.name!r}", model)
    for event in socket.registry.typed_events.values():
        if event.declared.model is not None:
            yield from _schema(f"the sent event {event.name!r}", event.declared.model)


def _schema(what: str, model: PayloadType | OutboundType) -> _Checks:
    try:
        model.json_schema()
    except ConfigurationError as error:
        yield "no_schema", f"{what} shows no model on the schema page: {one_line(error)}"
