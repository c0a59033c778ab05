"""`AsyncPublisher` against real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.errors import BackendError
from tests.cluster.ears import ROOMS, hearing, reads, refused, room
from tests.servers import Cluster, Proxy, Server, started


async def test_calls_made_at_once_share_round_trips_and_keep_their_order(
    standalone_server: Server, prefix: str
) -> None:
    with hearing(standalone_server, room("log:9"), prefix) as ear:
        async with AsyncPublisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher:
            before = reads(standalone_server)
            receipts = await asyncio.gather(*(publisher.broadcast("log:9", "n", {"n": n}) for n in range(400)))
            assert reads(standalone_server) - before < 200
        assert [receipt.position.offset for receipt in receipts if receipt.position] == list(range(1, 401))
        assert [ear.hear().payload for _ in range(400)] == [b'{"n":%d}' % n for n in range(400)]


async def test_the_async_publisher_does_all_that_the_other_does(standalone_server: Server, prefix: str) -> None:
    async with AsyncPublisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher:
        first = await publisher.broadcast("log:1", "a", {"n": 1}, idempotency_key="k")
        assert await publisher.broadcast("log:1", "a", {"n": 1}, idempotency_key="k") == first
        assert len(await publisher.broadcast_many([("log:1", "b", None)] * 501)) == 501
        assert [message.event for message in await publisher.history("log:1", limit=2)] == ["b", "b"]
        assert (await publisher.broadcast_all("news")).nodes == 0
        assert (await publisher.send_to_user("u", "mail")).nodes == 0
        assert await publisher.disconnect_user("u") == 0
        assert await publisher.count("log:1") == 0
        await publisher.revoke(session="s" * 20, ttl=60)
    with pytest.raises(BackendError, match="closed"):
        await publisher.count("r")


async def test_an_async_error_comes_in_time_where_nobody_listens() -> None:
    url, timeout = refused()
    began = time.monotonic()
    async with AsyncPublisher(url, timeout=timeout) as publisher:
        with pytest.raises(BackendError, match=r"^The message was not sent: "):
            await publisher.broadcast("r", "e")
        assert time.monotonic() - began < timeout + 0.5
        with pytest.raises(BackendError, match=r"^None of 2 messages was sent\..*: The message was not sent: "):
            await publisher.broadcast_many([("r", "e", None)] * 2)
    with pytest.raises(BackendError, match="closed, so nothing was sent"):
        await publisher.broadcast("r", "e")


async def test_an_async_publisher_that_is_not_let_in_says_that_nothing_was_sent(
    new_server: Callable[..., Server],
) -> None:
    server = new_server(password="right")
    for url, complaint in (
        (server.url.replace("right", "wrong"), "refuses the username or the password"),
        (f"redis://127.0.0.1:{server.port}", "asks for a password"),
        (f"{server.url.rstrip('/')}/99", "no such database"),
    ):
        async with AsyncPublisher(url, timeout=2) as publisher:
            with pytest.raises(BackendError, match=f"^The message was not sent: .*{complaint}"):
                await publisher.broadcast("r", "e")


async def test_an_async_publisher_sends_nothing_to_a_replica(
    new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketspec.cluster.publishers.lives.CHECK_EVERY", 0.0)
    server, primary = new_server(), new_server()
    async with AsyncPublisher(server.url) as publisher:
        assert (await publisher.broadcast("r", "e")).nodes == 0
        server.ask("REPLICAOF", primary.host, primary.port)
        answers = await asyncio.gather(*(publisher.broadcast("r", "e") for _ in range(5)), return_exceptions=True)
        assert ["is a replica now" in str(answer) for answer in answers] == [True] * 5
        server.ask("REPLICAOF", "NO", "ONE")
        assert (await publisher.broadcast("r", "e")).nodes == 0


async def test_event_loops_side_by_side_share_a_publisher(standalone_server: Server, prefix: str) -> None:
    async with AsyncPublisher(standalone_server.url, prefix=prefix) as publisher:
        assert await publisher.count("r") == 0
        assert await asyncio.to_thread(lambda: asyncio.run(publisher.count("r"))) == 0
        assert await publisher.count("r") == 0


@pytest.fixture
def patient_cluster() -> Iterator[Cluster]:
    """A cluster of this test's own, which does not take a frozen primary for dead."""
    with started():
        made = Cluster()
    with made:
        for server in made.servers:
            server.ask("CONFIG", "SET", "cluster-node-timeout", 60_000)
        yield made


async def test_a_frozen_shard_keeps_a_new_publisher_from_no_other_one(patient_cluster: Cluster) -> None:
    keys = Keys("frozen")
    names = [f"plain:{number}" for number in range(40)]
    frozen = patient_cluster.owner_of(keys.channel(room(names[0])))
    well = next(name for name in names if patient_cluster.owner_of(keys.channel(room(name))) is not frozen)
    async with AsyncPublisher(patient_cluster.url, prefix="frozen", timeout=2) as publisher:
        frozen.stop_for()
        try:
            began = time.monotonic()
            assert (await publisher.broadcast(well, "e")).nodes == 0
            assert time.monotonic() - began < 1
            with pytest.raises(BackendError, match=rf"not carried out.*{frozen.port}: no answer within"):
                await publisher.broadcast(names[0], "e")
        finally:
            frozen.cont()


async def test_a_call_takes_no_longer_for_asking_whether_the_server_is_there(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketspec.cluster.publishers.lives.CHECK_EVERY", 0.0)
    async with AsyncPublisher(proxy.url, timeout=1.2) as publisher:
        assert await publisher.count("r") == 0
        proxy.black_hole()
        for call in (publisher.broadcast("r", "e"), publisher.disconnect_user("u"), publisher.revoke(user="u")):
            began = time.monotonic()
            with pytest.raises(BackendError, match=r"1\.2 s|no answer"):
                await call
            assert time.monotonic() - began < 1.5


async def test_with_less_time_than_a_connection_gets_the_error_still_names_the_cause(server: Server) -> None:
    server.stop_for()
    try:
        async with AsyncPublisher(server.url, timeout=1) as publisher:
            with pytest.raises(BackendError, match=rf"127.0.0.1:{server.port}: no answer within .*rediss://"):
                await publisher.broadcast("r", "e")
    finally:
        server.cont()


async def test_a_question_in_an_error_ends_in_its_own_mark(server: Server) -> None:
    async with AsyncPublisher(server.url, timeout=0.5) as publisher:
        await publisher.count("r")
        server.kill()
        with pytest.raises(BackendError, match=r"does it listen there\?$"):
            await publisher.broadcast("r", "e")
