"""Who is in a room, on whichever node, by leases.

A node renews one lease for each namespace, not one for each member. Its members of a topic are one hash, and a second
hash of the topic counts them by node: so counting loads no member, and what a dead node leaves behind is found by its
name. When a lease ends, one of the other nodes claims the dead node, removes its members topic by topic, and says who
they were. A node that finds its own lease gone (it was frozen, or the server lost its data) begins again under a new
name, with all the members it has.

What this node knows of its own members is right, and Redis is made to agree: topic by topic every few minutes, and all
of them at once after anything that may have cost Redis some of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count, islice
from typing import Final

from socketspec.backend.protocols import Lost, Presence
from socketspec.cluster.commands.command import CommandRunner
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence.commands import PresenceCommands, pack_member, parse_members
from socketspec.cluster.presence.space import Entry, Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

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
SOON: Final = 0.02
"""Seconds after the end of somebody's lease at which we look."""


class RedisPresence(Presence):
    """Presence on Redis. `start` takes a namespace's lease, `stop` gives it back with everything that hangs on it.

    `ttl`: seconds that keys outlive the last node that kept them alive. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        runner: CommandRunner,
        keys: Keys,
        node: str,
        tasks: Tasks,
        options: RedisOptions,
        *,
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._names = (f"{node}-{number}" for number in count())  # no name comes twice, whatever was left under it
        self._tasks = tasks
        self._clock = clock
        self._lease = options.lease
        self._patience = options.command_timeout
        self._ttl = max(LEAST_TTL, 10 * options.lease) if ttl is None else ttl
        self._commands = PresenceCommands(keys, self._lease, self._ttl)
        self._namespaces: dict[str, Space] = {}

    def attach(self, namespace: str, lost: Lost) -> None:
        """Tell `lost` of members whose node died, when this node is the one that buries it."""
        if namespace not in self._namespaces:
            self._namespaces[namespace] = Space(namespace, next(self._names))
        self._namespaces[namespace].lost.append(lost)

    async def start(self, namespace: str) -> None:
        """Take `namespace`'s lease, unless another app of this process has; after `attach`. Raises `BackendError`."""
        space = self._namespaces[namespace]
        space.uses += 1
        if space.uses > 1:
            return
        try:
            await self._renew(space)
        except BaseException:
            del self._namespaces[namespace]
            raise
        space.next_round = self._clock() + self._ttl / 3
        space.keeper = self._tasks.spawn(self._keep(space), name=f"presence of {namespace!r}")

    async def stop(self, namespace: str, lost: Lost) -> None:
        """Undo one `attach` and its `start`; the last takes this node's members out and gives the lease back."""
        space = self._namespaces.get(namespace)
        if space is None:
            return
        if lost in space.lost:
            space.lost.remove(lost)
        space.uses -= 1
        if space.uses > 0:
            return
        del self._namespaces[namespace]
        space.stands.set()  # whoever waits for the lease learns that there is none any more
        running = [task for task in (space.keeper, space.leaving, space.mending, *space.reaping.values()) if task]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await self._vacate(space)
        except (BackendError, TimeoutError) as error:
            logger.warning("This node's presence ends with its lease, not now: %s", str(error) or "no answer in time")
        for done in space.owed.values():
            if not done.done():
                done.set_result(None)

    async def _vacate(self, space: Space) -> None:
        names = (space.node, *space.former)
        reaps = [self._commands.reap(topic, node) for topic in space.topics() for node in names]
        for start in range(0, len(reaps), BATCH):
            await self._runner.run_all(reaps[start : start + BATCH])
        await self._runner.run_all([command for node in names for command in self._commands.resign(space.name, node)])

    def distrust(self, topics: Iterable[Topic] | None = None) -> None:
        """Compare `topics` with Redis soon, or all of this node's: something may have cost Redis what it held of them.

        Further calls before a topic's turn has come add nothing, and `BATCH` topics are compared at a time.
        """
        wanted = None if topics is None else set(topics)
        for space in self._namespaces.values():
            doubted = space.topics() if wanted is None else wanted & space.members.keys()
            if doubted or wanted is None:
                space.doubted |= doubted
                space.wake.set()

    # Members

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        """Add `member`. Raises `BackendError`: then it is not in, and whatever Redis did of it is undone."""
        space = await self._standing(topic.namespace)
        entry = topic, member.connection_id
        members = space.members.setdefault(topic, {})
        if member.connection_id in members and entry not in space.entering:
            return True
        packed = pack_member(member)
        _settle(space.owed.pop(entry, None))
        members.setdefault(member.connection_id, packed)
        space.entering.add(entry)
        try:
            entered = await self._ask_to_enter(space, entry, packed, limit)
        except BaseException:
            if space.drop(entry):
                self._owe(space, entry)  # nobody knows how far it came
            raise
        finally:
            space.entering.discard(entry)
        if not entered and space.drop(entry) and topic not in space.members:
            self._owe(space, entry)  # takes the topic off the node's list
        return entered

    async def _standing(self, name: str) -> Space:
        """The namespace while its lease stands. After it ended, others may have removed our members: ask first."""
        space = self._namespaces.get(name)
        if space is not None and space.uses and self._clock() >= space.ends:
            space.stands.clear()
            space.wake.set()
            try:
                async with asyncio.timeout(self._patience):
                    await space.stands.wait()
            except TimeoutError:
                raise BackendError(
                    f"Nobody can enter: this node's lease in {name!r} has ended, and Redis does not renew it."
                ) from None
        if space is None or not space.uses:
            raise BackendError(f"Nobody can enter: presence in {name!r} is not started, or was stopped.")
        return space

    async def _ask_to_enter(self, space: Space, entry: Entry, packed: bytes, limit: int | None) -> bool:
        topic, id = entry
        while True:
            node = space.node
            commands = [self._commands.enter(topic, node, (id, packed), limit)]
            if topic not in space.indexed:
                commands = [*self._commands.index(space.name, node, (topic,)), *commands]
            entered = bool((await self._runner.run_all(commands))[-1])
            if node == space.node:
                space.indexed.add(topic)
                return entered
            # This node began again meanwhile: what counts is the new name, and the old one must not count as well.
            await self._runner.run(self._commands.leave(topic, node, (id,)))

    async def leave(self, topic: Topic, connection_id: str) -> None:
        """Remove a member. Never fails: where Redis does not answer soon it is done later."""
        space = self._namespaces.get(topic.namespace)
        entry = topic, connection_id
        if space is not None and (space.drop(entry) or entry in space.owed):
            await asyncio.wait({self._owe(space, entry)}, timeout=LEAVE_PATIENCE)

    def _owe(self, space: Space, entry: Entry) -> asyncio.Future[None]:
        done = space.owed.get(entry)
        if done is None:
            done = space.owed[entry] = asyncio.get_running_loop().create_future()
        if space.uses and (space.leaving is None or space.leaving.done()):
            space.leaving = self._tasks.spawn(self._pay(space), name=f"leaves of {space.name!r}")
        return done

    async def _pay(self, space: Space) -> None:
        """Carry out what is owed, until nothing is."""
        while space.owed:
            owed = {entry: space.owed[entry] for entry in islice(space.owed, BATCH)}
            try:
                await self._leave(space, owed)
            except BackendError as error:
                logger.debug("Leaving is tried again: %s", error)
                await asyncio.sleep(RETRY)
                continue
            for entry, done in owed.items():
                if space.owed.get(entry) is done:
                    del space.owed[entry]
                _settle(done)

    async def _leave(self, space: Space, entries: Collection[Entry]) -> None:
        """Take members out of Redis, and topics without any off the list."""
        leaving: dict[Topic, list[str]] = {}
        for topic, id in entries:
            leaving.setdefault(topic, []).append(id)
        commands = [self._commands.leave(topic, space.node, ids) for topic, ids in leaving.items()]
        empty = [topic for topic in leaving if topic not in space.members]
        if empty:
            space.indexed.difference_update(empty)
            commands.append(self._commands.drop_index(space.name, space.node, empty))
        await self._runner.run_all(commands)

    async def members(self, topic: Topic) -> Sequence[Member]:
        nodes = await self._runner.run(self._commands.nodes(topic))
        replies = await self._runner.run_all([self._commands.members(topic, node.decode()) for node in nodes])
        found = {member.connection_id: member for reply in replies for member in parse_members(reply)}
        return sorted(found.values(), key=lambda member: (member.joined_at, member.connection_id))

    async def count(self, topic: Topic) -> int:
        return sum(map(int, await self._runner.run(self._commands.counts(topic))))

    # The lease

    async def _keep(self, space: Space) -> None:
        """Renew the lease, look for dead nodes, and have topics compared with Redis."""
        wait = self._lease / 4
        while True:
            try:
                async with asyncio.timeout(wait):
                    await space.wake.wait()
            except TimeoutError:
                pass
            space.wake.clear()
            try:
                soonest, ended = await self._renew(space)
            except Exception as error:
                if not space.is_troubled:
                    unforeseen = None if isinstance(error, BackendError) else error
                    logger.warning("The lease of %r could not be renewed: %s", space.name, error, exc_info=unforeseen)
                space.is_troubled = True
                wait = self._lease / 8
                await asyncio.sleep(min(RETRY, wait))  # however many are in a hurry
                continue
            for node in ended:
                self._bury(space, node)
            space.doubted.update(space.next_turns(self._clock(), self._ttl / 3, math.ceil(self._ttl / self._lease)))
            self._mend_soon(space)
            wait = min(self._lease / 4, soonest + SOON)  # as soon as the next one may end

    async def _renew(self, space: Space) -> tuple[float, list[str]]:
        """Renew the lease, or begin one; seconds until the next lease of any node ends, and nodes whose has ended."""
        now = self._clock()
        reply = await self._runner.run(self._commands.renew(space.name, space.node, begin=not space.is_begun))
        if reply[0] == 0:
            logger.warning("The lease of %r was lost; this node's members are entered anew", space.name)
            space.begin_again(next(self._names))
            reply = await self._runner.run(self._commands.renew(space.name, space.node, begin=True))
        _, soonest, server, *ended = reply
        if space.is_troubled or (space.server and server != space.server):
            space.doubted |= space.topics()  # a server that took over may lack the newest writes of the old one
        space.is_begun, space.is_troubled, space.server = True, False, server
        space.ends = now + self._lease
        space.stands.set()
        return soonest / 1000, [node.decode() for node in ended]

    # Comparing with Redis

    def _mend_soon(self, space: Space) -> None:
        if (space.doubted or space.former) and (space.mending is None or space.mending.done()):
            space.mending = self._tasks.spawn(self._mend(space), name=f"comparing {space.name!r} with Redis")

    async def _mend(self, space: Space) -> None:
        """Make Redis agree with what this node knows of its members, in all topics where that is in doubt."""
        former, node = tuple(space.former), space.node
        topics: list[Topic] = []
        try:
            while space.doubted:
                topics = list(islice(space.doubted, BATCH))
                space.doubted.difference_update(topics)
                await self._mend_topics(space, topics)
                topics = []
            if node == space.node and former:
                await self._runner.run_all([self._commands.resign(space.name, name)[0] for name in former])
                del space.former[: len(former)]
        except BackendError as error:
            logger.debug("Comparing with Redis is tried again: %s", error)
        finally:
            space.doubted.update(topics)

    async def _mend_topics(self, space: Space, topics: Sequence[Topic]) -> None:
        node = space.node
        inhabited = [topic for topic in topics if topic in space.members]
        commands = self._commands.index(space.name, node, inhabited) if inhabited else []
        for topic in topics:
            commands += [self._commands.reap(topic, name) for name in space.former]
            commands.append(self._commands.enter(topic, node))
        await self._runner.run_all(commands)
        replies = await self._runner.run_all([self._commands.ids(topic, node) for topic in topics])
        missing: list[Entry] = []
        strangers: list[Entry] = []
        for topic, reply in zip(topics, replies, strict=True):
            there, ours = {id.decode() for id in reply}, space.members.get(topic, {})
            missing += [(topic, id) for id in ours if id not in there]
            strangers += [(topic, id) for id in there if id not in ours]
        await self._put_right(space, node, missing, strangers)

    async def _put_right(self, space: Space, node: str, missing: Sequence[Entry], strangers: Sequence[Entry]) -> None:
        if missing or strangers:
            logger.info("Redis lacked %d members of this node and had %d too many", len(missing), len(strangers))
        for start in range(0, len(strangers), BATCH):
            await self._leave(space, strangers[start : start + BATCH])
        for start in range(0, len(missing), BATCH):
            if node != space.node:
                return  # all of it is in doubt again
            entering: dict[Topic, list[str | bytes]] = {}
            for entry in missing[start : start + BATCH]:
                topic, id = entry
                packed = space.members.get(topic, {}).get(id)
                if packed is not None and entry not in space.entering:  # else it left meanwhile, or may be refused yet
                    entering.setdefault(topic, []).extend((id, packed))
            await self._runner.run_all([self._commands.enter(topic, node, who) for topic, who in entering.items()])

    # Dead nodes

    def _bury(self, space: Space, node: str) -> None:
        if node not in space.reaping:
            space.reaping[node] = self._tasks.spawn(self._reap(space, node), name=f"removing members of node {node}")
            space.reaping[node].add_done_callback(lambda _: space.reaping.pop(node, None))

    async def _reap(self, space: Space, node: str) -> None:
        """Remove a dead node's members, if nobody else does."""
        claim: bytes = b""
        channels: Sequence[bytes] = ()
        try:
            while reply := await self._runner.run(self._commands.claim(space.name, node, claim, BATCH, channels)):
                claim, *channels = reply
                outcomes = await asyncio.gather(
                    *(self._reap_topic(space, node, channel) for channel in channels), return_exceptions=True
                )
                for outcome in outcomes:  # one by one: who was removed is told, whatever happened to others
                    if isinstance(outcome, BaseException):
                        raise outcome
        except BackendError as error:
            logger.warning("Removing the members of node %s is left to the next: %s", node, error)

    async def _reap_topic(self, space: Space, node: str, channel: bytes) -> None:
        topic = self._keys.topic(channel)
        if topic is None:
            return
        reply = await self._runner.run(self._commands.reap(topic, node))
        here = space.members.get(topic, {})  # a life of our own may have ended: these are not gone
        gone = [member for member in parse_members(reply) if member.connection_id not in here]
        if not gone:
            return
        logger.info("%d members of %r are gone with node %s", len(gone), topic.name, node)
        for lost in space.lost[:1]:  # apps of one namespace in one process: the hook runs once
            try:
                lost(topic, gone)
            except Exception:
                logger.exception("What is to be done about lost members of %r failed", topic.name)


def _settle(done: asyncio.Future[None] | None) -> None:
    if done is not None and not done.done():
        done.set_result(None)
