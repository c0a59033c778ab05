"""The topologies on real servers: what they find, how they follow changes, and what they say when they cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis import exceptions as replied
from redis.asyncio.connection import Connection

from socketspec.cluster.commands.command import Command, Script
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.options import Address
from socketspec.cluster.servers.shard import NotSentError, RefusedError
from socketspec.cluster.servers.topology import Topology, make_topology
from socketspec.cluster.urls import parse_url
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError, ConfigurationError
from tests.played_sentinels import hello, played_sentinels
from tests.servers import Certificates, Cluster, Proxy, Sentinels, Server, free_port
from tests.watching import open_sockets, until

HOST = "127.0.0.1"


def topology_of(url: str, **options: Any) -> Topology:
    servers, configured = parse_url(url)
    return make_topology(servers, replace(configured, **({"start_timeout": 0} | options)))


@asynccontextmanager
async def started_topology(url: str, **options: Any) -> AsyncIterator[Topology]:
    topology = topology_of(url, **options)
    try:
        await topology.start()
        yield topology
    finally:
        await topology.stop()


@asynccontextmanager
async def started_runner(topology: Topology, url: str, **options: Any) -> AsyncIterator[Runner]:
    tasks = Tasks()
    runner = Runner(topology, replace(parse_url(url)[1], **options), tasks)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.stop()
        await tasks.close(1)


async def refusal(url: str, **options: Any) -> str:
    """Why a start that must fail at once says that it does."""
    with pytest.raises(RefusedError) as refused:
        async with started_topology(url, **({"start_timeout": 10} | options)):
            pass
    return str(refused.value)


async def failure(url: str, **options: Any) -> str:
    """Why one try fails, where a later one may not."""
    with pytest.raises(BackendError) as failed:
        async with started_topology(url, **options):
            pass
    assert not isinstance(failed.value, RefusedError)
    return str(failed.value)


class PlayedServer(asyncio.Protocol):
    """Gives these answers to HELLO, and OK to what a client says when it connects."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = answers
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._answers) if b"HELLO" in data else b"+OK\r\n" * data.count(b"CLIENT\r\n"))


@asynccontextmanager
async def played(*answers: bytes) -> AsyncIterator[str]:
    """A server that gives these answers to HELLO; its URL."""
    server = await asyncio.get_running_loop().create_server(lambda: PlayedServer(answers), HOST, 0)
    try:
        yield f"redis://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


# One server


async def test_one_server_answers_in_order_in_bytes_and_says_what_it_refuses(standalone_server: Server) -> None:
    async with started_topology(standalone_server.url) as topology:
        replies = await topology.execute(
            [["SET", b"topology:k", "1"], ["GET", b"topology:k"], ["HGETALL", b"topology:k"], ["DEL", b"topology:k"]]
        )
        assert replies[:2] == [b"OK", b"1"]
        assert isinstance(replies[2], replied.ResponseError)
        assert replies[3] == 1
        address = Address(HOST, standalone_server.port)
        assert topology.addresses() == (address,)
        assert topology.address_for(b"anything") == address
        assert topology.tag_for(address)
    assert topology.addresses() == ()


async def test_a_database_is_selected(standalone_server: Server) -> None:
    async with started_topology(f"{standalone_server.url}/3") as topology:
        await topology.execute([["SET", b"topology:db", "1"]])
    async with started_topology(standalone_server.url) as topology:
        assert await topology.execute([["EXISTS", b"topology:db"]]) == [0]


async def test_calls_at_once_do_not_mix_their_replies(standalone_server: Server) -> None:
    async with started_topology(standalone_server.url) as topology:
        calls = (topology.execute([["ECHO", f"{call}-{i}"] for i in range(100)]) for call in range(10))
        for call, replies in enumerate(await asyncio.gather(*calls)):
            assert replies == [f"{call}-{i}".encode() for i in range(100)]


async def test_a_call_that_was_cancelled_leaves_no_reply_behind_for_the_next(standalone_server: Server) -> None:
    async with started_topology(standalone_server.url) as topology:
        cancelled = asyncio.create_task(topology.execute([["BLPOP", b"topology:nothing", "0.3"]]))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert await topology.execute([["ECHO", "mine"]]) == [b"mine"]


async def test_a_call_that_is_cancelled_at_any_moment_leaves_no_connection_open(standalone_server: Server) -> None:
    name = "name=cancelled-at-any-moment"
    async with started_topology(standalone_server.url, client_name="cancelled-at-any-moment") as topology:
        for turns in range(12):
            await topology.execute([("PING",)])  # so that there is a connection to be taken up
            call = asyncio.create_task(topology.execute([("PING",)]))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    await until(lambda: name not in standalone_server.ask("CLIENT", "LIST"))


async def test_a_server_that_is_away_is_an_error_that_says_so() -> None:
    port = free_port()
    assert f"Cannot connect to {HOST}:{port}: connection refused. Is the server running" in await failure(
        f"redis://:secret@{HOST}:{port}"
    )
    assert "secret" not in await failure(f"redis://:secret@{HOST}:{port}")


async def test_an_unknown_host_is_an_error_that_says_so() -> None:
    assert "host name cannot be resolved" in await failure("redis://no-such-host.invalid")


async def test_a_start_waits_for_a_server_that_comes_later(new_server: Callable[..., Server]) -> None:
    server = new_server()
    server.kill()
    starting = asyncio.create_task(_ping(server.url))
    await asyncio.sleep(0.3)
    assert not starting.done()
    await asyncio.to_thread(server.restart)
    assert await starting == [b"PONG"]


async def _ping(url: str) -> list[Any]:
    async with started_topology(url, start_timeout=20) as topology:
        return await topology.execute([["PING"]])


async def test_a_start_gives_up_in_time() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await failure(f"redis://{HOST}:{free_port()}", start_timeout=0.5)
    assert 0.2 < loop.time() - began < 2


async def test_a_wrong_a_missing_and_a_needless_password_are_told_apart(
    new_server: Callable[..., Server], standalone_server: Server
) -> None:
    port = new_server(password="right").port
    async with started_topology(f"redis://:right@{HOST}:{port}") as topology:
        assert await topology.execute([["PING"]]) == [b"PONG"]
        assert topology.link.password == "right"
        assert "right" not in repr(topology) + repr(topology.link)
    async with started_topology(f"redis://:wrong@{HOST}:{port}", password="right"):
        pass
    wrong = await refusal(f"redis://:wr0ng@{HOST}:{port}")
    assert "refuses the username or the password" in wrong
    assert "wr0ng" not in wrong
    assert "asks for a password" in await refusal(f"redis://{HOST}:{port}")
    assert "has no password, but was given one" in await refusal(f"redis://:needless@{HOST}:{standalone_server.port}")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (hello(version="6.2.14"), "runs Redis 6.2.14: SocketSpec needs Redis 7 or Valkey 8"),
        (b"-ERR unknown command `HELLO`, with args beginning with: \r\n", "runs Redis before 6: SocketSpec needs"),
        (b"-NOPERM this user has no permissions to run the 'hello' command\r\n", "does not let the user"),
        (hello(mode="cluster"), "runs in cluster mode: use redis+cluster://"),
        (hello(mode="sentinel"), "is a Sentinel: use redis+sentinel://"),
    ],
)
async def test_a_server_that_cannot_be_used_is_refused_at_once(answer: bytes, said: str) -> None:
    async with played(answer) as url:
        assert said in await refusal(url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is still loading its data"),
        (hello(role="replica"), "is a replica now"),
        (b"", "no answer within 0.3 s"),
    ],
)
async def test_a_server_that_is_not_ready_yet_is_worth_another_try(answer: bytes, said: str) -> None:
    async with played(answer) as url:
        assert said in await failure(url, connect_timeout=0.3)


async def test_a_server_that_closes_at_once_is_an_error_with_a_hint() -> None:
    class Closes(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    server = await asyncio.get_running_loop().create_server(Closes, HOST, 0)
    said = await failure(f"redis://{HOST}:{server.sockets[0].getsockname()[1]}")
    assert "closed the connection. If it speaks TLS, use rediss://" in said
    server.close()


async def test_a_server_that_has_answered_before_gets_no_hint_about_tls(server: Server) -> None:
    async with started_topology(server.url, connect_timeout=0.3) as topology:
        server.stop_for()
        with pytest.raises(BackendError, match=r"no answer within 0\.3 s\.$"):
            await topology.refresh()
        server.cont()


async def test_a_database_that_is_not_there_is_refused_at_once(standalone_server: Server) -> None:
    assert "has no such database" in await refusal(f"{standalone_server.url}/99")


# TLS


async def test_tls_with_an_authority_that_we_trust_works(tls_server: Server, certificates: Certificates) -> None:
    url = f"rediss://{HOST}:{tls_server.port}"
    async with started_topology(url, ca_certs=str(certificates.ca)) as topology:
        assert await topology.execute([["PING"]]) == [b"PONG"]
        assert topology.link.ssl is not None


async def test_tls_connections_are_gone_as_soon_as_the_topology_has_stopped(
    tls_server: Server, certificates: Certificates
) -> None:
    before = open_sockets()
    async with started_topology(tls_server.url, ca_certs=str(certificates.ca)) as topology:
        await asyncio.gather(*(topology.execute([("PING",)]) for _ in range(10)))
        assert len(open_sockets() - before) >= 10
        tls_server.stop_for(0.5)
    for _ in range(3):  # the event loop closes what was aborted in its next turns, without a word from the server
        await asyncio.sleep(0)
    assert open_sockets() <= before


async def test_tls_that_cannot_work_is_an_error_that_says_why(
    tls_server: Server, standalone_server: Server, certificates: Certificates
) -> None:
    assert "certificate that is not trusted" in await refusal(f"rediss://{HOST}:{tls_server.port}")
    plain = await failure(f"rediss://{HOST}:{standalone_server.port}", connect_timeout=1)
    assert "If it does not speak TLS, use redis://" in plain
    assert "If it speaks TLS, use rediss://" in await failure(f"redis://{HOST}:{tls_server.port}", connect_timeout=1)
    with pytest.raises(ConfigurationError, match="ca_certs"):
        topology_of("rediss://h", ca_certs=str(certificates.ca) + ".missing")


# Faults


async def test_a_server_that_was_restarted_is_used_again_without_a_doubt_about_any_command(server: Server) -> None:
    async with started_topology(server.url) as topology:
        assert await topology.execute([["PING"]]) == [b"PONG"]
        server.kill()
        async with asyncio.timeout(5):
            while not isinstance((await topology.execute([["PING"]]))[0], NotSentError):
                pass  # the end of the connection is on its way to us
        await asyncio.to_thread(server.restart)
        assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_a_connection_that_was_lost_a_moment_ago_is_an_error_of_the_connection(
    standalone_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost_meanwhile(connection: Connection) -> bool:
        writer = connection._writer  # noqa: SLF001 - to lose it as the network does, at this very moment
        assert writer is not None
        writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the transport has heard of it
        return False

    async with started_topology(standalone_server.url) as topology:
        assert await topology.execute([["PING"]]) == [b"PONG"]
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "can_read", lost_meanwhile)
            (reply,) = await topology.execute([["PING"]])
        assert isinstance(reply, replied.ConnectionError)
        assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_a_connection_that_breaks_costs_only_the_replies_that_did_not_come(server: Server, proxy: Proxy) -> None:
    async with started_topology(f"redis://{HOST}:{proxy.port}") as topology:
        assert await topology.execute([["PING"]]) == [b"PONG"]
        proxy.cut_after(len(b"$1\r\n1\r\n") + 3)
        replies = await topology.execute([["ECHO", "1"], ["ECHO", "2"], ["ECHO", "3"]])
        assert replies[0] == b"1"
        for lost in replies[1:]:
            assert isinstance(lost, replied.ConnectionError)
            assert not isinstance(lost, NotSentError)
        assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_a_frozen_server_costs_the_time_of_a_command_and_no_reply_comes_late(server: Server) -> None:
    loop = asyncio.get_running_loop()
    async with started_topology(server.url, command_timeout=0.3) as topology:
        server.stop_for()
        began = loop.time()
        (frozen,) = await topology.execute([["ECHO", "old"]])
        assert isinstance(frozen, replied.TimeoutError)
        assert 0.25 < loop.time() - began < 1.5
        server.cont()
        assert await topology.execute([["ECHO", "new"]]) == [b"new"]


async def test_callers_at_the_same_time_share_one_search(standalone_server: Server) -> None:
    async with started_topology(standalone_server.url) as topology:
        before = int(standalone_server.info("stats")["total_connections_received"])
        await asyncio.gather(*(topology.refresh() for _ in range(20)))
        assert int(standalone_server.info("stats")["total_connections_received"]) - before <= 4  # ours asks, too


async def test_a_forgotten_script_is_sent_again_in_full(standalone_server: Server) -> None:
    async with (
        started_topology(standalone_server.url) as topology,
        started_runner(topology, standalone_server.url) as runner,
    ):
        begin = Script("begin").command([b"topology:begin"], 1000)
        for _ in range(2):
            standalone_server.ask("SCRIPT", "FLUSH")
            assert float((await runner.run(begin))[0]) > 0


# Sentinel


async def test_the_sentinels_say_who_is_the_primary(sentinel_servers: Sentinels) -> None:
    async with started_topology(sentinel_servers.url) as topology:
        assert topology.addresses() == (Address(HOST, sentinel_servers.primary.port),)
        assert await topology.execute([["SET", b"topology:s", "1"]]) == [b"OK"]


async def test_an_unknown_name_is_refused_and_so_is_a_wrong_kind_of_server(
    sentinel_servers: Sentinels, standalone_server: Server, cluster_servers: Cluster
) -> None:
    hosts = sentinel_servers.url.rpartition("/")[0]
    assert "knows no primary called 'typo': correct the name" in await refusal(f"{hosts}/typo")
    sentinel = sentinel_servers.sentinels[0]
    assert "is a Sentinel: use redis+sentinel://" in await refusal(f"redis://{HOST}:{sentinel.port}")
    plain = f"redis+sentinel://{HOST}:{standalone_server.port}/mymaster"
    assert "is no Sentinel but the server itself" in await refusal(plain)
    assert "does not run in cluster mode: use redis://" in await refusal(
        f"redis+cluster://{HOST}:{standalone_server.port}"
    )
    clustered = f"redis://{HOST}:{cluster_servers.servers[0].port}"
    assert "runs in cluster mode: use redis+cluster://" in await refusal(clustered)


async def test_a_sentinel_that_is_frozen_or_gone_delays_nothing(healthy_sentinels: Sentinels) -> None:
    loop = asyncio.get_running_loop()
    healthy_sentinels.sentinels[0].stop_for()
    async with started_topology(healthy_sentinels.url) as topology:
        began = loop.time()
        await topology.refresh()
        assert loop.time() - began < 1
    healthy_sentinels.sentinels[0].cont()


async def test_commands_survive_a_failover(healthy_sentinels: Sentinels) -> None:
    url = healthy_sentinels.url
    async with started_topology(url) as topology, started_runner(topology, url, command_timeout=20) as runner:
        await runner.run(Command("SET", None, (b"topology:f",), ("1",)))
        old = healthy_sentinels.primary
        await asyncio.to_thread(old.kill)  # meanwhile the loop hears that the connection is closed
        await runner.run(Command("SET", None, (b"topology:f",), ("2",)))
        (now,) = topology.addresses()
        assert now != Address(HOST, old.port)


async def test_a_primary_that_was_replaced_and_comes_back_gets_no_command(new_server: Callable[..., Server]) -> None:
    old, new = new_server(), new_server()
    async with played_sentinels(old) as sentinels, started_topology(sentinels.url) as topology:
        assert await topology.execute([["SET", b"k", "1"]]) == [b"OK"]
        old.kill()
        sentinels.say(port=str(new.port), config_epoch="2")
        await asyncio.to_thread(old.restart)
        (reply,) = await topology.execute([["SET", b"k", "2"]])
        assert isinstance(reply, NotSentError)
        assert f"{HOST}:{old.port} is no primary any more" in str(reply)
        assert await topology.execute([["SET", b"k", "3"]]) == [b"OK"]
        assert old.ask("EXISTS", "k") == 0
        assert new.ask("GET", "k") == "3"


async def test_a_primary_that_comes_back_as_the_primary_is_used_again(new_server: Callable[..., Server]) -> None:
    server = new_server()
    async with played_sentinels(server) as sentinels, started_topology(sentinels.url) as topology:
        await topology.execute([["PING"]])
        server.kill()
        await asyncio.to_thread(server.restart)
        assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_the_sentinels_are_asked_once_for_all_who_connect_again_and_not_for_further_connections(
    new_server: Callable[..., Server],
) -> None:
    server = new_server()
    async with played_sentinels(server) as sentinels, started_topology(sentinels.url) as topology:
        sentinels.asked.clear()
        await asyncio.gather(*(topology.execute([["PING"]]) for _ in range(10)))
        assert sentinels.asked == []
        server.kill()
        await asyncio.to_thread(server.restart)
        replies = await asyncio.gather(*(topology.execute([["PING"]]) for _ in range(10)))
        assert replies == [[b"PONG"]] * 10
        assert sentinels.asked.count("SENTINEL MASTER") == 3


@pytest.mark.parametrize(
    ("down", "flags"), [(2, {"flags": "master,s_down"}), (1, {"failover-state": "wait_promotion"})]
)
async def test_a_primary_that_the_sentinels_call_down_or_are_about_to_replace_is_not_used(
    standalone_server: Server, down: int, flags: dict[str, str]
) -> None:
    async with played_sentinels(standalone_server) as sentinels:
        for says in sentinels.says[:down]:
            says.update(flags)
        assert "is down, say the Sentinels, or is being replaced" in await failure(sentinels.url)


@pytest.mark.parametrize("flags", [{"flags": "master,s_down,o_down"}, {"failover-state": "wait_start"}])
async def test_one_sentinel_that_does_not_reach_the_primary_keeps_nobody_from_it(
    standalone_server: Server, flags: dict[str, str]
) -> None:
    async with played_sentinels(standalone_server) as sentinels:
        sentinels.says[0].update(flags)
        async with started_topology(sentinels.url) as topology:
            assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_a_promoted_primary_is_used_while_the_others_are_still_told_of_it(
    new_server: Callable[..., Server], standalone_server: Server
) -> None:
    old = new_server()
    async with played_sentinels(old) as sentinels:
        old.kill()
        leader = {"config-epoch": "2", "flags": "master,s_down,o_down,failover_in_progress"}
        sentinels.says[0].update(leader | {"failover-state": "reconf_slaves", "promoted": str(standalone_server.port)})
        async with started_topology(sentinels.url) as topology:
            assert topology.addresses() == (Address(HOST, standalone_server.port),)


# Cluster


def keys_of_all_shards() -> Sequence[bytes]:
    return [f"topology:{number}".encode() for number in range(60)]


async def test_a_cluster_runs_each_command_at_its_owner_and_replies_in_order(cluster_servers: Cluster) -> None:
    async with started_topology(cluster_servers.url) as topology:
        keys = keys_of_all_shards()
        assert {address.port for address in topology.addresses()} == {item.port for item in cluster_servers.primaries}
        assert len({topology.address_for(key) for key in keys}) == len(topology.addresses()) == 3
        for key in keys[:10]:
            assert topology.address_for(key) == Address(HOST, cluster_servers.owner_of(key).port)
        assert await topology.execute([["SET", key, key] for key in keys]) == [b"OK"] * 60
        assert await topology.execute([["EVAL", "return redis.call('GET', KEYS[1])", 1, key] for key in keys]) == keys
        assert await topology.execute([["PING"]]) == [b"PONG"]


async def test_every_primary_has_a_tag_in_a_slot_of_its_own(cluster_servers: Cluster) -> None:
    async with started_topology(cluster_servers.url) as topology:
        for address in topology.addresses():
            channel = b"any{%s}thing" % topology.tag_for(address).encode()
            assert cluster_servers.owner_of(channel).port == address.port
        with pytest.raises(LookupError):
            topology.tag_for(Address(HOST, 1))


async def test_one_node_of_a_cluster_is_enough_to_find_it(cluster_servers: Cluster) -> None:
    async with started_topology(f"redis+cluster://{HOST}:{cluster_servers.servers[-1].port}") as topology:
        assert len(topology.addresses()) == 3


async def test_a_slot_that_moved_is_followed(healthy_cluster: Cluster) -> None:
    url, key = healthy_cluster.url, b"topology:moved"
    async with started_topology(url) as topology, started_runner(topology, url) as runner:
        await runner.run(Command("SET", None, (key,), ("1",)))
        old = healthy_cluster.owner_of(key)
        new = next(server for server in healthy_cluster.primaries if server is not old)
        slot = int(old.ask("CLUSTER", "KEYSLOT", key))
        await asyncio.to_thread(healthy_cluster.move_slot, slot, new)
        (moved,) = await topology.execute([["GET", key]])
        assert isinstance(moved, replied.MovedError)
        assert await runner.run(Command("GET", None, (key,))) == b"1"
        assert topology.address_for(key) == Address(HOST, new.port)
        await asyncio.to_thread(healthy_cluster.move_slot, slot, old)


async def test_a_key_that_has_left_a_migrating_slot_is_asked_for_where_it_went(healthy_cluster: Cluster) -> None:
    key = b"topology:asked"
    source = healthy_cluster.owner_of(key)
    target = next(server for server in healthy_cluster.primaries if server is not source)
    slot = int(source.ask("CLUSTER", "KEYSLOT", key))
    async with started_topology(healthy_cluster.url) as topology:
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))
        try:
            async with started_runner(topology, healthy_cluster.url) as runner:
                assert await runner.run(Command("SET", None, (key,), ("1",))) == b"OK"
                assert await runner.run(Command("GET", None, (key,))) == b"1"
                await runner.run(Command("DEL", None, (key,)))
        finally:
            for server in (source, target):
                server.ask("CLUSTER", "SETSLOT", slot, "STABLE")


async def test_a_primary_that_died_is_replaced_by_its_replica(healthy_cluster: Cluster) -> None:
    url, key = healthy_cluster.url, b"topology:failover"
    async with started_topology(url) as topology, started_runner(topology, url, command_timeout=25) as runner:
        await runner.run(Command("SET", None, (key,), ("1",)))
        owner = healthy_cluster.owner_of(key)
        owner.kill()
        other = next(text for text in keys_of_all_shards() if topology.address_for(text) != Address(HOST, owner.port))
        trying = asyncio.create_task(runner.run(Command("SET", None, (key,), ("2",))))
        assert isinstance(
            await runner.run(Command("EXISTS", None, (other,))), int
        )  # a shard that lives does not wait for it
        assert not trying.done()
        await trying
