"""Who is in a room, on whichever node, by leases.

A node renews one lease for each namespace, not one for each member. Its members of a topic are one hash, and a second
hash of the topic counts them by node: so counting loads no member, and what a dead node leaves behind is found by its
name. When a lease ends, one of the other nodes claims the dead node, removes its members topic by topic, and says who
they were. A node that finds its own lease gone (it was frozen, or the server lost its data) begins again under a new
name, with all the members it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from socketspec.backend import Lost, Member, Presence, Topic
from socketspec.cluster.commands import Command, CommandRunner, Script, milliseconds
from socketspec.cluster.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.errors import BackendError
from socketspec.tasks import Tasks

__all__ = ("RedisPresence",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

BATCH: Final = 256
"""Topics or members in one round trip."""
LEAVE_PATIENCE: Final = 1.0
"""Seconds that leaving waits for Redis; after that it goes on in the background."""
RETRY: Final = 0.5
"""Seconds between tries of what Redis was not there for."""
STOP_PATIENCE: Final = 2.0
"""Seconds that the last stop gives Redis to forget this node; after that the lease ends by itself."""
LEAST_TTL: Final = 600.0
"""Seconds that presence keys outlive the last node that kept them alive, at least."""

_ENTER, _LEAVE, _REAP, _RENEW, _CLAIM = map(Script, ("enter", "leave", "reap", "renew", "claim"))


class _Namespace:
    """This node's members of one namespace's topics, and its lease."""

    def __init__(self, name: str, node: str) -> None:
        self.name = name
        self.life = 0
        self.base = node
        self.lost: list[Lost] = []
        self.uses = 0
        self.members: dict[Topic, dict[str, bytes]] = {}
        """By connection id; also those whose entering is under way."""
        self.owed: dict[tuple[Topic, str], asyncio.Future[None]] = {}
        """Leaves that have not been carried out."""
        self.leaving: asyncio.Task[None] | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.reaping: set[str] = set()

    @property
    def node(self) -> str:
        """The name it has its lease under."""
        return f"{self.base}-{self.life}"


class RedisPresence(Presence):
    """Presence on Redis. `start` takes a namespace's lease, `stop` gives it back with everything that hangs on it."""

    def __init__(self, runner: CommandRunner, keys: Keys, node: str, tasks: Tasks, options: RedisOptions) -> None:
        self._runner = runner
        self._keys = keys
        self._node = node
        self._tasks = tasks
        self._lease = options.lease
        self._ttl = max(LEAST_TTL, 10 * options.lease)
        self._namespaces: dict[str, _Namespace] = {}

    def attach(self, namespace: str, lost: Lost) -> None:
        """Tell `lost` of members whose node died, when this node is the one that buries it."""
        self._namespace(namespace).lost.append(lost)

    async def start(self, namespace: str) -> None:
        """Take `namespace`'s lease, unless another app of this process has. Raises `BackendError`."""
        space = self._namespace(namespace)
        space.uses += 1
        if space.uses == 1:
            try:
                await self._renew(space, begin=True)
            except BaseException:
                space.uses -= 1
                raise
            space.keeper = self._tasks.spawn(self._keep(space), name=f"presence of {namespace!r}")

    async def stop(self, namespace: str) -> None:
        """Undo one `start`; the last takes this node's members out and gives the lease back."""
        space = self._namespace(namespace)
        space.uses -= 1
        if space.uses > 0:
            return
        del self._namespaces[namespace]
        for task in (space.keeper, space.leaving):
            if task is not None:
                task.cancel()
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await self._vacate(space)
        except (BackendError, TimeoutError) as error:
            logger.warning("This node's presence ends with its lease, not now: %s", str(error) or "no answer in time")

    def _namespace(self, name: str) -> _Namespace:
        if name not in self._namespaces:
            self._namespaces[name] = _Namespace(name, self._node)
        return self._namespaces[name]

    async def _vacate(self, space: _Namespace) -> None:
        leaving: dict[Topic, list[str]] = {topic: list(members) for topic, members in space.members.items()}
        for topic, id in space.owed:
            leaving.setdefault(topic, []).append(id)
        await self._leave_all(space, leaving)
        index, leases = self._keys.node_topics(space.name, space.node), self._keys.leases(space.name)
        await self._runner.run_all([Command("UNLINK", None, (index,)), Command("ZREM", None, (leases,), (space.node,))])

    # Members

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        space = self._namespace(topic.namespace)
        members = space.members.setdefault(topic, {})
        is_first = not members
        packed: bytes = msgpack.packb([member.user_id, member.joined_at])
        owed = space.owed.pop((topic, member.connection_id), None)
        if owed is not None and not owed.done():
            owed.set_result(None)
        was_in = member.connection_id in members
        members.setdefault(member.connection_id, packed)
        try:
            while True:
                node = space.node
                entered = await self._enter(space, topic, (member.connection_id, packed), limit, index=is_first)
                if node == space.node:  # else this node has begun again meanwhile, under another name
                    break
        except BaseException:
            if not was_in:
                self._drop(space, topic, member.connection_id)
            raise
        if not entered and not was_in:
            self._drop(space, topic, member.connection_id)
            if topic not in space.members:
                self._owe(space, topic, member.connection_id)  # the node's list of topics is put right with it
        return entered

    async def _enter(
        self, space: _Namespace, topic: Topic, member: tuple[str, bytes], limit: int | None, *, index: bool
    ) -> bool:
        commands = [self._enter_command(space, topic, member, limit)]
        if index:
            commands.insert(0, self._index_command("SADD", space, [topic]))
        return bool((await self._runner.run_all(commands))[-1])

    def _enter_command(
        self, space: _Namespace, topic: Topic, members: Sequence[str | bytes], limit: int | None = None
    ) -> Command:
        names = (self._keys.nodes(topic), self._keys.members(topic, space.node))
        return _ENTER.command(names, space.node, -1 if limit is None else limit, milliseconds(self._ttl), *members)

    def _index_command(self, name: str, space: _Namespace, topics: Sequence[Topic]) -> Command:
        index = self._keys.node_topics(space.name, space.node)
        return Command(name, None, (index,), tuple(self._keys.channel(topic) for topic in topics))

    @staticmethod
    def _drop(space: _Namespace, topic: Topic, connection_id: str) -> bool:
        members = space.members.get(topic)
        if members is None or members.pop(connection_id, None) is None:
            return False
        if not members:
            del space.members[topic]
        return True

    async def leave(self, topic: Topic, connection_id: str) -> None:
        """Remove a member. Never fails: where Redis does not answer soon it is done later."""
        space = self._namespace(topic.namespace)
        self._drop(space, topic, connection_id)
        done = self._owe(space, topic, connection_id)
        await asyncio.wait({done}, timeout=LEAVE_PATIENCE)

    def _owe(self, space: _Namespace, topic: Topic, connection_id: str) -> asyncio.Future[None]:
        done = space.owed.get((topic, connection_id))
        if done is None:
            done = space.owed[topic, connection_id] = asyncio.get_running_loop().create_future()
        if space.leaving is None or space.leaving.done():
            space.leaving = self._tasks.spawn(self._pay(space), name=f"leaves of {space.name!r}")
        return done

    async def _pay(self, space: _Namespace) -> None:
        """Carry out what is owed, until nothing is."""
        while space.owed:
            owed = list(space.owed)[:BATCH]
            leaving: dict[Topic, list[str]] = {}
            for topic, id in owed:
                leaving.setdefault(topic, []).append(id)
            try:
                await self._leave_all(space, leaving)
            except BackendError as error:
                logger.debug("Leaving is tried again: %s", error)
                await asyncio.sleep(RETRY)
                continue
            for entry in owed:
                done = space.owed.pop(entry, None)
                if done is not None and not done.done():
                    done.set_result(None)

    async def _leave_all(self, space: _Namespace, leaving: dict[Topic, list[str]]) -> None:
        commands: list[Command] = []
        for topic, ids in leaving.items():
            names = (self._keys.nodes(topic), self._keys.members(topic, space.node))
            commands += [
                _LEAVE.command(names, space.node, *ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)
            ]
        empty = [topic for topic in leaving if topic not in space.members]
        for start in range(0, len(empty), BATCH):
            commands.append(self._index_command("SREM", space, empty[start : start + BATCH]))
        for start in range(0, len(commands), BATCH):
            await self._runner.run_all(commands[start : start + BATCH])

    async def members(self, topic: Topic) -> Sequence[Member]:
        nodes = await self._runner.run(Command("HKEYS", None, (self._keys.nodes(topic),)))
        replies = await self._runner.run_all(
            [Command("HGETALL", None, (self._keys.members(topic, node.decode()),)) for node in nodes]
        )
        found = [member for reply in replies for member in _members(reply)]
        return sorted(found, key=lambda member: (member.joined_at, member.connection_id))

    async def count(self, topic: Topic) -> int:
        return sum(map(int, await self._runner.run(Command("HVALS", None, (self._keys.nodes(topic),)))))

    # The lease

    async def _renew(self, space: _Namespace, *, begin: bool = False) -> list[Any]:
        names = (self._keys.leases(space.name), self._keys.node_topics(space.name, space.node))
        lease, ttl = milliseconds(self._lease), milliseconds(self._ttl)
        reply: list[Any] = await self._runner.run(_RENEW.command(names, space.node, lease, ttl, "1" if begin else "0"))
        return reply

    async def _keep(self, space: _Namespace) -> None:
        """Renew the lease, look for dead nodes, and keep the keys alive."""
        loop = asyncio.get_running_loop()
        kept_alive = loop.time()
        wait = self._lease / 4
        while True:
            await asyncio.sleep(wait)
            wait = self._lease / 8
            try:
                reply = await self._renew(space)
                if reply[0] == 0:
                    await self._begin_again(space)
                    continue
                if loop.time() - kept_alive > self._ttl / 3:
                    await self._reenter(space, [(topic, ()) for topic in list(space.members)])
                    kept_alive = loop.time()
            except BackendError as error:
                logger.warning("The lease of %r could not be renewed: %s", space.name, error)
                continue
            for ended in reply[2:]:
                self._bury(space, ended.decode())
            wait = min(self._lease / 4, max(reply[1] / 1000, 0.0) + 0.02)  # as soon as the next one may end

    async def _begin_again(self, space: _Namespace) -> None:
        """Our lease was lost, and with it perhaps all we had: take a new one, and put everybody back."""
        logger.warning("The lease of %r was lost; this node's members are entered anew", space.name)
        space.life += 1
        await self._renew(space, begin=True)
        everybody = [
            (topic, [part for member in members.items() for part in member])
            for topic, members in list(space.members.items())
        ]
        await self._reenter(space, everybody)

    async def _reenter(self, space: _Namespace, entries: Sequence[tuple[Topic, Sequence[str | bytes]]]) -> None:
        for start in range(0, len(entries), BATCH):
            part = entries[start : start + BATCH]
            commands = [self._index_command("SADD", space, [topic for topic, _ in part])]
            for topic, members in part:
                pieces = [members[at : at + 2 * BATCH] for at in range(0, len(members), 2 * BATCH)] or [()]
                commands += [self._enter_command(space, topic, piece) for piece in pieces]
            await self._runner.run_all(commands)

    # Dead nodes

    def _bury(self, space: _Namespace, node: str) -> None:
        if node not in space.reaping:
            space.reaping.add(node)
            self._tasks.spawn(self._reap(space, node), name=f"removing the members of node {node}")

    async def _reap(self, space: _Namespace, node: str) -> None:
        """Remove a dead node's members, if nobody else does."""
        names = (self._keys.leases(space.name), self._keys.node_topics(space.name, node))
        lease, ttl = milliseconds(self._lease), milliseconds(self._ttl)
        claim: bytes | str = ""
        finished: list[bytes] = []
        try:
            while reply := await self._runner.run(_CLAIM.command(names, node, lease, ttl, claim, BATCH, *finished)):
                claim, finished = reply[0], reply[1:]
                for channel in finished:
                    await self._reap_topic(space, node, channel)
        except BackendError as error:
            logger.warning("Removing the members of node %s is left to the next: %s", node, error)
        finally:
            space.reaping.discard(node)

    async def _reap_topic(self, space: _Namespace, node: str, channel: bytes) -> None:
        topic = self._keys.topic(channel)
        if topic is None:
            return
        names = (self._keys.nodes(topic), self._keys.members(topic, node))
        gone = _members(await self._runner.run(_REAP.command(names, node)))
        if gone:
            logger.info("%d members of %r are gone with node %s", len(gone), topic.name, node)
            for lost in space.lost[:1]:  # apps of one namespace in one process: the hook runs once
                lost(topic, gone)


def _members(reply: Sequence[bytes]) -> list[Member]:
    """Members in a flat list of connection ids and packed members. What cannot be read is passed over."""
    found = []
    for id, packed in zip(reply[::2], reply[1::2], strict=True):
        try:
            user_id, joined_at = msgpack.unpackb(packed)
        except (ValueError, TypeError, msgpack.UnpackException):
            logger.warning("A member of a room cannot be read: another version's? %r", packed[:50])
            continue
        found.append(Member(id.decode(), user_id, joined_at))
    return found
