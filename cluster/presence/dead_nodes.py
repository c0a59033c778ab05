"""Removes what dead nodes left behind: the members of nodes whose lease has ended, and says who they were.

Claim, tell, delete: a dead node is claimed topic by topic for as long as it takes, its members do not count from then
on, and they are deleted once the apps are done with their leave hooks. Where the reaper dies before that, the next one
begins with those members again: so each is told once, or more than once, and never not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from socketspec.cluster.commands.command import Command, CommandRunner
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.presence.commands import BATCH, PresenceCommands, parse_members, without_told
from socketspec.cluster.presence.space import Entry, Space
from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

__all__ = ("DeadNodes",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

MOST_FINISHED: Final = 1000
"""Topics that one claim says to be done with: Lua takes only some thousands of arguments at once."""
ALL: Final = 1_000_000
"""Topics that are asked for at once: as many as a node has."""
TRIES: Final = 4
"""How often what may safely be done twice is tried."""
RETRY: Final = 0.25
"""Seconds between two tries."""


class _Claim:
    """A dead node that this one has claimed. The claim is renewed for as long as the removal takes."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.ends = b""
        """When it ends, as Redis has said: whoever can say so holds it."""
        self.is_silent = False
        """Whether nobody is told."""
        self.finished: list[bytes] = []
        """Channels of topics that are done with."""


class DeadNodes:
    """Removes members of dead nodes, each on the one node that claims it first."""

    def __init__(self, runner: CommandRunner, keys: Keys, commands: PresenceCommands, tasks: Tasks) -> None:
        self._runner = runner
        self._keys = keys
        self._commands = commands
        self._tasks = tasks

    def remove(self, space: Space, node: str) -> None:
        """Begin to remove the members of `node`, unless that is under way here."""
        if node not in space.removing:
            space.removing[node] = self._tasks.spawn(
                self._remove_members(space, node), name=f"removing members of node {node}"
            )
            space.removing[node].add_done_callback(lambda _: space.removing.pop(node, None))

    async def _remove_members(self, space: Space, node: str) -> None:
        claim = _Claim(node)
        try:
            # No channels are given where another node has claimed it, and when all topics are done with.
            while channels := await self._claim(space, claim, ALL):
                async with asyncio.TaskGroup() as group:
                    keeping = group.create_task(self._keep(space, claim))
                    try:
                        await self._remove_from_topics(space, claim, channels)
                    finally:
                        keeping.cancel()
        except* BackendError as errors:
            logger.warning("Removing the members of node %s is left to the next: %s", node, errors.exceptions[0])

    async def _claim(self, space: Space, claim: _Claim, most: int) -> Sequence[bytes]:
        """Begin the claim, or go on with it; up to `most` of the topics to remove the members from."""
        is_first, finished, until = not claim.ends, tuple(claim.finished[:MOST_FINISHED]), space.lease.until()
        reply = await self._runner.run(
            self._commands.claim(space.name, claim.node, claim.ends, most, finished, until=until)
        )
        del claim.finished[: len(finished)]
        if not reply:
            return ()
        channels: list[bytes]
        claim.ends, is_silent, *channels = reply
        if is_first:
            claim.is_silent = is_silent == 1
        return channels

    async def _remove_from_topics(self, space: Space, claim: _Claim, channels: Sequence[bytes]) -> None:
        topics = [(channel, topic) for channel in channels if (topic := self._keys.topic(channel)) is not None]
        for strange in set(channels).difference(channel for channel, _ in topics):
            self._commands.unreadable.value("topic", self._keys.node_topics(space.name, claim.node), strange)
            claim.finished.append(strange)
        for start in range(0, len(topics), BATCH):  # first of all they are seen nowhere: hooks may take their time
            uncounts = [self._commands.uncount(topic, claim.node) for _, topic in topics[start : start + BATCH]]
            await self._runner.run_all(uncounts)
        for start in range(0, len(topics), BATCH):
            outcomes = await asyncio.gather(
                *(self._remove_from_topic(space, claim, *one) for one in topics[start : start + BATCH]),
                return_exceptions=True,
            )
            for outcome in outcomes:  # only now: all that could be removed are told
                if isinstance(outcome, BaseException):
                    raise outcome
            if claim.finished and not await self._claim(space, claim, 1):
                return  # all topics are done with, or the claim has ended

    async def _keep(self, space: Space, claim: _Claim) -> None:
        """Renew the claim while hooks run, which may take longer than it lasts."""
        while True:
            await asyncio.sleep(self._commands.lease / 4)
            try:
                await self._claim(space, claim, 1)
            except BackendError as error:
                logger.debug("The claim of node %s could not be renewed: %s", claim.node, error)

    async def _remove_from_topic(self, space: Space, claim: _Claim, channel: bytes, topic: Topic) -> None:
        reply = await self._insist(self._commands.reap(topic, claim.node))
        told = await self._insist(self._commands.told(topic, claim.node))
        where = self._keys.members(topic, claim.node)
        members = parse_members(without_told(reply, told), where, self._commands.unreadable)
        gone = [member for member in members if _is_to_be_told(space, (topic, member.connection_id))]
        if gone and not claim.is_silent:
            logger.info("%d members of %r are gone with node %s", len(gone), topic.name, claim.node)
            while len(gone) > BATCH:  # so that what is done with is not done again if we die in the midst of it
                told, gone = gone[:BATCH], gone[BATCH:]
                await _tell(space, topic, told)
                await self._forget(topic, claim.node, [member.connection_id for member in told])
            await _tell(space, topic, gone)
        await self._forget(topic, claim.node, reply[::2])
        if told:
            await self._insist(self._commands.forget_told(topic, claim.node))
        claim.finished.append(channel)

    async def _forget(self, topic: Topic, node: str, ids: Sequence[str | bytes]) -> None:
        for start in range(0, len(ids), BATCH):
            await self._insist(self._commands.forget(topic, node, ids[start : start + BATCH]))

    async def _insist(self, command: Command) -> Any:
        """Run what may safely be carried out twice, several times if need be. Raises `BackendError`."""
        for _ in range(TRIES - 1):
            try:
                return await self._runner.run(command)
            except BackendError as error:
                logger.debug("%s is tried again: %s", command.name, error)
                await asyncio.sleep(RETRY)
        return await self._runner.run(command)


def _is_to_be_told(space: Space, entry: Entry) -> bool:
    """Whether the leaving of what a dead node had is to be told.

    The node may be a former name of ours, and the member still here. Then it is told once it leaves, unless we have put
    it back in the belief that another node does: that one has died before it did.
    """
    topic, id = entry
    return id not in space.members.get(topic, ()) or entry in space.told


async def _tell(space: Space, topic: Topic, members: Sequence[Member]) -> None:
    """Tell one app, which is enough where several in this process share the namespace, and wait until it is done."""
    for tell in space.tell_lost[:1]:
        try:
            waiting = tell(topic, members)
            if waiting is not None:
                await unless_cancelled(waiting)
        except Exception:
            logger.exception("What is to be done about lost members of %r failed", topic.name)
