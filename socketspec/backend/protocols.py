"""The seams between the core and whatever connects its nodes: a handful of small protocols.

There are two implementations: `backend.memory` (one process; the executable specification) and `socketspec.cluster`
(Redis or Valkey). One contract suite in ``tests/contract`` runs against both. A broadcast never asks who all the
members of a room are: each node subscribes to the topics that its own members need, and delivers to them itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from socketspec.protocol.publications import History, Member, Position, Publication, Receipt, Topic
from socketspec.telemetry.counters import Histogram

__all__ = (
    "Backend",
    "BackendFigures",
    "Broker",
    "Deliver",
    "Displaced",
    "FollowingBroker",
    "Health",
    "HistoryStore",
    "LeasedPresence",
    "Limits",
    "Lost",
    "Measured",
    "Presence",
    "Sessions",
)


class Health(NamedTuple):
    """Whether this node hears the others and is heard by them; `detail` is for people."""

    ready: bool
    detail: str


class BackendFigures(NamedTuple):
    """What a backend measures of itself, for metrics."""

    ready: bool
    failures: int
    """Requests that ended in a `BackendError`."""
    restored: int
    """Subscriptions that were lost: they stand again, or will."""
    seconds: Histogram
    """How long requests took."""
    lag: Histogram
    """Seconds from publishing to hearing it on this node."""
    waiting_bytes: int = 0
    """Bytes of requests that wait to be sent."""
    unreadable_frames: Mapping[str, int] = MappingProxyType({})
    """Messages of other nodes and publishers that were dropped, as they could not be read; by reason."""
    unreadable_values: Mapping[str, int] = MappingProxyType({})
    """Stored values that were passed over, as they could not be read; by what they should have been."""


@runtime_checkable
class Measured(Protocol):
    """A backend that can be asked for figures. Not every backend has to be one."""

    def figures(self) -> BackendFigures:
        """The figures since its start. The histograms are the live ones: read, do not write."""
        ...


Deliver = Callable[[Topic, Sequence[Publication]], Awaitable[None] | None]
"""Called with the publications that arrived together for one topic, in order. Must not block or raise.

Returns None, or if it has fallen behind, what to await before reading more."""

Lost = Callable[[Topic, Sequence[Member]], Awaitable[None] | None]
"""Called on one node with members of a room whose own node died. Must not block or raise.

Returns None, or what to await until all is done that is to be done about it: where this node dies before, another one
is told of them again."""

Displaced = Callable[[Topic, Sequence[str]], None]
"""Called with the ids of connections of this node that have lost their place in a topic. Must not block or raise."""


class Broker(Protocol):
    """Fan-out between nodes. Delivery is at most once; with a history policy, what was missed can be read back."""

    async def subscribe(self, topic: Topic) -> None:
        """Have `topic` delivered to this node. Nothing is missed that is published after this has returned."""
        ...

    async def unsubscribe(self, topic: Topic) -> None:
        """Undo one `subscribe`. Delivery ends when all are undone."""
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

        With `history`, appending and sending are one atomic step. An `idempotency_key` that was used for this topic
        within the last 5 minutes, or the history's `ttl` where that is longer, changes nothing and returns the first
        receipt's position, whatever became of the history since. Raises `BackendError`.
        """
        ...


@runtime_checkable
class FollowingBroker(Broker, Protocol):
    """A `Broker` whose links to the others may break. Not every broker has to be one.

    What was missed meanwhile is read from the history and delivered. Where that cannot be, `deliver` is called with
    `protocol.spans.history_lost` alone, before anything newer.
    """

    async def follow(self, topic: Topic) -> None:
        """Know where a subscribed topic's history stands, so that from now on nothing is missed unnoticed.

        Raises `BackendError`.
        """
        ...


class HistoryStore(Protocol):
    """Reads what `Broker.publish` kept.

    Whoever brings a position that `read` honours is taken for one that was in the room: epochs and tags are random, and
    too long to be guessed.
    """

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        """The newest `limit` publications, oldest first; with `since`, the first `limit` after that position.

        Raises `LookupError` if it cannot tell all that came after `since`, also for a `limit` of 0: the position has
        another epoch or tag, or what followed it has been trimmed away. Offset 0, before the first one, has no tag.
        """
        ...


class Presence(Protocol):
    """Who is in a room, on whichever node."""

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        """Add `member`. False, with nothing changed, if `limit` members are in already. Idempotent per connection."""
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


@runtime_checkable
class LeasedPresence(Protocol):
    """A `Presence` of nodes that may take each other for dead. Not every presence has to be one."""

    def now(self) -> float:
        """The time by a clock that all nodes share, in seconds since the epoch."""
        ...

    async def runs_leave_hooks(self, topic: Topic, connection_id: str) -> bool:
        """Whether this node is to run the leave hooks of a member that has just left here.

        False where another node took this one for dead and has run them: each is asked about once.
        """
        ...

    def why_closed(self, namespace: str) -> str:
        """Why nobody can enter on this node, for people, where that is not about to change; else empty."""
        ...

    def watch(self, namespace: str, displaced: Displaced) -> None:
        """Tell `displaced` of members of a started namespace who lost their place: others took this node for dead, and
        gave it away."""
        ...

    def unwatch(self, namespace: str, displaced: Displaced) -> None:
        """Undo one `watch`; no error if there was none."""
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
        """The time `session` was first seen (seconds since the epoch), remembered for `ttl` seconds.

        A `FirstSeen` where clocks may differ: of any other number the age is reckoned by this node's clock.
        """
        ...

    async def began(self, session: str) -> float | None:
        """What `begin` would answer, where `session` is remembered; None, and nothing is remembered, where not."""
        ...

    async def revoke(self, subject: str, *, ttl: float) -> None:
        """Refuse `subject` (a session, a user or a token id) for `ttl` seconds."""
        ...

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        """Whether any of `subjects` is revoked."""
        ...


class Backend(Protocol):
    """The protocols above as one object with a life. SocketApps with the same backend URL in a process share one.

    It is made when an app is declared, perhaps long before a fork, and started in one event loop after another. So
    whatever belongs to a process or an event loop is made no earlier than the attributes below are read there. Where
    another event loop runs it, they raise `RuntimeError`; what an event loop that has ended left behind is forgotten.
    """

    @property
    def shared(self) -> bool:
        """Whether other nodes may share it, so that limits and presence are not this process's alone."""
        ...

    @property
    def node(self) -> str:
        """This process's name among the nodes: a short string, a new one at every start and after a fork."""
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
        """Whether this node is in touch with the others: as measured, not as assumed."""
        ...
