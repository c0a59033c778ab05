"""`RedisPresence`: members enter rooms, leave them, and are listed and counted, on whichever node they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Final

from socketspec.backend.protocols import Displaced, Lost, Presence
from socketspec.cluster.commands.command import CommandRunner
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence.commands import (
    BATCH,
    PresenceCommands,
    count_command,
    pack_member,
    parse_count,
    parse_members,
    parse_names,
)
from socketspec.cluster.presence.dead_nodes import DeadNodes
from socketspec.cluster.presence.lease import Lease, uptime
from socketspec.cluster.presence.leases import Leases
from socketspec.cluster.presence.repair import Repair
from socketspec.cluster.presence.space import Entry, Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

__all__ = ("RedisPresence",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

LEAVE_PATIENCE: Final = 1.0
"""Seconds that leaving waits for Redis; after that it goes on in the background."""
MOST_LEAVING: Final = 4096
"""Topics that are left at once: so many of a frozen shard do not keep those of another one waiting."""
LEAVE_PAUSE: Final = 0.05
"""Seconds after which leaves that came meanwhile are sent as well, while others are under way."""
RETRY: Final = 0.5
"""Seconds between tries of leaves while Redis is away."""
HOOKS_PATIENCE: Final = 2.0
"""Seconds that leave hooks wait to know whether another node has run them, counted from the first that wait."""
STOP_PATIENCE: Final = 2.0
"""Seconds that the last stop gives Redis to forget this node; after that the lease ends by itself."""
LAST_PATIENCE: Final = 8.0
"""The same where Redis may have members of rooms: their leave hooks have run here, and whoever buries this node later
would run them again. No longer than what is left of the time in which a container has to stop."""
LEAST_TTL: Final = 600.0
"""Seconds that presence keys outlive the last node that kept them alive, at least."""


class RedisPresence(Presence):
    """Presence in Redis. `start` takes a namespace's lease, `stop` takes this node's members out and gives it back.

    `ttl`: seconds that keys outlive the last node that kept them alive. `clock` is monotonic, in seconds, and goes on
    while this process is stopped.
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
        clock: Callable[[], float] = uptime,
        unreadable: Unreadable | None = None,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._names = (
            f"{node}-{number}" for number in count()
        )  # no name is used twice: something may be left under it
        self._tasks = tasks
        self._options = options
        self._clock = clock
        ttl = max(LEAST_TTL, 10 * options.lease) if ttl is None else ttl
        self._commands = PresenceCommands(keys, options.lease, ttl, unreadable)
        dead_nodes = DeadNodes(runner, keys, self._commands, tasks)
        self._repair = Repair(runner, self._commands, tasks)
        self._leases = Leases(runner, self._commands, tasks, dead_nodes, self._repair, patience=options.command_timeout)
        self._namespaces: dict[str, Space] = {}

    # Start and stop

    def attach(self, namespace: str, lost: Lost) -> None:
        """Tell `lost` of members whose node died, when this node is the one that removes them."""
        if namespace not in self._namespaces:
            lease = Lease(self._options.lease, self._options.command_timeout, self._clock)
            self._namespaces[namespace] = Space(namespace, self._names, lease)
        self._namespaces[namespace].tell_lost.append(lost)

    async def start(self, namespace: str) -> None:
        """Take `namespace`'s lease, unless another app of this process has; after `attach`. Raises `BackendError`."""
        space = self._namespaces[namespace]
        space.uses += 1
        if space.uses > 1:
            return
        try:
            await self._leases.begin(space)
        except BaseException:
            del self._namespaces[namespace]
            raise

    async def stop(self, namespace: str, lost: Lost) -> None:
        """Undo one `attach` and its `start`; the last takes this node's members out and gives the lease back."""
        space = self._namespaces.get(namespace)
        if space is None:
            return
        if lost in space.tell_lost:
            space.tell_lost.remove(lost)
        space.uses -= 1
        if space.uses > 0:
            return
        del self._namespaces[namespace]
        space.renewed.set()  # whoever waits for the lease learns that there is none any more
        running = [task for task in (space.renewing, space.leaving, space.repairing, *space.removing.values()) if task]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._vacate_in_time(space)
        for done in space.leaves.values():
            _resolve(done)

    async def _vacate_in_time(self, space: Space) -> None:
        """Do so as soon as Redis lets us; what is taken out twice is no harm."""
        has_members = any(topic.kind == "room" for topic in space.topics())
        trouble = "no answer in time"
        try:
            async with asyncio.timeout(LAST_PATIENCE if has_members else STOP_PATIENCE):
                while True:
                    try:
                        await self._vacate(space)
                        return
                    except BackendError as error:
                        trouble = str(error)
                        await asyncio.sleep(RETRY)
        except TimeoutError:
            twice = "; its members are told to have left once more then" if has_members else ""
            logger.warning("This node's presence ends with its lease, not now%s: %s", twice, trouble)

    async def _vacate(self, space: Space) -> None:
        """Take all of this node's members out of Redis, and give its lease back.

        A server that took over a moment ago may have topics on the lists that this node has left: after the lists are
        gone, nobody would find those.
        """
        await self._repair.read_lists(space)
        names = (space.node, *space.former)
        clears = [self._commands.clear(topic, node) for topic in space.topics() for node in names]
        for start in range(0, len(clears), BATCH):
            await self._runner.run_all(clears[start : start + BATCH])
        marks = [self._commands.forget_told(topic, space.node) for topic in {topic for topic, _ in space.told}]
        for start in range(0, len(marks), BATCH):
            await self._runner.run_all(marks[start : start + BATCH])
        await self._runner.run_all([self._commands.resign(space.name, node) for node in names])

    def distrust(self, topics: Iterable[Topic] | None = None) -> None:
        """Check `topics` against Redis soon, or all of this node's: it may have lost data.

        What this node has left of late is checked in any case: it has no link of its own that would break.
        Further calls before a topic's turn has come add nothing, and `BATCH` topics are compared at a time.
        """
        wanted = None if topics is None else set(topics)
        for space in self._namespaces.values():
            if wanted is None:
                space.distrust()
            elif unchecked := (wanted & space.members.keys()) | space.left_of_late():
                space.unchecked |= unchecked
            else:
                continue
            space.renew_now.set()  # every renewal begins a repair

    # In

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        """Add `member`. Raises `BackendError`: then it is not in, and whatever Redis did of it is undone."""
        space = await self._standing(topic.namespace)
        entry = topic, member.connection_id
        members = space.members.setdefault(topic, {})
        if member.connection_id in members and entry not in space.entering:
            return True
        packed = pack_member(member)
        _resolve(space.leaves.pop(entry, None))
        members.setdefault(member.connection_id, packed)
        if limit is not None:
            space.limits[topic] = limit
        space.forget_told(entry)
        space.entering.add(entry)
        try:
            entered = await self._ask_to_enter(space, entry, packed, limit)
        except BaseException:
            space.doubt((topic,), self._options.command_timeout)  # nobody knows whether Redis has done it, or will
            if space.drop(entry):
                self._queue_leave(space, entry)
            raise
        finally:
            space.entering.discard(entry)
        if not entered and space.drop(entry) and topic not in space.members:
            self._queue_leave(space, entry)  # takes the topic off the node's list
        return entered

    async def _standing(self, name: str) -> Space:
        """The namespace, with a lease that stands. Raises `BackendError`."""
        space = self._namespaces.get(name)
        if space is not None and space.uses:
            await self._leases.wait_for(space)
        if space is None or not space.uses:
            raise BackendError(f"Nobody can enter: presence in {name!r} is not started, or was stopped.")
        return space

    async def _ask_to_enter(self, space: Space, entry: Entry, packed: bytes, limit: int | None) -> bool:
        topic, id = entry
        is_last_try = False
        while True:
            node, until = space.node, space.lease.until()
            commands = [self._commands.enter(topic, node, (id, packed), limit, until=until)]
            if topic not in space.indexed:
                commands = [*self._commands.index(space.name, node, (topic,)), *commands]
            reply = (await self._runner.run_all(commands))[-1]
            # After a freeze another node may have told that this member left. It begins anew then, so that a leave hook
            # of its own follows its join hook.
            await self._leases.wait_for(space)
            if node != space.node:
                # This node began again under a new name meanwhile: the member must not count under the old one as well.
                await self._runner.run(self._commands.leave(topic, node, (id,), until=space.lease.until()))
            elif not space.lease.came_late(reply):
                space.indexed.add(topic)
                return bool(reply)
            elif is_last_try:
                raise BackendError(f"Nobody entered {topic.name!r}: Redis got round to it too late.")
            else:
                is_last_try = True  # the clock of another server of the cluster may be ahead: it has said how far
                await self._leases.wait_for(space)

    # Out

    async def leave(self, topic: Topic, connection_id: str) -> None:
        """Remove a member. Never fails: where Redis does not answer soon it is done later."""
        space = self._namespaces.get(topic.namespace)
        entry = topic, connection_id
        if space is not None and (space.drop(entry) or entry in space.leaves):
            await asyncio.wait({self._queue_leave(space, entry)}, timeout=LEAVE_PATIENCE)

    def _queue_leave(self, space: Space, entry: Entry) -> asyncio.Future[None]:
        """Have Redis carry out a leave, now or later; done when it has, or when it no longer matters."""
        done = space.leaves.get(entry)
        if done is None:
            done = space.leaves[entry] = asyncio.get_running_loop().create_future()
        if space.uses and (space.leaving is None or space.leaving.done()):
            space.leaving = self._tasks.spawn(self._send_leaves(space), name=f"leaves of {space.name!r}")
        return done

    async def _send_leaves(self, space: Space) -> None:
        """Send them until Redis has carried all of them out."""
        sent: set[asyncio.Task[None]] = set()
        try:
            while space.leaves or sent:
                fresh = (entry for entry in space.leaves if entry not in space.sending)
                topics: dict[Topic, dict[Entry, asyncio.Future[None]]] = {}
                for entry in islice(fresh, MOST_LEAVING - len(sent)):
                    topics.setdefault(entry[0], {})[entry] = space.leaves[entry]
                for batch in topics.values():  # each topic by itself: one shard that is frozen holds up no other
                    space.sending.update(batch)
                    sent.add(self._tasks.spawn(self._send_leave(space, batch), name=f"leave of {space.name!r}"))
                if sent:
                    _, sent = await asyncio.wait(sent, timeout=LEAVE_PAUSE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def _send_leave(self, space: Space, batch: dict[Entry, asyncio.Future[None]]) -> None:
        """Send the leaves of one topic."""
        try:
            replies = await self._runner.run_all(space.removal(self._commands, batch))
            late = [reply for reply in replies if space.lease.came_late(reply)]
            if late:
                raise BackendError("Redis got to it too late")
        except BackendError as error:
            logger.debug("Leaving is tried again: %s", error)
            space.doubt({topic for topic, _ in batch}, self._options.command_timeout)
            await asyncio.sleep(RETRY)
            for entry in batch.keys() & space.leaves.keys():
                space.leaves[entry] = space.leaves.pop(entry)  # behind those that nobody has tried yet
            return
        finally:
            space.sending.difference_update(batch)
        for entry, done in batch.items():
            if space.leaves.get(entry) is done:
                del space.leaves[entry]
            _resolve(done)

    async def runs_leave_hooks(self, topic: Topic, connection_id: str) -> bool:
        """See `LeasedPresence`. Waits where the lease has ended by our own clock: another node may have claimed this
        one. After `HOOKS_PATIENCE` it says yes: hooks that run twice are better than none."""
        space = self._namespaces.get(topic.namespace)
        if space is None:
            return True
        if not space.lease.stands:
            now = self._clock()
            if space.over_since is None:
                space.over_since = now
            with suppress(BackendError):
                await self._leases.wait_for(space, max(space.over_since + HOOKS_PATIENCE - now, 0.0))
        entry = topic, connection_id
        return not space.forget_told(entry)

    def watch(self, namespace: str, displaced: Displaced) -> None:
        """See `LeasedPresence`."""
        self._namespaces[namespace].tell_displaced.append(displaced)

    def unwatch(self, namespace: str, displaced: Displaced) -> None:
        """See `LeasedPresence`."""
        space = self._namespaces.get(namespace)
        if space is not None and displaced in space.tell_displaced:
            space.tell_displaced.remove(displaced)

    def why_closed(self, namespace: str) -> str:
        """See `LeasedPresence`. A lease that has ended and was not asked for since may be renewed in a moment."""
        space = self._namespaces.get(namespace)
        return self._ended(space) if space is not None and space.is_troubled else ""

    def ended(self) -> str:
        """Which leases of this node have ended and are not renewed, for people; empty where all stand."""
        return "; ".join(filter(None, map(self._ended, self._namespaces.values())))

    def _ended(self, space: Space) -> str:
        if not space.lease.ends or space.lease.stands:
            return ""
        ago = self._clock() - space.lease.ends
        return (
            f"this node's lease in {space.name!r} has ended {ago:.1f} s ago, and Redis does not renew it: nobody can "
            "enter. The log says why"
        )

    # Who is there

    def now(self) -> float:
        """See `LeasedPresence`. While no namespace is started it is our own time."""
        for space in self._namespaces.values():
            if space.is_begun:
                return space.lease.server_time()
        return time.time()

    async def members(self, topic: Topic) -> Sequence[Member]:
        """Everybody in `topic`, in the order they joined. Raises `BackendError`, as `count` does."""
        unreadable = self._commands.unreadable
        reply = await self._runner.run(self._commands.nodes(topic))
        nodes = parse_names(reply, "count", self._keys.nodes(topic), unreadable)
        replies = await self._runner.run_all([self._commands.members(topic, node) for node in nodes])
        found = {
            member.connection_id: member
            for node, reply in zip(nodes, replies, strict=True)
            for member in parse_members(reply, self._keys.members(topic, node), unreadable)
        }
        return sorted(found.values(), key=lambda member: (member.joined_at, member.connection_id))

    async def count(self, topic: Topic) -> int:
        """How many are in `topic`; loads none of them."""
        reply = await self._runner.run(count_command(self._keys, topic))
        return parse_count(reply, self._keys.nodes(topic), self._commands.unreadable)


def _resolve(done: asyncio.Future[None] | None) -> None:
    if done is not None and not done.done():
        done.set_result(None)
