"""The truth, written down by those who see it from outside: what clients were told, and what the nodes' hooks saw."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from socketspec.protocol.publications import Position
from tests.cluster.torture.common import SMALLS, Line

__all__ = ("Book", "Order")


class Order(NamedTuple):
    """Connections that had to go, and why."""

    at: float
    """When it was acknowledged."""
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
    revoked_at: dict[str, float] = field(default_factory=dict)

    joins: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often the join hook of a connection and a room ran, less its leave hooks."""
    opened: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    doubtful: set[tuple[str, str]] = field(default_factory=set)
    """Connection and room of which nobody can say whether the hook was to run: their node was killed in the midst."""
    half_way: set[str] = field(default_factory=set)
    """Connections that were being closed when their node was killed: the same in all of their rooms."""
    killed: set[str] = field(default_factory=set)
    """Nodes that were killed."""
    sent_away: set[str] = field(default_factory=set)
    """Connections that their node closed, or had been ordered to close: where it was killed meanwhile they are half way
    out of their rooms, though their clients had not heard of it yet."""
    lines: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    """What the journals say, by connection."""
    lost_data_at: float = 0.0
    may_be_overfull: set[str] = field(default_factory=set)
    """Rooms whose members Redis forgot: others may have come before they were put back."""
    taken_for_dead: set[str] = field(default_factory=set)
    """Nodes that were frozen or cut off: their members may have been told to be gone, and were put back."""
    begun: set[tuple[str, str]] = field(default_factory=set)
    """Connection and room of requests under way when their node was frozen or cut off: Redis may have counted a member
    that its node never had, so that only the leave hook ran, elsewhere."""
    died_with_primary: set[str] = field(default_factory=set)
    """Nodes that were killed with a primary: its replica may lack a leave whose hook has run, and nobody is left who
    knows of it, so that the hook runs again elsewhere."""
    cut_off: set[str] = field(default_factory=set)
    """Nodes that were cut off while the others were not: who left them meanwhile may have been told of twice."""
    home: dict[str, str] = field(default_factory=dict)
    """The node of each connection."""
    told_by: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """The nodes that ran the leave hook of a connection and a room."""
    steps: set[tuple[str, Position, Position]] = field(default_factory=set)
    """By room: what a client heard, and what it heard next without a word in between; since the last quiet."""

    def wrong(self, what: str) -> None:
        """Take note of a broken promise."""
        self.broken_promises.append(what)

    def read(self, node: str, lines: Iterable[Line]) -> None:
        """Go on with the journals of a node."""
        for line in lines:
            self.lines[line.connection].append((line.at, f"{node} {line.what} {line.room}".rstrip()))
            if line.what == "open":
                self.opened.add(line.connection)
                self.home[line.connection] = node
            elif line.what == "close":
                self.closed.add(line.connection)
            else:
                pair = line.connection, line.room
                self.joins[pair] += 1 if line.what == "join" else -1
                if line.what == "leave":
                    self.told_by[pair].add(node)

    def node_dies(self, node: str, on_it: Collection[str], under_way: Iterable[tuple[str, str]]) -> None:
        """A node is killed, with the connections that clients have open on it, and what they have just asked for.

        Call it with the node's journal read to its end, once it is dead.
        """
        self.killed.add(node)
        self.sent_away.update(id for order in self.orders for id in order.connections)
        self.doubtful.update(under_way)
        self.half_way |= self.opened - self.closed - set(on_it)

    def data_is_lost(self) -> None:
        """Redis forgets all it knew: what was kept, who was revoked, which orders a node had yet to hear."""
        self.lost_data_at = time.monotonic()
        self.may_be_overfull.update(SMALLS)
        self.acknowledged.clear()
        self.revoked.clear()
        self.orders.clear()

    def newest_may_be_lost(self, since: float) -> None:
        """A replica took over, which may lack what its primary acknowledged after `since`."""
        self.may_be_overfull.update(SMALLS)
        self.acknowledged.clear()
        self.orders[:] = [order for order in self.orders if order.at < since]
        self.revoked[:] = [user for user in self.revoked if self.revoked_at[user] < since]

    def heard(self, room: str, epoch: str, offset: int, tag: str, what: str) -> None:
        """A client was sent `what` as the message at a position."""
        before = self.said.setdefault((room, epoch, offset, tag), what)
        if before != what:
            self.wrong(f"{room} {epoch}:{offset}:{tag} was {before!r} for one client and {what!r} for another")

    def forked(self, room: str, kept: Collection[Position]) -> list[str]:
        """Clients that went on in a room that keeps these, after a message that is not the one before: a replica took
        over that lacked it, and what stands in its place they never heard."""
        tags = {(position.epoch, position.offset): position.tag for position in kept}
        steps = {step for step in self.steps if step[0] == room}
        self.steps -= steps
        return [
            f"a client heard {after} in {room} after {before}, without a word about what stands there now"
            for _, before, after in steps
            if tags.get((after.epoch, after.offset)) == after.tag
            and tags.get((before.epoch, before.offset), before.tag) != before.tag
        ]

    def hooks_are_wrong(self, members: Collection[tuple[str, str]]) -> list[str]:
        """What is wrong with the hooks, where these connections are in these rooms."""
        found = []
        for pair in self.joins.keys() | set(members):
            is_member, counted = pair in members, self.joins[pair]
            if counted in self._right_counts(pair, is_member=is_member):
                continue
            connection, room = pair
            told = "; ".join(f"{at:.3f} {line}" for at, line in sorted(self.lines[connection]))
            where = "a member" if is_member else "no member"
            wanted = int(is_member)
            found.append(f"{connection} is {where} of {room}; joins less leaves: {counted} instead of {wanted}: {told}")
        return found

    def _is_half_way(self, connection: str) -> bool:
        """Whether Redis may have taken it out of some of its rooms, and its node have died before it ran the hooks."""
        if connection in self.half_way:
            return True
        return connection in self.sent_away - self.closed and self.home.get(connection, "") in self.killed

    def _right_counts(self, pair: tuple[str, str], *, is_member: bool) -> set[int]:
        """What the joins less the leaves may be; see the documentation, "What holds when things fail"."""
        connection, _ = pair
        home, right = self.home.get(connection, ""), {int(is_member)}
        if not is_member and (pair in self.doubtful or self._is_half_way(connection)):
            right |= {-1, 1}
        if not is_member and home in self.died_with_primary and {home} < self.told_by[pair]:
            right.add(-1)
        if home in self.taken_for_dead and self.told_by[pair] - {home}:
            right |= {0} if is_member or not (home in self.cut_off or pair in self.begun) else {0, -1}
        return right
