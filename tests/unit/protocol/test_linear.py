"""What a client chose takes time linear in its length, in and out: also what looks like what is searched for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgpack
import pytest

from socketspec.errors import ValidationFailed
from socketspec.protocol.decoding import decode
from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.formats import Format

PIECES = [
    "x",
    "1" * 4299 + "x",
    "1" * 199 + "x",
    "0" * 199 + "1e",
    "1e00",
    '"event"',
    "\\",
    '"',
    '\\"',
    "\\u0041",
    "[]",
    "[{",
    ",",
    "\0",
    "\x7f\xff",
    "é",
]


def in_json(text: str) -> None:
    decode(json.dumps({"event": "e", "payload": {"text": text}}), Format.JSON)


def in_broken_json(text: str) -> None:
    try:
        decode('{"event":"e","payload":{"text":' + text, Format.JSON)
    except ValidationFailed:
        return


def packed(text: str) -> None:
    decode(msgpack.packb({"event": "e", "payload": {"text": text}}), Format.MSGPACK)


def as_bytes(text: str) -> None:
    try:
        decode(text.encode(), Format.MSGPACK)
    except ValidationFailed:
        return


def sent(text: str) -> None:
    encode_payload({"text": text})


def cost(way: Callable[[str], None], text: str) -> float:
    costs = []
    for _ in range(5):
        began = time.process_time()
        way(text)
        costs.append(time.process_time() - began)
    return min(costs)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("way", [in_json, in_broken_json, packed, as_bytes, sent])
def test_the_time_is_linear_in_what_a_client_chose(way: Callable[[str], None], piece: str) -> None:
    # 8 times the text: 64 times the time if it were quadratic. And the longest message takes a moment at most.
    assert cost(way, _of(piece, 64_000)) < 40 * cost(way, _of(piece, 8_000)) + 0.003
    assert cost(way, _of(piece, 64_000)) < 0.1


def _of(piece: str, size: int) -> str:
    return (piece * (size // len(piece) + 1))[:size]
