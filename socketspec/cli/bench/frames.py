"""The client's side of RFC 6455, as bytes in and out: no more than a load generator needs, at little cost."""

from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = (
    "CLOSE",
    "MAX_MESSAGE",
    "PING",
    "PONG",
    "FrameError",
    "Frames",
    "Head",
    "accept_of",
    "client_frame",
    "close_frame",
    "new_key",
    "read_head",
    "request",
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_MESSAGE: Final = 1 << 24
"""Bytes of a message from the server that are kept at most."""
MAX_HEAD: Final = 1 << 16
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SHORT: Final = 126


class FrameError(Exception):
    """The peer does not speak RFC 6455, or sends more than we keep."""


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One masked frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < _SHORT:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8)
    # A mask guards proxies against scripts in browsers that choose what they send (section 10.3), which we are not.
    mask = random.getrandbits(32).to_bytes(4)
    many = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(many)).to_bytes(size)


def close_frame(code: int = 1000) -> bytes:
    """A client's close frame."""
    return client_frame(code.to_bytes(2), CLOSE)


class Frames:
    """Takes what is read; gives whole messages and control frames as ``(opcode, payload)``."""

    __slots__ = ("_message", "_opcode", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._opcode = 0
        self._message: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What has become complete. Raises `FrameError`."""
        if self._rest:
            data = self._rest + data
        found: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while size - at >= 2:
            length = data[at + 1]
            head = at + 2
            if length >= _SHORT:
                wide = 2 if length == _SHORT else 8
                if length > 127:
                    raise FrameError("a masked frame from the server")
                head += wide
                if head > size:
                    break
                length = int.from_bytes(data[head - wide : head])
                if length > MAX_MESSAGE:
                    raise FrameError(f"a frame of {length} bytes")
            end = head + length
            if end > size:
                break
            first = data[at]
            if first == 0x81 or first == 0x82:
                found.append((first & 15, data[head:end]))
            else:
                self._unusual(first, data[head:end], found)
            at = end
        self._rest = data[at:] if at else data
        return found

    def _unusual(self, first: int, payload: bytes, found: list[tuple[int, bytes]]) -> None:
        opcode = first & 15
        if first & 0x70:
            raise FrameError("reserved bits are set")
        if opcode >= CLOSE:
            found.append((opcode, payload))
            return
        if opcode != CONTINUATION:
            self._opcode = opcode
            self._message = []
        self._message.append(payload)
        if sum(map(len, self._message)) > MAX_MESSAGE:
            raise FrameError("a message of many frames is too large")
        if first & 0x80:
            found.append((self._opcode, b"".join(self._message)))
            self._message = []


def new_key() -> str:
    """A Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_of(key: str) -> str:
    """The Sec-WebSocket-Accept that answers `key`."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def request(authority: str, path: str, key: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """An opening handshake (RFC 6455 section 4.1)."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {authority}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Head(NamedTuple):
    """The head of an HTTP answer."""

    status: int
    headers: dict[str, str]
    """By lower-case name."""
    rest: bytes
    """What came after it."""


def read_head(data: bytes) -> Head | None:
    """The answer to a handshake; None while it is incomplete. Raises `FrameError`."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        if len(data) > MAX_HEAD or (data and not b"HTTP/1.".startswith(data[:7])):
            raise FrameError("the answer to the handshake is not HTTP/1.1")
        return None
    status, *lines = head.decode("latin-1").split("\r\n")
    words = status.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise FrameError("the answer to the handshake is not HTTP/1.1")
    pairs = (line.partition(":") for line in lines)
    return Head(int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}, rest)
