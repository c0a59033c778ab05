"""History, limits and sessions in real servers: the Lua scripts, and what faults of the server leave behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import hiredis
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from socketspec.cluster.commands.command import Command, Script
from socketspec.cluster.commands.envelope import decode
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.publishing import parse_receipt, publish_any_command, publish_command
from socketspec.cluster.stores.history import RedisHistory
from socketspec.cluster.stores.limits import RedisLimits
from socketspec.cluster.stores.sessions import RedisSessions
from socketspec.protocol.publications import ONCE_SECONDS, History, Position, Publication, Receipt, Topic
from tests.node_frames import payload
from tests.servers import Server, eventually, free_port, redis_binary, started, valkey_binary

ROOM = Topic("/", "room", "orders:1")
KEYS = Keys("t")
KEEP = History(size=5, ttl=60)


class DirectRunner:
    """Sends each command by itself and raises what the server says."""

    def __init__(self, client: Redis) -> None:
        self.client: Any = client  # execute_command has no types

    async def run(self, command: Command) -> Any:
        try:
            return await self.client.execute_command(*command.words())
        except NoScriptError:
            return await self.client.execute_command(*command.as_eval())

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.run(command) for command in commands]


@dataclass
class Stores:
    """The stores on one server, and a way to publish."""

    client: Redis
    runner: DirectRunner
    history: RedisHistory
    limits: RedisLimits
    sessions: RedisSessions
    published: int = 0

    async def publish(
        self, event: str, *, key: str | None = None, history: History | None = KEEP, payload: bytes = b"{}"
    ) -> Receipt:
        self.published += 1
        item = Publication(event=event, payload=payload)
        epoch, tag = f"epoch{self.published}", f"tag{self.published}"
        command = publish_command(KEYS, ROOM, item, history, key, epoch=epoch, tag=tag)
        return parse_receipt(await self.runner.run(command))

    async def publish_any(self, event: str, *, key: str | None = None) -> Receipt:
        self.published += 1
        item = Publication(event=event, payload=b"{}")
        command = publish_any_command(KEYS, ROOM, item, key, epoch="any", tag=f"tag{self.published}")
        return parse_receipt(await self.runner.run(command))

    async def fill(self, count: int, history: History = KEEP) -> list[Position]:
        return [_position(await self.publish(f"event{n}", history=history)) for n in range(1, count + 1)]

    async def read(self, since: Position | None = None, limit: int | None = None) -> list[str]:
        return [item.event for item in await self.history.read(ROOM, since=since, limit=limit)]

    async def ttls(self) -> dict[bytes, int]:
        return {key: await self.client.pttl(key) async for key in self.client.scan_iter()}


def _position(receipt: Receipt) -> Position:
    assert receipt.position is not None
    return receipt.position


@pytest.fixture(scope="module", params=["valkey", "redis", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The embedded Valkey, the oldest Redis there is here, and a cluster: it refuses keys of more than one slot."""
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())] if request.param == "cluster" else []
    with started(), Server(*options, binary=redis_binary() if request.param == "redis" else valkey_binary()) as server:
        if options:
            server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: "cluster_state:ok" in str(server.ask("CLUSTER", "INFO")), "the cluster is up")
        yield server


@asynccontextmanager
async def stores(server: Server) -> AsyncIterator[Stores]:
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory", "0")
        await client.flushall()
        await client.script_flush()
        runner = DirectRunner(client)
        yield Stores(client, runner, RedisHistory(runner, KEYS), RedisLimits(runner, KEYS), RedisSessions(runner, KEYS))


@asynccontextmanager
async def listener(server: Server) -> AsyncIterator[list[Publication]]:
    """What is sent to the room's channel meanwhile; complete when the block ends."""
    heard: list[Publication] = []
    reader, writer = await asyncio.open_connection(server.host, server.port)
    parser = hiredis.Reader()
    channel = KEYS.channel(ROOM)

    async def next_message() -> Any:
        while (message := parser.gets()) is False:
            parser.feed(await reader.read(65536))
        return message

    try:
        async with asyncio.timeout(20):
            writer.write(b"SSUBSCRIBE %s\r\n" % channel)
            assert (await next_message())[0] == b"ssubscribe"
            yield heard
            writer.write(b"SUNSUBSCRIBE %s\r\n" % channel)
            while (message := await next_message())[0] == b"smessage":
                publication = decode(message[2])
                assert publication is not None
                heard.append(publication)
    finally:
        writer.close()
        await writer.wait_closed()


# ---- publishing and reading


async def test_without_history_a_publication_is_sent_and_nothing_is_kept(server: Server) -> None:
    async with stores(server) as on:
        async with listener(server) as heard:
            assert await on.publish("a", history=None) == Receipt(1, None)
        assert await on.publish("b", history=None) == Receipt(0, None)
        assert heard == [Publication(event="a", payload=b"{}")]
        assert await on.ttls() == {}


async def test_with_history_it_is_sent_and_kept_with_one_position(server: Server) -> None:
    async with stores(server) as on:
        async with listener(server) as heard:
            receipts = [await on.publish(f"event{n}") for n in (1, 2)]
        assert receipts == [
            Receipt(1, Position(1, "epoch1", "tag1")),
            Receipt(1, Position(2, "epoch1", "tag2")),
        ]
        assert heard == await on.history.read(ROOM)
        assert [item.position for item in heard] == [receipt.position for receipt in receipts]


async def test_who_is_excluded_is_sent_and_kept(server: Server) -> None:
    async with stores(server) as on:
        item = Publication(event="e", payload='{"a":"ü"}\r\n'.encode(), exclude=("a", "ü"))
        async with listener(server) as heard:
            await on.runner.run(publish_command(KEYS, ROOM, item, KEEP, epoch="e", tag="t"))
        assert heard == await on.history.read(ROOM)
        assert (heard[0].payload, heard[0].exclude) == (item.payload, item.exclude)


@pytest.mark.parametrize("limit", [0, 1, 3, 5, 9, None])
async def test_a_limit_takes_the_newest_and_never_more_than_size(server: Server, limit: int | None) -> None:
    async with stores(server) as on:
        await on.fill(8)
        newest = ["event4", "event5", "event6", "event7", "event8"]
        assert await on.read(limit=limit) == newest[len(newest) - min(5 if limit is None else limit, 5) :]


async def test_since_gives_what_followed_up_to_the_limit(server: Server) -> None:
    async with stores(server) as on:
        positions = await on.fill(8)
        assert await on.read(since=positions[-1]) == []
        assert await on.read(since=positions[5]) == ["event7", "event8"]
        assert await on.read(since=positions[4], limit=2) == ["event6", "event7"]
        assert await on.read(since=positions[4], limit=0) == []
        assert await on.read(since=positions[2]) == ["event4", "event5", "event6", "event7", "event8"]


async def test_from_zero_gives_everything_until_something_was_trimmed(server: Server) -> None:
    async with stores(server) as on:
        positions = await on.fill(5)
        beginning = Position(0, positions[0].epoch)
        assert len(await on.read(since=beginning)) == 5
        await on.publish("one more")
        with pytest.raises(LookupError):
            await on.read(since=beginning)


@pytest.mark.parametrize("index", range(8))
async def test_every_offset_that_can_be_honoured_is_verified_by_its_tag(server: Server, index: int) -> None:
    async with stores(server) as on:
        positions = await on.fill(8)
        with pytest.raises(LookupError):
            await on.read(since=positions[index]._replace(tag="other"))


async def test_what_cannot_be_honoured_is_refused(server: Server) -> None:
    async with stores(server) as on:
        with pytest.raises(LookupError):
            await on.read(since=Position(0, ""))
        positions = await on.fill(8)
        newest = positions[-1]
        for since in [
            positions[0],
            positions[1],
            newest._replace(epoch="other"),
            newest._replace(offset=9),
            newest._replace(offset=-1),
            newest._replace(offset=2**80),
        ]:
            with pytest.raises(LookupError):
                await on.read(since=since)


async def test_concurrent_publications_get_each_an_offset_in_the_order_they_are_sent(server: Server) -> None:
    async with stores(server) as on:
        async with listener(server) as heard:
            await asyncio.gather(*(on.publish(f"e{n}", history=History(size=100)) for n in range(40)))
        assert [item.position.offset for item in heard if item.position] == list(range(1, 41))
        assert heard == await on.history.read(ROOM)


async def test_a_smaller_size_trims_and_a_larger_one_keeps_more(server: Server) -> None:
    async with stores(server) as on:
        await on.fill(8)
        await on.publish("event9", history=History(size=2, ttl=60))
        assert await on.read() == ["event8", "event9"]
        assert await on.client.xlen(KEYS.stream(ROOM)) == 3
        for number in range(10, 15):
            await on.publish(f"event{number}", history=History(size=4, ttl=60))
        assert await on.read() == ["event11", "event12", "event13", "event14"]


async def test_every_key_expires_and_stream_and_meta_do_together(server: Server) -> None:
    async with stores(server) as on:
        await on.publish("a", key="k")
        await on.limits.take("k", rate=1, capacity=3)
        await on.sessions.begin("s", ttl=30)
        await on.sessions.revoke("s", ttl=30)
        ttls = await on.ttls()
        assert len(ttls) == 6
        assert all(0 < ttl <= ONCE_SECONDS * 1000 for ttl in ttls.values())
        expiries = {await on.client.pexpiretime(key(ROOM).decode()) for key in (KEYS.stream, KEYS.meta)}
        assert len(expiries) == 1


async def test_history_ends_ttl_after_the_last_publication(server: Server) -> None:
    async with stores(server) as on:
        short = History(size=5, ttl=0.05)
        positions = await on.fill(2, history=short)
        await _until_gone(on, KEYS.meta(ROOM))
        assert await on.read() == []
        with pytest.raises(LookupError):
            await on.read(since=positions[-1])
        assert (await on.fill(1))[0].epoch != positions[0].epoch


async def test_the_longest_policy_works(server: Server) -> None:
    async with stores(server) as on:
        await on.publish("a", key="k", history=History(size=1_000_000, ttl=365 * 86_400))
        await on.publish_any("b", key="l")
        assert await on.read() == ["a", "b"]
        assert min((await on.ttls()).values()) > 364 * 86_400_000


# ---- idempotency


async def test_a_repeated_idempotency_key_changes_nothing_and_answers_the_same(server: Server) -> None:
    async with stores(server) as on:
        async with listener(server) as heard:
            first = await on.publish("paid", key="order-1")
            await on.publish("other", key="order-2")
            again = await on.publish("paid", key="order-1")
        assert again == first
        assert again.nodes == 1
        assert [item.event for item in heard] == await on.read() == ["paid", "other"]


async def test_an_idempotency_key_outlives_the_history(server: Server) -> None:
    async with stores(server) as on:
        first = await on.publish("paid", key="k")
        await on.client.delete(KEYS.meta(ROOM), KEYS.stream(ROOM))
        assert (await on.publish("paid", key="k")).position == first.position
        assert await on.read() == []


async def test_concurrent_publications_with_one_key_are_kept_once(server: Server) -> None:
    async with stores(server) as on:
        receipts = await asyncio.gather(*(on.publish("paid", key="k") for _ in range(20)))
        assert len({receipt.position for receipt in receipts}) == 1
        assert await on.read() == ["paid"]


# ---- publishing without knowing the declaration


async def test_a_publisher_keeps_a_publication_the_way_the_last_one_was_kept(server: Server) -> None:
    async with stores(server) as on:
        await on.fill(6)
        async with listener(server) as heard:
            receipt = await on.publish_any("event7", key="k")
            again = await on.publish_any("event7", key="k")
        assert receipt == again == Receipt(1, Position(7, "epoch1", "tag7"))
        assert [item.position for item in heard] == [receipt.position]
        assert await on.read() == ["event3", "event4", "event5", "event6", "event7"]
        assert 59_000 < await on.client.pttl(KEYS.stream(ROOM)) <= 60_000


async def test_a_publisher_only_sends_where_nothing_is_kept(server: Server) -> None:
    async with stores(server) as on:
        async with listener(server) as heard:
            assert await on.publish_any("a") == Receipt(1, None)
        assert heard == [Publication(event="a", payload=b"{}")]
        assert await on.ttls() == {}


# ---- faults


async def test_a_script_flush_goes_unnoticed(server: Server) -> None:
    async with stores(server) as on:
        await on.publish("a")
        await on.client.script_flush()
        await on.publish("b")
        await on.client.script_flush()
        assert await on.read() == ["a", "b"]


@pytest.mark.parametrize("lost", ["meta", "stream", "both"])
async def test_where_a_key_was_evicted_nothing_is_pretended_and_a_new_epoch_begins(server: Server, lost: str) -> None:
    async with stores(server) as on:
        positions = await on.fill(3)
        names = {"meta": [KEYS.meta(ROOM)], "stream": [KEYS.stream(ROOM)]}
        await on.client.delete(*names.get(lost, [KEYS.meta(ROOM), KEYS.stream(ROOM)]))
        assert await on.read() == []
        with pytest.raises(LookupError):
            await on.read(since=positions[-1])
        after = await on.publish("new")
        assert _position(after) == Position(1, "epoch4", "tag4")
        assert await on.read() == ["new"]
        with pytest.raises(LookupError):
            await on.read(since=positions[-1])


async def test_a_stream_that_is_ahead_of_meta_is_another_life(server: Server) -> None:
    async with stores(server) as on:
        positions = await on.fill(3)
        await on.client.hset(KEYS.meta(ROOM), "offset", "1")
        assert _position(await on.publish("new")) == Position(1, "epoch4", "tag4")
        assert await on.read() == ["new"]
        with pytest.raises(LookupError):
            await on.read(since=positions[0])


async def test_entries_that_are_missing_in_the_middle_are_never_skipped_silently(server: Server) -> None:
    async with stores(server) as on:
        positions = await on.fill(4)
        await on.client.xdel(KEYS.stream(ROOM), "3-0")
        with pytest.raises(LookupError):
            await on.read(since=positions[0])
        with pytest.raises(LookupError):
            await on.read(since=positions[2])
        assert await on.read(since=positions[3]) == []


async def test_an_offset_that_was_used_twice_is_told_apart(server: Server) -> None:
    """RELIABILITY finding 5: a failover lost the newest entries, and their offsets were given out again."""
    async with stores(server) as on:
        await on.fill(3)
        copies = {key: await on.client.dump(key(ROOM)) for key in (KEYS.meta, KEYS.stream)}
        lost = [_position(await on.publish(event)) for event in ("A4", "A5")]
        for key, copy in copies.items():
            assert copy is not None
            await on.client.restore(key(ROOM), 60_000, copy, replace=True)
        again = [_position(await on.publish(event)) for event in ("B4", "B5", "B6")]
        assert [item[:2] for item in lost] == [item[:2] for item in again[:2]]
        for since in lost:
            with pytest.raises(LookupError, match="another publication"):
                await on.read(since=since)


async def test_a_full_redis_refuses_a_publish_whole(server: Server) -> None:
    async with stores(server) as on:
        await on.fill(2)
        async with listener(server) as heard:
            await on.client.config_set("maxmemory-policy", "noeviction")
            await on.client.config_set("maxmemory", "2mb")
            keep = History(size=10_000, ttl=60)
            accepted = await _publish_until_full(on, ["event1", "event2"], keep)
            number = len(accepted) + 1
            refused = f"event{number}"
            keys = await on.ttls()
            assert KEYS.idempotency(ROOM, f"k{number}") not in keys
            assert all(ttl > 0 for ttl in keys.values())
            kept = await on.history.read(ROOM)
            assert [item.event for item in kept] == accepted
            assert kept[-1].position is not None
            assert kept[-1].position.offset == len(accepted)
            await on.client.config_set("maxmemory", "0")
            again = await on.publish(refused, key=f"k{number}", history=keep)
        assert _position(again).offset == number
        assert [item.event for item in heard] == [*accepted[2:], refused]


async def test_the_first_publish_to_a_full_redis_leaves_no_key(server: Server) -> None:
    async with stores(server) as on:
        await on.client.set("ballast", bytes(100_000))
        await on.client.config_set("maxmemory-policy", "noeviction")
        await on.client.config_set("maxmemory", "1")
        with pytest.raises(OutOfMemoryError):
            await on.publish("a", key="k")
        assert list(await on.ttls()) == [b"ballast"]
        await on.client.config_set("maxmemory", "0")


# ---- limits


async def test_a_shared_bucket_gives_all_nodes_together_its_capacity(server: Server) -> None:
    async with stores(server) as on:
        nodes = [RedisLimits(on.runner, KEYS) for _ in range(3)]
        waits = await asyncio.gather(*(node.take("k", rate=0.001, capacity=5) for node in nodes for _ in range(10)))
        assert waits.count(0.0) == 5
        assert all(wait == pytest.approx(1000, abs=10) for wait in waits if wait)


async def test_a_bucket_refills_by_the_time_of_redis_and_is_gone_when_full(server: Server) -> None:
    async with stores(server) as on:
        take = Script("take").command((KEYS.bucket("k"),), 100.0, 2.0)
        assert [float(await on.runner.run(take)) for _ in range(2)] == [0.0, 0.0]
        wait = float(await on.runner.run(take))
        assert 0 < wait <= 0.01
        assert 0 < await on.client.pttl(KEYS.bucket("k")) <= 22
        await asyncio.sleep(wait + 0.001)
        assert float(await on.runner.run(take)) == 0.0
        await _until_gone(on, KEYS.bucket("k"))


async def test_a_refusal_takes_nothing(server: Server) -> None:
    async with stores(server) as on:
        take = Script("take").command((KEYS.bucket("k"),), 0.01, 1.0)
        assert float(await on.runner.run(take)) == 0.0
        state = await on.client.get(KEYS.bucket("k"))
        for _ in range(5):
            assert 90 < float(await on.runner.run(take)) <= 100
        assert await on.client.get(KEYS.bucket("k")) == state


async def test_a_bucket_from_the_future_refills_from_now_on(server: Server) -> None:
    async with stores(server) as on:
        key = KEYS.bucket("k")
        await on.client.set(key, f"0:{(time.time() + 300) * 1e6:.0f}", px=300_000)
        take = Script("take").command((key,), 20.0, 1.0)
        wait = float(await on.runner.run(take))
        assert wait == pytest.approx(0.05)
        await asyncio.sleep(wait + 0.001)
        assert float(await on.runner.run(take)) == 0.0


@pytest.mark.parametrize(("rate", "capacity"), [(1e-15, 1), (1e15, 1e15), (0.1, 1.5), (1e-15, 1e15)])
async def test_extreme_limits_work(server: Server, rate: float, capacity: float) -> None:
    async with stores(server) as on:
        assert await on.limits.take("k", rate=rate, capacity=capacity) == 0.0
        assert 0 < await on.client.pttl(next(iter(await on.ttls()), b"")) <= 365 * 86_400_000 or rate == 1e15


# ---- sessions


async def test_a_session_began_once_by_the_time_of_redis(server: Server) -> None:
    async with stores(server) as on:
        seconds, micros = await on.client.time()
        began = await on.sessions.begin("s", ttl=60)
        assert 0 <= began - (seconds + micros / 1e6) < 5
        assert await on.sessions.begin("s", ttl=900) == began
        assert await on.client.pttl(KEYS.session("s")) <= 60_000


async def test_a_session_is_forgotten_after_its_ttl(server: Server) -> None:
    async with stores(server) as on:
        began = await on.sessions.begin("s", ttl=0.03)
        await _until_gone(on, KEYS.session("s"))
        assert await on.sessions.begin("s", ttl=0.03) > began


async def test_concurrent_beginnings_agree(server: Server) -> None:
    async with stores(server) as on:
        assert len(set(await asyncio.gather(*(on.sessions.begin("s", ttl=60) for _ in range(20))))) == 1


async def test_a_revocation_is_seen_and_ends(server: Server) -> None:
    async with stores(server) as on:
        assert not await on.sessions.is_revoked([])
        await on.sessions.revoke("user:ada", ttl=0.05)
        assert await on.sessions.is_revoked(["s", "user:ada"])
        assert not await on.sessions.is_revoked(["s", "user:*"])
        await _until_gone(on, KEYS.revoked("user:ada"))
        assert not await on.sessions.is_revoked(["s", "user:ada"])


async def test_a_revocation_grows_but_never_shrinks(server: Server) -> None:
    async with stores(server) as on:
        for ttl, least in ((60, 59_000), (600, 599_000), (1, 599_000), (float("inf"), 3e12)):
            await on.sessions.revoke("s", ttl=ttl)
            assert await on.client.pttl(KEYS.revoked("s")) > least


async def _publish_until_full(on: Stores, accepted: list[str], keep: History) -> list[str]:
    for number in range(len(accepted) + 1, 1000):
        try:
            await on.publish(f"event{number}", key=f"k{number}", history=keep, payload=payload(20_000))
        except OutOfMemoryError:
            return accepted
        accepted.append(f"event{number}")
    raise AssertionError("1000 publications of 20 kB fitted into 2 MB")


async def _until_gone(on: Stores, key: bytes) -> None:
    deadline = time.monotonic() + 5
    while await on.client.exists(key):
        assert time.monotonic() < deadline, f"{key!r} is still there"
        await asyncio.sleep(0)
