"""The cluster layer: nodes that act as one server through Redis or Valkey, and publishers for backend code.

Import from here: `RedisBackend` and `RedisOptions` for nodes, `Publisher` and `AsyncPublisher` for everything else.
"""

from __future__ import annotations

from socketspec.extras import install

try:
    import hiredis
    import redis
except ImportError as _error:
    raise ImportError(f"SocketSpec's cluster layer needs {_error.name}: {install('redis')}") from _error

from socketspec.cluster.backend import RedisBackend
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.text import get_logger

__all__ = ("AsyncPublisher", "Publisher", "RedisBackend", "RedisOptions")

del hiredis, redis  # only asked whether they are there

get_logger("socketspec.cluster")  # whatever Redis answers stays on its line of the log
