"""The names of rooms, namespaces and events, and the patterns that rooms are declared with.

A checked name is plain data: ``* ? [ ] { } :`` mean nothing in it, and nothing may use it as a glob or a format string.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from socketspec.errors import ConfigurationError

__all__ = (
    "CLIENT_EVENTS",
    "MAX_NAME_BYTES",
    "MAX_USER_ID_BYTES",
    "RESERVED_EVENTS",
    "RoomPattern",
    "Specificity",
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
    """Return `name` if an event can be called so. Rules and errors as for rooms; see `is_reserved` for the rest."""
    return _check("event", name)


@lru_cache(maxsize=1024)  # an app sends a few names, over and over; what raises is not kept
def check_outbound(event: str) -> str:
    """Return `event` if it is a name that an app may send: not one of the protocol's. Errors as for rooms."""
    if is_reserved(event):
        raise ValueError(f"event {event!r} is reserved for the protocol; names of your own do not begin with __")
    return check_event_name(event)


def check_namespace(name: str) -> str:
    """Return `name` if a namespace can be called so. Rules and errors as for rooms, and it starts with a slash."""
    _check("namespace", name)
    if not name.startswith("/"):
        raise ValueError(f'namespace {_show(name)} does not start with "/"; write for example "/" or "/chat"')
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
        raise ValueError(f"user id {_show(user_id)} {problem}")
    return user_id


def _check(kind: str, name: str) -> str:
    if _is_plain(name):
        return name
    problem = _problem(name)
    if problem is not None:
        raise ValueError(f"{kind} name {_show(name)} {problem}")
    return name


def _is_plain(name: object) -> bool:
    """The fast path: nearly every name is short, printable ASCII."""
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
    # In characters first: the other checks must not have to read a name of any length.
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


def _show(name: object) -> str:
    if isinstance(name, str) and len(name) > _SHOWN:
        return f"{name[:_SHOWN]!a}…"
    return ascii(name) if isinstance(name, str) else f"of type {type(name).__name__}"


class Specificity(NamedTuple):
    """Sorts patterns: those that say more about a room's name come first."""

    has_variables: bool
    literal_length: int
    """Negated, so that long comes before short."""
    variable_count: int
    source: str


class RoomPattern:
    """A room's name with variables, such as ``chat:{room}``. Immutable; equal to a pattern of the same source.

    A variable stands for one or more characters other than ``:``; everything else is literal; ``{{`` and ``}}`` are
    literal braces. Raises `ConfigurationError`, saying where, for a pattern that cannot work.
    """

    __slots__ = ("_literals", "is_static", "source", "variables")

    def __init__(self, source: str) -> None:
        literals, variables = _Parser(source).parse()
        self.source: str = source
        """The pattern as it was written."""
        self.variables: tuple[str, ...] = variables
        """The variables' names, in order."""
        self.is_static: bool = not variables
        """Whether it has no variable and so matches one room only."""
        self._literals = literals  # before, between and after the variables: one more than there are variables
        try:
            check_room_name("x".join(literals))
        except ValueError as error:
            raise ConfigurationError(f"RoomPattern({_show(source)}) fits no room, because the {error}.") from None

    def __repr__(self) -> str:
        return f"RoomPattern({self.source!r})"

    def __eq__(self, other: object) -> bool:
        return self.source == other.source if isinstance(other, RoomPattern) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.source)

    @property
    def specificity(self) -> Specificity:
        """A sort key: patterns without variables first, then those with more literal characters."""
        return Specificity(not self.is_static, -sum(map(len, self._literals)), len(self.variables), self.source)

    def match(self, name: str) -> dict[str, str] | None:
        """The variables' values in `name`; None where it does not fit. Takes time linear in the name's length.

        Where several readings fit, earlier variables take as little as they can: ``{a}-{b}`` reads ``x-y-z`` as
        ``x`` and ``y-z``.
        """
        if self.is_static:
            return {} if name == self._literals[0] else None
        prefix, suffix = self._literals[0], self._literals[-1]
        start, end = len(prefix), len(name) - len(suffix)
        if not name.startswith(prefix) or not name.endswith(suffix):
            return None
        values: list[str] = []
        # The leftmost place for each literal is always right: a later one leaves less room to the variables after it,
        # and cannot lie behind a ":" that the variable before it would then contain.
        for literal in self._literals[1:-1]:
            found = name.find(literal, start + 1, end)
            if found < 0:
                return None
            values.append(name[start:found])
            start = found + len(literal)
        values.append(name[start:end])
        if any(not value or ":" in value for value in values):
            return None
        return dict(zip(self.variables, values, strict=True))

    def format(self, /, **variables: str) -> str:
        """The room's name for these variables; `match` gives them back.

        Raises `ValueError` for missing or unknown variables, for a value that is not a str, is empty or contains
        ``:``, and for values that `match` would read differently (``{a}-{b}`` with ``-`` in `a`). Does not replace
        `check_room_name`.
        """
        self._check_values(variables)
        parts = [self._literals[0]]
        for variable, literal in zip(self.variables, self._literals[1:], strict=True):
            parts += (variables[variable], literal)
        name = "".join(parts)
        if self.match(name) != variables:
            raise ValueError(
                f"{self!r}: the name {_show(name)} would be read as other variables than it was made of; "
                'separate variables with ":" to allow any value'
            )
        return name

    def _check_values(self, variables: Mapping[str, object]) -> None:
        if set(variables) != set(self.variables):
            expected = ", ".join(self.variables) or "none"
            raise ValueError(
                f"{self!r} needs exactly these variables: {expected}; got: {', '.join(variables) or 'none'}"
            )
        for variable, value in variables.items():
            if not isinstance(value, str):
                raise ValueError(f"{self!r}: {variable} is of type {type(value).__name__}; pass a str")
            if not value or ":" in value:
                raise ValueError(f'{self!r}: {variable}={_show(value)} must have at least one character and no ":"')


class _Parser:
    """Takes a pattern's source apart, or says where it is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.literals: list[str] = []
        self.variables: list[str] = []

    def parse(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if not isinstance(self.source, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be untyped
            raise ConfigurationError(f"RoomPattern needs a str such as 'chat:{{room}}', got {self.source!r}.")
        if not self.source:
            raise ConfigurationError("RoomPattern(''): the pattern is empty; write for example 'chat:{room}'.")
        literal = ""
        position = 0
        while position < len(self.source):
            character = self.source[position]
            if character not in "{}":
                literal += character
                position += 1
            elif self.source[position + 1 : position + 2] == character:
                literal += character
                position += 2
            elif character == "}":
                raise self._error(position, "'}' closes nothing; write '}}' for a brace that is part of the name")
            else:
                position = self._variable(position, literal)
                literal = ""
        return (*self.literals, literal), tuple(self.variables)

    def _variable(self, opening: int, literal: str) -> int:
        """Read the variable that opens at `opening`; returns the position after it."""
        if self.variables and not literal:
            raise self._error(opening, "two variables with nothing between them; put a separator such as ':' there")
        closing = self.source.find("}", opening)
        if closing < 0:
            raise self._error(opening, "'{' is never closed; write '{{' for a brace that is part of the name")
        variable = self.source[opening + 1 : closing]
        if not variable.isidentifier() or keyword.iskeyword(variable):
            raise self._error(
                opening, f"{_show(variable)} is not a Python identifier, so no argument can have its name"
            )
        if variable in self.variables:
            raise self._error(opening, f"the variable {variable!r} is there twice; give each its own name")
        self.literals.append(literal)
        self.variables.append(variable)
        return closing + 1

    def _error(self, position: int, problem: str) -> ConfigurationError:
        return ConfigurationError(f"RoomPattern({_show(self.source)}), position {position}: {problem}.")
