"""Real Redis and Valkey servers for tests: single, under Sentinel, clustered, with TLS; and a network with faults.

A `Server`, `Sentinels`, `Cluster` or `Proxy` runs from the moment it is made and is a context manager that ends it.
Everything listens on free ports of 127.0.0.1.
"""

from __future__ import annotations

from tests.server_container import Container, container_engine
from tests.server_groups import Cluster, Sentinels
from tests.server_process import (
    Absent,
    Broken,
    Certificates,
    Server,
    ask,
    eventually,
    free_port,
    in_ci,
    make_certificates,
    ran,
    redis_binary,
    started,
    valkey_binary,
)
from tests.server_proxy import Proxy

__all__ = (
    "Absent",
    "Broken",
    "Certificates",
    "Cluster",
    "Container",
    "Proxy",
    "Sentinels",
    "Server",
    "ask",
    "container_engine",
    "eventually",
    "free_port",
    "in_ci",
    "make_certificates",
    "ran",
    "redis_binary",
    "started",
    "valkey_binary",
)
