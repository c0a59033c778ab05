"""Presence on a real server: several nodes in one process, and real ones that are killed."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest

from socketspec.cluster.backend import RedisBackend
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.servers.topology import make_topology
from socketspec.cluster.urls import parse_url
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Publication, Topic
from tests.servers import Cluster, Server, started

PREFIX = "presence"
KEYS = Keys(PREFIX)
LEASE = 1.0
ROOM = Topic("/", "room", "lobby")
ROOMS = [Topic("/", "room", f"room{number}") for number in range(3)]

CHILD = """
import asyncio, sys
from tests.cluster.test_presence import ROOMS, enter_all, node

async def main(url, name, ttl):
    async with node(url, name, ttl=float(ttl)) as one:
        await enter_all(one, ROOMS, f"{name}1", f"{name}2")
        print("in", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Freezer:
    """A runner that stands still when told to, for all commands or those of some names."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.asked: list[str] = []
        self.awake = asyncio.Event()
        self.awake.set()
        self.names: frozenset[str] | None = None

    def freeze(self, *names: str) -> None:
        """Stand still from now on; with `names`, from the next command of such a name on."""
        self.names = frozenset(names) or None
        if self.names is None:
            self.awake.clear()

    def wake(self) -> None:
        self.names = None
        self.awake.set()

    async def run(self, command: Command) -> Any:
        return (await self.run_all([command]))[0]

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        names = [command.name for command in commands]
        if self.names and not self.names.isdisjoint(names):
            self.awake.clear()
        await self.awake.wait()
        self.asked += names
        return await self.runner.run_all(commands)


@dataclass
class Node:
    """One node's presence, and what it was told of lost members: when, where and who."""

    presence: RedisPresence
    runner: Freezer
    told: list[tuple[float, Topic, list[str]]] = field(default_factory=list)
    hooks: Callable[[], Awaitable[None]] | None = None
    """What it does about lost members, which the removal waits for."""

    def lost(self, topic: Topic, members: Sequence[Member]) -> Awaitable[None] | None:
        self.told.append((time.monotonic(), topic, sorted(item.connection_id for item in members)))
        return None if self.hooks is None else self.hooks()

    @property
    def lost_by_topic(self) -> dict[Topic, list[str]]:
        assert len({topic for _, topic, _ in self.told}) == len(self.told), "a topic was told twice"
        return {topic: ids for _, topic, ids in self.told}

    async def inside(self, topic: Topic) -> list[str]:
        return [item.connection_id for item in await self.presence.members(topic)]


@asynccontextmanager
async def node(url: str, name: str, *, ttl: float = 600.0, **options: Any) -> AsyncIterator[Node]:
    """A node with a short lease on the server at `url`."""
    servers, defaults = parse_url(url)
    configured = type(defaults)(**({"lease": LEASE, "start_timeout": 5.0} | options))
    topology, tasks = make_topology(servers, configured), Tasks()
    runner = Runner(topology, configured, tasks)
    await topology.start()
    await runner.start()
    freezer = Freezer(runner)
    made = Node(RedisPresence(freezer, KEYS, name, tasks, configured, ttl=ttl), freezer)
    made.presence.attach("/", made.lost)
    await made.presence.start("/")
    try:
        yield made
    finally:
        freezer.wake()
        await made.presence.stop("/", made.lost)
        await runner.stop()
        await tasks.close(1)
        await topology.stop()


@asynccontextmanager
async def nodes(server: Server, count: int) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node(server.url, f"n{number}")) for number in range(count)]


def member(name: str) -> Member:
    return Member(name, None, 1.0)


async def enter_all(one: Node, topics: Iterable[Topic], *names: str) -> None:
    for topic in topics:
        for name in names:
            assert await one.presence.enter(topic, member(name))


@asynccontextmanager
async def child(server: Server, name: str, ttl: float = 600.0) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node process with members ``<name>1`` and ``<name>2`` in each of `ROOMS`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, server.url, name, str(ttl)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"in\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(check: Callable[[], Any], what: str, within: float = 5.0) -> None:
    """Ask `check` until its answer is true."""
    deadline = time.monotonic() + within
    while True:
        answer = check()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)


def keys_of(server: Server) -> list[str]:
    found: list[str] = server.ask("KEYS", f"{PREFIX}:*")
    return sorted(found)


@pytest.fixture
def flushed(standalone_server: Server) -> Iterator[Server]:
    """The session's server: its prefix is empty before and after."""
    assert keys_of(standalone_server) == []
    yield standalone_server
    left = keys_of(standalone_server)
    for key in left:
        standalone_server.ask("UNLINK", key)
    assert left == [], "after all nodes stopped the prefix holds no key"


async def test_members_of_all_nodes_are_seen_on_every_node(flushed: Server) -> None:
    async with nodes(flushed, 3) as three:
        for number, one in enumerate(three):
            assert await one.presence.enter(ROOM, Member(f"c{2 - number}", f"u{number}", float(number)))
        for one in three:
            assert await one.inside(ROOM) == ["c2", "c1", "c0"]
            assert await one.presence.count(ROOM) == 3
        await three[0].presence.leave(ROOM, "c2")
        assert await three[1].inside(ROOM) == ["c1", "c0"]


async def test_a_limit_holds_over_all_nodes_at_once(flushed: Server) -> None:
    async with nodes(flushed, 3) as three:
        entered = await asyncio.gather(
            *(three[number % 3].presence.enter(ROOM, member(str(number)), limit=7) for number in range(40))
        )
        assert sum(entered) == 7
        assert await three[0].presence.count(ROOM) == 7
        who = {str(number) for number, is_in in enumerate(entered) if is_in}
        assert set(await three[1].inside(ROOM)) == who


async def test_counting_loads_no_member(server: Server) -> None:
    async with node(server.url, "n0") as one:
        await enter_all(one, [ROOM], *(str(number) for number in range(50)))
        server.ask("CONFIG", "RESETSTAT")
        assert await one.presence.count(ROOM) == 50
        stats = server.info("commandstats")
        assert "cmdstat_hvals" in stats
        assert not {"cmdstat_hgetall", "cmdstat_hkeys", "cmdstat_hscan", "cmdstat_hmget"} & stats.keys()


async def test_every_key_has_an_end(flushed: Server) -> None:
    async with nodes(flushed, 2) as two:
        for one in two:
            await enter_all(one, [ROOM], f"on-{id(one)}")
        kept = keys_of(flushed)
        assert len(kept) == 6  # one hash of counts, one zset of leases; members and topics of each node
        assert [key for key in kept if not 590_000 < flushed.ask("PTTL", key) <= 600_000] == []


async def test_keys_in_use_are_kept_alive(flushed: Server) -> None:
    async with node(flushed.url, "n0", ttl=1.5) as one:
        await enter_all(one, [ROOM, *ROOMS], "a", "b")
        before = keys_of(flushed)
        began = time.monotonic()
        while time.monotonic() < began + 3.0:  # two lives of a key
            assert keys_of(flushed) == before
            await asyncio.sleep(0.1)
        assert await one.presence.count(ROOM) == 2


async def test_after_a_stop_nothing_of_the_node_is_left_and_nobody_is_told(flushed: Server) -> None:
    async with node(flushed.url, "stays") as stays:
        async with node(flushed.url, "goes") as goes:
            await enter_all(stays, ROOMS, "a")
            await enter_all(goes, ROOMS, "b", "c")
        assert not [key for key in keys_of(flushed) if "goes" in key]
        assert [await stays.presence.count(room) for room in ROOMS] == [1, 1, 1]
        await asyncio.sleep(LEASE * 1.3)
        assert stays.told == []


async def test_the_members_of_a_killed_node_are_gone_everywhere_and_told_once_to_one_survivor(flushed: Server) -> None:
    async with nodes(flushed, 2) as survivors, child(flushed, "dead") as process:
        for number, one in enumerate(survivors):
            await enter_all(one, ROOMS, f"s{number}")
        assert await survivors[0].presence.count(ROOMS[0]) == 4
        process.send_signal(signal.SIGKILL)
        died = time.monotonic()
        await until(lambda: sum(len(one.told) for one in survivors) == 3, "all three rooms are told", LEASE + 1.0)
        assert time.monotonic() - died < LEASE + 1.0
        for room in ROOMS:
            assert await survivors[0].inside(room) == ["s0", "s1"]
            assert await survivors[1].presence.count(room) == 2
        await asyncio.sleep(LEASE)
        told = [one.lost_by_topic for one in survivors if one.told]
        assert told == [{room: ["dead1", "dead2"] for room in ROOMS}]
        assert not [key for key in keys_of(flushed) if "dead" in key]


@pytest.mark.parametrize(("name", "told"), [("lives-7", []), ("dead-7", ["gone"]), ("lives-too-7", ["gone"])])
async def test_nobody_is_told_of_what_is_left_under_a_former_name_of_a_node_that_lives(
    flushed: Server, name: str, told: list[str]
) -> None:
    async with node(flushed.url, "survivor") as survivor, node(flushed.url, "lives") as lives:
        await enter_all(lives, [ROOM], "a")
        flushed.ask("HSET", KEYS.members(ROOM, name), "gone", msgpack.packb([None, 1.0]))
        flushed.ask("HSET", KEYS.nodes(ROOM), name, 1)
        flushed.ask("SADD", KEYS.node_topics("/", name), KEYS.channel(ROOM))
        flushed.ask("ZADD", KEYS.leases("/"), 1, name)
        await until(lambda: not [key for key in keys_of(flushed) if name in key], "nothing is left", 4 * LEASE)
        assert await survivor.inside(ROOM) == ["a"]
        assert await survivor.presence.count(ROOM) == 1
        assert [id for one in (survivor, lives) for _, _, ids in one.told for id in ids] == told


async def test_a_dead_node_is_found_as_soon_as_its_lease_has_ended(flushed: Server) -> None:
    async with node(flushed.url, "survivor") as survivor, node(flushed.url, "frozen") as frozen:
        await enter_all(frozen, [ROOM], "a")
        frozen.runner.freeze()
        ends = flushed.ask("ZSCORE", KEYS.leases("/"), "frozen-0")
        await until(lambda: survivor.told, "the lost member is told", LEASE + 1.0)
        seconds, micros = flushed.ask("TIME")
        late = int(seconds) + int(micros) / 1e6 - float(ends) / 1000
        assert 0 <= late < LEASE / 4 - 0.05


async def test_a_node_with_many_rooms_is_buried_within_the_time(flushed: Server) -> None:
    many = [Topic("/", "room", f"many{number}") for number in range(1500)]
    async with node(flushed.url, "survivor") as survivor, node(flushed.url, "frozen") as frozen:
        await asyncio.gather(*(frozen.presence.enter(topic, member("a")) for topic in many))
        frozen.runner.freeze()
        await until(lambda: len(survivor.told) == len(many), "all rooms are told", LEASE + 5.0)
        assert survivor.lost_by_topic == {topic: ["a"] for topic in many}


async def test_a_frozen_node_that_wakes_has_its_members_back(flushed: Server) -> None:
    async with node(flushed.url, "survivor") as survivor, node(flushed.url, "frozen") as frozen:
        await enter_all(survivor, ROOMS, "a")
        await enter_all(frozen, ROOMS, "b", "c")
        frozen.runner.freeze()
        await until(lambda: len(survivor.told) == 3, "all three rooms are told")
        assert [await survivor.inside(room) for room in ROOMS] == [["a"]] * 3
        frozen.runner.wake()
        for room in ROOMS:

            async def is_back(room: Topic = room) -> bool:
                return await survivor.inside(room) == ["a", "b", "c"] and await survivor.presence.count(room) == 3

            await until(is_back, f"both are back in {room.name}")
        await asyncio.sleep(LEASE * 1.3)
        assert survivor.lost_by_topic == {room: ["b", "c"] for room in ROOMS}
        assert frozen.told == []


async def test_after_flushall_members_are_back_with_the_next_renewal(server: Server) -> None:
    async with nodes(server, 2) as two:
        for number, one in enumerate(two):
            await enter_all(one, ROOMS, f"m{number}")
        server.ask("FLUSHALL")

        async def all_are_back() -> bool:
            return [await two[0].presence.count(room) for room in ROOMS] == [2, 2, 2]

        await until(all_are_back, "all are back", LEASE / 4 + 0.5)
        assert await two[0].inside(ROOMS[2]) == ["m0", "m1"]
        assert [one.told for one in two] == [[], []]
    assert keys_of(server) == []


async def test_a_lost_set_of_leases_leaves_nobody_counted_twice(flushed: Server) -> None:
    async with nodes(flushed, 2) as two:
        for number, one in enumerate(two):
            await enter_all(one, ROOMS, f"m{number}")
        flushed.ask("UNLINK", KEYS.leases("/"))

        def names() -> set[str]:
            return set(flushed.ask("HKEYS", KEYS.nodes(ROOMS[0])))

        async def is_right() -> bool:  # for a moment a member counts under neither name
            return [await two[0].presence.count(room) for room in ROOMS] == [2, 2, 2]

        await until(lambda: not names() & {"n0-0", "n1-0"}, "only new names count")
        await until(is_right, "everybody counts, once")
        assert [one.told for one in two] == [[], []]


async def test_members_lost_in_a_failover_are_put_back_and_strangers_removed(
    new_server: Callable[..., Server],
) -> None:
    server = new_server("--enable-debug-command", "yes")
    async with node(server.url, "n0") as one:
        await enter_all(one, ROOMS, "a", "b")
        server.ask("HDEL", KEYS.members(ROOMS[0], "n0-0"), "a")
        server.ask("HSET", KEYS.members(ROOMS[1], "n0-0"), "ghost", b"\x92\xc0\x01")
        server.ask("DEBUG", "CHANGE-REPL-ID")

        async def is_right() -> bool:
            return [await one.inside(room) for room in ROOMS] == [["a", "b"]] * 3

        await until(is_right, "Redis agrees with the node again")
        assert [await one.presence.count(room) for room in ROOMS] == [2, 2, 2]
        assert server.ask("ZCARD", KEYS.leases("/")) == 1


async def test_when_a_reaper_dies_another_goes_on_and_nobody_is_told_twice(flushed: Server) -> None:
    async with nodes(flushed, 2) as survivors, node(flushed.url, "dead") as dead:
        await enter_all(dead, ROOMS, "x")
        for one in survivors:
            one.runner.freeze("reap")  # both may claim, neither gets further
        dead.runner.freeze()
        await until(lambda: any(not one.runner.awake.is_set() for one in survivors), "somebody has claimed it")
        reaper, other = sorted(survivors, key=lambda one: one.runner.awake.is_set())
        assert other.runner.awake.is_set()
        other.runner.wake()
        await until(lambda: len(other.told) == 3, "the other one goes on", 2 * LEASE + 1.0)
        reaper.runner.wake()
        await asyncio.sleep(LEASE * 1.3)
        assert other.lost_by_topic == {room: ["x"] for room in ROOMS}
        assert reaper.told == []


async def test_a_reaper_that_dies_between_two_rooms_leaves_the_rest_to_another(flushed: Server) -> None:
    async with node(flushed.url, "dead") as dead, node(flushed.url, "survivor") as survivor:
        await enter_all(dead, ROOMS, "x")
        survivor.runner.freeze("claim")
        dead.runner.freeze()
        await until(lambda: not survivor.runner.awake.is_set(), "the survivor is about to claim")
        leases, index = KEYS.leases("/"), KEYS.node_topics("/", "dead-0")
        flushed.ask("ZREM", leases, "dead-0")  # what a reaper leaves that claimed it, removed one room, and died
        flushed.ask("ZADD", leases, 0, "!dead-0")
        flushed.ask("UNLINK", KEYS.members(ROOMS[0], "dead-0"))
        flushed.ask("HDEL", KEYS.nodes(ROOMS[0]), "dead-0")
        flushed.ask("SREM", index, KEYS.channel(ROOMS[0]))
        survivor.runner.wake()
        await until(lambda: len(survivor.told) == 2, "the rest is told")
        assert survivor.lost_by_topic == {room: ["x"] for room in ROOMS[1:]}
        await until(lambda: not flushed.ask("EXISTS", index), "the dead node is done with")
        assert flushed.ask("ZSCORE", leases, "!dead-0") is None


async def test_a_claimed_node_is_left_alone_by_others_until_the_claim_ends(flushed: Server) -> None:
    async with node(flushed.url, "n0") as one:
        leases, index = KEYS.leases("/"), KEYS.node_topics("/", "dead-0")
        seconds, _ = flushed.ask("TIME")
        ends = int(seconds) * 1000 + 2500
        flushed.ask("SADD", index, KEYS.channel(ROOM))
        flushed.ask("HSET", KEYS.members(ROOM, "dead-0"), "x", b"\x92\xc0\x01")
        flushed.ask("ZADD", leases, ends, "!dead-0")
        await until(lambda: one.told, "it is claimed by the next")
        seconds, micros = flushed.ask("TIME")
        assert int(seconds) * 1000 + int(micros) / 1000 >= ends
        await until(lambda: flushed.ask("ZRANGE", leases, 0, -1) == ["n0-0"], "the dead node is forgotten as well")


async def test_when_all_nodes_were_killed_no_key_outlives_its_time(server: Server) -> None:
    async with child(server, "one", ttl=1.5) as one, child(server, "two", ttl=1.5) as two:
        assert len(keys_of(server)) >= 8
        for process in (one, two):
            process.kill()
            await process.wait()
        await until(lambda: keys_of(server) == [], "the prefix is empty", 3.0)


async def test_who_starts_after_all_nodes_were_killed_buries_them(flushed: Server) -> None:
    async with child(flushed, "dead") as process:
        process.kill()
        await process.wait()
    async with node(flushed.url, "next") as successor:
        await until(lambda: len(successor.told) == 3, "the dead node is buried", LEASE + 1.0)
        assert successor.lost_by_topic == {room: ["dead1", "dead2"] for room in ROOMS}
        leases = KEYS.leases("/")
        await until(lambda: flushed.ask("ZRANGE", leases, 0, -1) == ["next-0"], "the dead node is forgotten as well")


async def test_a_full_server_ends_no_lease_and_lets_members_leave(server: Server) -> None:
    async with nodes(server, 2) as two:
        for one in two:
            await enter_all(one, [ROOM], f"{id(one)}", f"{id(one)}-2")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BackendError):
            await two[0].presence.enter(ROOM, member("late"))
        await two[0].presence.leave(ROOM, f"{id(two[0])}")
        assert await two[0].presence.count(ROOM) == 3
        await asyncio.sleep(LEASE * 1.5)
        assert sorted(server.ask("ZRANGE", KEYS.leases("/"), 0, -1)) == ["n0-0", "n1-0"]
        assert [one.told for one in two] == [[], []]
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await two[0].presence.enter(ROOM, member("late"))


async def test_a_user_who_may_not_ask_for_info_can_hold_a_lease(server: Server) -> None:
    server.ask("ACL", "SETUSER", "app", "on", ">pass", "~*", "&*", "+@all", "-info")
    assert "no permissions" in server.ask("ACL", "DRYRUN", "app", "INFO")
    async with node(f"redis://app:pass@{server.host}:{server.port}", "n0") as one:
        assert await one.presence.enter(ROOM, member("a"))
        begun = server.ask("ZSCORE", KEYS.leases("/"), "n0-0")
        await until(lambda: server.ask("ZSCORE", KEYS.leases("/"), "n0-0") > begun, "the lease is renewed")


async def test_leaves_while_the_server_is_frozen_are_made_good(server: Server) -> None:
    async with node(server.url, "n0", command_timeout=0.5) as one:
        await enter_all(one, ROOMS, "a", "b")
        server.stop_for()
        began = time.monotonic()
        await asyncio.gather(*(one.presence.leave(room, "a") for room in ROOMS))
        assert time.monotonic() - began < 1.5
        with pytest.raises(BackendError):
            await one.presence.enter(ROOM, member("c"))
        server.cont()

        async def is_right() -> bool:
            return [await one.inside(room) for room in (ROOM, *ROOMS)] == [[], ["b"], ["b"], ["b"]]

        await until(is_right, "who left is out, and who stayed is in")
        await asyncio.sleep(LEASE)
        assert await is_right()
    assert keys_of(server) == []


@pytest.mark.slow
async def test_in_a_cluster_a_shard_that_lost_its_data_gets_it_back(healthy_cluster: Cluster) -> None:
    many = [Topic("/", "room", f"many{number}") for number in range(60)]
    async with node(healthy_cluster.url, "n0") as one, node(healthy_cluster.url, "n1") as other:
        for topic in many:
            await enter_all(one, [topic], "a")
            await enter_all(other, [topic], "b")
        for primary in healthy_cluster.primaries:
            primary.ask("FLUSHALL")
            one.presence.distrust()  # as a lost link would have it done
            other.presence.distrust()

            async def all_are_back() -> bool:
                counts = await asyncio.gather(*(one.presence.count(topic) for topic in many))
                return set(counts) == {2}

            await until(all_are_back, "everybody counts once")
        assert [one.told, other.told] == [[], []]
    assert [key for primary in healthy_cluster.primaries for key in keys_of(primary)] == []


@asynccontextmanager
async def backend(url: str) -> AsyncIterator[RedisBackend]:
    """A whole node's backend."""

    told: list[str] = []
    app = App(told)
    made = RedisBackend(url, prefix=PREFIX, start_timeout=10.0)
    await made.start("/", app.deliver, app.lost)
    try:
        yield made
    finally:
        await made.stop("/", app.deliver)
    assert told == []


@pytest.mark.parametrize("stopped", [0, 1])
async def test_of_two_apps_on_one_backend_the_one_that_did_not_stop_is_told(flushed: Server, stopped: int) -> None:
    told: list[list[str]] = [[], []]
    shared = RedisBackend(flushed.url, prefix=PREFIX, lease=LEASE)
    apps = [App(told[number]) for number in range(2)]
    for app in apps:
        await shared.start("/", app.deliver, app.lost)
    await shared.stop("/", apps[stopped].deliver)
    await shared.stop("/", apps[stopped].deliver)  # and once more, which is nothing
    assert (await shared.health()).ready
    async with node(flushed.url, "dead") as dead:
        await enter_all(dead, [ROOM], "x")
        dead.runner.freeze()
        await until(lambda: any(told), "the lost member is told", 2 * LEASE + 1.0)
        leases = KEYS.leases("/")
        await until(lambda: len(flushed.ask("ZRANGE", leases, 0, -1)) == 1, "the dead node is forgotten as well")
        await shared.stop("/", apps[1 - stopped].deliver)
    assert told == ([[], ["x"]] if stopped == 0 else [["x"], []])
    assert not (await shared.health()).ready


class App:
    """What a `SocketApp` gives to its backend."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def deliver(self, _topic: Topic, _publications: Sequence[Publication]) -> None:
        pass

    def lost(self, _topic: Topic, members: Sequence[Member]) -> None:
        self.told += [item.connection_id for item in members]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["restarted", "flushed"])
async def test_in_a_cluster_members_are_back_soon_after_a_shard_lost_its_links_and_data(loss: str) -> None:
    many = [Topic("/", "room", f"many{number}") for number in range(150)]
    with started():
        made = Cluster()
    with made as cluster:
        async with backend(cluster.url) as one, backend(cluster.url) as other:
            for number, node in enumerate((one, other)):
                await asyncio.gather(*(node.broker.subscribe(topic) for topic in many))
                await asyncio.gather(*(node.presence.enter(topic, member(f"m{number}")) for topic in many))
            leases = cluster.owner_of(KEYS.leases("/"))
            shard = next(server for server in cluster.primaries if server is not leases)
            hurt = [topic for topic in many if cluster.owner_of(KEYS.nodes(topic)) is shard]
            assert 20 < len(hurt) < 100
            for server in cluster.primaries:
                server.ask("CONFIG", "RESETSTAT")
            lose = shard.restart if loss == "restarted" else lambda: lose_all(shard)
            await asyncio.to_thread(lose)

            async def all_are_back() -> bool:
                try:
                    counts = await asyncio.gather(*(one.presence.count(topic) for topic in many))
                except BackendError:  # the cluster has not agreed yet that the shard is back
                    return False
                return set(counts) == {2}

            await until(all_are_back, "everybody counts", 10.0)
            for topic in hurt[:3]:
                assert [item.connection_id for item in await other.presence.members(topic)] == ["m0", "m1"]
            assert comparisons(shard) - 3 <= 3 * len(hurt), "each node compares a topic once, or has to try again"
            assert [comparisons(server) for server in cluster.primaries if server is not shard] == [0, 0]


@pytest.mark.slow
async def test_in_a_cluster_who_left_last_is_no_ghost_on_a_shard_where_the_node_hears_nothing(
    healthy_cluster: Cluster,
) -> None:
    async with backend(healthy_cluster.url) as one:
        home = healthy_cluster.owner_of(KEYS.leases("/"))
        rooms = (Topic("/", "room", f"far{number}") for number in range(100))
        room = next(room for room in rooms if healthy_cluster.owner_of(KEYS.nodes(room)) is not home)
        shard = healthy_cluster.owner_of(KEYS.nodes(room))
        assert await one.presence.enter(room, member("a"))
        keys = [key for key in keys_of(shard) if "far" in key]
        for key in keys:
            shard.ask("COPY", key, f"{key}:before")
        await one.presence.leave(room, "a")
        for key in keys:  # as a replica has it that takes over and never heard of the leave
            shard.ask("RENAME", f"{key}:before", key)
        assert await one.presence.count(room) == 1
        assert shard.drop_clients("TYPE", "pubsub") > 0

        async def is_empty() -> bool:
            return await one.presence.count(room) == 0

        await until(is_empty, "the ghost is gone", 10.0)


def lose_all(server: Server) -> None:
    server.ask("FLUSHALL")
    assert server.drop_clients("TYPE", "pubsub") > 0


def comparisons(server: Server) -> int:
    """How often a node has asked for the ids of its members in a topic."""
    found = re.search(r"calls=(\d+)", server.info("commandstats").get("cmdstat_hkeys", "calls=0"))
    assert found is not None
    return int(found[1])
