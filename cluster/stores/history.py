"""Reads what was kept of a topic. `read_command` and `parse_read` do no I/O: nodes and publishers share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.commands.command import Command, CommandRunner, Script
from socketspec.cluster.commands.envelope import decode_body
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication, Topic

__all__ = ("RedisHistory", "parse_read", "read_command")

_READ: Final = Script("read")
_NO_LIMIT: Final = -1
_NONE_OF_OURS: Final = 0
"""What is answered where the keys of a history hold something else."""


class RedisHistory(HistoryStore):
    """Reads the streams that `publish_command` filled, each read in one atomic step."""

    def __init__(self, runner: CommandRunner, keys: Keys, unreadable: Unreadable | None = None) -> None:
        self._runner = runner
        self._keys = keys
        self._unreadable = unreadable or Unreadable()

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        """See `HistoryStore.read`. Raises `LookupError`, and `BackendError` where Redis cannot be asked."""
        reply = await self._runner.run(read_command(self._keys, topic, since=since, limit=limit))
        return parse_read(reply, topic, self._keys.stream(topic), self._unreadable, since=since, limit=limit)


def read_command(keys: Keys, topic: Topic, *, since: Position | None = None, limit: int | None = None) -> Command:
    """Read the newest `limit` publications, or those after `since`. Its reply goes to `parse_read`."""
    names = (keys.meta(topic), keys.stream(topic))
    if since is None:
        return _READ.command(names, "newest", _NO_LIMIT if limit is None else max(limit, 0), 0)
    # Begins with the one at `since`, to compare its tag. Offsets come from clients: only possible ones are let through.
    offset = min(max(since.offset, 0), 2**53)
    return _READ.command(names, "since", _NO_LIMIT if limit is None else max(limit, 0) + 1, offset)


def parse_read(
    reply: Any,
    topic: Topic,
    where: bytes,
    unreadable: Unreadable,
    *,
    since: Position | None = None,
    limit: int | None = None,
) -> list[Publication]:
    """The publications in the reply to `read_command` for the same `since` and `limit`, oldest first.

    Raises `LookupError` where `since` cannot be honoured, and `BackendError` for a reply that is none. `unreadable` is
    told of what the stream `where` has and nobody of ours wrote.
    """
    if reply == _NONE_OF_OURS:
        unreadable.value("history", where)
        reply = None
    if reply is None:
        if since is None:
            return []
        raise LookupError(f"{topic.name!r} keeps no history at present")
    newest, size, raw = _header(reply)
    entries = [_entry(item, newest.epoch) for item in raw]
    strange = [item for item, (_, publication) in zip(raw, entries, strict=True) if publication is None]
    if strange:
        unreadable.value("history", where, strange[0], count=len(strange))
    if since is None:
        return [publication for _, publication in reversed(entries) if publication is not None]
    _check_since(topic, since, newest, size)
    return _following(topic, since, entries, limit)


def _check_since(topic: Topic, since: Position, newest: Position, size: int) -> None:
    """Raise `LookupError` where the newest position alone says that `since` cannot be honoured."""
    if since.epoch != newest.epoch or not 0 <= since.offset <= newest.offset:
        raise LookupError(f"{topic.name!r} has begun a new history since that position")
    if since.offset < newest.offset - size:
        raise LookupError(f"{topic.name!r} no longer keeps what followed offset {since.offset}")


def _following(
    topic: Topic, since: Position, entries: list[tuple[Position, Publication | None]], limit: int | None
) -> list[Publication]:
    """What follows `since`. The first of `entries` is the one at `since`, unless that is the very beginning."""
    if since.offset > 0:
        if not entries or entries[0][0].offset != since.offset:
            raise LookupError(f"{topic.name!r} no longer keeps offset {since.offset}, so it cannot be verified")
        if entries[0][0].tag != since.tag:
            raise LookupError(f"offset {since.offset} of {topic.name!r} is another publication")
        entries = entries[1:]
    found: list[Publication] = []
    for expected, (position, publication) in enumerate(entries[:limit], since.offset + 1):
        if position.offset != expected or publication is None:
            raise LookupError(f"{topic.name!r} no longer keeps offset {expected} in a form this version can read")
        found.append(publication)
    return found


def _header(reply: Any) -> tuple[Position, int, list[Any]]:
    try:
        offset, epoch, tag, size, entries = reply
        return Position(int(offset), epoch.decode(), tag.decode()), int(size), list(entries)
    except (TypeError, ValueError, AttributeError):
        raise BackendError(f"Redis answered a history read with {reply!r:.200}; is a proxy in between?") from None


def _entry(item: Any, epoch: str) -> tuple[Position, Publication | None]:
    """An entry's position, and its publication; None in its place for what another version wrote."""
    try:
        name, fields = item
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        offset, _, rest = name.partition(b"-")
        if rest != b"0":
            return Position(-1, epoch), None
        position = Position(int(offset), epoch, values[b"t"].decode())
        return position, decode_body(values[b"b"], position)
    except (TypeError, ValueError, AttributeError, KeyError):
        return Position(-1, epoch), None
