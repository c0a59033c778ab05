"""permessage-deflate (RFC 7692) for servers that fan out: a broadcast is compressed once for all its recipients.

For that, each message the server sends is compressed without the context of the ones before
(``server_no_context_takeover``), and with the same window size wherever clients allow it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from socketspec.adapters.uvicorn.frames import TooLargeError

__all__ = ("Deflate", "Inflater", "deflate", "negotiate")

WINDOW_BITS: Final = 12
MEMORY_LEVEL: Final = 5
MAX_STREAMS: Final = 16
"""Deflate streams that the payload of one frame may hold. Clients use one; to use many is a way to cost time."""
_NAME: Final = "permessage-deflate"
_TAIL: Final = b"\x00\x00\xff\xff"


class Deflate:
    """What was agreed on with one client."""

    __slots__ = ("_client_bits", "_client_resets", "bits")

    def __init__(self, bits: int, client_bits: int, *, client_resets: bool) -> None:
        self.bits: int = bits
        """Window bits of what the server compresses."""
        self._client_bits = client_bits
        self._client_resets = client_resets

    def inflater(self) -> Inflater:
        """For the messages of one connection."""
        return Inflater(self._client_bits, resets=self._client_resets)


class Inflater:
    """Decompresses one client's messages."""

    __slots__ = ("_bits", "_resets", "_zlib")

    def __init__(self, bits: int, *, resets: bool) -> None:
        self._bits = bits
        self._resets = resets
        self._zlib = zlib.decompressobj(-bits)

    def piece(self, data: bytes, *, is_last: bool, limit: int) -> bytes:
        """What one frame's payload holds. Raises `TooLargeError` beyond `limit` bytes, `ValueError` for nonsense."""
        rest, found = data + _TAIL if is_last else data, b""
        # A stream may end inside a message, and another one follow (RFC 7692 section 7.2.3.4).
        for _ in range(MAX_STREAMS):
            if self._zlib.eof:
                if is_last and rest == _TAIL:  # the sender left out the first byte of the empty block: harmless
                    break
                self._zlib = zlib.decompressobj(-self._bits)
            try:
                found += self._zlib.decompress(rest, limit + 1 - len(found))
            except zlib.error as error:
                raise ValueError(str(error)) from None
            if len(found) > limit:
                raise TooLargeError
            rest = self._zlib.unused_data
            if not rest:
                break
        else:
            raise ValueError("too many streams in one frame")
        if is_last and (self._resets or self._zlib.eof):
            self._zlib = zlib.decompressobj(-self._bits)
        return found


def negotiate(offers: Sequence[str]) -> tuple[str, Deflate] | None:
    """The answer to the values of ``Sec-WebSocket-Extensions`` and what it means; None where nothing was agreed on."""
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, server_max_window_bits=WINDOW_BITS, client_max_window_bits=WINDOW_BITS
    )
    try:
        offered = [offer for value in offers for offer in parse_extension(value)]
    except InvalidHeader:
        return None
    for name, parameters in offered:
        if name == _NAME:
            try:
                answer, agreed = factory.process_request_params(parameters, [])
            except NegotiationError:
                continue
            parameters_agreed = Deflate(
                agreed.local_max_window_bits,
                agreed.remote_max_window_bits,
                client_resets=agreed.remote_no_context_takeover,
            )
            return build_extension([(name, answer)]), parameters_agreed
    return None


def deflate(data: bytes, bits: int) -> bytes:
    """One message compressed by itself, for every connection with these window bits."""
    # `bits` is never 8, to which `negotiate` does not agree: zlib writes no raw stream with so small a window.
    compressor = zlib.compressobj(wbits=-bits, memLevel=MEMORY_LEVEL)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
