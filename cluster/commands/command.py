"""A command to Redis as plain data, and the Lua scripts that commands may run. No I/O happens here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

__all__ = ("PASSING_REFUSALS", "Argument", "Command", "CommandRunner", "Script", "milliseconds")

PASSING_REFUSALS: Final = ("ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "READONLY", "TRYAGAIN")
"""How refusals begin that pass: nothing was carried out, and another server, or the same one later, may accept it."""

Argument: TypeAlias = bytes | str | int | float
"""What an argument of a command may be."""

_ASKED: Final = """\
local KEYS, ARGV = {{KEYS[1], unpack(ARGV, 1, {0})}}, {{unpack(ARGV, {0} + 1)}}
"""
"""Makes keys of the first arguments again; see `Command.as_asked`."""
_LONGEST_MS = 100 * 365 * 86_400 * 1000


class Script:
    """A Lua script from ``cluster/commands/lua/NAME.lua``. Two of the same name are equal."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.source: str = _source(name)
        self.sha: str = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        """Its name for ``EVALSHA``."""

    def __repr__(self) -> str:
        return f"Script({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Script) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def command(self, keys: Sequence[bytes], *args: Argument) -> Command:
        """The command that runs this script with these ``KEYS`` and ``ARGV``."""
        return Command(self.name, self, tuple(keys), args)


class Command(NamedTuple):
    """One command: a plain one called `name`, whose keys come first, or a run of `script`."""

    name: str
    script: Script | None = None
    keys: tuple[bytes, ...] = ()
    args: tuple[Argument, ...] = ()

    @property
    def slot_key(self) -> bytes | None:
        """The key or sharded channel whose slot decides which shard runs it; None where any shard may."""
        return self.keys[0] if self.keys else None

    def words(self) -> list[Argument]:
        """The command word by word; a script by its hash."""
        if self.script is None:
            return [self.name, *self.keys, *self.args]
        return ["EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args]

    def as_eval(self) -> list[Argument]:
        """`words` with the script's text in place of its hash: for a server that answers ``NOSCRIPT``."""
        if self.script is None:
            return self.words()
        return ["EVAL", self.script.source, len(self.keys), *self.keys, *self.args]

    def as_asked(self) -> list[Argument]:
        """`words` for the next owner of a slot that migrates, whom ``ASK`` names: none of the keys is at the owner.

        It refuses a script of several keys where one is missing, so only the first is declared to it.
        """
        if self.script is None:
            return self.words()
        more = self.keys[1:]
        return ["EVAL", _ASKED.format(len(more)) + self.script.source, 1, *self.keys, *self.args]


class CommandRunner(Protocol):
    """What stores and presence need of `socketspec.cluster.commands.runner.Runner`."""

    async def run(self, command: Command) -> Any:
        """The reply. Raises `BackendError`."""
        ...

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order. Raises the first `BackendError`."""
        ...


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, rounded up: at least 1, at most a hundred years. Not for NaN."""
    return max(1, math.ceil(min(seconds * 1000, _LONGEST_MS)))


@cache
def _source(name: str) -> str:
    return files("socketspec.cluster.commands").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
