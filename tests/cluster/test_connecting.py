"""Ways to a server besides a host and a password: credential providers, Unix sockets, client certificates."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.credentials import CredentialProvider
from redis.exceptions import TimeoutError as LateError

from socketspec.cluster import AsyncPublisher, Publisher, RedisBackend
from socketspec.cluster.options import Address
from socketspec.cluster.publishers.blocking_connection import timed_connection
from socketspec.cluster.servers.login import Login
from socketspec.errors import BackendError, ConfigurationError
from socketspec.protocol.publications import Publication, Topic
from tests.cluster.ears import ROOMS
from tests.servers import Certificates, Sentinels, Server, redis_binary, started

ROOM = Topic("/", "room", "r")


class Changing(CredentialProvider):
    """Gives what its test says at present."""

    def __init__(self, *login: str) -> None:
        self.login: Any = login
        self.asked = 0

    def get_credentials(self) -> Any:
        self.asked += 1
        if isinstance(self.login, Exception):
            raise self.login
        return self.login


@asynccontextmanager
async def a_node(url: str, **options: Any) -> AsyncIterator[tuple[RedisBackend, list[bytes]]]:
    """A backend that is started and hears a room; and what it hears."""
    heard: list[bytes] = []

    def deliver(_topic: Topic, publications: Sequence[Publication]) -> None:
        heard.extend(publication.payload for publication in publications)

    def lost(*_: object) -> None: ...

    backend = RedisBackend(url, **({"start_timeout": 10} | options))
    await backend.start("/", deliver, lost)
    try:
        await backend.broker.subscribe(ROOM)
        yield backend, heard
    finally:
        await backend.stop("/", deliver)


async def reaches(node: tuple[RedisBackend, list[bytes]], number: bytes) -> None:
    """Publish with the node until it has heard it: while it subscribes anew, it hears nothing."""
    backend, heard = node
    payload, deadline = b'{"number":%b}' % number, time.monotonic() + 15
    while payload not in heard:
        assert time.monotonic() < deadline
        await backend.broker.publish(ROOM, Publication(event="e", payload=payload))
        await asyncio.sleep(0.05)


# Credential providers


async def test_a_password_that_changes_while_connections_live_is_asked_for_again_by_nodes_and_publishers(
    new_server: Callable[..., Server],
) -> None:
    server = new_server(password="admin")
    server.ask("ACL", "SETUSER", "app", "on", ">first", "~*", "&*", "+@all")
    provider = Changing("app", "first")
    url = f"redis://127.0.0.1:{server.port}"
    async with (
        a_node(url, credential_provider=provider) as node,
        AsyncPublisher(url, credential_provider=provider) as publisher,
    ):
        with Publisher(url, credential_provider=provider) as blocking:
            await reaches(node, b"1")
            await publisher.broadcast("r", "e")
            await asyncio.to_thread(blocking.broadcast, "r", "e")
            provider.login = ("app", "second")
            server.ask("ACL", "SETUSER", "app", "resetpass", ">second")
            await reaches(node, b"2")  # what lives goes on
            server.drop_clients("USER", "app")  # as a service does when a token has run out
            await reaches(node, b"3")
            await publisher.broadcast("r", "e")
            await asyncio.to_thread(blocking.broadcast, "r", "e")
    assert provider.asked >= 6


def test_a_password_that_the_provider_learns_a_moment_later_costs_a_delay_only(
    new_server: Callable[..., Server],
) -> None:
    server = new_server(password="new")
    provider = Changing("old")
    timer = threading.Timer(0.4, setattr, [provider, "login", ("new",)])
    timer.start()
    with Publisher(f"redis://127.0.0.1:{server.port}", credential_provider=provider, timeout=10) as publisher:
        assert publisher.broadcast("r", "e").nodes == 0
    timer.join()


@pytest.mark.parametrize(
    ("login", "complaint"),
    [
        (RuntimeError("the token service is down"), "Changing failed with RuntimeError: the token service is down"),
        ((), r"Changing must return \(password,\) or \(username, password\)"),
        ("s3cr3t", "Changing must return"),
        (("a", ""), "Changing must return"),
        ((b"s3cr3t",), "Changing must return"),
        (("app", "s3cr3t"), "WRONGPASS|invalid username-password"),
    ],
)
async def test_a_provider_that_gives_no_login_is_named_in_time(
    new_server: Callable[..., Server], login: Any, complaint: str
) -> None:
    url = f"redis://127.0.0.1:{new_server(password='right').port}"
    provider = Changing()
    provider.login = login
    began = time.monotonic()
    with pytest.raises(BackendError, match=f"was not sent.*({complaint})") as caught:
        await asyncio.to_thread(Publisher(url, credential_provider=provider, timeout=0.6).broadcast, "r", "e")
    with pytest.raises(BackendError, match=f"(?i){complaint}") as other:
        async with AsyncPublisher(url, credential_provider=provider, timeout=0.6) as publisher:
            await publisher.broadcast("r", "e")
    assert time.monotonic() - began < 3
    assert "s3cr3t" not in f"{caught.value}{other.value}"


async def test_a_provider_that_blocks_holds_up_no_event_loop_and_one_thread(server: Server) -> None:
    over = threading.Event()

    class Blocking(CredentialProvider):
        def get_credentials(self) -> tuple[str]:
            over.wait(30)
            return ("p",)

    url = f"redis://127.0.0.1:{server.port}"
    before = threading.active_count()
    try:
        publishers = [Publisher(url, credential_provider=Blocking(), timeout=0.5, connect_timeout=0.1)]
        publishers.append(publishers[0])
        for publisher in publishers:
            began = time.monotonic()
            with pytest.raises(BackendError, match="credential_provider Blocking gave no login in time"):
                publisher.broadcast("r", "e")
            assert time.monotonic() - began < 1.2
        assert threading.active_count() <= before + 1
        turns = asyncio.create_task(asyncio.sleep(0.05))
        async with AsyncPublisher(url, credential_provider=Blocking(), timeout=0.5, connect_timeout=0.2) as other:
            with pytest.raises(BackendError, match="gave no login in time"):
                await other.broadcast("r", "e")
        assert turns.done()
    finally:
        over.set()


async def test_an_async_provider_is_awaited_and_needs_no_other_method(new_server: Callable[..., Server]) -> None:
    class Awaited:
        async def get_credentials_async(self) -> tuple[str]:
            await asyncio.sleep(0)
            return ("right",)

    url = f"redis://127.0.0.1:{new_server(password='right').port}"
    async with a_node(url, credential_provider=Awaited()) as node:
        await reaches(node, b"1")
    with pytest.raises(BackendError, match="does not define get_credentials"):
        await asyncio.to_thread(Publisher(url, credential_provider=Awaited(), timeout=0.3).broadcast, "r", "e")


async def test_the_sentinels_have_a_provider_of_their_own(sentinel_servers: Sentinels, prefix: str) -> None:
    provider = Changing("x")  # these Sentinels have no password, and say so
    with pytest.raises(BackendError, match="AUTH"):
        await asyncio.to_thread(
            Publisher(sentinel_servers.url, sentinel_credential_provider=provider, timeout=0.5).broadcast, "r", "e"
        )
    assert provider.asked


def test_a_live_connection_whose_login_has_ended_is_replaced_and_nothing_is_sent_twice() -> None:
    with _forgetful() as (port, published), Publisher(f"redis://:p@127.0.0.1:{port}", timeout=5) as publisher:
        for _ in range(4):
            assert publisher.broadcast_all("e").nodes == 7
        assert published == [1, 1, 1, 1]  # each connection carries one out, and is then not logged in any more


@contextmanager
def _forgetful() -> Iterator[tuple[int, list[int]]]:
    """A server that answers NOAUTH to the second publish of a connection."""
    published: list[int] = []
    hello = b"*4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"

    def serve(connection: socket.socket) -> None:
        sent = 0
        with connection:
            while data := connection.recv(65_536):
                if b"SPUBLISH" in data:
                    sent += 1
                    published.extend([1] if sent == 1 else [])
                    connection.sendall(b":7\r\n" if sent == 1 else b"-NOAUTH Authentication required.\r\n")
                elif b"HELLO" in data:
                    connection.sendall(b"+OK\r\n" * data.count(b"CLIENT\r\n") + hello)
                else:
                    connection.sendall(b"+OK\r\n")

    with _serving(serve) as port:
        yield port, published


@contextmanager
def _serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_dribbles_is_an_error_in_time() -> None:
    def dribble(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                connection.sendall(b"$1000\r\n")
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                pass

    with _serving(dribble) as port, Publisher(f"redis://127.0.0.1:{port}", timeout=0.6) as publisher:
        began = time.monotonic()
        with pytest.raises(BackendError, match="no answer in time"):
            publisher.broadcast("r", "e")
        assert time.monotonic() - began < 1.5


# Unix sockets


async def test_nodes_and_publishers_reach_a_unix_socket(
    new_server: Callable[..., Server], tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "r.sock"
    new_server("--unixsocket", str(path), password="right")
    url = f"unix://:right@{path}?db=2&prefix={prefix}"
    async with a_node(url) as node:
        await reaches(node, b"1")
        with Publisher(url, rooms=ROOMS) as publisher:
            assert (await asyncio.to_thread(publisher.broadcast, "r", "e")).nodes == 1
            assert repr(publisher) == f"<Publisher {path} prefix={prefix!r}>"
        async with AsyncPublisher(url) as other:
            assert (await other.broadcast("r", "e")).nodes == 1


async def test_a_unix_socket_that_cannot_be_reached_is_named_with_what_to_do(tmp_path: Path) -> None:
    nothing, dead = tmp_path / "nothing.sock", tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(dead))
    for path, problem in ((nothing, "there is no such file"), (dead, "nobody listens at that file")):
        with pytest.raises(BackendError, match=f"{path}.*{problem}"):
            await asyncio.to_thread(Publisher(f"unix://{path}", timeout=0.3).broadcast, "r", "e")
        with pytest.raises(BackendError, match=f"{path}.*{problem}"):
            async with a_node(f"unix://{path}", start_timeout=0):
                pass


def test_a_unix_socket_that_is_silent_is_an_error_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s.sock"))
        silent.listen(5)
        began = time.monotonic()
        with pytest.raises(BackendError, match="no answer in time"):
            Publisher(f"unix://{tmp_path}/s.sock", timeout=0.5).broadcast("r", "e")
        assert time.monotonic() - began < 1.2


# TLS


async def test_a_client_certificate_is_shown_by_nodes_and_publishers(certificates: Certificates) -> None:
    with started():
        server = Server("--tls-auth-clients", "yes", binary=redis_binary(), certificates=certificates)
    ours: dict[str, Any] = {"certfile": str(certificates.client), "keyfile": str(certificates.client_key)}
    trust: dict[str, Any] = {"ca_certs": str(certificates.ca)}
    with server:
        async with a_node(server.url, **trust, **ours) as node:
            await reaches(node, b"1")
        with Publisher(server.url, **trust, **ours) as publisher:
            assert (await asyncio.to_thread(publisher.broadcast, "r", "e")).nodes == 0
        with (
            Publisher(server.url, **trust, timeout=0.5) as publisher,
            pytest.raises(BackendError, match="was not sent"),
        ):
            await asyncio.to_thread(publisher.broadcast, "r", "e")


async def test_certificates_go_unverified_only_where_the_code_says_so_and_the_log_warns(
    tls_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendError, match="not trusted"):
        await asyncio.to_thread(Publisher(tls_server.url, timeout=1).broadcast, "r", "e")
    caplog.set_level(logging.WARNING, logger="socketspec.cluster")
    async with a_node(tls_server.url, tls_verify=False) as node:
        await reaches(node, b"1")
    assert "A RedisBackend" in caplog.text
    assert "does not verify certificates (tls_verify=False)" in caplog.text
    with Publisher(tls_server.url, tls_verify=False) as publisher:
        assert (await asyncio.to_thread(publisher.broadcast, "r", "e")).nodes == 0
    for query in ("ssl_cert_reqs=none", "tls_verify=false"):
        with pytest.raises(ConfigurationError, match=r'RedisBackend\("rediss://…", tls_verify=False\)'):
            Publisher(f"{tls_server.url}?{query}")


def test_a_file_for_tls_that_is_not_there_is_named(certificates: Certificates, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    cases: Sequence[tuple[dict[str, Any], str]] = (
        ({"ca_certs": missing}, f"ca_certs='{missing}' cannot be read: No such file"),
        ({"certfile": missing}, f"certfile='{missing}' cannot be read: No such file"),
        ({"certfile": certificates.client, "keyfile": missing}, f"keyfile='{missing}' cannot be read: No such file"),
        ({"certfile": certificates.client}, r"has no private key in it: pass keyfile="),
    )
    for options, complaint in cases:
        with pytest.raises(ConfigurationError, match=complaint):
            Publisher("rediss://127.0.0.1:1", **options)


def test_an_address_whose_time_is_up_is_not_called_an_unknown_name() -> None:
    connection = timed_connection(Address("127.0.0.1", 1), Login(None, None), 0, None, time.monotonic() - 1)
    with pytest.raises(LateError):
        connection.open()
