"""What a node missed of one topic's history: read once, however many members the topic has here, and put in order.

Where the history cannot say what was missed, that is found out as well: it was trimmed, or is another one. After a
failover that lost the newest messages it is another one from some offset on, though its epoch is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from socketspec.backend.protocols import HistoryStore
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.protocol.spans import UNBEGUN, follows

__all__ = ("Found", "Merged", "find", "merge")

MAX_READ: Final = 10_000
"""The newest messages of another history that are delivered."""


class Found(NamedTuple):
    """What a history says."""

    missed: Sequence[Publication] = ()
    last: Position | None = None
    """Where it stands; None where that is not known."""
    cause: str = ""
    """Why something may be lost; empty where nothing is."""


class Merged(NamedTuple):
    """What can be delivered now."""

    publications: list[Publication]
    last: Position | None
    """Where the node stands then; None where that is not known."""
    is_lost: bool
    """Whether something may be lost that comes before them."""
    rest: Sequence[Publication]
    """What came live and does not follow: the history is to be read again."""


async def find(history: HistoryStore, topic: Topic, since: Position, held: Iterable[Publication]) -> Found:
    """Read what followed `since`, while `held` takes what comes in. Raises `BackendError`."""
    try:
        missed = await history.read(topic, since=since)
    except LookupError as error:
        return await _find_another(history, topic, since, held, str(error))
    return Found(missed, _last(missed) or since)


async def _find_another(
    history: HistoryStore, topic: Topic, since: Position, held: Iterable[Publication], cause: str
) -> Found:
    """Read the history that there is now, as far as it is sure to be new to whoever has all up to `since`."""
    kept: Sequence[Publication] = ()
    with suppress(LookupError):
        kept = await history.read(topic, limit=MAX_READ)
    last = _last(kept)
    if last is None:  # an empty server may have been asked, and the next one may have it all again
        return Found((), UNBEGUN) if since == UNBEGUN else Found(cause=cause)
    first = since.offset + 1 if last.epoch == since.epoch else 1
    live = [item.position.offset for item in held if item.position is not None and item.position.epoch == last.epoch]
    first = min([first, *live])
    missed = [item for item in kept if item.position is not None and item.position.offset >= first]
    is_whole = _begins_with_the_first(kept)
    return Found(missed, last, "" if since == UNBEGUN and is_whole else cause)


def merge(since: Position, found: Found, held: Iterable[Publication]) -> Merged:
    """What is to be delivered to members who have all up to `since`: what was missed, then what came live."""
    known = {item.position for item in found.missed}
    ready, last, is_lost = list(found.missed), found.last, bool(found.cause)
    waiting = tuple(held)
    for number, item in enumerate(waiting):
        position = item.position
        if position is None:
            ready.append(item)
        elif position in known:
            continue
        elif follows(last, position):
            ready.append(item)
            last = position
        elif found.last is None:  # no history says what is missing between these two: it is asked again
            return Merged(ready, last, is_lost, waiting[number:])
        elif last is not None and position.epoch == last.epoch and position.offset <= last.offset:
            # Heard before, or given to another message meanwhile. Where the whole position is known, that is certain.
            is_lost = is_lost or (position.epoch == since.epoch and position.offset > since.offset)
        elif number or found.missed:
            return Merged(ready, last, is_lost, waiting[number:])
        else:  # the history does not have what came before it
            ready.append(item)
            last, is_lost = position, True
    return Merged(ready, last, is_lost, ())


def _last(items: Sequence[Publication]) -> Position | None:
    return items[-1].position if items else None


def _begins_with_the_first(items: Sequence[Publication]) -> bool:
    position = items[0].position
    return position is not None and position.offset == 1
