"""What a publication looks like between nodes and in a stream.

The body is MessagePack: ``[event, payload]``, ``[event, payload, excluded ids]`` or ``[event, payload, excluded ids,
trace]``, where the payload is JSON text as bytes. A frame on a channel is ``01 body``, or for a publication with a
position ``02 offset:epoch:tag \\n body``: a Lua script can put that in front without knowing MessagePack.

Versions run side by side in every rollout. So a later one may add fields to the end of the body, and to the position
after another colon: they are not read here, whatever they are. What it cannot say so is a frame of another first byte,
which nobody reads before it was upgraded.

Anybody may publish to a channel. What is handed on from here can be sent to a client as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

import msgpack

from socketspec.errors import BackendError
from socketspec.protocol.encoding import is_payload
from socketspec.protocol.names import MAX_NAME_BYTES, check_outbound
from socketspec.protocol.publications import Position, Publication

__all__ = ("MAX_FRAME_BYTES", "decode", "decode_body", "encode_body", "plain_frame")

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The largest body or frame, in bytes."""

_PLAIN: Final = 1
_POSITIONED: Final = 2
_HEADER_BYTES: Final = 256
_MAX_TRACE: Final = 128
"""Characters of a trace; a traceparent of version 00 has 55."""
_MAX_OFFSET_DIGITS: Final = 16
"""Lua counts in floats: beyond 2**53 offsets would not be exact."""

_unpack: Callable[[bytes], Any] = partial(  # maps and extension types: what a later version adds may be anything
    msgpack.unpackb,
    raw=False,
    strict_map_key=False,
    max_array_len=1_000_000,
    max_map_len=10_000,
    max_ext_len=65_536,
    max_bin_len=MAX_FRAME_BYTES,
)


def encode_body(publication: Publication) -> bytes:
    """The body, without the position. Raises `BackendError` for one larger than `MAX_FRAME_BYTES`."""
    parts: list[object] = [publication.event, publication.payload]
    if publication.exclude or publication.trace:
        parts.append(publication.exclude)
    if publication.trace:
        parts.append(publication.trace)
    packed: Any = msgpack.packb(parts)
    body: bytes = packed
    if len(body) > MAX_FRAME_BYTES - _HEADER_BYTES:
        raise BackendError(
            f"The publication {publication.event!r} has {len(body)} bytes; nodes send each other at most "
            f"{MAX_FRAME_BYTES - _HEADER_BYTES}. Publish a reference to the data instead."
        )
    return body


def plain_frame(body: bytes) -> bytes:
    """The frame of a publication without a position. Those with one are made by ``publish.lua``."""
    return b"\x01" + body


def decode(data: bytes) -> Publication | None:
    """The publication in a frame; None for another kind of frame and for anything broken. Never raises."""
    if not data or len(data) > MAX_FRAME_BYTES:
        return None
    if data[0] == _PLAIN:
        return decode_body(data[1:])
    if data[0] != _POSITIONED:
        return None
    end = data.find(b"\n", 1, _HEADER_BYTES)
    position = _decode_position(data[1:end]) if end > 0 else None
    return decode_body(data[end + 1 :], position) if position is not None else None


def decode_body(body: bytes, position: Position | None = None) -> Publication | None:
    """The publication in a body, at `position`; None for anything broken. Never raises."""
    try:
        parts = _unpack(body)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return None
    if type(parts) is not list or len(parts) < 2:
        return None
    event, payload = parts[0], parts[1]
    if type(event) is not str or len(event) > MAX_NAME_BYTES or not _is_sent(event):
        return None
    if type(payload) is not bytes or not is_payload(payload):
        return None
    if len(parts) == 2:
        return Publication(event=event, payload=payload, position=position)
    exclude = parts[2]
    if type(exclude) is not list or not all(type(item) is str for item in exclude):
        return None
    trace = parts[3] if len(parts) > 3 else ""
    if type(trace) is not str or len(trace) > _MAX_TRACE:
        trace = ""  # no message is lost for it
    return Publication(event=event, payload=payload, exclude=tuple(exclude), position=position, trace=trace)


@lru_cache(maxsize=1024)  # an app sends the same few events over and over
def _is_sent(event: str) -> bool:
    """Whether an app can have sent an event of this name: the protocol's own are not published."""
    try:
        check_outbound(event)
    except ValueError:
        return False
    return True


def _decode_position(header: bytes) -> Position | None:
    parts = header.split(b":")
    if len(parts) < 3 or not parts[0].isdigit() or len(parts[0]) > _MAX_OFFSET_DIGITS:
        return None
    try:
        return Position(int(parts[0]), parts[1].decode("ascii"), parts[2].decode("ascii"))
    except UnicodeDecodeError:
        return None
