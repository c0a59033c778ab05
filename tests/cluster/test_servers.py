"""The servers and the faulty network that other tests rely on."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hiredis
import pytest
from redis.crc import key_slot

from tests.servers import (
    Broken,
    Certificates,
    Cluster,
    Proxy,
    Sentinels,
    Server,
    ask,
    eventually,
    make_certificates,
    started,
)

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection through the proxy that has been used once."""
    with socket.create_connection((proxy.host, proxy.port), 5) as connection:
        connection.sendall(PING)
        assert receive(connection) == PONG
        yield connection


def receive(connection: socket.socket, size: int = len(PONG)) -> bytes:
    received = b""
    while len(received) < size and (data := connection.recv(size - len(received))):
        received += data
    return received


def hears_nothing(connection: socket.socket, seconds: float = 0.2) -> bool:
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)
    return False


class TestServer:
    def test_it_answers_once_it_is_made_and_is_gone_once_it_is_stopped(self) -> None:
        with Server() as server:
            assert server.ask("PING") == "PONG"
            folder = server.folder
        assert not server.is_running
        assert not folder.exists()
        with pytest.raises(ConnectionRefusedError):
            server.ask("PING")

    def test_its_options_and_its_password_are_heeded(self, new_server: Callable[..., Server]) -> None:
        server = new_server("--maxmemory", "9mb", password="s3cret")
        assert server.ask("CONFIG", "GET", "maxmemory") == ["maxmemory", str(9 * 1024 * 1024)]
        with pytest.raises(hiredis.ReplyError, match="NOAUTH"):
            ask(server.port, "PING")

    def test_it_comes_back_on_its_port_after_a_kill_without_its_data(self, server: Server) -> None:
        server.ask("SET", "a", "1")
        port, pid = server.port, server.pid
        server.kill()
        assert not server.is_running
        server.restart()
        assert server.port == port
        assert server.pid != pid
        assert server.ask("GET", "a") is None

    def test_a_stopped_one_answers_nothing_until_it_is_continued(self, server: Server) -> None:
        server.stop_for()
        with pytest.raises(TimeoutError):
            server.ask("PING", timeout=0.2)
        server.cont()
        assert server.ask("PING") == "PONG"

    def test_it_can_be_stopped_for_a_while(self, server: Server) -> None:
        began = time.monotonic()
        server.stop_for(0.3)
        assert server.ask("PING") == "PONG"
        assert time.monotonic() - began >= 0.25

    def test_one_that_cannot_start_shows_its_log(self) -> None:
        with pytest.raises(Broken, match="nonsense"):
            Server("--nonsense", "1")

    def test_the_oldest_supported_version_runs(self, redis7_server: Server) -> None:
        assert redis7_server.version.startswith("redis ")
        assert redis7_server.ask("PING") == "PONG"


class TestTls:
    def test_it_speaks_tls_to_who_trusts_its_authority_only(
        self, tls_server: Server, certificates: Certificates, tmp_path: Path
    ) -> None:
        assert tls_server.url.startswith("rediss://")
        assert tls_server.ask("PING") == "PONG"
        with started():
            other = make_certificates(tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(tls_server.port, "PING", context=ssl.create_default_context(cafile=other.ca))
        assert ask(tls_server.port, "PING", context=ssl.create_default_context(cafile=certificates.ca)) == "PONG"


class TestSentinels:
    def test_a_killed_primary_is_replaced_and_comes_back_as_the_replica(self, healthy_sentinels: Sentinels) -> None:
        old = healthy_sentinels.primary
        old.ask("SET", "kept", "1")
        assert old.ask("WAIT", 1, 2000) == 1
        new = healthy_sentinels.failover()
        assert new is not old
        assert healthy_sentinels.primary is new
        assert new.ask("SET", "a", "2") == "OK"
        assert new.ask("GET", "kept") == "1"
        healthy_sentinels.be_patient()
        old.revive()
        healthy_sentinels.wait_ok()
        assert healthy_sentinels.replica is old
        assert old.info("replication")["role"] == "slave"

    def test_the_primary_can_be_switched_while_both_live(self, healthy_sentinels: Sentinels) -> None:
        old = healthy_sentinels.primary
        assert healthy_sentinels.switch() is not old


class TestCluster:
    def test_three_primaries_share_all_slots(self, cluster_servers: Cluster) -> None:
        primaries = cluster_servers.primaries
        assert len(primaries) == 3
        assert len(cluster_servers.replicas) == 3
        assert [cluster_servers.owner(slot) for slot in (0, 8000, 16_383)] == primaries

    def test_a_slot_moves_with_its_keys(self, healthy_cluster: Cluster) -> None:
        source = healthy_cluster.owner_of("{moving}")
        target = next(server for server in healthy_cluster.primaries if server is not source)
        for number in range(30):
            source.ask("SET", f"{{moving}}{number}", number, "EX", 60)
        healthy_cluster.move_slot(key_slot(b"moving"), target)
        assert healthy_cluster.owner_of("{moving}") is target
        assert [target.ask("GET", f"{{moving}}{number}") for number in range(30)] == [str(n) for n in range(30)]
        with pytest.raises(hiredis.ReplyError, match="MOVED"):
            source.ask("GET", "{moving}1")

    def test_a_replica_takes_over_from_a_killed_primary(self, healthy_cluster: Cluster) -> None:
        killed = healthy_cluster.kill_primary()
        healthy_cluster.wait_failover(killed)
        assert killed not in healthy_cluster.primaries
        healthy_cluster.heal()
        assert killed in healthy_cluster.replicas


class TestProxy:
    def test_it_passes_bytes_both_ways_and_counts_them(self, proxy: Proxy, client: socket.socket) -> None:
        client.sendall(PING)
        assert receive(client) == PONG
        assert (proxy.count("up"), proxy.count("down")) == (2 * len(PING), 2 * len(PONG))
        assert (proxy.accepted, proxy.connections) == (1, 1)

    def test_a_big_transfer_arrives_whole(self, proxy: Proxy, server: Server) -> None:
        value = "x" * 5_000_000
        assert ask(proxy.port, "SET", "big", value) == "OK"
        assert ask(proxy.port, "GET", "big") == value

    def test_a_black_hole_keeps_the_connection_and_what_was_sent(self, proxy: Proxy, client: socket.socket) -> None:
        proxy.black_hole()
        client.sendall(PING)
        assert hears_nothing(client)
        assert proxy.count("up") == len(PING)
        proxy.pass_on()
        assert receive(client) == PONG

    def test_a_black_hole_takes_new_connections_too(self, proxy: Proxy) -> None:
        proxy.black_hole()
        with socket.create_connection((proxy.host, proxy.port), 5) as connection:
            connection.sendall(PING)
            assert hears_nothing(connection)

    def test_one_way_can_be_a_black_hole(self, proxy: Proxy, client: socket.socket, server: Server) -> None:
        proxy.black_hole("down")
        client.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n")
        eventually(lambda: server.ask("GET", "a") == "1", "the server gets it", within=5)
        assert hears_nothing(client)

    def test_a_reset_is_a_reset(self, proxy: Proxy, client: socket.socket) -> None:
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        eventually(lambda: proxy.connections == 0, "it is gone", within=5)
        assert ask(proxy.port, "PING") == "PONG"

    def test_a_reset_works_in_a_black_hole(self, proxy: Proxy, client: socket.socket) -> None:
        proxy.black_hole()
        client.sendall(PING)
        assert hears_nothing(client)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    def test_it_refuses_until_it_passes_on(self, proxy: Proxy, client: socket.socket) -> None:
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(OSError, match=r"reset|closed|Broken pipe"):
            ask(proxy.port, "PING")
        proxy.pass_on()
        assert ask(proxy.port, "PING") == "PONG"

    def test_half_closed_the_other_way_goes_on(self, proxy: Proxy, client: socket.socket, server: Server) -> None:
        proxy.half_close("down")
        assert client.recv(1) == b""
        client.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1\r\n1\r\n")
        eventually(lambda: server.ask("GET", "b") == "1", "the server gets it", within=5)

    def test_a_delay_delays_without_changing_the_order(self, proxy: Proxy, client: socket.socket) -> None:
        proxy.delay(0.15, "down")
        began = time.monotonic()
        client.sendall(PING + b"*2\r\n$4\r\nECHO\r\n$3\r\nabc\r\n")
        assert receive(client, len(PONG) + 9) == PONG + b"$3\r\nabc\r\n"
        assert time.monotonic() - began >= 0.14

    def test_it_cuts_after_so_many_bytes(self, proxy: Proxy, client: socket.socket) -> None:
        proxy.cut_after(3)
        client.sendall(PING)
        with pytest.raises(ConnectionResetError):
            receive(client)
        assert proxy.count("down") == len(PONG) + 3
        assert ask(proxy.port, "PING") == "PONG"

    def test_it_can_be_aimed_elsewhere(self, proxy: Proxy, new_server: Callable[..., Server]) -> None:
        other = new_server()
        other.ask("SET", "who", "other")
        assert ask(proxy.port, "GET", "who") is None
        proxy.aim(other.port)
        assert ask(proxy.port, "GET", "who") == "other"

    def test_a_server_that_is_away_is_a_reset(self, proxy: Proxy, server: Server) -> None:
        server.kill()
        with pytest.raises(OSError, match=r"reset|closed"):
            ask(proxy.port, "PING")

    async def test_it_works_from_a_test_with_a_loop(self, proxy: Proxy) -> None:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
