"""Makes Redis agree with what this node knows of its members, topic by topic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

from socketspec.cluster.commands.command import Command, CommandRunner
from socketspec.cluster.presence.commands import BATCH, PresenceCommands, parse_names
from socketspec.cluster.presence.space import Entry, Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Topic

__all__ = ("Repair",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")


class Repair:
    """Compares topics with Redis, puts back members that it lacks, and removes those it has too many."""

    def __init__(self, runner: CommandRunner, commands: PresenceCommands, tasks: Tasks) -> None:
        self._runner = runner
        self._commands = commands
        self._tasks = tasks

    def soon(self, space: Space) -> None:
        """Begin to repair what is unchecked in `space`, unless that is under way."""
        is_wanted = space.unchecked or space.is_list_unread or space.former or space.given_up
        if is_wanted and (space.repairing is None or space.repairing.done()):
            space.repairing = self._tasks.spawn(self._repair(space), name=f"comparing {space.name!r} with Redis")

    async def _repair(self, space: Space) -> None:
        """Repair until nothing is unchecked; then nothing is left under the node's former names."""
        former, given_up, node = tuple(space.former), tuple(space.given_up), space.node
        topics: list[Topic] = []
        try:
            while space.is_list_unread or space.unchecked:
                if space.is_list_unread:
                    await self.read_lists(space)
                topics = list(islice(space.unchecked, BATCH))
                space.unchecked.difference_update(topics)
                await self._repair_topics(space, topics)
                topics = []
            if node == space.node:
                await self._runner.run_all([self._commands.unlink_index(space.name, name) for name in former])
                del space.former[: len(former)]
                del space.given_up[: len(given_up)]
        except BackendError as error:
            logger.debug("Comparing with Redis is tried again: %s", error)
        finally:
            space.unchecked.update(topics, space.unrepaired)
            space.unrepaired.clear()

    async def read_lists(self, space: Space) -> None:
        """Have all topics compared that Redis has on the lists of this node, under any of its names.

        This node may have left them, and the server that took over not know of it. Once a list is removed nobody finds
        what is left there. Raises `BackendError`.
        """
        space.is_list_unread = False
        try:
            for name in (space.node, *space.former):
                reply = await self._runner.run(self._commands.read_index(space.name, name))
                space.unchecked.update(self._commands.parse_index(reply, space.name, name))
        except BaseException:
            space.is_list_unread = True
            raise

    async def _repair_topics(self, space: Space, topics: Sequence[Topic]) -> None:
        node = space.node
        until = space.lease.until()
        commands: list[Command] = []
        for topic in topics:
            commands += [self._commands.clear(topic, name) for name in space.former]
            commands += [self._commands.uncount(topic, name) for name in space.given_up]
            commands.append(self._commands.enter(topic, node, until=until))
        replies = await self._runner.run_all(commands)
        _check(space, replies)
        replies = await self._runner.run_all([self._commands.ids(topic, node) for topic in topics])
        missing: list[Entry] = []
        strangers: list[Entry] = []
        for topic, reply in zip(topics, replies, strict=True):
            there, ours = await self._ids(space, topic, node, reply), space.members.get(topic, {})
            missing += [(topic, id) for id in ours if id not in there]
            strangers += [(topic, id) for id in there if id not in ours]
        if missing or strangers:
            logger.info("Redis lacked %d members of this node and had %d too many", len(missing), len(strangers))
        await self._remove(space, strangers)
        if node == space.node and await self._list(space, node, topics):
            await self._mark_told(space, node, topics)
            await self._put_back(space, node, missing)
            if node == space.node:
                space.contested.difference_update(topics)

    async def _list(self, space: Space, node: str, topics: Sequence[Topic]) -> bool:
        """Put those of `topics` with members on the node's list; whether that is done.

        It needs memory. A full server must keep no ghost in, and must not keep the next topics waiting.
        """
        inhabited = [topic for topic in topics if topic in space.members]
        if not inhabited:
            return True
        try:
            await self._runner.run_all(self._commands.index(space.name, node, inhabited))
        except BackendError as error:
            logger.debug("Listing %d topics is tried again: %s", len(inhabited), error)
            space.unrepaired.update(inhabited)
            return False
        return True

    async def _mark_told(self, space: Space, node: str, topics: Sequence[Topic]) -> None:
        """Note in Redis who is told of, before they are put back: this node may die. Raises `BackendError`."""
        marks = [
            self._commands.mark_told(topic, node, told[start : start + 2 * BATCH])
            for topic in topics
            if (told := space.were_told(topic))
            for start in range(0, len(told), 2 * BATCH)
        ]
        for start in range(0, len(marks), BATCH):
            await self._runner.run_all(marks[start : start + BATCH])

    async def _ids(self, space: Space, topic: Topic, node: str, reply: Any) -> set[str]:
        """The ids in a reply. What can be none would count as a member of ours: it is removed."""
        commands = self._commands
        there = set(parse_names(reply, "member", commands.members_key(topic, node), commands.unreadable))
        strange = [id for id in reply or () if not _is_text(id)]
        for start in range(0, len(strange), BATCH):
            await self._runner.run(
                commands.leave(topic, node, strange[start : start + BATCH], until=space.lease.until())
            )
        return there

    async def _remove(self, space: Space, strangers: Sequence[Entry]) -> None:
        for start in range(0, len(strangers), BATCH):
            replies = await self._runner.run_all(space.removal(self._commands, strangers[start : start + BATCH]))
            _check(space, replies)

    async def _put_back(self, space: Space, node: str, missing: Sequence[Entry]) -> None:
        for start in range(0, len(missing), BATCH):
            if node != space.node:
                return  # the node has begun again under another name, and all of it is unchecked again
            entering: dict[Topic, list[str | bytes]] = {}
            for entry in missing[start : start + BATCH]:
                topic, id = entry
                packed = space.members.get(topic, {}).get(id)
                if packed is not None and entry not in space.entering:  # else it has left, or may still be refused
                    entering.setdefault(topic, []).extend((id, packed))
            await self._enter(space, node, entering)

    async def _enter(self, space: Space, node: str, entering: dict[Topic, list[str | bytes]]) -> None:
        """Put them in. Where others may have their places, only as many as there is still a place for."""
        until = space.lease.until()
        limits = {topic: space.limits.get(topic) if topic in space.contested else None for topic in entering}
        commands = [
            self._commands.enter(topic, node, who, limits[topic], until=until) for topic, who in entering.items()
        ]
        replies = await asyncio.gather(*map(self._runner.run, commands), return_exceptions=True)
        failed = {topic: reply for topic, reply in zip(entering, replies, strict=True) if isinstance(reply, Exception)}
        if failed:
            error = next(iter(failed.values()))
            logger.debug("Putting members back into %d rooms is tried again: %s", len(failed), error)
            space.unrepaired.update(failed)  # one whose key another program has must not keep all others waiting
            if len(failed) > 1 and len(failed) == len(entering):
                raise BackendError("None of the members could be put back.")
        _check(space, [reply for reply in replies if not isinstance(reply, BaseException)])
        full = [topic for topic, reply in zip(entering, replies, strict=True) if reply == 0]
        if not full:
            return
        there = await self._runner.run_all([self._commands.ids(topic, node) for topic in full])
        if node != space.node:
            return
        for topic, ids in zip(full, there, strict=True):
            entered = await self._ids(space, topic, node, ids)
            space.displace(topic, [str(id) for id in entering[topic][::2] if id not in entered])


def _check(space: Space, replies: Sequence[Any]) -> None:
    """Raise `BackendError` where a command came too late, and so was not carried out."""
    late = [reply for reply in replies if isinstance(reply, int) and space.lease.came_late(reply)]
    if late:
        raise BackendError(f"{len(late)} commands came too late to be carried out.")


def _is_text(id: bytes) -> bool:
    try:
        id.decode()
    except UnicodeDecodeError:
        return False
    return True
