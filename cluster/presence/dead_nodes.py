"""Removes what dead nodes left behind: the members of nodes whose lease has ended, and says who they were."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from socketspec.cluster.commands.command import CommandRunner
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.presence.commands import BATCH, PresenceCommands, parse_members
from socketspec.cluster.presence.space import Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError

__all__ = ("DeadNodes",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")


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
        claim: bytes = b""
        channels: Sequence[bytes] = ()
        try:
            # The reply is empty where another node has claimed it, and when all topics are done with.
            while reply := await self._runner.run(self._commands.claim(space.name, node, claim, BATCH, channels)):
                claim, *channels = reply
                outcomes = await asyncio.gather(
                    *(self._remove_from_topic(space, node, channel) for channel in channels), return_exceptions=True
                )
                for outcome in outcomes:  # only now: all that could be removed are told
                    if isinstance(outcome, BaseException):
                        raise outcome
        except BackendError as error:
            logger.warning("Removing the members of node %s is left to the next: %s", node, error)

    async def _remove_from_topic(self, space: Space, node: str, channel: bytes) -> None:
        topic = self._keys.topic(channel)
        if topic is None:
            self._commands.unreadable.value("topic", self._keys.node_topics(space.name, node), channel)
            return
        reply = await self._runner.run(self._commands.reap(topic, node))
        here = space.members.get(topic, {})  # if the node is a former name of ours, its members may still be here
        members = parse_members(reply, self._keys.members(topic, node), self._commands.unreadable)
        gone = [member for member in members if member.connection_id not in here]
        if not gone:
            return
        logger.info("%d members of %r are gone with node %s", len(gone), topic.name, node)
        for tell in space.tell_lost[:1]:  # one app is enough, where several in this process share the namespace
            try:
                tell(topic, gone)
            except Exception:
                logger.exception("What is to be done about lost members of %r failed", topic.name)
