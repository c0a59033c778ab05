"""The seams between the core and whatever connects its nodes: a handful of small protocols.

Two implementations exist: `socketspec.memory` (one process; the executable specification) and `socketspec.cluster`
(Redis or Valkey). One contract suite in ``tests/contract`` runs against both. Nothing here hands "all members of a
room" to a broadcaster: a node asks for the topics its own members need, and gets what is published to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from socketspec.counters import Histogram
from socketspec.errors import ConfigurationError

__all__ = (
    "Backend",
    "BackendFigures",
    "Broker",
    "Deliver",
    "Health",
    "History",
    "HistoryStore",
    "Limits",
    "Lost",
    "Measured",
    "Member",
    "Position",
    "Presence",
    "Publication",
    "Receipt",
    "Sessions",
    "Topic",
)


class Topic(NamedTuple):
    """An address publications go to: a room, everybody in a namespace, one user, or the namespace's nodes
    themselves (``control``, which no client hears)."""

    namespace: str
    kind: Literal["room", "all", "user", "control"]
    name: str


class Position(NamedTuple):
    """A place in a topic's history. `epoch` names one life of the stream, `tag` the publication at that offset:
    offsets alone may be reused after a failover that lost the newest entries."""

    offset: int
    epoch: str
    tag: str = ""


class Publication(NamedTuple):
    """One message on its way to a topic's members."""

    event: str
    payload: bytes
    """The payload as JSON text, encoded once by the publisher."""
    exclude: tuple[str, ...] = ()
    """Ids of connections that do not get it."""
    position: Position | None = None
    """Where it stands in the topic's history; None in topics without one."""
    trace: str = ""
    """The trace it belongs to, as a W3C ``traceparent``; empty for none. Not kept in histories."""


@dataclass(frozen=True, slots=True)
class History:
    """How much of a room is kept: the newest `size` publications, for `ttl` seconds after the last one."""

    size: int = 1000
    ttl: float = 3600

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1_000_000:
            raise ConfigurationError(f"History(size={self.size!r}) must be between 1 and 1,000,000 publications.")
        if not 0 < self.ttl <= 365 * 86_400:
            raise ConfigurationError(f"History(ttl={self.ttl!r}) must be more than 0 seconds and at most a year.")


class Receipt(NamedTuple):
    """What became of a publish. `nodes == 0` means that no node has a member of the topic."""

    nodes: int
    position: Position | None = None


class Member(NamedTuple):
    """One connection in a room."""

    connection_id: str
    user_id: str | None
    joined_at: float
    """Seconds since the epoch."""


class Health(NamedTuple):
    """Whether this node hears and is heard; `detail` is for people."""

    ready: bool
    detail: str


class BackendFigures(NamedTuple):
    """What a backend measures of itself, for metrics."""

    ready: bool
    failures: int
    """Requests that ended in a `BackendError`."""
    restored: int
    """Subscriptions that were lost and stood again, or will."""
    seconds: Histogram
    """How long requests took."""
    lag: Histogram
    """Seconds from publishing to hearing it on this node."""


@runtime_checkable
class Measured(Protocol):
    """A backend that can be asked for figures; it need not be able to."""

    def figures(self) -> BackendFigures:
        """The figures since its start. The histograms are the live ones: read, do not write."""
        ...


Deliver = Callable[[Topic, Sequence[Publication]], Awaitable[None] | None]
"""Called with the publications that arrived together for one topic, in order. Must not block or raise.

Returns None, or where it has fallen behind, what to await before reading more."""

Lost = Callable[[Topic, Sequence[Member]], None]
"""Called on one node with members of a room whose own node died. Must not block or raise."""


class Broker(Protocol):
    """Fan-out between nodes. Delivery is at most once; with a history policy, what was missed can be read back."""

    async def subscribe(self, topic: Topic) -> None:
        """Have `topic` delivered to this node. Returns when the subscription stands: nothing later is missed."""
        ...

    async def unsubscribe(self, topic: Topic) -> None:
        """Undo one `subscribe`. Delivery ends with the last."""
        ...

    async def publish(
        self,
        topic: Topic,
        publication: Publication,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Send `publication` to every subscribed node, this one included; every node sees one order per topic.

        With `history`, appending and sending are one atomic step, and a repeated `idempotency_key` within the
        history's life changes nothing and returns the first receipt's position. Raises `BackendError`.
        """
        ...


class HistoryStore(Protocol):
    """Reads what `Broker.publish` kept."""

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        """The newest `limit` publications, oldest first; with `since`, all after that position.

        Raises `LookupError` when `since` cannot be honoured: another epoch, another tag, or already trimmed away.
        """
        ...

    async def position(self, topic: Topic) -> Position | None:
        """The newest position; None where nothing was kept yet."""
        ...


class Presence(Protocol):
    """Who is in a room, on whichever node."""

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        """Add `member`; False, and nothing changed, where `limit` members are already in. Idempotent per connection."""
        ...

    async def leave(self, topic: Topic, connection_id: str) -> None:
        """Remove a member; no error if it is not there."""
        ...

    async def members(self, topic: Topic) -> Sequence[Member]:
        """Everybody in the room, in the order they joined."""
        ...

    async def count(self, topic: Topic) -> int:
        """How many are in the room, without loading them."""
        ...


class Limits(Protocol):
    """Token buckets shared by all nodes."""

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        """Take one token from bucket `key`, refilled with `rate` a second up to `capacity`.

        Returns 0.0 when there was one, else the seconds until there will be.
        """
        ...


class Sessions(Protocol):
    """What outlives a connection: when a session began, and who may not come back."""

    async def begin(self, session: str, *, ttl: float) -> float:
        """The time `session` was first seen (seconds since the epoch), remembered for `ttl` seconds."""
        ...

    async def revoke(self, subject: str, *, ttl: float) -> None:
        """Refuse `subject` (a session, a user or a token id) for `ttl` seconds."""
        ...

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        """Whether any of `subjects` is revoked."""
        ...


class Backend(Protocol):
    """The protocols above as one object with a life. SocketApps with the same backend URL in a process share one."""

    @property
    def shared(self) -> bool:
        """Whether other nodes may share it, so that limits and presence are not this process's alone."""
        ...

    @property
    def node(self) -> str:
        """This process's name among the nodes: a short string, another one at every start."""
        ...

    @property
    def broker(self) -> Broker: ...
    @property
    def history(self) -> HistoryStore: ...
    @property
    def presence(self) -> Presence: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def sessions(self) -> Sessions: ...

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        """Begin delivering `namespace`'s topics to `deliver`, and members of dead nodes to `lost`.

        The first start connects. Raises `BackendError`.
        """
        ...

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        """Undo one `start`. The last stop disconnects."""
        ...

    async def health(self) -> Health:
        """Whether this node is in touch, measured, not assumed."""
        ...
