"""What things cost on a node and in Redis, as measured: what the capacity model reckons with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ("COSTS", "Costs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What things cost: seconds of one core, and bytes. Measured on the machine of docs/performance.md.

    Yours differs; take the figures of `socketspec bench` and of your metrics where they matter.
    """

    accept: float = 1 / 2_400
    """Handshake, authentication not included. Source: the benchmark ``idle`` of docs/performance.md: 2,400/s a core."""
    join: float = 350e-6
    """Joining a room through Redis and leaving it again. Source: 900 connections of `bench`, life less `accept`."""
    arrival: float = 20e-6
    """A message of Redis at a busy node, without what its members cost. Source: docs/performance.md, several nodes:
    21 us a delivery unpaced is 63 us a message, at 2.1 nodes with 1.4 members each."""
    waking: float = 118e-6
    """More, where the node was asleep. Source: the same at 1,000 publishes a second: 96 us a delivery."""
    delivery: float = 7e-6
    """Writing a frame to one member. Source: docs/performance.md, fan-out: 6.2 us, 7 us for one write a message."""
    event: float = 220e-6
    """An event of a client: parsed, validated, handled, and broadcast through Redis; without its arrival.
    Your handler's own work comes on top. Source: `bench`, 2,000 events less the same from the backend."""
    heartbeat: float = 30e-6
    """A ping and its pong. Estimated from `delivery` and a read."""
    node_memory: int = 96 << 20
    """A node without connections. Source: 82 MiB resident with FastAPI and redis-py, and room for your code."""
    connection_memory: int = 5_740
    """Resident, of a connection in one room. Source: the benchmark ``idle``: 5.2 KiB; 2,000 of `bench`: 5.5."""
    membership_memory: int = 500
    """Each further room. Estimated."""
    kernel_memory: int = 4_096
    """The kernel's, of an idle TCP connection: socket, file, epoll entry. It counts in a container. Estimated."""
    redis_publish: float = 40e-6
    """Redis: one publish that is not pipelined. Source: `bench`, 500/s: 40 to 60 us with one node listening."""
    redis_delivery: float = 8e-6
    """Redis: each node that a message goes to. Estimated from 15,107 publishes/s to three nodes on one core."""
    redis_join: float = 45e-6
    """Redis: joining and leaving, presence included. Source: 900 connections of `bench`."""
    redis_membership_memory: int = 200
    """Redis: presence of a connection in a room. Estimated."""
    redis_room_memory: int = 400
    """Redis: a room that somebody is in, and its channel. Estimated."""
    redis_node_memory: int = 1 << 20
    """Redis: a node's connections and output buffers. Estimated."""
    envelope: int = 60
    """Bytes round the payload of a message to a client: event, room, frame header."""
    redis_envelope: int = 180
    """Bytes round it in Redis: command, channel, publisher, time."""
    packet: int = 66
    """Ethernet, IPv4 and TCP headers of a packet, with timestamps."""


COSTS: Final = Costs()
