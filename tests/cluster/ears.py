"""What tests of publishers hear with: subscribers that are no node."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hiredis

from socketspec.cluster.commands.envelope import decode
from socketspec.cluster.commands.keys import Keys
from socketspec.declaration.rooms import Room
from socketspec.protocol.publications import History, Publication, Topic
from tests.servers import Server, free_port

__all__ = ("ROOMS", "Ear", "hearing", "reads", "refused", "room")

LOG = Room("log:{n}", history=History(size=50, ttl=60))
ROOMS = (LOG, "{any}")


def room(name: str) -> Topic:
    return Topic("/", "room", name)


class Ear:
    """Hears a topic as a node does."""

    def __init__(self, server: Server, topic: Topic, prefix: str) -> None:
        self._socket = socket.create_connection((server.host, server.port), 5)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        command: Any = (b"SSUBSCRIBE", Keys(prefix).channel(topic))
        self._socket.sendall(hiredis.pack_command(command))
        assert self._next()[0] == b"ssubscribe"

    def _next(self) -> Any:
        while (item := self._reader.gets()) is Ellipsis:
            self._reader.feed(self._socket.recv(65_536))
        return item

    def hear(self) -> Publication:
        """The next publication."""
        publication = decode(self._next()[2])
        assert publication is not None
        return publication

    def close(self) -> None:
        self._socket.close()


@contextmanager
def hearing(server: Server, topic: Topic, prefix: str) -> Iterator[Ear]:
    ear = Ear(server, topic, prefix)
    try:
        yield ear
    finally:
        ear.close()


def reads(server: Server) -> int:
    """How often the server has read from a connection."""
    return int(server.info("stats")["total_reads_processed"])


def refused() -> tuple[str, float]:
    """A URL where nobody listens."""
    return f"redis://127.0.0.1:{free_port()}", 0.6
