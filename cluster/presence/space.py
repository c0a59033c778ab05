"""What one node knows of its presence in one namespace: its members, its lease, what is left to do. No I/O here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator
from typing import TypeAlias

from socketspec.backend.protocols import Lost
from socketspec.cluster.commands.command import Command
from socketspec.cluster.presence.commands import PresenceCommands
from socketspec.protocol.publications import Topic

__all__ = ("Entry", "Space")

Entry: TypeAlias = tuple[Topic, str]
"""A connection in a topic."""


class Space:
    """This node's members of one namespace's topics, and its lease. `names` are those it may hold leases under."""

    def __init__(self, name: str, names: Iterator[str]) -> None:
        self.name: str = name
        self.uses: int = 0
        """How many apps of this process have started it."""
        self.tell_lost: list[Lost] = []
        """For each app: what tells it of members whose node died."""

        self._names = names
        self.node: str = next(names)
        """The name that the lease is held under."""
        self.former: list[str] = []
        """Names it had before, under which Redis may still hold something."""
        self.is_begun: bool = False
        """Whether there was a lease under `node`."""
        self.ends: float = 0.0
        """When the lease ends if it is not renewed, on the local clock; never later than Redis thinks."""
        self.renewed: asyncio.Event = asyncio.Event()
        self.renew_now: asyncio.Event = asyncio.Event()
        self.server: bytes = b""
        """The server that renewed it last."""
        self.is_troubled: bool = False
        """Whether the last renewal failed."""

        self.members: dict[Topic, dict[str, bytes]] = {}
        """Packed, by connection id; also those whose entering is under way."""
        self.entering: set[Entry] = set()
        self.leaves: dict[Entry, asyncio.Future[None]] = {}
        """Leaves that Redis has not carried out yet."""
        self.sending: set[Entry] = set()
        """Those of them that are under way."""
        self.indexed: set[Topic] = set()
        """Topics that stand in the node's list of topics."""
        self.unchecked: set[Topic] = set()
        """Topics that are to be compared with Redis."""
        self.next_round: float = 0.0
        """When the next round begins, in which all topics are compared."""
        self._round: list[Topic] = []
        """Topics whose turn is still to come in the present round."""
        self._round_step: int = 1

        self.renewing: asyncio.Task[None] | None = None
        self.leaving: asyncio.Task[None] | None = None
        self.repairing: asyncio.Task[None] | None = None
        self.removing: dict[str, asyncio.Task[None]] = {}
        """By the name of the dead node whose members are removed."""

    def topics(self) -> set[Topic]:
        """Topics where Redis may hold members of ours."""
        return {*self.members, *self.unchecked, *(topic for topic, _ in self.leaves)}

    def drop(self, entry: Entry) -> bool:
        """Forget a member; whether there was one."""
        topic, id = entry
        members = self.members.get(topic)
        if members is None or members.pop(id, None) is None:
            return False
        if not members:
            del self.members[topic]
        return True

    def removal(self, commands: PresenceCommands, entries: Collection[Entry]) -> list[Command]:
        """Commands that take members out of Redis, and topics without any off the node's list."""
        ids: dict[Topic, list[str]] = {}
        for topic, id in entries:
            ids.setdefault(topic, []).append(id)
        removal = [commands.leave(topic, self.node, leaving) for topic, leaving in ids.items()]
        empty = [topic for topic in ids if topic not in self.members]
        if empty:
            self.indexed.difference_update(empty)
            removal.append(commands.drop_index(self.name, self.node, empty))
        return removal

    def begin_again(self) -> None:
        """Go on under a new name: what Redis holds under the old one does not count any more."""
        self.former.append(self.node)
        self.node, self.is_begun = next(self._names), False
        self.indexed.clear()
        self.unchecked |= self.topics()

    def next_turns(self, now: float, period: float, steps: int) -> list[Topic]:
        """The topics to compare now, so that in `steps` calls, each `period` seconds, all have had their turn."""
        if not self._round and now >= self.next_round:
            self._round = list(self.members)
            self._round_step = math.ceil(len(self._round) / steps)
            self.next_round = now + period
        turns, self._round = self._round[: self._round_step], self._round[self._round_step :]
        return turns
