"""Backpressure: a connection's bounded buffer, and what happens when it is full.

A transport writes at once while the client keeps up. When it does not, messages wait in the connection's `Outbox`,
which is bounded in bytes; what happens when that is full is the app's `Backpressure` policy. One stalled client never
delays another, and never takes more memory than its bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Literal, get_args

from socketspec.connection.waiting import Waiting
from socketspec.errors import ConfigurationError
from socketspec.protocol.encoding import OVERHEAD, Message
from socketspec.protocol.formats import Format

__all__ = ("Backpressure", "Outbox", "Overflow", "Policy")


Policy = Literal["disconnect", "drop_oldest", "keep_latest"]


def _message_key(message: Message) -> str:
    return message.event


@dataclass(frozen=True, slots=True, kw_only=True)
class Backpressure:
    """What happens to a client that reads more slowly than we send.

    `max_buffer` is how many bytes may wait for one connection (default 1 MiB); each waiting message counts 512 bytes
    on top of its body, for what it takes in memory. When the buffer is full:

    - ``"disconnect"`` (default): the connection is closed with 4006 `slow_consumer`. A client that resumes gets what
      it missed from rooms with history.
    - ``"drop_oldest"``: the oldest waiting broadcasts make room. Replies, errors and emits are never dropped.
    - ``"keep_latest"``: a broadcast replaces the waiting one of the same room and `key` (default: the event name),
      whether or not the buffer is full. For prices and positions, of which only the last one counts.

    If a policy cannot make room by dropping broadcasts, the connection is closed all the same. A client that takes
    nothing at all for `send_timeout` seconds counts as slow, too.

    `max_node_buffer` is how many bytes may wait for all connections of this node together; None: what the environment
    variable ``SOCKETSPEC_MAX_NODE_BUFFER`` says, else 256 MiB. A message that waits for many clients counts once, and
    512 bytes for each of them. Beyond it, those for whom most waits are closed as slow, whatever the policy, until an
    eighth of it is free.
    """

    max_buffer: int = 1_048_576
    max_node_buffer: int | None = None
    policy: Policy = "disconnect"
    send_timeout: float = 10.0
    key: Callable[[Message], str] = _message_key

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ConfigurationError(
                f"Backpressure(policy={self.policy!r}) is not a policy; choose one of {', '.join(get_args(Policy))}."
            )
        if self.max_buffer < 1024:
            raise ConfigurationError(f"Backpressure(max_buffer={self.max_buffer!r}) must be at least 1024 bytes.")
        if not self.send_timeout > 0:
            raise ConfigurationError(f"Backpressure(send_timeout={self.send_timeout!r}) must be more than 0 seconds.")


class Overflow(Enum):
    """What `Outbox.push` did with a message."""

    QUEUED = "queued"
    DROPPED = "dropped"
    """Queued, and older broadcasts were dropped for it."""
    FULL = "full"
    """Not queued: the connection must go."""


class Outbox:
    """One connection's waiting messages: a queue bounded in bytes. No I/O; each call takes constant time, amortised.

    What is in it is counted in `waiting` as well, whose owner may have the connection closed by `give_up`.
    """

    __slots__ = (
        "_broadcasts",
        "_droppable",
        "_format",
        "_give_up",
        "_latest",
        "_limits",
        "_next",
        "_queue",
        "_waiting",
        "dropped",
        "size",
    )

    def __init__(self, limits: Backpressure, format: Format, waiting: Waiting, give_up: Callable[[], None]) -> None:
        self._limits = limits
        self._format = format
        self._waiting = waiting
        self._give_up = give_up
        # Keyed by the order of arrival, so that a message in the midst of the queue can be replaced or removed.
        self._queue: OrderedDict[int, tuple[Message, tuple[str, str] | None]] = OrderedDict()
        self._broadcasts: OrderedDict[int, None] = OrderedDict()
        self._droppable = 0
        self._next = 0
        self._latest: dict[tuple[str, str], int] = {}
        self.size: int = 0
        """Bytes waiting, `OVERHEAD` for each message included."""
        self.dropped: int = 0
        """Broadcasts dropped so far."""

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, message: Message) -> Overflow:
        """Queue `message`, making room for it as the policy says."""
        slot = self._slot(message)
        if slot is not None and slot in self._latest:
            return self._replace(self._latest[slot], message)
        length = self._length(message)
        dropped = self.dropped
        if self.size + length > self._limits.max_buffer and (
            self._limits.policy == "disconnect" or not self._make_room(length)
        ):
            return Overflow.FULL
        self._queue[self._next] = message, slot
        if slot is not None:
            self._latest[slot] = self._next
        if message.room is not None:
            self._broadcasts[self._next] = None
            self._droppable += length
        self._next += 1
        self.size += length
        self._waiting.add(self, message.data(self._format))
        return Overflow.QUEUED if dropped == self.dropped else Overflow.DROPPED

    def pop(self) -> Message:
        """The next message to send. Raises `KeyError` when there is none."""
        if not self._queue:
            raise KeyError("nothing waits")
        return self._remove(next(iter(self._queue)))

    def give_up(self) -> None:
        """Have the connection closed as one that reads too slowly, and what waits forgotten."""
        self._give_up()

    def clear(self) -> None:
        """Forget everything."""
        for message, _ in self._queue.values():
            self._waiting.remove(message.data(self._format))
        self._waiting.emptied(self)
        self._queue.clear()
        self._latest.clear()
        self._broadcasts.clear()
        self._droppable = 0
        self.size = 0

    def _length(self, message: Message) -> int:
        return len(message.data(self._format)) + OVERHEAD

    def _slot(self, message: Message) -> tuple[str, str] | None:
        if self._limits.policy != "keep_latest" or message.room is None:
            return None
        return message.room, self._limits.key(message)

    def _remove(self, index: int) -> Message:
        message, slot = self._queue.pop(index)
        length = self._length(message)
        self.size -= length
        self._waiting.remove(message.data(self._format))
        if not self._queue:
            self._waiting.emptied(self)
        if slot is not None:
            self._latest.pop(slot, None)
        if message.room is not None:
            del self._broadcasts[index]
            self._droppable -= length
        return message

    def _replace(self, index: int, message: Message) -> Overflow:
        replaced, slot = self._queue[index]
        grown = self._length(message) - self._length(replaced)
        if self.size + grown > self._limits.max_buffer and not self._make_room(grown, keep=index):
            return Overflow.FULL
        self._queue[index] = message, slot
        self._waiting.add(self, message.data(self._format))
        self._waiting.remove(replaced.data(self._format))
        self.size += grown
        self._droppable += grown
        self.dropped += 1
        return Overflow.DROPPED

    def _make_room(self, length: int, *, keep: int = -1) -> bool:
        """Drop the oldest broadcasts until `length` bytes fit. False, with nothing dropped, if they cannot fit."""
        kept = 0 if keep < 0 else self._length(self._queue[keep][0])
        if self.size - self._droppable + kept + length > self._limits.max_buffer:
            return False
        while self.size + length > self._limits.max_buffer:
            self._remove(next(index for index in islice(self._broadcasts, 2) if index != keep))
            self.dropped += 1
        return True
