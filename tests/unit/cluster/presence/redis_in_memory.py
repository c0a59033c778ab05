"""A Redis in memory that does what the scripts of presence do, and fails and waits where a test says so."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence.members import RedisPresence
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

KEYS = Keys("t")
ROOM, OTHER = Topic("/", "room", "lobby"), Topic("/", "room", "other")
LEASES = KEYS.leases("/")
Hash = dict[bytes, bytes]
Saved = tuple[dict[bytes, Hash], dict[bytes, set[bytes]], dict[bytes, float]]


def member(name: str) -> Member:
    return Member(name, f"user-{name}", 1.0)


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class FakeRedis:
    """Does what the scripts do, by one clock that tests move; fails and waits where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hashes: dict[bytes, Hash] = {}
        self.sets: dict[bytes, set[bytes]] = {}
        self.leases: dict[bytes, float] = {}
        self.claimed: set[bytes] = set()
        """Nodes that were taken for dead."""
        self.former: set[bytes] = set()
        """Former names of nodes that live: nobody is told of what is left under them."""
        self.ahead = 0.0
        """How far the server's clock is ahead of the nodes'."""
        self.server = b"one"
        self.asked: list[str] = []
        self.refuse: Callable[[Command], bool] = lambda _: False
        """Commands that are not carried out."""
        self.lose_reply: Callable[[Command], bool] = lambda _: False
        """Commands that are carried out, and answered by an error."""
        self.held: dict[str, asyncio.Event] = {}
        """By name: what the answers to such commands wait for."""

    def clock(self) -> float:
        return self.now

    async def run(self, command: Command) -> Any:
        return (await self.run_all([command]))[0]

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        replies = [self._carry_out(command) for command in commands]
        await asyncio.sleep(0)
        for name in {command.name for command in commands} & self.held.keys():
            await self.held[name].wait()
        for reply in replies:
            if isinstance(reply, BackendError):
                raise reply
        return replies

    def _carry_out(self, command: Command) -> Any:
        self.asked.append(command.name)
        if self.refuse(command):
            return BackendError("was not carried out")
        reply = getattr(self, f"_{command.name.lower()}")(command.keys, [encoded(arg) for arg in command.args])
        return BackendError("nobody knows") if self.lose_reply(command) else reply

    def saved(self) -> Saved:
        """What is there, as a replica has it that gets nothing more."""
        return copy.deepcopy((self.hashes, self.sets, self.leases))

    def take_over(self, saved: Saved) -> None:
        """Another server goes on, with what was `saved`."""
        self.hashes, self.sets, self.leases = copy.deepcopy(saved)
        self.server += b"+"

    def hold(self, name: str) -> None:
        """Carry out the commands of this name, but give no answer until `let_go`."""
        self.held[name] = asyncio.Event()

    def let_go(self, name: str) -> None:
        self.held.pop(name).set()

    def flush(self) -> None:
        self.hashes.clear()
        self.sets.clear()
        self.leases.clear()

    def inside(self, topic: Topic) -> set[str]:
        """Everybody in `topic`, under whichever name of whichever node."""
        start = KEYS.members(topic, "")
        return {id.decode() for key, ids in self.hashes.items() if key.startswith(start) for id in ids}

    def counted(self, topic: Topic) -> int:
        return sum(map(int, self.hashes.get(KEYS.nodes(topic), {}).values()))

    @property
    def is_empty(self) -> bool:
        return not (any(self.hashes.values()) or any(self.sets.values()) or self.leases)

    def _count(self, keys: Sequence[bytes], node: bytes) -> None:
        own = len(self.hashes.get(keys[1], ()))
        counts = self.hashes.setdefault(keys[0], {})
        counts[node] = encoded(own)
        if not own:
            del counts[node]

    def _enter(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        node, limit, _, until, *members = args
        if self._is_late(until):
            return -self.milliseconds
        ours = self.hashes.setdefault(keys[1], {})
        others = sum(int(value) for key, value in self.hashes.get(keys[0], {}).items() if key != node)
        all_in = 1
        for id, packed in zip(members[::2], members[1::2], strict=True):
            if id not in ours and 0 <= int(limit) <= others + len(ours):
                all_in = 0
            else:
                ours[id] = packed
        self._count(keys, node)
        return all_in

    def _leave(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        if self._is_late(args[1]):
            return -self.milliseconds
        for id in args[2:]:
            self.hashes.get(keys[1], {}).pop(id, None)
        self._count(keys, args[0])
        return len(self.hashes.get(keys[1], ()))

    def _reap(self, keys: Sequence[bytes], args: list[bytes]) -> list[bytes]:
        self.hashes.get(keys[0], {}).pop(args[0], None)
        return self._hgetall((keys[1],), [])

    def _clear(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        self.hashes.pop(keys[1], None)
        self._count(keys, args[0])
        return 1

    def _hdel(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        for field in args:
            self.hashes.get(keys[0], {}).pop(field, None)
        return 1

    def _renew(self, _keys: Sequence[bytes], args: list[bytes]) -> list[Any]:
        if args[3] != b"1" and args[0] not in self.leases:
            return [0, int(args[0] in self.claimed)]
        self.leases[args[0]] = self.now + int(args[1]) / 1000
        ended = [node.removeprefix(b"!") for node, end in self.leases.items() if end <= self.now]
        return [1, 60_000, self.server, self.milliseconds, *ended]

    def _claim(self, keys: Sequence[bytes], args: list[bytes]) -> list[Any]:
        if self.leases.pop(args[0], 0.0) > self.now:
            raise AssertionError(f"{args[0]!r} is alive")
        self.claimed.add(args[0])
        topics = self.sets.setdefault(keys[1], set())
        topics.difference_update(args[6:])
        return [b"1", int(args[0] in self.former), *list(topics)[: int(args[4])]] if topics else []

    @property
    def milliseconds(self) -> int:
        """What the server's clock shows."""
        return round((self.now + self.ahead) * 1000)

    def _is_late(self, until: bytes) -> bool:
        return self.milliseconds > int(until)

    def _sadd(self, keys: Sequence[bytes], args: list[bytes]) -> None:
        self.sets.setdefault(keys[0], set()).update(args)

    def _unindex(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        if self._is_late(args[0]):
            return -self.milliseconds
        self.sets.get(keys[0], set()).difference_update(args[1:])
        return 1

    def _srandmember(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return list(self.sets.get(keys[0], ()))

    def _unlink(self, keys: Sequence[bytes], _args: list[bytes]) -> None:
        self.sets.pop(keys[0], None)
        self.hashes.pop(keys[0], None)

    def _mark_told(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        self.hashes.setdefault(keys[0], {}).update(zip(args[1::2], args[2::2], strict=True))
        return 1

    def _resign(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        self.sets.pop(args[1], None)
        self.leases.pop(args[0], None)
        return 1

    def _pexpire(self, _keys: Sequence[bytes], _args: list[bytes]) -> int:
        return 1

    def _hkeys(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return list(self.hashes.get(keys[0], {}))

    def _count_members(self, keys: Sequence[bytes], _args: list[bytes]) -> list[int]:
        return [sum(map(int, self.hashes.get(keys[0], {}).values())), 0]

    def _hgetall(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return [part for item in self.hashes.get(keys[0], {}).items() for part in item]


class Told:
    """A `Lost` that takes note."""

    def __init__(self) -> None:
        self.by_topic: dict[Topic, list[str]] = {}

    def __call__(self, topic: Topic, members: Sequence[Member]) -> None:
        self.by_topic.setdefault(topic, []).extend(item.connection_id for item in members)


def named(*names: str) -> Callable[[Command], bool]:
    return lambda command: command.name in names


def everything(_command: Command) -> bool:
    return True


def nothing(_command: Command) -> bool:
    return False


@asynccontextmanager
async def started(
    redis: FakeRedis, node: str = "n", lost: Told | None = None, *, patience: float = 5.0, lease: float = 8.0
) -> AsyncIterator[RedisPresence]:
    tasks = Tasks()
    options = RedisOptions(lease=lease, command_timeout=patience)
    presence = RedisPresence(redis, KEYS, node, tasks, options, clock=redis.clock)
    told = lost or Told()
    presence.attach("/", told)
    await presence.start("/")
    try:
        yield presence
    finally:
        await presence.stop("/", told)
        await tasks.close(1)


async def judges(redis: FakeRedis, presence: RedisPresence, lease: float = 8.0) -> None:
    """Let a whole lease go by in which this node renews its own without a break: it may judge others then."""
    for _ in range(4):
        redis.now += lease / 3
        before = redis.asked.count("renew")
        presence.distrust()
        await until(lambda before=before: redis.asked.count("renew") > before, "it is renewed")  # type: ignore[misc] # mypy cannot infer the default


async def settled() -> None:
    """Let the background work go on until nothing more can come of it."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(check: Callable[[], bool], what: str) -> None:
    """Let the background work go on until `check`."""
    for _ in range(2000):
        if check():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"never came: {what}")


def leave_behind(redis: FakeRedis, *topics: Topic) -> None:
    """What a node leaves that died with one member in each of `topics`."""
    redis.leases[b"dead-0"] = 0.0
    for topic in topics:
        redis.hashes[KEYS.members(topic, "dead-0")] = {b"x": b"\x92\xc0\x01"}
        redis.hashes.setdefault(KEYS.nodes(topic), {})[b"dead-0"] = b"1"
        redis.sets.setdefault(KEYS.node_topics("/", "dead-0"), set()).add(KEYS.channel(topic))
