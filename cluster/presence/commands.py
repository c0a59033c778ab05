"""The commands of presence, and how their replies are read. No I/O happens here."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgpack

from socketspec.cluster.commands.command import Command, Script, milliseconds
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable, ValueKind
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

__all__ = (
    "BATCH",
    "PresenceCommands",
    "count_command",
    "pack_member",
    "parse_count",
    "parse_members",
    "parse_names",
    "without_told",
)

BATCH: Final = 256
"""Topics or members in one round trip."""

_ENTER: Final = Script("enter")
_LEAVE: Final = Script("leave")
_REAP: Final = Script("reap")
_RENEW: Final = Script("renew")
_CLAIM: Final = Script("claim")
_COUNT: Final = Script("count_members")
_CLEAR: Final = Script("clear")
_RESIGN: Final = Script("resign")
_UNINDEX: Final = Script("unindex")
_MARK_TOLD: Final = Script("mark_told")

_ALL: Final = 10_000_000
"""More than there can be: the documented user may not use ``SMEMBERS``, nor need it."""
_LATEST: Final = 253_402_300_800
"""The year 10000: no clock shows more, in seconds since the epoch."""


class PresenceCommands:
    """Commands on the presence keys. A lease lasts `lease` seconds; keys last `ttl` seconds after they were used.

    A `node` here is the name that a lease is held under.
    """

    def __init__(self, keys: Keys, lease: float, ttl: float, unreadable: Unreadable | None = None) -> None:
        self.lease: float = lease
        self.ttl: float = ttl
        self.unreadable: Unreadable = unreadable or Unreadable()
        """Is told of what is read of these keys and cannot be understood."""
        self._keys = keys
        self._lease = milliseconds(lease)
        self._ttl = milliseconds(ttl)

    def members_key(self, topic: Topic, node: str) -> bytes:
        """Where the members that `node` has in `topic` are kept."""
        return self._keys.members(topic, node)

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

    def leave(self, topic: Topic, node: str, ids: Sequence[str | bytes], *, until: int) -> Command:
        """Remove members, at most a few thousand at once."""
        return _LEAVE.command(self._of(topic, node), node, until, *ids)

    def reap(self, topic: Topic, node: str) -> Command:
        """The members that a dead `node` has in `topic`, where they do not count from now on; `forget` ends it."""
        return _REAP.command(self._of(topic, node), node, self._ttl)

    def forget(self, topic: Topic, node: str, ids: Sequence[str | bytes]) -> Command:
        """Delete what is kept of members that were reaped."""
        return Command("HDEL", None, (self._keys.members(topic, node),), tuple(ids))

    def mark_told(self, topic: Topic, node: str, members: Sequence[str | bytes]) -> Command:
        """Have nobody told of the leaving of these (connection id, packed member, and so on) by whoever reaps them."""
        return _MARK_TOLD.command((self._keys.told(topic, node),), self._ttl, *members)

    def told(self, topic: Topic, node: str) -> Command:
        """Those, as `mark_told` got them."""
        return Command("HGETALL", None, (self._keys.told(topic, node),))

    def forget_told(self, topic: Topic, node: str) -> Command:
        """Delete what `mark_told` noted."""
        return Command("UNLINK", None, (self._keys.told(topic, node),))

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

    def read_index(self, namespace: str, node: str) -> Command:
        """The channels of the topics on that list."""
        return Command("SRANDMEMBER", None, (self._keys.node_topics(namespace, node),), (_ALL,))

    def parse_index(self, reply: Any, namespace: str, node: str) -> list[Topic]:
        """The topics in that reply. What can be none is passed over."""
        where = self._keys.node_topics(namespace, node)
        topics: list[Topic] = []
        for channel in _listed(reply, "topic", where, self.unreadable):
            topic = self._keys.topic(channel)
            if topic is None:
                self.unreadable.value("topic", where, channel)
            else:
                topics.append(topic)
        return topics

    def unlink_index(self, namespace: str, node: str) -> Command:
        """Remove that list."""
        return Command("UNLINK", None, (self._keys.node_topics(namespace, node),))

    def resign(self, namespace: str, node: str) -> Command:
        """Remove that list, and the lease."""
        leases, topics = self._leases(namespace, node)
        return _RESIGN.command((leases,), node, topics, self._keys.claimed_nodes(namespace))

    def renew(self, namespace: str, node: str, *, begin: bool) -> Command:
        """Renew the lease, or begin it; see ``renew.lua``."""
        leases, topics = self._leases(namespace, node)
        woken = self._keys.claimed_nodes(namespace)
        return _RENEW.command((leases,), node, self._lease, self._ttl, "1" if begin else "0", topics, woken)

    def claim(
        self, namespace: str, node: str, own: bytes, batch: int, finished: Sequence[bytes], *, until: int
    ) -> Command:
        """Claim the dead `node`, or go on with the claim that ends at `own`; see ``claim.lua``."""
        args = node, self._lease, self._ttl, own, batch, until, self._keys.claimed_nodes(namespace)
        return _CLAIM.command(self._leases(namespace, node), *args, *finished)

    def leases_key(self, namespace: str) -> bytes:
        """Where the leases of `namespace` are kept."""
        return self._keys.leases(namespace)

    def forget_lease(self, namespace: str, name: bytes) -> Command:
        """Remove the lease of a name that no node has, and whoever's claim to it."""
        return Command("ZREM", None, (self._keys.leases(namespace),), (name, b"!" + name))

    def _of(self, topic: Topic, node: str) -> tuple[bytes, bytes]:
        return self._keys.nodes(topic), self._keys.members(topic, node)

    def _leases(self, namespace: str, node: str) -> tuple[bytes, bytes]:
        return self._keys.leases(namespace), self._keys.node_topics(namespace, node)


def count_command(keys: Keys, topic: Topic) -> Command:
    """Count the members that all nodes have in `topic`. Its reply goes to `parse_count`."""
    return _COUNT.command((keys.nodes(topic),))


def parse_count(reply: Any, where: bytes, unreadable: Unreadable) -> int:
    """How many members all nodes have together, from the reply about the key `where`. Raises `BackendError`."""
    try:
        members, passed_over = map(int, reply)
    except (TypeError, ValueError):
        raise BackendError(f"Redis answered a count with {reply!r:.200}; is a proxy in between?") from None
    if passed_over:
        unreadable.value("count", where, count=passed_over)
    return members


def parse_names(reply: Any, kind: ValueKind, where: bytes, unreadable: Unreadable) -> list[str]:
    """Names that nodes or connections have. What can be none is passed over, and all of a `reply` that is no list."""
    names: list[str] = []
    for name in _listed(reply, kind, where, unreadable):
        try:
            names.append(name.decode())
        except (UnicodeDecodeError, AttributeError):
            unreadable.value(kind, where, name)
    return names


def _listed(reply: Any, kind: ValueKind, where: bytes, unreadable: Unreadable) -> Sequence[Any]:
    """A reply that is a list; an empty one in the place of what a key of another type has."""
    if isinstance(reply, list):
        return reply
    unreadable.value(kind, where, reply)
    return ()


def pack_member(member: Member) -> bytes:
    """`member` as it is kept beside its connection id."""
    packed: Any = msgpack.packb([member.user_id, member.joined_at])
    return bytes(packed)


def parse_members(reply: Any, where: bytes, unreadable: Unreadable) -> list[Member]:
    """Members, from a flat list of connection ids and packed members. What cannot be read is passed over."""
    listed = _listed(reply, "member", where, unreadable)
    found: list[Member] = []
    for id, packed in zip(listed[::2], listed[1::2], strict=False):
        member = _member(id, packed)
        if member is None:
            unreadable.value("member", where, packed)
        else:
            found.append(member)
    return found


def without_told(members: Sequence[Any], told: Any) -> list[Any]:
    """Of a flat list of connection ids and packed members those that are not the same in the reply to `told`."""
    marks = dict(zip(told[::2], told[1::2], strict=False)) if isinstance(told, list) else {}
    pairs = zip(members[::2], members[1::2], strict=False)
    return [part for id, packed in pairs if marks.get(id) != packed for part in (id, packed)]


def _member(id: Any, packed: Any) -> Member | None:
    """A member; None for what can be none. A later version may add fields to the end."""
    try:
        user_id, joined_at, *_ = msgpack.unpackb(packed, strict_map_key=False)
        name = id.decode()
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, msgpack.UnpackException):
        return None
    if not (user_id is None or isinstance(user_id, str)) or type(joined_at) not in (int, float):
        return None
    return Member(name, user_id, joined_at) if math.isfinite(joined_at) and 0 <= joined_at < _LATEST else None
