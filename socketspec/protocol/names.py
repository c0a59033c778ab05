"""Names of rooms, events, namespaces and users: which are allowed, and which belong to the protocol.

A checked name is plain data: ``* ? [ ] { } :`` mean nothing in it, and nothing may use it as a glob or a format string.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

__all__ = (
    "CLIENT_EVENTS",
    "MAX_NAME_BYTES",
    "MAX_USER_ID_BYTES",
    "RESERVED_EVENTS",
    "check_event_name",
    "check_namespace",
    "check_outbound",
    "check_room_name",
    "check_user_id",
    "is_reserved",
)


MAX_NAME_BYTES = 200
"""The longest name, in bytes of UTF-8."""
MAX_USER_ID_BYTES = 512
"""The longest user id, in bytes of UTF-8."""

RESERVED_EVENTS: frozenset[str] = frozenset(
    {
        "__ack__",
        "__auth_expiring__",
        "__connect__",
        "__disconnect__",
        "__error__",
        "__idle_warning__",
        "__ping__",
        "__pong__",
        "__refresh_auth__",
        "__resume__",
        "__server_shutdown__",
        "__session_expiring__",
    }
)
"""The events of the protocol itself."""

CLIENT_EVENTS: frozenset[str] = frozenset({"__ping__", "__pong__", "__refresh_auth__", "__resume__"})
"""The reserved events that a client may send."""

# Scripts such as Persian, and emoji made of several, cannot be written without these two.
_JOINERS = frozenset("\u200c\u200d")
_SHOWN = 60


def is_reserved(name: str) -> bool:
    """Whether `name` belongs to the protocol: it starts and ends with two underscores, known or not."""
    return name.startswith("__") and name.endswith("__")


def check_room_name(name: str) -> str:
    """Return `name` if a room can be called so.

    Raises `ValueError`, with a sentence that says what is wrong, unless it is a str of 1 to 200 bytes of UTF-8, NFC
    normalised, without white space at the ends and without control, line separator or invisible formatting characters.
    """
    return _check("room", name)


def check_event_name(name: str) -> str:
    """Return `name` if an event can be called so. Rules and errors as for rooms. Reserved names pass."""
    return _check("event", name)


@lru_cache(maxsize=1024)  # an app sends the same few names over and over; names that raise are not cached
def check_outbound(event: str) -> str:
    """Return `event` if it is a name that an app may send: not one of the protocol's. Errors as for rooms."""
    if is_reserved(event):
        raise ValueError(f"event {event!r} is reserved for the protocol; names of your own do not begin with __")
    return check_event_name(event)


def check_namespace(name: str) -> str:
    """Return `name` if a namespace can be called so. Rules and errors as for rooms, and it starts with a slash."""
    _check("namespace", name)
    if not name.startswith("/"):
        raise ValueError(f'namespace {shown(name)} does not start with "/"; write for example "/" or "/chat"')
    return name


def check_user_id(user_id: str) -> str:
    """Return `user_id` if a user can have it: any str of 1 to 512 bytes of UTF-8; the rules for names do not apply.

    Raises `ValueError` with a sentence that says what is wrong.
    """
    problem = None
    if not isinstance(user_id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
        problem = f"is of type {type(user_id).__name__}; pass a str"
    elif not user_id:
        problem = f"is empty; use 1 to {MAX_USER_ID_BYTES} bytes of UTF-8"
    elif any("\ud800" <= letter <= "\udfff" for letter in user_id[: MAX_USER_ID_BYTES + 1]):
        problem = "has half of a surrogate pair, which cannot be sent or stored"
    elif len(user_id) > MAX_USER_ID_BYTES or len(user_id.encode()) > MAX_USER_ID_BYTES:
        problem = f"is too long; use at most {MAX_USER_ID_BYTES} bytes of UTF-8"
    if problem is not None:
        raise ValueError(f"user id {_described(user_id)}{problem}")
    return user_id


def _check(kind: str, name: str) -> str:
    if _is_plain(name):
        return name
    problem = _problem(name)
    if problem is not None:
        raise ValueError(f"{kind} name {_described(name)}{problem}")
    return name


def _is_plain(name: object) -> bool:
    """Whether it is short, printable ASCII, as nearly every name is: then there is no problem to look for."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME_BYTES
        and name.isascii()
        and name.isprintable()
        and name[0] != " "
        and name[-1] != " "
    )


def _problem(name: object) -> str | None:
    if not isinstance(name, str):
        return f"is of type {type(name).__name__}; pass a str"
    if not name:
        return f"is empty; use 1 to {MAX_NAME_BYTES} bytes of UTF-8"
    # Length first, and in characters: the other checks must not have to read a name of a million letters.
    if len(name) > MAX_NAME_BYTES or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"is too long; use at most {MAX_NAME_BYTES} bytes of UTF-8"
    for position, character in enumerate(name):
        if (problem := _character_problem(character)) is not None:
            return f"has {problem} (U+{ord(character):04X}) at position {position}; use printable characters only"
    if name != name.strip():
        return "starts or ends with white space; strip it"
    if not unicodedata.is_normalized("NFC", name):
        return "is not in Unicode normal form C; pass unicodedata.normalize('NFC', name)"
    return None


def _character_problem(character: str) -> str | None:
    # Unassigned code points pass: what is assigned depends on the Python version, and nodes may differ in it.
    match unicodedata.category(character):
        case "Cc":
            return "a control character"
        case "Cs":
            return "a lone surrogate"
        case "Zl" | "Zp":
            return "a line separator"
        case "Cf" if character not in _JOINERS:
            return "an invisible formatting character"
        case _:
            return None


def _described(name: object) -> str:
    """`name` before a problem of it. What is no text is described by the problem alone: its type."""
    return f"{shown(name)} " if isinstance(name, str) else ""


def shown(name: object) -> str:
    """`name` for messages: in quotes, pure ASCII, and not too long."""
    if isinstance(name, str) and len(name) > _SHOWN:
        return f"{name[:_SHOWN]!a}…"
    return ascii(name) if isinstance(name, str) else f"of type {type(name).__name__}"
