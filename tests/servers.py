"""Real Redis and Valkey servers for tests: single, replicated under Sentinel, clustered, with TLS, and a faulty network.

Every server listens on free ports of 127.0.0.1, keeps its files in a folder of its own and is ended by its process id.
A `Server`, a `Sentinels`, a `Cluster` and a `Proxy` are context managers; they are running once they are made.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import hiredis

from tests.server_groups import Cluster, Sentinels
from tests.server_proxy import Proxy

__all__ = (
    "Absent",
    "Broken",
    "Certificates",
    "Cluster",
    "Proxy",
    "Sentinels",
    "Server",
    "ask",
    "eventually",
    "free_port",
    "in_ci",
    "make_certificates",
    "redis_binary",
    "started",
    "valkey_binary",
)
