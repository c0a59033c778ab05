"""Room patterns such as ``chat:{room}``: parsed, matched, compared."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from socketspec.errors import ConfigurationError
from socketspec.protocol.names import check_room_name, shown

__all__ = ("RoomPattern", "Specificity")


class Specificity(NamedTuple):
    """A sort key: patterns that say more about a room's name come first."""

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
            raise ConfigurationError(f"RoomPattern({shown(source)}) fits no room, because the {error}.") from None

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
        # Taking the leftmost place of each literal never misses a match: a place further right would leave less for the
        # variables after it, and the variable before it could only become longer, perhaps with a ":" in it.
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

    def format(self, values: Mapping[str, str]) -> str:
        """The room's name with these values for all its variables.

        Raises `ValueError` that names the pattern, for a value that is empty, has a ``:`` or makes no name of a room.
        """
        parts = [self._literals[0]]
        for variable, literal in zip(self.variables, self._literals[1:], strict=True):
            parts += [values[variable], literal]
        name = "".join(parts)
        try:
            check_room_name(name)
        except ValueError as error:
            raise ValueError(f"no room of {self.source!r}: {error}") from None
        if self.match(name) != dict(values):
            given = ", ".join(f"{variable}={shown(value)}" for variable, value in values.items())
            raise ValueError(
                f"no room of {self.source!r} with {given}: a value has at least one character, no ':', and nothing "
                "that could belong to what is around it"
            )
        return name

    def overlaps(self, other: RoomPattern) -> bool:
        """Whether some room's name matches both."""
        mine, others = self._tokens(), other._tokens()  # of the same class
        # Places in both patterns that some beginning of a name leads to; None stands for a variable's characters.
        reached = {(0, 0)}
        waiting = [(0, 0)]
        while waiting:
            i, j = waiting.pop()
            if i == len(mine) and j == len(others):
                return True
            for step in _steps(mine, others, i, j):
                if step not in reached:
                    reached.add(step)
                    waiting.append(step)
        return False

    def _tokens(self) -> list[str | None]:
        tokens: list[str | None] = list(self._literals[0])
        for literal in self._literals[1:]:
            tokens += [None, *literal]
        return tokens


def _steps(mine: list[str | None], others: list[str | None], i: int, j: int) -> Iterator[tuple[int, int]]:
    """Where one more character of a name leads to. A variable may take more than one: then its place stays."""
    if i == len(mine) or j == len(others):
        return
    one, other = mine[i], others[j]
    if one is not None and other is not None:
        if one == other:
            yield i + 1, j + 1
    elif ":" not in (one, other):
        yield i + 1, j + 1
        if one is None:
            yield i, j + 1
        if other is None:
            yield i + 1, j


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
                opening, f"{shown(variable)} is not a Python identifier, so no argument can have its name"
            )
        if variable in self.variables:
            raise self._error(opening, f"the variable {variable!r} is there twice; give each its own name")
        self.literals.append(literal)
        self.variables.append(variable)
        return closing + 1

    def _error(self, position: int, problem: str) -> ConfigurationError:
        return ConfigurationError(f"RoomPattern({shown(self.source)}), position {position}: {problem}.")
