"""Frames as nodes get them from Redis. In life those with a position are put together by ``publish.lua``."""

from __future__ import annotations

from socketspec.cluster.commands.envelope import encode_body, plain_frame
from socketspec.protocol.publications import Publication

__all__ = ("frame", "payload")


def frame(publication: Publication) -> bytes:
    """The frame of a publication, with its position if it has one."""
    body, position = encode_body(publication), publication.position
    if position is None:
        return plain_frame(body)
    return b"\x02%d:%s:%s\n%s" % (position.offset, position.epoch.encode(), position.tag.encode(), body)


def payload(size: int) -> bytes:
    """A payload of so many bytes, two at least."""
    return b"{}".ljust(size)
