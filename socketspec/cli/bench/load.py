"""What a run is asked to do, and who does which part of it: pure arithmetic, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

__all__ = ("MAX_STREAMS", "MAX_TRACKED", "MIN_SIZE", "Load", "MisuseError", "Stream", "Target")

MIN_SIZE: Final = 51
"""Characters that a message needs for its mark: run, stream, number and time."""
MAX_STREAMS: Final = 1_000_000
"""Publishers of all rooms together; their counts are exchanged between processes at the end."""
MAX_TRACKED: Final = 5_000_000
"""Sequences of all connections together, about 100 bytes each: what bounds this tool's memory."""


class MisuseError(Exception):
    """What was asked makes no sense; the text says why."""


class Stream(NamedTuple):
    """One publisher in one room. Its messages are numbered from 1."""

    number: int
    room: int
    connection: int
    """The index of the connection that publishes; -1 where the backend does."""


class Target(NamedTuple):
    """Where to connect to."""

    is_tls: bool
    host: str
    port: int
    path: str
    """With the query."""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Raises `MisuseError` for what is no WebSocket URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise MisuseError(f"{url!r} is not a URL: {error}.") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise MisuseError(f"{url!r} is not a WebSocket URL; write ws://host:port/path or wss://host/path.")
        if parts.username is not None:
            raise MisuseError("the URL holds a user name; pass credentials with --token or --header.")
        is_tls = parts.scheme == "wss"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(is_tls, parts.hostname, port or (443 if is_tls else 80), path)

    @property
    def authority(self) -> str:
        """As in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold a token."""
        parts = SplitResult("wss" if self.is_tls else "ws", self.authority, self.path.partition("?")[0], "", "")
        return parts.geturl()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run. Rates are per second and of all processes together, times are seconds, sizes are bytes."""

    url: str
    run: str = "00000000"
    """Eight characters that tell this run's messages from another's."""
    connections: int = 100
    rooms: int = 1
    rooms_per_connection: int = 1
    room_name: str = "bench-{n}"
    publishers: int = 1
    """In each room."""
    rate: float = 10.0
    duration: float = 10.0
    size: int = 120
    settle: float = 2.0
    """How long nothing may arrive at the end until what is missing counts as lost."""
    processes: int = 1
    connect_rate: float = 200.0
    connect_timeout: float = 10.0
    subprotocol: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()
    """Taken in turn by the connections."""
    token_in: Literal["header", "query", "subprotocol"] = "header"  # noqa: S105 - a place, no token
    join_event: str = "join"
    """Empty: nothing is sent to join."""
    join_payload: str = '{"room": "{room}"}'
    publish_event: str = "say"
    publish_payload: str = '{"room": "{room}", "text": "{text}"}'
    receive_events: tuple[str, ...] = ("said", "message")
    """What members may get; the backend publishes the first."""
    is_echoed: bool = True
    """Whether a publisher gets its own messages."""
    backend: str | None = None
    namespace: str = "/"
    prefix: str | None = None
    ca_file: str | None = None
    is_insecure: bool = False
    source_addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < MIN_SIZE:
            raise MisuseError(f"--size {self.size} is too small: a message needs {MIN_SIZE} bytes for its mark.")
        if self.rooms_per_connection > self.rooms:
            raise MisuseError(f"--rooms-per-connection {self.rooms_per_connection} is more than --rooms {self.rooms}.")
        smallest = self.seats // self.rooms
        if smallest < 1:
            raise MisuseError(
                f"{self.connections} connections cannot fill {self.rooms} rooms; "
                "use more --connections, more --rooms-per-connection, or fewer --rooms."
            )
        if self.publishers > smallest:
            raise MisuseError(f"--publishers {self.publishers}: the smallest room has only {smallest} members.")
        if self.processes > self.connections:
            raise MisuseError(f"--processes {self.processes} is more than --connections {self.connections}.")
        if self.rooms > 1 and "{n}" not in self.room_name:
            raise MisuseError(f"--room-name {self.room_name!r} needs {{n}}, the number of the room.")
        if self.stream_count > MAX_STREAMS:
            raise MisuseError(f"{self.stream_count:,} publishers are too many; at most {MAX_STREAMS:,}.")
        if (tracked := self.seats * self.publishers_per_room) > MAX_TRACKED:
            raise MisuseError(
                f"{tracked:,} sequences (connections x rooms of each x publishers) are too many to keep track of; "
                f"at most {MAX_TRACKED:,}."
            )

    @property
    def seats(self) -> int:
        """Memberships of all rooms together."""
        return self.connections * self.rooms_per_connection

    @property
    def publishers_per_room(self) -> int:
        """One where the backend publishes."""
        return 1 if self.backend is not None else self.publishers

    @property
    def stream_count(self) -> int:
        """Publishers of all rooms together."""
        return self.rooms * self.publishers_per_room

    def room(self, number: int) -> str:
        """The name of a room."""
        return self.room_name.replace("{n}", str(number))

    def rooms_of(self, connection: int) -> list[int]:
        """The rooms that a connection joins: seats are dealt out to the rooms in turn."""
        first = connection * self.rooms_per_connection
        return [seat % self.rooms for seat in range(first, first + self.rooms_per_connection)]

    def members(self, room: int) -> int:
        """How many connections a room has when all could join."""
        return len(range(room, self.seats, self.rooms))

    def connections_of(self, process: int) -> range:
        """The connections that a process opens."""
        return range(process, self.connections, self.processes)

    def streams_of(self, process: int) -> Iterator[Stream]:
        """The publishers that a process plays."""
        if self.backend is not None:
            for room in range(process, self.rooms, self.processes):
                yield Stream(room, room, -1)
            return
        for number in range(self.stream_count):
            room, place = divmod(number, self.publishers)
            connection = (room + place * self.rooms) // self.rooms_per_connection
            if connection % self.processes == process:
                yield Stream(number, room, connection)

    def heard_by(self, connection: int) -> Iterator[int]:
        """The streams whose messages a connection has to get."""
        each = self.publishers_per_room
        for room in self.rooms_of(connection):
            yield from range(room * each, room * each + each)
