"""Into a topic and out of it: subscribed to, counted, and undone where one of the two fails."""

from __future__ import annotations

import time

from socketspec.backend.protocols import Presence
from socketspec.fanout.hub import Hub
from socketspec.protocol.publications import Member, Topic

__all__ = ("Topics",)


class Topics:
    """What rooms and users have in common: a topic with members that are counted cluster-wide."""

    def __init__(self, hub: Hub, presence: Presence) -> None:
        self._hub = hub
        self._presence = presence

    async def enter(
        self, topic: Topic, connection: str, user: str | None, *, limit: int | None, last: bool = False
    ) -> bool:
        """Count a connection among the topic's members; what is published from now on comes to this node.

        False where `limit` members are in already. Where this is False or raises, nothing is left behind. With
        `last`, it joins after all who are there, however much their nodes' clocks differ from ours. Raises
        `BackendError`.
        """
        await self._hub.acquire(topic)
        entered: bool | None = None  # None: whether it is in is not known
        try:
            joined_at = await self._after_all(topic) if last else time.time()
            entered = await self._presence.enter(topic, Member(connection, user, joined_at), limit=limit)
        finally:
            if not entered:
                await self._undo(topic, connection, counted=entered is None)
        return entered

    async def exit(self, topic: Topic, connection: str, *, write_rest: bool) -> None:
        """Undo `enter`, also where it stood for a while. With `write_rest`, what was published before is written."""
        self._hub.remove(topic, connection, write_rest=write_rest)
        await self._undo(topic, connection, counted=True)

    async def _undo(self, topic: Topic, connection: str, *, counted: bool) -> None:
        try:
            if counted:
                await self._presence.leave(topic, connection)
        finally:
            await self._hub.release(topic)

    async def _after_all(self, topic: Topic) -> float:
        members = await self._presence.members(topic)
        return max((time.time(), *(member.joined_at + 1e-6 for member in members)))
