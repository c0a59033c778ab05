"""What one node knows of its presence in one namespace: its members, its names, what is left to do. No I/O here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeAlias

from socketspec.backend.protocols import Displaced, Lost
from socketspec.cluster.commands.command import Command
from socketspec.cluster.presence.commands import PresenceCommands
from socketspec.cluster.presence.lease import Lease
from socketspec.protocol.publications import Topic

__all__ = ("Entry", "Space")

Entry: TypeAlias = tuple[Topic, str]
"""A connection in a topic."""

LEFT_OF_LATE: Final = 60.0
"""Seconds that this node compares a topic again which its last member has left, when the server's data may be older."""
MOST_LEFT: Final = 10_000
"""Such topics at most; of more, those that were left first are given up."""
MOST_TOLD: Final = 100_000
"""Members at most that have left and whose leaving another node has told, so that no hook runs here for them."""


class Space:
    """This node's members of one namespace's topics, and its lease. `names` are those it may hold leases under."""

    def __init__(self, name: str, names: Iterator[str], lease: Lease) -> None:
        self.name: str = name
        self.lease: Lease = lease
        self.uses: int = 0
        """How many apps of this process have started it."""
        self.tell_lost: list[Lost] = []
        """For each app: what tells it of members whose node died."""
        self.tell_displaced: list[Displaced] = []
        """For each app: what tells it of its own members who lost their place."""

        self._names = names
        self.node: str = next(names)
        """The name that the lease is held under."""
        self.former: list[str] = []
        """Names it had before, under which Redis may still hold something."""
        self.given_up: list[str] = []
        """Names it had before that another node has claimed: that one removes and tells what is left under them."""
        self.is_begun: bool = False
        """Whether there was a lease under `node`."""
        self.renewed: asyncio.Event = asyncio.Event()
        self.renew_now: asyncio.Event = asyncio.Event()
        self.is_troubled: bool = False
        """Whether the last renewal failed."""

        self.members: dict[Topic, dict[str, bytes]] = {}
        """Packed, by connection id; also those whose entering is under way."""
        self.limits: dict[Topic, int] = {}
        """The most members there may be, of topics where that is limited."""
        self.contested: set[Topic] = set()
        """Topics of `limits` where others may have been given the places of our members."""
        self.told: set[Entry] = set()
        """Members, also some that have left since, of whose leaving another node has told its apps."""
        self._told_and_left: dict[Entry, float] = {}
        """Those that have left, and when by the local clock, the newest last: where there are no hooks nobody asks."""
        self.entering: set[Entry] = set()
        self.leaves: dict[Entry, asyncio.Future[None]] = {}
        """Leaves that Redis has not carried out yet."""
        self.sending: set[Entry] = set()
        """Those of them that are under way."""
        self.indexed: set[Topic] = set()
        """Topics that stand in the node's list of topics."""
        self.unchecked: set[Topic] = set()
        """Topics that are to be compared with Redis."""
        self.unrepaired: set[Topic] = set()
        """Topics that could not be repaired in the present round, and are compared again in the next."""
        self.is_list_unread: bool = False
        """Whether Redis may have topics on this node's list that this node has left: a server that took over may have
        older data."""
        self._left: dict[Topic, float] = {}
        """Topics whose last member here has left, and when by the local clock: the newest come last."""
        self.uncertain: dict[Topic, float] = {}
        """Topics for which a command without an answer may still be carried out, until then by the local clock."""
        self.over_since: float | None = None
        """When it was noticed that the lease has ended; None while it stands."""
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
        if entry in self.told:
            self._told_has_left(entry)
        if not members:
            del self.members[topic]
            self.limits.pop(topic, None)
            self.contested.discard(topic)
            self._left.pop(topic, None)
            self._left[topic] = self.lease.clock()
            while len(self._left) > MOST_LEFT:
                del self._left[next(iter(self._left))]
        return True

    def distrust(self) -> None:
        """Compare all with Redis, whose data may be older than what this node was told.

        That is what this node has members in, what stands on its lists of topics, and what it has left of late: in a
        cluster the list and the topic may be on different servers.
        """
        self.unchecked |= self.topics() | self.left_of_late()
        self.is_list_unread = True

    def left_of_late(self) -> set[Topic]:
        """Topics whose last member here has left within `LEFT_OF_LATE` seconds."""
        since = self.lease.clock() - LEFT_OF_LATE
        return {topic for topic, at in self._left.items() if at >= since}

    def removal(self, commands: PresenceCommands, entries: Collection[Entry]) -> list[Command]:
        """Commands that take members out of Redis, and topics without any off the node's list. Each may come late."""
        until = self.lease.until()
        ids: dict[Topic, list[str]] = {}
        for topic, id in entries:
            ids.setdefault(topic, []).append(id)
        removal = [commands.leave(topic, self.node, leaving, until=until) for topic, leaving in ids.items()]
        empty = [topic for topic in ids if topic not in self.members]
        if empty:
            self.indexed.difference_update(empty)
            removal.append(commands.drop_index(self.name, self.node, empty, until=until))
        return removal

    def doubt(self, topics: Iterable[Topic], patience: float) -> None:
        """Compare `topics` with Redis once nothing that was sent for them can be carried out any more."""
        self.uncertain.update(dict.fromkeys(topics, self.lease.clock() + patience))

    def no_longer_uncertain(self) -> None:
        """Have those topics compared for which that time has come."""
        now = self.lease.clock()
        ripe = [topic for topic, until in self.uncertain.items() if until < now]
        for topic in ripe:
            del self.uncertain[topic]
        self.unchecked.update(ripe)

    def begin_again(self, *, was_claimed: bool) -> None:
        """Go on under a new name: what Redis holds under the old one does not count any more.

        `was_claimed`: another node took this one for dead. It tells of the members, whose places may be gone.
        """
        (self.given_up if was_claimed else self.former).append(self.node)
        self.node, self.is_begun = next(self._names), False
        self.indexed.clear()
        self.distrust()
        if was_claimed:
            here = ((topic, id) for topic, ids in self.members.items() for id in ids)
            self.told.update(entry for entry in here if entry not in self.entering and entry[0].kind == "room")
            for entry in self.leaves:
                if entry[0].kind == "room":
                    self.told.add(entry)
                    self._told_has_left(entry)
            self.contested.update(self.limits)

    def forget_told(self, entry: Entry) -> bool:
        """Take it out of `told`; whether it was there."""
        if entry not in self.told:
            return False
        self.told.remove(entry)
        self._told_and_left.pop(entry, None)
        return True

    def _told_has_left(self, entry: Entry) -> None:
        """Whether its hooks are to be run is asked soon, or never."""
        now = self.lease.clock()
        self._told_and_left.pop(entry, None)
        self._told_and_left[entry] = now
        while len(self._told_and_left) > MOST_TOLD or next(iter(self._told_and_left.values())) < now - LEFT_OF_LATE:
            self.forget_told(next(iter(self._told_and_left)))

    def were_told(self, topic: Topic) -> list[str | bytes]:
        """Members of `topic` of whose leaving another node has told: connection id, packed member, and so on."""
        if not self.told:
            return []
        members = self.members.get(topic, {}).items()
        return [part for id, packed in members if (topic, id) in self.told for part in (id, packed)]

    def displace(self, topic: Topic, ids: Collection[str]) -> None:
        """Give up members for whom there is no place any more, and tell the apps."""
        gone = [id for id in ids if (topic, id) not in self.entering and self.drop((topic, id))]
        for tell in self.tell_displaced if gone else ():
            tell(topic, gone)

    def next_turns(self, now: float, period: float, steps: int) -> list[Topic]:
        """The topics to compare now, so that in `steps` calls, each `period` seconds, all have had their turn."""
        if not self._round and now >= self.next_round:
            self._round = list(self.members)
            self._round_step = math.ceil(len(self._round) / steps)
            self.next_round = now + period
        turns, self._round = self._round[: self._round_step], self._round[self._round_step :]
        return turns
