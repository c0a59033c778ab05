"""What a reader has got of one topic's history, and whether a message that arrives is new to it. No I/O here.

Epoch and offset alone do not name a message: after a failover that lost the newest ones, the same offsets in the same
epoch are given to others. Offsets compare messages of one unbroken line of history. Where the line forks, only a whole
position, with its tag, says that two messages are the same.
"""

from __future__ import annotations

from typing import Final

from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.publications import Position, Publication

__all__ = ("HISTORY_LOST", "UNBEGUN", "Span", "follows", "history_lost", "unrecovered")

HISTORY_LOST: Final = "__resume__"
"""The event that tells members of a lost history. No app can send it, and no other node."""
UNBEGUN: Final = Position(0, "")
"""Where a topic stands that keeps nothing so far."""
REMEMBERED: Final = 256
"""Positions that are remembered exactly: what is on its way twice is among the newest."""


def follows(last: Position | None, position: Position) -> bool:
    """Whether nothing can be missing between the two, heard one after the other on a link that did not break.

    The first of a new life follows whatever came before. None: nothing was heard before, so nothing can be said.
    """
    if last is None:
        return True
    if last.epoch == position.epoch:
        return position.offset == last.offset + 1
    return position.offset == 1


def unrecovered(reason: str) -> dict[str, object]:
    """What is said of a room of which something may be missing that cannot be replayed."""
    return {"recovered": False, "reason": reason}


def history_lost(room: str) -> Publication:
    """Tells the members of `room` that something may be missing, before anything newer."""
    return Publication(HISTORY_LOST, encode_payload({"rooms": {room: unrecovered("history_lost")}}))


class Span:
    """Up to `last`, a reader has got everything. None: nobody knows how far.

    A reader may be given older ones once more, after it was told of a loss: from there on it gets everything again,
    also what it had before, since to it the history goes on from what it got last.
    """

    __slots__ = ("_has_forked", "_tags", "last")

    def __init__(self, last: Position | None = None) -> None:
        self.last: Position | None = None
        self._tags: dict[int, str] = {}
        self._has_forked = False
        if last is not None:
            self.got(last)

    def got(self, position: Position) -> None:
        """The reader has got this as well, after all before."""
        last = self.last
        if last is None or last.epoch != position.epoch:
            self._tags.clear()
        elif position.offset <= last.offset:  # a step back: what the reader had from here on is not what it has now
            self._tags = {offset: tag for offset, tag in self._tags.items() if offset < position.offset}
        self.last = position
        self._tags[position.offset] = position.tag  # the newest comes last
        if len(self._tags) > REMEMBERED:
            del self._tags[next(iter(self._tags))]

    def fork(self) -> None:
        """From here on the history may be another one, which gives the same offsets to other messages."""
        self._has_forked = True

    def has(self, position: Position) -> bool:
        """Whether the reader has got it."""
        last = self.last
        if last is None or position.epoch != last.epoch or position.offset > last.offset:
            return False
        tag = self._tags.get(position.offset)
        return not self._has_forked if tag is None else tag == position.tag

    def is_beyond(self, position: Position) -> bool:
        """Whether what comes from `position` on is new in any case."""
        last = self.last
        return last is None or position.epoch != last.epoch or position.offset > last.offset
