"""The users that docs/deploy/redis.md tells to make: enough for all that we do, and for nothing else."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import NoPermissionError

from socketspec.cli.main import main
from socketspec.cluster.backend import RedisBackend
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.declaration.rooms import Room
from socketspec.errors import BackendError
from socketspec.protocol.publications import History, Member, Position, Publication, Topic
from tests.servers import Cluster, Sentinels, Server, redis_binary, started

PAGE = Path(__file__).parents[2] / "docs/deploy/redis.md"
USER = "socketspec"
KEYS = Keys()
NEIGHBOUR = "socketspec:live"
"""A prefix that begins as ours does."""
LOGIN = f"{USER}:password@"
ROOM, LOG = Topic("/", "room", "lobby"), Topic("/", "room", "log")
POLICY = History(size=5, ttl=60)
LEASE = 1.0
Owner = Callable[[bytes], Callable[..., Any]]
"""Who sends a command to the server that owns a key."""


def recipe(heading: str) -> list[list[str]]:
    """The commands below `heading` on the page, in the words that a shell hands to redis-cli."""
    section = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8").partition(f"### {heading}\n")[2], flags=re.M)[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.M | re.S)
    found = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert found, f"no command below {heading!r} on the page"
    assert all(words[0] == "redis-cli" for words in found)
    return [words[words.index("ACL") :] for words in found]


ON_EVERY_SERVER = recipe("On every server")
(SENTINEL_ITSELF,) = recipe("With Sentinel, as well")
IN_A_CLUSTER = recipe("In a cluster, as well")


def permit(servers: Sequence[Server], *commands: Sequence[str]) -> None:
    """Make the user on `servers`, and forget what was refused there before."""
    for server in servers:
        for command in commands:
            server.ask(*command)
        server.ask("ACL", "LOG", "RESET")


def refused(servers: Sequence[Server]) -> list[object]:
    """What was refused since `permit`."""
    return [entry for server in servers for entry in server.ask("ACL", "LOG")]


def permitted(*commands: Sequence[str]) -> set[str]:
    return {word[1:] for command in commands for word in command if word.startswith("+")}


def used(server: Server) -> set[str]:
    return {name.removeprefix("cmdstat_") for name in server.info("commandstats")}


@pytest.fixture
def own_sentinels(healthy_sentinels: Sentinels) -> Iterator[Sentinels]:
    """Sentinels that know the user, as their servers do."""
    permit(healthy_sentinels.servers, *ON_EVERY_SERVER)
    permit(healthy_sentinels.sentinels, SENTINEL_ITSELF)
    yield healthy_sentinels
    for server in (*healthy_sentinels.servers, *healthy_sentinels.sentinels):
        server.ask("ACL", "DELUSER", USER)


@pytest.fixture
def own_cluster(healthy_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that knows the user."""
    permit(healthy_cluster.servers, *ON_EVERY_SERVER, *IN_A_CLUSTER)
    yield healthy_cluster
    for server in healthy_cluster.servers:
        server.ask("ACL", "DELUSER", USER)


def leave_a_dead_node(owner: Owner, db: int) -> None:
    """What a killed node leaves, for whoever buries it."""
    channel = Keys(db=db).channel(ROOM)
    owner(channel)("HSET", KEYS.members(ROOM, "dead-0"), "x", b"\x92\xc0\x01")
    owner(channel)("HSET", KEYS.nodes(ROOM), "dead-0", 1)
    owner(KEYS.leases("/"))("SADD", KEYS.node_topics("/", "dead-0"), channel)
    owner(KEYS.leases("/"))("ZADD", KEYS.leases("/"), 1, "dead-0")


async def all_that_a_node_does(url: str, owner: Owner, db: int = 0) -> None:
    """Use every store of a backend, each in every way."""
    heard: list[str] = []
    lost: list[str] = []

    def deliver(_topic: Topic, publications: Sequence[Publication]) -> None:
        heard.extend(item.event for item in publications)

    backend = RedisBackend(url, lease=LEASE, linger=0.0, start_timeout=5.0, client_name="a-node")
    await backend.start("/", deliver, lambda _, members: lost.extend(item.connection_id for item in members))
    try:
        for topic in (ROOM, LOG, Topic("/", "user", "ada")):
            await backend.broker.subscribe(topic)
        await messages(backend)
        await stores(backend)
        await until(lambda: {"plain", "kept", "once"} <= set(heard), "all is heard")
        leave_a_dead_node(owner, db)
        await until(lambda: lost == ["x"], "the dead node is buried")
        assert (await backend.health()).ready
        await backend.broker.unsubscribe(LOG)
        await asyncio.sleep(0.1)
    finally:
        await backend.stop("/", deliver)


async def messages(backend: RedisBackend) -> None:
    assert (await backend.broker.publish(ROOM, Publication("plain", b"{}"))).nodes == 1
    first = await backend.broker.publish(LOG, Publication("kept", b"{}"), history=POLICY)
    assert isinstance(first.position, Position)
    once, again = [
        await backend.broker.publish(LOG, Publication("once", b"{}"), history=POLICY, idempotency_key="k")
        for _ in range(2)
    ]
    assert once.position == again.position != first.position
    assert [item.event for item in await backend.history.read(LOG)] == ["kept", "once"]
    assert [item.event for item in await backend.history.read(LOG, since=first.position)] == ["once"]


async def stores(backend: RedisBackend) -> None:
    for topic in (ROOM, Topic("/", "user", "ada")):
        assert await backend.presence.enter(topic, Member("c1", "ada", 1.0), limit=1)
        assert not await backend.presence.enter(topic, Member("c2", "bob", 2.0), limit=1)
        assert [item.connection_id for item in await backend.presence.members(topic)] == ["c1"]
        assert await backend.presence.count(topic) == 1
    backend.presence.distrust()
    await asyncio.sleep(LEASE / 2)
    await backend.presence.leave(ROOM, "c1")
    assert [await backend.limits.take("ada", rate=0.1, capacity=1) > 0 for _ in range(2)] == [False, True]
    assert await backend.sessions.begin("s", ttl=60) == await backend.sessions.begin("s", ttl=60)
    await backend.sessions.revoke("mallory", ttl=60)
    assert await backend.sessions.is_revoked(["ada", "mallory"])


async def all_that_a_publisher_does(url: str) -> None:
    rooms: list[Room | str] = [Room("log", history=POLICY), "{any}"]
    async with AsyncPublisher(url, rooms=rooms) as publisher:
        await publisher.broadcast("log", "kept", {}, idempotency_key="async")
        await publisher.broadcast("lobby", "plain", {})
        assert await publisher.count("lobby") == 0
    await asyncio.to_thread(all_without_a_loop, url, rooms)


def all_without_a_loop(url: str, rooms: Sequence[Room | str]) -> None:
    with Publisher(url, rooms=rooms) as publisher:
        publisher.broadcast("log", "kept", {}, idempotency_key="sync")
        publisher.broadcast_many([("lobby", "plain", {}), ("log", "kept", {})])
        publisher.broadcast_all("plain", {})
        publisher.send_to_user("ada", "plain", {})
        publisher.disconnect_user("ada")
        publisher.revoke(user="mallory")
        assert publisher.history("log")
        assert publisher.count("lobby") == 0
    assert main(["publish", "lobby", "plain", "{}", "--backend", url]) == 0


async def until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 8
    while not check():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def forget_all(servers: Sequence[Server]) -> None:
    """The user's keys are gone, and its scripts, so that they are sent with their text."""
    for server in servers:
        server.ask("SCRIPT", "FLUSH")
        for key in server.ask("KEYS", "socketspec:*"):
            server.ask("UNLINK", key)


@pytest.fixture(params=["valkey", "redis 7"])
def own_server(request: pytest.FixtureRequest, new_server: Callable[..., Server]) -> Server:
    """A server of this test's own that knows the user."""
    with started():
        binary = redis_binary() if request.param == "redis 7" else None
    server = new_server(binary=binary)
    permit([server], *ON_EVERY_SERVER)
    server.ask("CONFIG", "RESETSTAT")
    return server


@pytest.mark.parametrize("db", [0, 1])
async def test_the_user_may_do_all_that_nodes_and_publishers_do_and_needs_every_permission(
    own_server: Server, db: int
) -> None:
    url = f"redis://{LOGIN}{own_server.host}:{own_server.port}/{db}"
    with Redis(host=own_server.host, port=own_server.port, db=db) as database:
        await all_that_a_node_does(url, lambda _: database.execute_command, db)
    await all_that_a_publisher_does(url)
    assert refused([own_server]) == []
    assert permitted(*ON_EVERY_SERVER) - used(own_server) == (set() if db else {"select"})


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "another:key"),
        ("SET", "socketspecial", "1"),
        ("SPUBLISH", "another:channel", "x"),
        ("SSUBSCRIBE", "another:channel"),
        ("EVAL", "return redis.call('GET', 'another:key')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("PUBLISH", "socketspec:channel", "x"),
        ("PSUBSCRIBE", "*"),
        ("GET", f"{NEIGHBOUR}:{{session:1}}"),
        ("SPUBLISH", f"{NEIGHBOUR}:{{room:%2F:lobby}}:channel", "x"),
        ("SSUBSCRIBE", f"{NEIGHBOUR}:{{control:%2F:}}:channel"),
        ("EVAL", f"return redis.call('GET', '{NEIGHBOUR}:{{session:1}}')", "0"),
        ("EVAL", f"return redis.call('SPUBLISH', '{NEIGHBOUR}:{{room:%2F:lobby}}:channel', 'x')", "0"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("ROLE",),
        ("CLUSTER", "NODES"),
    ],
    ids=" ".join,
)
def test_the_user_may_do_nothing_else(standalone_server: Server, words: Sequence[str]) -> None:
    permit([standalone_server], *ON_EVERY_SERVER)
    try:
        redis = Redis(host=standalone_server.host, port=standalone_server.port, username=USER, password="password")
        send: Callable[..., Any] = redis.execute_command
        with redis, pytest.raises(Exception, match=r"(?i)no permissions|can't run this|can't access") as caught:
            send(*words)
        assert isinstance(caught.value, NoPermissionError) or words[0] == "EVAL"
    finally:
        standalone_server.ask("ACL", "DELUSER", USER)


@pytest.mark.parametrize("prefix", ["another", NEIGHBOUR, "socketspecial", "socketspec:"])
async def test_another_prefix_is_refused_to_the_user_at_once_and_says_why(own_server: Server, prefix: str) -> None:
    url = f"redis://{LOGIN}{own_server.host}:{own_server.port}"
    backend = RedisBackend(url, prefix=prefix, command_timeout=2.0)
    with pytest.raises(BackendError, match=r"(?i)permission"):
        await backend.start("/", lambda *_: None, lambda *_: None)
    with Publisher(url, prefix=prefix) as publisher, pytest.raises(BackendError, match="ACL SETUSER"):
        publisher.broadcast("lobby", "plain", {})


async def test_the_user_is_enough_with_sentinel(own_sentinels: Sentinels) -> None:
    login = f"?sentinel_username={USER}&sentinel_password=password"
    url = own_sentinels.url.replace("://", f"://{LOGIN}") + login
    primary = own_sentinels.primary
    for server in own_sentinels.sentinels:  # to prove who it is that asks
        server.ask("ACL", "SETUSER", "default", "-sentinel|master", "-sentinel|get-master-addr-by-name")
    try:
        await all_that_a_node_does(url, lambda _: primary.ask)
        await all_that_a_publisher_does(url)
        assert refused([*own_sentinels.servers, *own_sentinels.sentinels]) == []
    finally:
        for server in own_sentinels.sentinels:
            server.ask("ACL", "SETUSER", "default", "+@all")
        forget_all([primary])


async def test_the_user_is_enough_in_a_cluster_also_while_slots_move(own_cluster: Cluster) -> None:
    url = own_cluster.url.replace("://", f"://{LOGIN}")
    try:
        await all_that_a_node_does(url, lambda key: own_cluster.owner_of(key).ask)
        await all_that_a_publisher_does(url)
        with migrating(own_cluster, KEYS.nodes(ROOM)):
            with Publisher(url) as publisher:
                assert await asyncio.to_thread(publisher.count, ROOM.name) == 0
            async with AsyncPublisher(url) as other:
                assert await other.count(ROOM.name) == 0
        assert refused(own_cluster.servers) == []
    finally:
        forget_all(own_cluster.primaries)


@contextmanager
def migrating(cluster: Cluster, key: bytes) -> Iterator[None]:
    """The slot of `key` is on its way: for keys that its owner lacks, another is to be asked."""
    source = cluster.owner_of(key)
    target = next(server for server in cluster.primaries if server is not source)
    slot = key_slot(key)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))
    try:
        yield
        assert "cmdstat_asking" in target.info("commandstats")
    finally:
        for server in (source, target):
            server.ask("CLUSTER", "SETSLOT", slot, "STABLE")


@pytest.mark.parametrize("binary", [None, redis_binary()], ids=["valkey", "redis"])
@pytest.mark.parametrize("rights", ["resetchannels", "allchannels -spublish"])
def test_what_may_not_be_sent_is_not_kept_either(
    new_server: Callable[..., Server], binary: str | None, rights: str
) -> None:
    server = new_server(binary=binary)
    server.ask("ACL", "SETUSER", "mute", "reset", "on", ">password", "~*", "+@all", *rights.split())
    url = f"redis://mute:password@{server.host}:{server.port}"
    with Publisher(url, rooms=[Room("log", history=POLICY), Room("lobby")]) as publisher:
        for name, key in (("log", None), ("log", "task"), ("lobby", "task"), ("any", "task")):
            for _ in range(2):
                with pytest.raises(BackendError, match=r"Redis refused the message: .*ACL SETUSER") as caught:
                    publisher.broadcast(name, "e", idempotency_key=key)
                assert ("'&socketspec:{*'" in str(caught.value)) == (rights == "resetchannels")
        with pytest.raises(BackendError, match=r"^The revocation is recorded.* refused the order to close.*SETUSER"):
            publisher.revoke(user="eve", ttl=60)
        assert publisher.history("log") == []
    assert [key for key in server.ask("KEYS", "socketspec:*") if "revoked" not in key] == []


@pytest.mark.parametrize("binary", [None, redis_binary()], ids=["valkey", "redis"])
@pytest.mark.parametrize("name", ["SPUBLISH", "XADD"])
def test_what_a_server_that_lacks_a_command_cannot_send_is_not_kept_either(
    new_server: Callable[..., Server], binary: str | None, name: str
) -> None:
    server = new_server("--rename-command", name, "", binary=binary)
    with Publisher(server.url, rooms=[Room("log", history=POLICY)]) as publisher:
        for _ in range(2):
            with pytest.raises(BackendError, match=rf"refused the message: it does not know {name}, .*rename-command"):
                publisher.broadcast("log", "e", idempotency_key="task")
    assert server.ask("KEYS", "*") == []
