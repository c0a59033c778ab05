"""For `test_hostile`: what attackers do. Each attack is called with the server, and asserts what must happen."""

from __future__ import annotations

import json
import select
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from tests.e2e.hostile_peer import (
    BINARY,
    CLOSE,
    HANDSHAKE_TIMEOUT,
    LIMITS,
    MIB,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    Peer,
    Target,
    upgrade,
)
from tests.support_process import frame

__all__ = ("Attack",)

Attack = Callable[[Target], None]


def event(name: str, payload: object = None) -> bytes:
    """A frame with an event for a `SocketApp`."""
    return frame(TEXT, json.dumps({"event": name, "payload": payload or {}}).encode())


def message(path: str, size: int) -> bytes:
    """A frame that is echoed at `path`."""
    return event("echo", {"text": "x" * size}) if path != "/echo" else frame(TEXT, b"x" * size)


# Before the upgrade


def answered(status: int, *pieces: bytes) -> Attack:
    """The bytes are answered with `status`, and TCP is closed: nobody can go on behind a refusal."""

    def attack(target: Target) -> None:
        peer = target.peer()
        peer.send(*pieces)
        assert peer.status(1) == status
        peer.ended(1)

    return attack


def answered_in_turn(statuses: list[int], *pieces: bytes) -> Attack:
    """As `answered`, for several requests at once."""

    def attack(target: Target) -> None:
        peer = target.peer()
        peer.send(*pieces)
        assert [peer.status(1) for _ in statuses] == statuses
        peer.ended(1)

    return attack


def too_slow(status: int, *pieces: bytes, pause: float = 0.05) -> Callable[..., None]:
    """The bytes come too slowly: they are answered with `status` (0: not at all) at the guard's deadline."""

    def attack(target: Target, peer: Peer | None = None) -> None:
        peer = peer or target.peer()
        began = time.monotonic()
        for piece in pieces:
            peer.send(piece)
            if select.select([peer.sock], [], [], pause)[0]:
                break
        assert peer.status(3) == status
        peer.ended(1)
        assert 0.9 < (time.monotonic() - began) / HANDSHAKE_TIMEOUT < 2.5

    return attack


def slow_second_request(target: Target) -> None:
    peer = target.peer()
    peer.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
    assert peer.status() == 200
    peer.take(b'{"length":0}')
    too_slow(408, b"GET /page HTTP/1.1\r\n", *[b"a"] * 100)(target, peer)


def endless_header(target: Target) -> None:
    peer = target.peer()
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\na: ")
    peer.flood(b"x" * 65_536, 200 * MIB)
    assert peer.status() in (431, 0)  # the reply may be lost when it meets bytes that were on their way
    peer.ended(1)


def quickly(request: bytes) -> Attack:
    """A request that an expensive pattern would take minutes for is answered at once, one way or the other."""

    def attack(target: Target) -> None:
        peer = target.peer()
        peer.send(request)
        assert peer.status(1) in (101, 400)

    return attack


def ordinary_requests(target: Target) -> None:
    """The guard is in nobody's way: several requests with bodies on one connection."""
    peer = target.peer()
    for body in (b"", b"x" * 300_000):
        peer.send(b"POST /page?token=SECRET123 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert peer.status() == 200
        peer.take(b'{"length":%d}' % len(body))
    target.open("/echo?token=SECRET123")
    assert "SECRET123" not in target.server.log


def many_silent(count: int, *, is_scarce: bool = False) -> Attack:
    """Many connections that say nothing are closed at the deadline. Meanwhile and afterwards others are served."""

    def attack(target: Target) -> None:
        peers = [target.peer() for _ in range(count)]
        end = time.monotonic() + 5
        if is_scarce:
            for peer in peers:
                peer.sock.close()
            target.dropped(PATIENCE)
        else:
            for peer in peers:
                peer.ended(end - time.monotonic())
        target.open("/echo").send(frame(CLOSE, b""))

    return attack


def resets(data: bytes, count: int, *, waits: bool = False) -> Attack:
    """Connect, send, perhaps wait for an answer, and reset; again and again."""

    def attack(target: Target) -> None:
        for _ in range(count):
            peer = Peer(target.port)
            peer.send(data)
            if waits:
                peer.status()
            peer.reset()

    return attack


# Frames


def breaks(code: int, *pieces: bytes, pause: float = 0) -> Callable[[str], Attack]:
    """The frames are answered with a close frame of `code`, and TCP is closed."""

    def at(path: str) -> Attack:
        def attack(target: Target) -> None:
            peer = target.open(path)
            peer.send(*pieces, pause=pause)
            assert peer.close_code(1) == code
            peer.ended(1)

        return attack

    return at


def unfinished(*pieces: bytes, pause: float = 0.05) -> Callable[[str], Attack]:
    """A message that takes longer than its deadline is answered with 1008, whatever comes in the meantime."""

    def at(path: str) -> Attack:
        def attack(target: Target) -> None:
            peer = target.open(path)
            began = time.monotonic()
            for piece in pieces:
                peer.send(piece)
                if peer.waits_for_close(pause):
                    break
            assert peer.close_code(3) == 1008
            peer.ended(1)
            assert 0.9 < (time.monotonic() - began) / LIMITS["assembly_timeout"] < 3

        return attack

    return at


def early_flood(target: Target) -> None:
    """Much is sent before the handshake is answered."""
    peer = target.peer()
    peer.send(upgrade("/late"))
    peer.flood(frame(TEXT, b"x" * 60_000), 100 * MIB)
    peer.ended(1)


def early_message(target: Target) -> None:
    """A client that does not wait for the answer to its handshake is served all the same."""
    peer = target.peer()
    peer.send(upgrade("/late") + frame(TEXT, b"early"))
    assert peer.status() == 101
    assert peer.message() == b"early"


# Floods, and clients that do not read


def unread_flood(data: bytes, size: int) -> Callable[[str], Attack]:
    """So many bytes are sent, and nothing is read: the client is dropped."""

    def at(path: str) -> Attack:
        def attack(target: Target) -> None:
            peer = target.open(path, receive_buffer=4096)
            peer.flood(data, size)
            target.dropped(10)

        return attack

    return at


def unread_echoes(path: str) -> Attack:
    return unread_flood(message(path, 50_000), 200 * MIB)(path)


def zero_window(path: str, *said: bytes) -> Attack:
    """The server has much to send, and the client reads nothing of it: it is dropped while it holds on."""

    def attack(target: Target) -> None:
        target.open(path, receive_buffer=4096).send(*said)
        target.dropped(10)

    return attack


def slow_reader(path: str, *said: bytes) -> Attack:
    """As `zero_window`, by a client that reads a byte now and then."""

    def attack(target: Target) -> None:
        peer = target.open(path, receive_buffer=4096)
        peer.send(*said)
        end = time.monotonic() + 12
        while target.sockets > target.idle:
            assert time.monotonic() < end
            peer.read_a_byte()
            time.sleep(0.05)

    return attack


def served(path: str) -> Attack:
    """Twenty thousand messages at once, read as they are answered: all are."""
    said = frame(TEXT, b'{"event":"echo","payload":{"text":"hello"},"id":1}')

    def attack(target: Target) -> None:
        peer = target.open(path)
        count = 20_000
        sender = threading.Thread(target=lambda: peer.send(said * count))
        sender.start()
        peer.messages(count, within=20)
        sender.join()

    return attack


def limited(target: Target) -> None:
    peer = target.open("/limited")
    peer.send(message("/limited", 10) * 500)
    assert peer.close_code() == 4007
    peer.ended(1)


def answered_pings(path: str) -> Attack:
    """Pings at a rate that is allowed are answered, each."""

    def attack(target: Target) -> None:
        peer = target.open(path)
        peer.send(b"".join(frame(PING, b"%d" % n) for n in range(400)) + frame(CLOSE, b""))
        assert peer.pongs() == [b"%d" % n for n in range(400)]

    return attack


def no_pong(path: str, code: int) -> Attack:
    """A client that answers no ping is closed, and dropped while it holds on."""

    def attack(target: Target) -> None:
        peer = target.open(path)
        assert peer.close_code(3) == code
        target.dropped(5)

    return attack


# Ends


def silent_after(path: str, *said: bytes, code: int) -> Attack:
    """After the server's close frame the client does nothing, not even close TCP: it is dropped."""

    def attack(target: Target) -> None:
        peer = target.open(path)
        peer.send(*said)
        assert peer.close_code(1) == code
        target.dropped(5)

    return attack


def floods_after(path: str, *said: bytes) -> Attack:
    """After the close frame the client sends on: it is dropped."""

    def attack(target: Target) -> None:
        peer = target.open(path)
        peer.send(*said)
        end = time.monotonic() + 2
        while target.sockets > target.idle:
            assert time.monotonic() < end
            peer.flood(frame(BINARY, b"x" * 60_000), MIB, patience=0.2)

    return attack


def half_closed(path: str) -> Attack:
    """The client closes its direction only."""

    def attack(target: Target) -> None:
        peer = target.open(path)
        peer.end_writing()
        peer.ended(2)

    return attack


# Compression

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"


def compressed(data: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """A frame whose payload is taken for compressed."""
    plain = frame(opcode, data, fin=fin)
    return bytes((plain[0] | 0x40,)) + plain[1:]


def squeezed(size: int) -> bytes:
    """So many zeros, compressed."""
    compressor = zlib.compressobj(9, wbits=-12)
    pieces: list[Any] = [compressor.compress(b"0" * MIB) for _ in range(size // MIB)]
    return b"".join(pieces) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]


def deflated(data: bytes) -> bytes:
    """The payload of a compressed message."""
    compressor = zlib.compressobj(wbits=-12)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]


def inflates(code: int, *pieces: bytes) -> Callable[[str], Attack]:
    """As `breaks`, on a connection with compression."""

    def at(path: str) -> Attack:
        def attack(target: Target) -> None:
            peer = target.open(path, OFFER)
            peer.send(*pieces)
            assert peer.close_code(2) == code
            peer.ended(1)

        return attack

    return at


def bombs(path: str) -> Attack:
    """Messages just within the limit, each a thousand times as large as its frame, and nothing is read."""

    def attack(target: Target) -> None:
        peer = target.open(path, OFFER, receive_buffer=4096)
        peer.flood(compressed(squeezed(MIB)) * 32, 500 * 1100, patience=2)

    return attack


PINGS = frame(PING, b"x" * 125) * 500
PONGS = frame(PONG, b"x" * 125) * 500
