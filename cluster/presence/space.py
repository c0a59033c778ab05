"""What one node knows of its presence in one namespace. No I/O happens here."""

from __future__ import annotations

import asyncio
import math
from typing import TypeAlias

from socketspec.backend.protocols import Lost
from socketspec.protocol.publications import Topic

__all__ = ("Entry", "Space")

Entry: TypeAlias = tuple[Topic, str]
"""A connection in a topic."""


class Space:
    """This node's members of one namespace's topics, and its lease."""

    def __init__(self, name: str, node: str) -> None:
        self.name: str = name
        self.node: str = node
        """The name it has its lease under."""
        self.former: list[str] = []
        """Names it had before, under which Redis may still hold something."""
        self.is_begun: bool = False
        """Whether there was a lease under `node`."""
        self.ends: float = 0.0
        """When the lease ends if it is not renewed, on the local clock; never later than Redis thinks."""
        self.server: bytes = b""
        self.is_troubled: bool = False
        self.lost: list[Lost] = []
        self.uses: int = 0
        self.members: dict[Topic, dict[str, bytes]] = {}
        """By connection id; also those whose entering is under way."""
        self.entering: set[Entry] = set()
        self.owed: dict[Entry, asyncio.Future[None]] = {}
        """Leaves that have not been carried out."""
        self.indexed: set[Topic] = set()
        """Topics that stand in the node's list of topics."""
        self.doubted: set[Topic] = set()
        """Topics that are to be compared with Redis."""
        self.round: list[Topic] = []
        """Topics whose turn is still to come in the present round of comparisons."""
        self.round_step: int = 1
        self.next_round: float = 0.0
        self.wake: asyncio.Event = asyncio.Event()
        self.stands: asyncio.Event = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None
        self.leaving: asyncio.Task[None] | None = None
        self.mending: asyncio.Task[None] | None = None
        self.reaping: dict[str, asyncio.Task[None]] = {}

    def topics(self) -> set[Topic]:
        """Where Redis may hold members of ours."""
        return {*self.members, *self.doubted, *(topic for topic, _ in self.owed)}

    def drop(self, entry: Entry) -> bool:
        """Forget a member; whether there was one."""
        topic, id = entry
        members = self.members.get(topic)
        if members is None or members.pop(id, None) is None:
            return False
        if not members:
            del self.members[topic]
        return True

    def begin_again(self, node: str) -> None:
        """Go on as `node`: nothing that stood under the old name counts."""
        self.former.append(self.node)
        self.node, self.is_begun = node, False
        self.indexed.clear()
        self.doubted |= self.topics()

    def next_turns(self, now: float, period: float, steps: int) -> list[Topic]:
        """The topics to compare now, so that in `steps` calls, each `period` seconds, all have had their turn."""
        if not self.round and now >= self.next_round:
            self.round = list(self.members)
            self.round_step = math.ceil(len(self.round) / steps)
            self.next_round = now + period
        turns, self.round = self.round[: self.round_step], self.round[self.round_step :]
        return turns
