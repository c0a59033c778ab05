"""The truth, written down by those who see it from outside: what clients were told, and what the nodes' hooks saw."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.cluster.torture.common import Line

__all__ = ("Book", "Order")


class Order(NamedTuple):
    """Connections that had to go, and why."""

    what: str
    user: str
    connections: frozenset[str]
    """The user's when it was given."""


@dataclass
class Book:
    """What has happened so far."""

    broken_promises: list[str] = field(default_factory=list)
    """What was seen to be wrong at the moment it happened."""
    said: dict[tuple[str, str, int, str], str] = field(default_factory=dict)
    """What stands at each position (room, epoch, offset, tag) of the histories, as clients heard it."""
    acknowledged: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By room with history: what was kept, as its sender was told; since histories were last lost."""
    orders: list[Order] = field(default_factory=list)
    """Acknowledged since the last quiet."""
    revoked: list[str] = field(default_factory=list)
    """Users who may not come back; the newest last."""

    joins: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often the join hook of a connection and a room ran, less its leave hooks."""
    opened: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    doubtful: set[tuple[str, str]] = field(default_factory=set)
    """Connection and room of which nobody can say whether the hook was to run: their node was killed in the midst."""
    half_way: set[str] = field(default_factory=set)
    """Connections that were being closed when their node was killed: the same in all of their rooms."""
    lines: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    """What the journals say, by connection."""
    lost_data_at: float = 0.0

    def wrong(self, what: str) -> None:
        """Take note of a broken promise."""
        self.broken_promises.append(what)

    def read(self, node: str, lines: Iterable[Line]) -> None:
        """Go on with the journals of a node."""
        for line in lines:
            self.lines[line.connection].append((line.at, f"{node} {line.what} {line.room}".rstrip()))
            if line.what == "open":
                self.opened.add(line.connection)
            elif line.what == "close":
                self.closed.add(line.connection)
            else:
                self.joins[line.connection, line.room] += 1 if line.what == "join" else -1

    def node_dies(self, on_it: Collection[str], under_way: Iterable[tuple[str, str]]) -> None:
        """A node is killed, with the connections that clients have open on it, and what they have just asked for.

        Call it with the node's journal read to its end, once it is dead.
        """
        self.doubtful.update(under_way)
        self.half_way |= self.opened - self.closed - set(on_it)

    def data_is_lost(self) -> None:
        """Redis forgets all it knew: what was kept, who was revoked, which orders a node had yet to hear."""
        self.lost_data_at = time.monotonic()
        self.acknowledged.clear()
        self.revoked.clear()
        self.orders.clear()

    def heard(self, room: str, epoch: str, offset: int, tag: str, what: str) -> None:
        """A client was sent `what` as the message at a position."""
        before = self.said.setdefault((room, epoch, offset, tag), what)
        if before != what:
            self.wrong(f"{room} {epoch}:{offset}:{tag} was {before!r} for one client and {what!r} for another")

    def hooks_are_wrong(self, members: Collection[tuple[str, str]]) -> list[str]:
        """What is wrong with the hooks, where these connections are in these rooms."""
        found = []
        for pair in self.joins.keys() | set(members):
            wanted, counted = int(pair in members), self.joins[pair]
            connection, room = pair
            is_doubtful = pair in self.doubtful or connection in self.half_way
            if counted != wanted and not (is_doubtful and pair not in members and abs(counted) == 1):
                where = "a member" if wanted else "no member"
                told = "; ".join(f"{at:.3f} {line}" for at, line in sorted(self.lines[connection]))
                found.append(
                    f"{connection} is {where} of {room}; joins less leaves: {counted} instead of {wanted}: {told}"
                )
        return found
