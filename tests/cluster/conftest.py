"""Servers for the tests of the cluster layer: those of the session, whole again before every test, and fresh ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.servers import Certificates, Cluster, Proxy, Sentinels, Server, make_certificates, redis_binary, started


@pytest.fixture(scope="session")
def breakable_sentinels() -> Iterator[Sentinels]:
    """Like `sentinel_servers`, for tests that break them."""
    with started():
        made = Sentinels()
    with made:
        yield made


@pytest.fixture(scope="session")
def breakable_cluster() -> Iterator[Cluster]:
    """Like `cluster_servers`, for tests that break it."""
    with started():
        made = Cluster(replicas=True)
    with made:
        yield made


@pytest.fixture
def healthy_sentinels(breakable_sentinels: Sentinels) -> Iterator[Sentinels]:
    """Sentinels for a test that kills or stops some of them: healed afterwards."""
    yield breakable_sentinels
    breakable_sentinels.heal()


@pytest.fixture
def healthy_cluster(breakable_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster for a test that kills or stops some of it: healed afterwards."""
    yield breakable_cluster
    breakable_cluster.heal()


@pytest.fixture
def new_server() -> Iterator[Callable[..., Server]]:
    """Makes servers of this test's own, with the arguments of `Server`."""
    with ExitStack() as stack:

        def make(*options: str, binary: str | None = None, password: str = "") -> Server:
            with started():
                return stack.enter_context(Server(*options, binary=binary, password=password))

        yield make


@pytest.fixture
def server(new_server: Callable[..., Server]) -> Server:
    """A server of this test's own: it may be killed, stopped, flushed."""
    return new_server()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of `server`."""
    with Proxy(server.port) as made:
        yield made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, a server's and a client's certificate."""
    with started():
        return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[Server]:
    """A redis-server that speaks TLS only; its `certificates.ca` is what to trust."""
    with started():
        made = Server(binary=redis_binary(), certificates=certificates)
    with made:
        yield made


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """One of this test's own."""
    return f"publisher-{os.getpid()}-{abs(hash(request.node.nodeid)):x}"
