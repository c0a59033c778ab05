"""Into a topic and out of it: this node is subscribed and the member is counted, or neither."""

from __future__ import annotations

import time

from socketspec.backend.protocols import LeasedPresence, Presence
from socketspec.fanout.hub import Hub
from socketspec.protocol.publications import Member, Topic

__all__ = ("Topics",)


class Topics:
    """What rooms and users have in common: a topic with members that are counted cluster-wide."""

    def __init__(self, hub: Hub, presence: Presence) -> None:
        self._hub = hub
        self._presence = presence
        self._leased = presence if isinstance(presence, LeasedPresence) else None

    async def enter(
        self,
        topic: Topic,
        connection: str,
        user: str | None,
        *,
        limit: int | None,
        last: bool = False,
        has_history: bool = False,
    ) -> bool:
        """Count a connection among the topic's members; what is published from now on comes to this node.

        False if `limit` members are in already. If this is False or raises, nothing is left behind. With `last`,
        the connection counts as the last one to join, even if the clocks of other nodes are ahead of ours. With
        `has_history`, nothing that the topic keeps is missed unnoticed from now on. Raises `BackendError`.
        """
        await self._hub.acquire(topic, has_history=has_history)
        entered: bool | None = None  # None: we do not know whether it is in
        try:
            joined_at = await self._later_than_all(topic) if last else self._now()
            entered = await self._presence.enter(topic, Member(connection, user, joined_at), limit=limit)
        finally:
            if not entered:
                await self._undo(topic, connection, counted=entered is None)
        return entered is True

    async def exit(self, topic: Topic, connection: str, *, write_rest: bool) -> None:
        """Undo `enter`. With `write_rest`, what was published before is written to the connection first."""
        self._hub.remove(topic, connection, write_rest=write_rest)
        await self._undo(topic, connection, counted=True)

    async def runs_leave_hooks(self, topic: Topic, connection: str) -> bool:
        """Whether this node is to run the leave hooks of a member that has left: not where another node has."""
        return self._leased is None or await self._leased.runs_leave_hooks(topic, connection)

    def _now(self) -> float:
        """The time that members of all nodes are sorted by."""
        return time.time() if self._leased is None else self._leased.now()

    async def _undo(self, topic: Topic, connection: str, *, counted: bool) -> None:
        try:
            if counted:
                await self._presence.leave(topic, connection)
        finally:
            await self._hub.release(topic)

    async def _later_than_all(self, topic: Topic) -> float:
        """A time of joining that is later than everybody else's."""
        members = await self._presence.members(topic)
        return max((self._now(), *(member.joined_at + 1e-6 for member in members)))
