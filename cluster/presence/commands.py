"""The commands of presence, and how their replies are read. No I/O happens here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgpack

from socketspec.cluster.commands.command import Command, Script, milliseconds
from socketspec.cluster.commands.keys import Keys
from socketspec.protocol.publications import Member, Topic

__all__ = ("BATCH", "PresenceCommands", "count_command", "pack_member", "parse_count", "parse_members")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

BATCH: Final = 256
"""Topics or members in one round trip."""

_ENTER: Final = Script("enter")
_LEAVE: Final = Script("leave")
_REAP: Final = Script("reap")
_RENEW: Final = Script("renew")
_CLAIM: Final = Script("claim")
_CLEAR: Final = Script("clear")
_RESIGN: Final = Script("resign")
_UNINDEX: Final = Script("unindex")


class PresenceCommands:
    """Commands on the presence keys. A lease lasts `lease` seconds; keys last `ttl` seconds after they were used.

    A `node` here is the name that a lease is held under.
    """

    def __init__(self, keys: Keys, lease: float, ttl: float) -> None:
        self.lease: float = lease
        self.ttl: float = ttl
        self._keys = keys
        self._lease = milliseconds(lease)
        self._ttl = milliseconds(ttl)

    def nodes(self, topic: Topic) -> Command:
        """Which nodes have members in `topic`."""
        return Command("HKEYS", None, (self._keys.nodes(topic),))

    def members(self, topic: Topic, node: str) -> Command:
        """The members that `node` has in `topic`: connection id, packed member, and so on."""
        return Command("HGETALL", None, (self._keys.members(topic, node),))

    def ids(self, topic: Topic, node: str) -> Command:
        """The connection ids of the members that `node` has in `topic`."""
        return Command("HKEYS", None, (self._keys.members(topic, node),))

    def enter(
        self, topic: Topic, node: str, members: Sequence[str | bytes] = (), limit: int | None = None, *, until: int
    ) -> Command:
        """Add members (connection id, packed member, and so on), or only keep the keys alive.

        1 where all are in, 0 where not; as `leave` and `drop_index` do, it changes nothing when the server's clock is
        past `until` (milliseconds), and gives the time there as a negative number.
        """
        return _ENTER.command(self._of(topic, node), node, -1 if limit is None else limit, self._ttl, until, *members)

    def leave(self, topic: Topic, node: str, ids: Sequence[str], *, until: int) -> Command:
        """Remove members, at most a few thousand at once."""
        return _LEAVE.command(self._of(topic, node), node, until, *ids)

    def reap(self, topic: Topic, node: str) -> Command:
        """The members that a dead `node` has in `topic`, where they do not count from now on; `forget` ends it."""
        return _REAP.command(self._of(topic, node), node, self._ttl)

    def forget(self, topic: Topic, node: str, ids: Sequence[str]) -> Command:
        """Delete what is kept of members that were reaped."""
        return Command("HDEL", None, (self._keys.members(topic, node),), tuple(ids))

    def uncount(self, topic: Topic, node: str) -> Command:
        """Have the members of `node` in `topic` not count any more. Whoever reaps them still finds them."""
        return Command("HDEL", None, (self._keys.nodes(topic),), (node,))

    def clear(self, topic: Topic, node: str) -> Command:
        """Remove all members that `node` has in `topic`, for good."""
        return _CLEAR.command(self._of(topic, node), node)

    def index(self, namespace: str, node: str, topics: Collection[Topic]) -> list[Command]:
        """Put `topics` on the node's list of topics, where whoever removes a dead node's members finds them."""
        index = self._keys.node_topics(namespace, node)
        add = Command("SADD", None, (index,), tuple(map(self._keys.channel, topics)))
        return [add, Command("PEXPIRE", None, (index,), (self._ttl,))]

    def drop_index(self, namespace: str, node: str, topics: Collection[Topic], *, until: int) -> Command:
        """Take `topics` off that list."""
        return _UNINDEX.command((self._keys.node_topics(namespace, node),), until, *map(self._keys.channel, topics))

    def unlink_index(self, namespace: str, node: str) -> Command:
        """Remove that list."""
        return Command("UNLINK", None, (self._keys.node_topics(namespace, node),))

    def resign(self, namespace: str, node: str) -> Command:
        """Remove that list, and the lease."""
        return _RESIGN.command(self._leases(namespace, node), node)

    def renew(self, namespace: str, node: str, *, begin: bool) -> Command:
        """Renew the lease, or begin it; see ``renew.lua``."""
        return _RENEW.command(self._leases(namespace, node), node, self._lease, self._ttl, "1" if begin else "0")

    def claim(
        self, namespace: str, node: str, own: bytes, batch: int, finished: Sequence[bytes], *, until: int
    ) -> Command:
        """Claim the dead `node`, or go on with the claim that ends at `own`; see ``claim.lua``."""
        return _CLAIM.command(self._leases(namespace, node), node, self._lease, self._ttl, own, batch, until, *finished)

    def _of(self, topic: Topic, node: str) -> tuple[bytes, bytes]:
        return self._keys.nodes(topic), self._keys.members(topic, node)

    def _leases(self, namespace: str, node: str) -> tuple[bytes, bytes, bytes]:
        keys = self._keys
        return keys.leases(namespace), keys.node_topics(namespace, node), keys.claimed_nodes(namespace)


def count_command(keys: Keys, topic: Topic) -> Command:
    """How many members each node has in `topic`. Its reply goes to `parse_count`."""
    return Command("HVALS", None, (keys.nodes(topic),))


def parse_count(reply: Sequence[bytes]) -> int:
    """How many members all nodes have together."""
    return sum(map(int, reply))


def pack_member(member: Member) -> bytes:
    """`member` as it is kept beside its connection id."""
    packed: Any = msgpack.packb([member.user_id, member.joined_at])
    return bytes(packed)


def parse_members(reply: Sequence[bytes]) -> list[Member]:
    """Members, from a flat list of connection ids and packed members. What cannot be read is passed over."""
    found = []
    for id, packed in zip(reply[::2], reply[1::2], strict=True):
        try:
            user_id, joined_at = msgpack.unpackb(packed)
        except (ValueError, TypeError, msgpack.UnpackException):
            logger.warning("A member of a room cannot be read: another version's? %r", packed[:50])
            continue
        found.append(Member(id.decode(), user_id, joined_at))
    return found
