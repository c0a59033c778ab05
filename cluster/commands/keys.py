"""The only place where the name of a key or channel in Redis is made.

Every name is ``prefix:{tag}suffix``. Redis Cluster places a key by what stands in the braces, so all keys of one topic
lie in one slot and a script may use them together. Names of rooms, users and nodes are percent-encoded: they hold no
``:``, no brace and no glob character, and so cannot end early, reach another key or form a pattern.
An ACL for one prefix is ``~prefix:{* &prefix:{*``: with the brace, as another prefix may begin with ``prefix:``.

A database of Redis has keys of its own, but channels are shared by all databases. So the channels of any database but
0 end in its number.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Literal, cast
from urllib.parse import unquote_to_bytes

from socketspec.cluster.options import check_prefix
from socketspec.protocol.publications import Topic

__all__ = ("Keys", "carries_orders", "pattern_of")

_UNSAFE = re.compile(rb"[^A-Za-z0-9_.-]")
_TAG = re.compile(r"[A-Za-z0-9_.:%-]+")
_CHANNEL = re.compile(r"\{(room|all|user|control):([A-Za-z0-9_.%-]*):([A-Za-z0-9_.%-]*)\}:channel")
_READABLE = 100
"""Encoded parts of up to this many characters stay readable in keys that are never decoded."""


class Keys:
    """Names of keys and channels under one `prefix`, in database `db`: 1 to 64 of ``A-Z a-z 0-9 _ . : -``.

    Different arguments give different names. Raises `ConfigurationError` for any other prefix.
    """

    __slots__ = ("_end", "_start", "prefix")

    def __init__(self, prefix: str = "socketspec", db: int = 0) -> None:
        self.prefix: str = check_prefix(prefix)
        self._start = prefix.encode() + b":"
        self._end = b":%d" % db if db else b""

    def channel(self, topic: Topic) -> bytes:
        """The sharded channel that carries `topic`."""
        return self._start + _topic_tag(topic) + b":channel" + self._end

    def topic(self, channel: bytes) -> Topic | None:
        """The topic that `channel` carries; None for a channel that `channel()` did not make."""
        if not channel.startswith(self._start) or not channel.endswith(self._end):
            return None
        try:
            match = _CHANNEL.fullmatch(channel[len(self._start) :].removesuffix(self._end).decode("ascii"))
            if match is None:
                return None
            kind = cast("Literal['room', 'all', 'user', 'control']", match[1])
            topic = Topic(_decode(match[2]), kind, _decode(match[3]))
        except UnicodeDecodeError:
            return None
        return (
            topic if self.channel(topic) == channel else None
        )  # only the spelling that we use: percent-encoding has several

    def stream(self, topic: Topic) -> bytes:
        """The kept publications of `topic`."""
        return self._start + _topic_tag(topic) + b":stream"

    def meta(self, topic: Topic) -> bytes:
        """Epoch, newest offset and policy of the history of `topic`."""
        return self._start + _topic_tag(topic) + b":meta"

    def idempotency(self, topic: Topic, key: str) -> bytes:
        """What became of the publication to `topic` with this idempotency key."""
        return self._start + _topic_tag(topic) + b":once:" + _short(key)

    def nodes(self, topic: Topic) -> bytes:
        """How many members each node has in `topic`."""
        return self._start + _topic_tag(topic) + b":nodes"

    def members(self, topic: Topic, node: str) -> bytes:
        """The members that one node has in `topic`."""
        return self._start + _topic_tag(topic) + b":members:" + _encode(node)

    def told(self, topic: Topic, node: str) -> bytes:
        """Those of them whose leaving has been told. In the same slot as `members`."""
        return self._start + _topic_tag(topic) + b":told:" + _encode(node)

    def leases(self, namespace: str) -> bytes:
        """Until when each node of `namespace` counts as alive. In the same slot as `node_topics`."""
        return self._start + b"{nodes:" + _encode(namespace) + b"}:leases"

    def node_topics(self, namespace: str, node: str) -> bytes:
        """The topics of `namespace` that one node has members in. In the same slot as `leases`."""
        return self._start + b"{nodes:" + _encode(namespace) + b"}:topics:" + _encode(node)

    def claimed_nodes(self, namespace: str) -> bytes:
        """The nodes of `namespace` that were taken for dead. In the same slot as `leases`."""
        return self._start + b"{nodes:" + _encode(namespace) + b"}:claimed"

    def bucket(self, key: str) -> bytes:
        """One token bucket."""
        return self._start + b"{bucket:" + _short(key) + b"}"

    def session(self, id: str) -> bytes:
        """When a session began. Hashed: an id may be a secret, and names of keys appear in logs and monitors."""
        return self._start + b"{session:" + _hashed(id) + b"}"

    def revoked(self, subject: str) -> bytes:
        """Present while `subject` is revoked. Hashed, as in `session`."""
        return self._start + b"{revoked:" + _hashed(subject) + b"}"

    def probe(self, node: str, tag: str) -> bytes:
        """The channel on which `node` hears itself. `tag` is the hash tag, which decides the slot.

        Raises `ValueError` for a tag that is not made of letters, digits and ``_ . : % -``.
        """
        if _TAG.fullmatch(tag) is None:
            raise ValueError(f"{tag!r} cannot be a hash tag: use letters, digits and _ . : % - only")
        return self._start + b"{" + tag.encode() + b"}:probe:" + _encode(node) + self._end


@lru_cache(maxsize=10_000)
def _topic_tag(topic: Topic) -> bytes:
    return b"{" + _encode(topic.kind) + b":" + _encode(topic.namespace) + b":" + _encode(topic.name) + b"}"


def _encode(text: str) -> bytes:
    # surrogatepass: every str has a name of its own. Which ones are allowed is decided elsewhere.
    return _UNSAFE.sub(_percent, text.encode("utf-8", "surrogatepass"))


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _decode(encoded: str) -> str:
    return unquote_to_bytes(encoded).decode("utf-8", "surrogatepass")


def _short(text: str) -> bytes:
    """`_encode`, or where that is long a hash after "~", which `_encode` never lets through."""
    if len(text) <= _READABLE and len(encoded := _encode(text)) <= _READABLE:
        return encoded
    return b"~" + _hashed(text)


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest().encode()


def pattern_of(name: bytes) -> str:
    """The pattern of all keys, and of all channels, of the app that has this one: for an ACL."""
    return name.partition(b":{")[0].decode("utf-8", "backslashreplace") + ":{*"


def carries_orders(name: bytes) -> bool:
    """Whether a key or channel belongs to a topic of orders between nodes."""
    return name.partition(b":{")[2].startswith(b"control:")
