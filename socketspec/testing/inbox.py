"""What has come to a client: decoded, in order, until it is read; and how it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import msgpack
from pydantic_core import from_json, to_json

from socketspec.protocol.formats import Format
from socketspec.protocol.names import is_reserved
from socketspec.text import cut

__all__ = ("HOUSEKEEPING", "MAX_UNREAD", "Inbox", "Message", "shown")

Message = dict[str, Any]
"""A message as the client got it: `event`, `payload`, and what else is with them."""

MAX_UNREAD: Final = 100_000
"""Messages that may wait to be read. With more, the client counts as one that reads too slowly."""
SHOWN: Final = 5
"""Messages that an error shows."""
MAX_SHOWN: Final = 200
"""Characters of each of them."""

HOUSEKEEPING: Final = frozenset(
    {
        "__auth_expiring__",
        "__connect__",
        "__idle_warning__",
        "__ping__",
        "__pong__",
        "__resume__",
        "__server_shutdown__",
        "__session_expiring__",
    }
)
"""What the protocol says by itself: of no interest to a test that does not ask for it."""


class Inbox:
    """The messages of one client."""

    def __init__(self) -> None:
        self.format: Format = Format.PLAIN
        """How the connection speaks; set when that is known."""
        self.ended: tuple[int, str] | None = None
        """The close code and reason, once the connection has ended."""
        self.positions: dict[str, dict[str, Any]] = {}
        """The newest position in each room with history, as `__resume__` takes it."""
        self.session: str | None = None
        """The session token; None for a plain client, which is not told."""
        self.count: int = 0
        """Messages that have come so far."""
        self._unread: deque[tuple[int, Message]] = deque()
        self._read: deque[Message] = deque(maxlen=SHOWN)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._unread)

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """The unread messages, each with its number."""
        return iter(tuple(self._unread))

    def put(self, data: str | bytes) -> Message:
        """Take one frame's message."""
        message: Message = msgpack.unpackb(data) if self.format is Format.MSGPACK else from_json(data)
        self.count += 1
        self._unread.append((self.count, message))
        if "offset" in message and "room" in message:
            self.positions[message["room"]] = {name: message[name] for name in ("offset", "epoch", "tag")}
        elif message["event"] == "__connect__":
            self.session = message["payload"].get("session")
        self.changed()
        return message

    def take(self, number: int) -> Message:
        """Read the unread message with this number."""
        for entry in self._unread:
            if entry[0] == number:
                self._unread.remove(entry)
                self._read.append(entry[1])
                return entry[1]
        raise LookupError(f"message {number} has been read")

    def end(self, code: int, reason: str) -> None:
        """The connection has ended; the first end counts."""
        if self.ended is None:
            self.ended = (code, reason)
            self.changed()

    def reopen(self) -> None:
        """A new connection takes the place of the ended one. What is unread stays."""
        self.ended = None

    def changed(self) -> None:
        """Wake who waits."""
        self._changed.set()

    async def change(self) -> None:
        """Wait until something comes, ends or fails."""
        self._changed.clear()
        await self._changed.wait()

    def account(self) -> str:
        """What there is to say about what came instead, for errors."""
        unread = [message for _, message in self._unread]
        if unread:
            more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
            return f"unread: {', '.join(map(shown, unread[:SHOWN]))}{more}"
        if self._read:
            return f"nothing is unread; read before: {', '.join(map(shown, self._read))}"
        return "nothing has come at all"


def shown(message: Message) -> str:
    """A message on a line, abbreviated."""
    event = message["event"]
    if event == "__error__":
        payload = message["payload"]
        about = f" for {payload['event']!r}" if payload.get("event") else ""
        return cut(f"__error__ {payload.get('code')}{about} ({payload.get('message')})", MAX_SHOWN)
    id = f" (id {message['id']!r})" if "id" in message else ""
    text = to_json(message["payload"], inf_nan_mode="constants").decode()
    return cut(f"{event if is_reserved(event) else repr(event)}{id} {text}", MAX_SHOWN)
