"""`Unreadable`: what came from Redis and nobody of ours wrote, or a version that is newer: counted, and said.

Another program may use the same prefix, a person may have tried a command, and in a rollout two versions write side by
side. What cannot be read is passed over, never raised: one such value must not keep others from being served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

from socketspec.telemetry.log_pace import LOG_EVERY, OnceAMinute
from socketspec.text import cut

__all__ = ("Unreadable", "ValueKind")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

FrameReason: TypeAlias = Literal["version", "foreign"]
"""Why a frame cannot be read: it is of a kind that a newer version may have, or none of ours at all."""
ValueKind: TypeAlias = Literal["bucket", "count", "history", "lease", "member", "session", "topic"]
"""Which value of ours it stands in the place of."""

_FIRST_FOREIGN: Final = 0x20
"""Kinds of frames are numbered from 1; what begins with a letter or a brace is nobody's frame."""
_KNOWN_KINDS: Final = (1, 2)
_SHOWN: Final = 60


class Unreadable:
    """Counts what was passed over since the start, and logs each sort of it at most once a minute.

    `now` is a monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.frames: dict[str, int] = dict.fromkeys(get_args(FrameReason), 0)
        """Frames on channels, by reason."""
        self.values: dict[str, int] = dict.fromkeys(get_args(ValueKind), 0)
        """Values of keys, by kind."""
        self._now = now
        self._lines = {sort: OnceAMinute(now) for sort in (*self.frames, *self.values)}
        self._last_frame = float("-inf")

    def frame(self, channel: bytes, data: bytes) -> None:
        """A message on `channel` was dropped."""
        kind = data[0] if data else -1
        reason = "version" if 0 <= kind < _FIRST_FOREIGN and kind not in _KNOWN_KINDS else "foreign"
        self.frames[reason] += 1
        self._last_frame = self._now()
        if not self._lines[reason].is_due():
            return
        if reason == "version":
            logger.warning(
                "Dropped a frame on %s of kind %d, which cannot be read: another version of SocketSpec publishes there."
                " Run the newest one on all nodes and publishers (%s)",
                _name(channel), kind, _so_far(self.frames[reason]),
            )  # fmt: skip
        else:
            logger.warning(
                "Dropped %d bytes on %s, which cannot be read: no version of SocketSpec known here publishes such a "
                "frame. Which other program publishes to channels of this prefix? Give each a prefix of its own (%s)",
                len(data), _name(channel), _so_far(self.frames[reason]),
            )  # fmt: skip

    def value(self, kind: ValueKind, where: bytes, value: object = None, *, count: int = 1) -> None:
        """`count` values of the key `where` were passed over, such as `value`; None where that is not known."""
        self.values[kind] += count
        if self._lines[kind].is_due():
            logger.warning(
                "Passed over %s in %s: it is no %s and cannot be read. Another program, or another version of "
                "SocketSpec, has written it: look at the key, and give each program a prefix of its own (%s)",
                "a value" if value is None else _shown(value), _name(where), kind, _so_far(self.values[kind]),
            )  # fmt: skip

    def recently(self) -> str:
        """What the health report says of frames that were dropped within the last minute; empty where none was."""
        if self._now() - self._last_frame >= LOG_EVERY:
            return ""
        told = ", ".join(f"{count} of reason {reason!r}" for reason, count in self.frames.items() if count)
        return f"drops frames that cannot be read, since its start {told}: see the log"


def _so_far(count: int) -> str:
    return f"said once a minute; {count} so far"


def _name(key: bytes) -> str:
    """A key or channel, as it stands in Redis."""
    return cut(key.decode("utf-8", "backslashreplace"), 300)


def _shown(value: object) -> str:
    """The beginning of a value of any size."""
    return cut(repr(value[:_SHOWN] if isinstance(value, bytes | str) else value), 2 * _SHOWN)
