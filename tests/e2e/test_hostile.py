"""Attacks on a real server over raw sockets: uvicorn with the guard and our WebSocket protocol, in its own process.

Each row of the table says what is sent and what must happen. Besides, for every row, while it runs and after it: the
server lives; a well-behaved client, which asks for an echo every 10 ms, waits less than a second for each; resident
memory never exceeds what it was before by more than the row says (6 MiB unless it does); every connection is gone
within 5 s of the attacker's, so none leaks; and the log has no error, no traceback and no more than a few lines.
SOCKETSPEC_HOSTILE_WS=module:Class attacks another WebSocket protocol instead, for comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e import hostile_attacks as do
from tests.e2e.hostile_attacks import Attack, answered, breaks, inflates, too_slow, unfinished
from tests.e2e.hostile_peer import BINARY, CLOSE, LIMIT, MIB, PING, PONG, TEXT, Target, closing, fragments, upgrade
from tests.support import Server, free_port, serving
from tests.support_process import frame

PROTOCOL = os.environ.get("SOCKETSPEC_HOSTILE_WS", "socketspec.adapters.uvicorn:WebSocketProtocol")
DEFLATE = "socketspec.adapters.uvicorn:DeflateWebSocketProtocol"
SERVERS = {
    "usual": ("--ws", PROTOCOL),
    "special": ("--ws", DEFLATE, "--ping", "1", "--files", "80"),
}
WS = upgrade("/ws")


@dataclass(frozen=True)
class Case:
    """A row. What it must not exceed: MiB of memory, and lines in the log."""

    name: str
    attack: Attack
    on: str = "usual"
    memory: int = 6
    lines: int = 4
    expected: tuple[str, ...] = ()
    """What the lines before tracebacks that are no fault of ours say."""


def get(*headers: str, line: str = "GET /page HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1")


def post(*headers: str) -> bytes:
    return get(*headers, line="POST /page HTTP/1.1")


def changed(old: str, new: str) -> bytes:
    assert old.encode() in WS
    return WS.replace(old.encode(), new.encode("latin-1"))


def huge(length: int) -> bytes:
    """The head of a frame."""
    return b"\x82\xff" + length.to_bytes(8, "big") + b"\0\0\0\0"


HANDSHAKES = [
    Case("silent TCP", too_slow(0)),
    Case("half a handshake", too_slow(408, WS[:60])),
    Case("a byte now and then", too_slow(408, *[WS[at : at + 1] for at in range(60)])),
    Case("a header line now and then", too_slow(408, b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 60)),
    Case("a second request that takes too long", do.slow_second_request),
    Case("endless header", do.endless_header),
    Case("endless request line", answered(431, b"GET /" + b"a" * 20_000)),
    Case("64 KiB header", answered(431, get("a: " + "b" * 65_536))),
    Case("5,000 headers", answered(431, get(*["a: b"] * 5000))),
    Case("101 headers", answered(431, get(*["a: b"] * 100))),
    Case("no Host", answered(400, changed("Host: 127.0.0.1\r\n", ""))),
    Case("two Hosts", answered(400, changed("Host: 127.0.0.1\r\n", "Host: a\r\nHost: a\r\n"))),
    Case("a path in Host", answered(400, changed("Host: 127.0.0.1", "Host: a/b?c@d"))),
    Case("HTTP/1.0 upgrade", answered(400, changed("HTTP/1.1", "HTTP/1.0"))),
    Case("HTTP/2 preface", answered(505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    Case("POST upgrade", answered(405, changed("GET", "POST"))),
    Case("wrong version", answered(426, changed("Version: 13", "Version: 8"))),
    Case("no version", answered(426, changed("Sec-WebSocket-Version: 13\r\n", ""))),
    Case("two versions", answered(426, changed("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8"))),
    Case("no key", answered(400, changed("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", ""))),
    Case("two keys", answered(400, changed("==", "==\r\nSec-WebSocket-Key: BBBBBBBBBBBBBBBBBBBBBB=="))),
    Case("a key that is too short", answered(400, changed("AAAAAAAAAAAAAAAAAAAAAA==", "AAAA"))),
    Case("no Connection header", answered(400, changed("Connection: Upgrade\r\n", ""))),
    Case("Content-Length on an upgrade", answered(400, upgrade("/ws", "Content-Length: 5") + b"hello")),
    Case("Transfer-Encoding on an upgrade", answered(400, upgrade("/ws", "Transfer-Encoding: chunked"))),
    Case("both lengths", answered(400, post("Content-Length: 5", "Transfer-Encoding: chunked"))),
    Case("two lengths", answered(400, post("Content-Length: 5", "Content-Length: 6"))),
    Case("a length that is none", answered(400, post("Content-Length: -5"))),
    Case("a chunk that is none", answered(400, post("Transfer-Encoding: chunked") + b"what\r\n")),
    Case("bare LF", answered(400, changed("Upgrade: websocket\r\n", "Upgrade: websocket\nA: b\r\n"))),
    Case("bare LF everywhere", answered(400, WS.replace(b"\r\n", b"\n"))),
    Case("bare CR", answered(400, upgrade("/ws", "a: b\rc: d"))),
    Case("NUL in a header", answered(400, upgrade("/ws", "a: b\0c"))),
    *[
        Case(f"control character {c!r}", answered(400, get(f"a: b{c}c")))
        for c in "\x01\x0b\x0c\x1b\x1c\x1d\x1e\x7f\x85"
    ],
    Case("folded header", answered(400, upgrade("/ws", "a: b\r\n c"))),
    Case("space before the colon", answered(400, upgrade("/ws", "a : b"))),
    Case("non-ASCII path", answered(400, get(line="GET /é HTTP/1.1"))),
    Case("non-ASCII header name", answered(400, get("é: b"))),
    Case("non-ASCII subprotocol", answered(400, changed("Version: 13", "Version: 13\r\nSec-WebSocket-Protocol: é"))),
    Case("TLS on a port without", answered(400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")),
    Case("costly subprotocols", do.quickly(upgrade("/ws", "Sec-WebSocket-Protocol: a" + " " * 15_000 + "b"))),
    Case(
        "costly extensions",
        do.quickly(upgrade("/ws", f'Sec-WebSocket-Extensions: a; b="{chr(92) * 15_000}')),
        "special",
    ),
    Case("window bits that are none", do.quickly(upgrade("/ws", f"{do.OFFER}; server_max_window_bits=7")), "special"),
    Case("a bad upgrade behind a good request", do.answered_in_turn([200, 400], get() + upgrade("/ws", "a: b\nc: d"))),
    Case("an upgrade to nowhere", answered(403, upgrade("/nowhere"))),
    Case("an upgrade of a page", answered(403, upgrade("/page"))),
    Case("a foreign Origin", answered(403, upgrade("/guarded", "Origin: https://app.example.evil.example"))),
    Case("a null Origin", answered(403, upgrade("/guarded", "Origin: null"))),
    Case("ordinary requests with bodies", do.ordinary_requests),
    Case("300 silent connections", do.many_silent(300), memory=24),
    Case(
        "no file descriptors left",
        do.many_silent(150, is_scarce=True),
        "special",
    ),
    Case("connect and reset", do.resets(b"", 300)),
    Case("half a handshake and reset", do.resets(WS[:60], 300)),
    Case("handshake and reset", do.resets(WS, 200), lines=210),
    Case("open and reset", do.resets(WS, 200, waits=True), lines=210),
    Case("much before the answer", do.early_flood),
    Case("a message before the answer", do.early_message),
]


FRAMES: dict[str, Callable[[str], Attack]] = {
    "unmasked": breaks(1002, b"\x81\x05hello"),
    "unmasked ping": breaks(1002, b"\x89\x00"),
    "RSV1": breaks(1002, b"\xc1\x80\0\0\0\0"),
    "RSV2": breaks(1002, b"\xa1\x80\0\0\0\0"),
    "RSV3": breaks(1002, b"\x91\x80\0\0\0\0"),
    "RSV1 on a ping": breaks(1002, b"\xc9\x80\0\0\0\0"),
    **{f"reserved opcode {code:X}": breaks(1002, frame(code, b"")) for code in (*range(3, 8), *range(11, 16))},
    "long ping": breaks(1002, frame(PING, b"x" * 126)),
    "long close": breaks(1002, frame(CLOSE, b"\x03\xe8" + b"x" * 124)),
    "ping in fragments": breaks(1002, frame(PING, b"a", fin=False)),
    "close in fragments": breaks(1002, frame(CLOSE, b"\x03\xe8", fin=False)),
    "continuation first": breaks(1002, frame(0, b"a")),
    "continuation after a whole message": breaks(1002, frame(TEXT, b'""') + frame(0, b"a")),
    "text inside fragments": breaks(1002, frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")),
    "binary inside fragments": breaks(1002, frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False)),
    "close with one byte": breaks(1002, frame(CLOSE, b"\x03")),
    **{f"close code {n}": breaks(1002, closing(n)) for n in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)},
    "bad UTF-8": breaks(1007, frame(TEXT, b"\xff")),
    "UTF-8 that is cut off": breaks(1007, frame(TEXT, "é".encode()[:1])),
    "UTF-8 of a surrogate": breaks(1007, frame(TEXT, b"\xed\xa0\x80")),
    "UTF-8 longer than need be": breaks(1007, frame(TEXT, b"\xc0\xaf")),
    "bad UTF-8 across fragments": breaks(1007, fragments(TEXT, b"\xce\xba\xe1", b"\xbd\xb9\xed\xa0", b"\x80")),
    "bad UTF-8 in a message that is not finished": breaks(1007, frame(TEXT, b"\xff", fin=False)),
    "bad UTF-8 in a close reason": breaks(1007, closing(1000, b"\xff")),
    "length 2^63+1": breaks(1002, huge(2**63 + 1)),
    "length 2^64-1": breaks(1002, huge(2**64 - 1)),
    "length 2^63-1": breaks(1009, huge(2**63 - 1)),
    "length 2^62": breaks(1009, huge(2**62)),
    "length in too long a form": breaks(1002, huge(5) + b"hello"),
    "length in too long a form of two bytes": breaks(1002, b"\x81\xfe\x00\x05\0\0\0\0hello"),
    "oversize, only declared": breaks(1009, huge(LIMIT * 2)),
    "oversize in one frame": breaks(1009, frame(BINARY, b"x" * (LIMIT * 2))),
    "oversize in fragments": breaks(1009, fragments(BINARY, *[b"x" * 60_000] * 20)),
    "oversize by the last byte": breaks(1009, fragments(BINARY, *[b"x" * 65_536] * 16, b"x")),
    "tiny fragments": breaks(1008, fragments(TEXT, *[b"x"] * 5000)),
    "empty fragments": breaks(1008, fragments(TEXT, *[b""] * 5000)),
    "an HTTP request after the handshake": breaks(1002, get()),
    "noise after the handshake": breaks(1002, bytes(range(255, 0, -1)) * 1000),
    "pings too often": breaks(1008, frame(PING, b"x") * 600),
    "pongs that nobody asked for": breaks(1008, frame(PONG, b"x") * 600),
    "pings inside a message too often": breaks(1008, frame(TEXT, b"a", fin=False) + frame(PING, b"x") * 600),
    "200 MB of unread pings": do.unread_flood(do.PINGS, 200 * MIB),
    "200 MB of unread pongs": do.unread_flood(do.PONGS, 200 * MIB),
    "200 MB of empty fragments": do.unread_flood(
        frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 10_000, 200 * MIB
    ),
    "unread echoes": do.unread_echoes,
    "a flood of messages": do.served,
    "pings that may be": do.answered_pings,
    "declared, but never sent": unfinished(frame(TEXT, b"x" * 1000)[:20], pause=2),
    "half of a frame's head": unfinished(b"\x81", pause=2),
    "a message that is never finished": unfinished(frame(TEXT, b"x", fin=False), pause=2),
    "a byte of a message now and then": unfinished(frame(TEXT, b"x" * 1000)[:20], *[b"x"] * 90),
    "a fragment now and then": unfinished(frame(TEXT, b"x", fin=False), *[frame(0, b"x", fin=False)] * 90),
    "pings between fragments": unfinished(frame(TEXT, b"x", fin=False), *[frame(PING, b"x")] * 90),
    "bursts of pings between fragments": unfinished(
        frame(TEXT, b"x", fin=False), *[frame(PING, b"x") * 70] * 10, pause=0.3
    ),
    "half closed": do.half_closed,
}
BOTH = [
    Case(f"{name}, {path}", attack(path), memory=8 if name.startswith("oversize") else 6)
    for name, attack in FRAMES.items()
    for path in ("/echo", "/ws")
]

POUR = do.event("pour", {"count": 2000, "size": 10_000})
OTHERS = [
    Case("nothing is read of a pouring route", do.zero_window("/pour")),
    Case("nothing is read of a pouring SocketApp", do.zero_window("/ws", POUR)),
    Case("nothing is read, and only the kernel knows", do.zero_window("/pour?count=1&size=20000")),
    Case("a byte now and then is read of a pouring route", do.slow_reader("/pour")),
    Case("a byte now and then is read of a pouring SocketApp", do.slow_reader("/ws", POUR)),
    Case("no pong, plain route", do.no_pong("/echo", 1011), "special"),
    Case("no pong, SocketApp", do.no_pong("/beating", 4004)),
    Case("neither pong nor reading", do.zero_window("/pour"), "special"),
    Case("more events than allowed", do.limited),
    Case("close, then silence", do.silent_after("/echo", closing(1000), code=1000)),
    Case("close, then silence, SocketApp", do.silent_after("/ws", closing(1000), code=1000)),
    Case("closed by the route, then silence", do.silent_after("/leave", code=4321)),
    Case("closed by an event, then silence", do.silent_after("/ws", do.event("leave"), code=4321)),
    Case("closed for what it sent, then silence", do.silent_after("/echo", b"\x81\x00", code=1002)),
    Case("close, then a flood", do.floods_after("/echo", closing(1000))),
    Case("closed by the route, then a flood", do.floods_after("/leave")),
    Case("closed for what it sent, then a flood", do.floods_after("/ws", b"\x81\x00")),
]

BOMB = do.squeezed(200 * MIB)
COMPRESSED: dict[str, Callable[[str], Attack]] = {
    "a bomb": inflates(1009, do.compressed(BOMB)),
    "a bomb in fragments": inflates(
        1009,
        do.compressed(BOMB[:1000], fin=False),
        fragments(0, *[BOMB[n : n + 1000] for n in range(1000, len(BOMB), 1000)]),
    ),
    "a bomb of text that is no UTF-8": inflates(1009, do.compressed(BOMB, BINARY)),
    "bombs within the limit": do.bombs,
    "not compressed as it must be": inflates(1002, do.compressed(b"\xff\xff\xff\xff")),
    "a compressed ping": inflates(1002, do.compressed(b"", PING)),
    "a compressed continuation": inflates(1002, do.compressed(b"", fin=False), do.compressed(b"", 0)),
    "compressed text that is no UTF-8": inflates(1007, do.compressed(do.deflated(b"\xff"))),
    "empty compressed fragments": inflates(1008, do.compressed(b"", fin=False), fragments(0, *[b""] * 5000)),
}
ON_COMPRESSED = [
    Case(f"{name}, {path}", attack(path), "special", memory=12)
    for name, attack in COMPRESSED.items()
    for path in ("/echo", "/ws")
]

CASES = [*HANDSHAKES, *BOTH, *OTHERS, *ON_COMPRESSED]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """The servers, all running, each with a bystander."""
    folder = tmp_path_factory.mktemp("hostile")
    servers: dict[str, Server] = {}
    for name, options in SERVERS.items():
        port = free_port()
        command = ["tests.e2e.hostile_server", "--port", str(port), *options]
        servers[name] = Server(folder / name, {}, command, port)
    with serving(*servers.values()), ExitStack() as stack:
        targets = {name: Target(server) for name, server in servers.items()}
        for target in targets.values():
            stack.callback(target.bystander.close)
        yield targets


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_attack_is_answered_as_it_must_be_and_harms_nobody(case: Case, targets: dict[str, Target]) -> None:
    target = targets[case.on]
    with target.unharmed(memory=case.memory * MIB, lines=case.lines, expected=case.expected):
        case.attack(target)
