"""What a request must look like to reach the application, on protocol objects fed with bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from socketspec.adapters.uvicorn.body_watch import BODY_PERIOD, LEAST_BYTES
from socketspec.adapters.uvicorn.gate import Gate, GatedState
from socketspec.adapters.uvicorn.request_guard import (
    MAX_HEAD,
    MAX_HEADERS,
    GuardedH11Protocol,
)

GET = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((*lines, b"", b""))


def plain(*headers: bytes) -> bytes:
    return head(b"GET / HTTP/1.1", b"Host: x", *headers)


def upgrade(*headers: bytes, line: bytes = b"GET /ws HTTP/1.1", without: bytes = b"-") -> bytes:
    usual = (
        b"Host: x",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Sec-WebSocket-Version: 13",
    )
    return head(line, *(each for each in usual if not each.startswith(without)), *headers)


class Timer:
    def __init__(self, delay: float, callback: Callable[[], Any]) -> None:
        self.delay = delay
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """Timers that fire when a test says so; tasks are the real loop's."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        self.timers.append(Timer(delay, callback))
        return self.timers[-1]

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coroutine)

    def pending(self) -> list[float]:
        return [timer.delay for timer in self.timers if not timer.is_cancelled]

    def fire(self, delay: float) -> None:
        [timer] = [timer for timer in self.timers if timer.delay == delay and not timer.is_cancelled]
        timer.is_cancelled = True
        timer.callback()


class Transport(asyncio.Transport):
    def __init__(self, *, has_eof: bool = True) -> None:
        super().__init__()
        self.written = b""
        self.pieces: list[bytes] = []
        """What was written at once."""
        self.ended = ""
        self.protocol: Any = None
        self._has_eof = has_eof

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data
        self.pieces += [bytes(data)] if data else []

    def can_write_eof(self) -> bool:
        return self._has_eof

    def write_eof(self) -> None:
        self.ended = "eof"

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return self.ended in ("closed", "aborted")

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.written)]


class Upgraded:
    """In the place of a WebSocket protocol: remembers what it was given."""

    made: ClassVar[list[Upgraded]] = []

    def __init__(self, **_: Any) -> None:
        self.received: list[bytes] = []
        self.made.append(self)

    def connection_made(self, _: Any) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


class App:
    """Answers a request with its body, once it has read that."""

    def __init__(self, *, answers_first: bool = False) -> None:
        self.scopes: list[Any] = []
        self.events: list[str] = []
        self._answers_first = answers_first

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if self._answers_first:
            await send(start)
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        body, more = b"", True
        while more:
            event = await receive()
            self.events.append(event["type"])
            if event["type"] == "http.disconnect":
                break
            body += event["body"]
            more = event["more_body"]
        if not self._answers_first:
            await send(start)
        await send({"type": "http.response.body", "body": body})


class Quick(App):
    """Answers before it has read anything."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Guarded:
    """A guarded connection without a network. To be made where an event loop runs."""

    def __init__(self, app: App | None = None, *, has_eof: bool = True, state: ServerState | None = None) -> None:
        self.app = app or App()
        self.loop = Loop()
        self.transport = Transport(has_eof=has_eof)
        config = Config(self.app, ws=Upgraded, log_config=None, access_log=False)  # type: ignore[arg-type]  # all that is called
        self.protocol = GuardedH11Protocol(config, state or ServerState(), {}, self.loop)  # type: ignore[arg-type]  # likewise
        self.protocol.connection_made(self.transport)
        Upgraded.made.clear()

    async def feed(self, *pieces: bytes) -> Guarded:
        for piece in pieces:
            self.protocol.data_received(piece)
        for _ in range(10):
            await asyncio.sleep(0)
        return self

    @property
    def outcome(self) -> int | str:
        """The status that was answered, or what became of the request."""
        if Upgraded.made:
            return "upgraded"
        return self.transport.statuses[0] if self.transport.statuses else "waits"


def apart(data: bytes) -> Sequence[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


REFUSED: dict[str, tuple[bytes, int]] = {
    "no host": (head(b"GET / HTTP/1.1"), 400),
    "two hosts": (plain(b"Host: y"), 400),
    "two hosts in HTTP/1.0": (head(b"GET / HTTP/1.0", b"Host: x", b"Host: x"), 400),
    "a path in the host": (head(b"GET / HTTP/1.1", b"Host: x/admin"), 400),
    "a user in the host": (head(b"GET / HTTP/1.1", b"Host: a@x"), 400),
    "a query in the host": (head(b"GET / HTTP/1.1", b"Host: x?a"), 400),
    "bare LF in a header": (plain(b"a: b\nc: d"), 400),
    "bare LF for all line ends": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare CR": (plain(b"a: b\rc: d"), 400),
    "bare CR before the line end": (plain(b"a: b\r"), 400),
    "NUL in a value": (plain(b"a: b\0c"), 400),
    "vertical tab": (plain(b"a: b\x0bc"), 400),
    "form feed": (plain(b"a: b\x0cc"), 400),
    "file separator": (plain(b"a: b\x1cc"), 400),
    "delete": (plain(b"a: b\x7fc"), 400),
    "next line of Latin-1": (plain(b"a: b\x85c: d"), 400),
    "next line of UTF-8": (plain("a: b\x85c: d".encode()), 400),
    "folded header": (plain(b"a: b", b" c"), 400),
    "folded header with a tab": (plain(b"a: b", b"\tc"), 400),
    "space before the colon": (plain(b"a : b"), 400),
    "no colon": (plain(b"a"), 400),
    "no name": (plain(b": b"), 400),
    "non-ASCII name": (plain("é: b".encode()), 400),
    "non-ASCII path": (head("GET /é HTTP/1.1".encode(), b"Host: x"), 400),
    "non-ASCII host": (head(b"GET / HTTP/1.1", "Host: é".encode()), 400),
    "non-ASCII origin": (plain("Origin: http://é".encode()), 400),
    "non-ASCII subprotocol": (upgrade("Sec-WebSocket-Protocol: é".encode()), 400),
    "no request line": (b"\r\n" + GET, 400),
    "three spaces in the request line": (head(b"GET / a HTTP/1.1", b"Host: x"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "length and transfer coding": (plain(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400),
    "transfer coding in HTTP/1.0": (head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"), 400),
    "two lengths": (plain(b"Content-Length: 3", b"Content-Length: 4"), 400),
    "unknown transfer coding": (plain(b"Transfer-Encoding: gzip"), 501),
    "upgrade by POST": (upgrade(line=b"POST /ws HTTP/1.1"), 405),
    "upgrade by HTTP/1.0": (upgrade(line=b"GET /ws HTTP/1.0"), 400),
    "upgrade without a host": (upgrade(without=b"Host"), 400),
    "upgrade without a connection header": (upgrade(without=b"Connection"), 400),
    "upgrade with a length": (upgrade(b"Content-Length: 5") + b"hello", 400),
    "upgrade with a transfer coding": (upgrade(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "upgrade without a key": (upgrade(without=b"Sec-WebSocket-Key"), 400),
    "upgrade with two keys": (upgrade(b"sec-websocket-key: BBBBBBBBBBBBBBBBBBBBBB=="), 400),
    "upgrade without a version": (upgrade(without=b"Sec-WebSocket-Version"), 426),
    "upgrade with another version": (upgrade(b"Sec-WebSocket-Version: 8", without=b"Sec-WebSocket-Version"), 426),
    "upgrade with two versions": (upgrade(b"Sec-WebSocket-Version: 13"), 426),
    "upgrade hidden in a second header": (upgrade(b"Upgrade: h2c", line=b"POST /ws HTTP/1.1"), 405),
    "too many headers": (plain(*[b"a: b"] * MAX_HEADERS), 431),
    "too many headers, without an end": (plain(*[b"a: b"] * MAX_HEADERS)[:-2], 431),
    "too many bytes": (plain(b"a: " + b"b" * MAX_HEAD), 431),
    "too long a request line": (b"GET /" + b"a" * MAX_HEAD, 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_that_breaks_the_rules_is_refused_and_tcp_is_closed(name: str) -> None:
    data, status = REFUSED[name]
    guarded = await Guarded().feed(data)
    assert guarded.transport.statuses == [status]
    assert guarded.transport.ended == "eof"
    assert b"connection: close\r\n" in guarded.transport.written
    assert not guarded.app.scopes
    reply, _, body = guarded.transport.written.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in reply
    assert body.endswith(b".\n")
    assert guarded.loop.pending() == [GuardedH11Protocol.close_timeout]
    written = guarded.transport.written
    await guarded.feed(GET)  # nothing is looked at any more
    assert guarded.transport.written == written
    guarded.loop.fire(GuardedH11Protocol.close_timeout)
    assert guarded.transport.ended == "aborted"


@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused_alike_when_its_bytes_come_one_by_one(name: str) -> None:
    data, status = REFUSED[name]
    guarded = await Guarded().feed(*apart(data))
    assert guarded.transport.statuses == [status]


ANSWERED: dict[str, bytes] = {
    "plain": GET,
    "no host in HTTP/1.0": head(b"GET / HTTP/1.0"),
    "absolute form": head(b"GET http://x/a?b HTTP/1.1", b"Host: x"),
    "IPv6 host": head(b"GET / HTTP/1.1", b"Host: [::1]:8000"),
    "empty host": head(b"GET / HTTP/1.1", b"Host:"),
    "a cookie in UTF-8": plain("Cookie: name=Ångström".encode()),
    "a header in Latin-1": plain("X-Name: café".encode("latin-1")),
    "tabs around a value": plain(b"a:\tb\t"),
    "an empty value": plain(b"a:"),
    "a name of signs": plain(b"!#$%&'*+-.^_`|~0: b"),
    "an offer of HTTP/2": plain(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AA"),
    "as many headers as may be": plain(*[b"a: b"] * (MAX_HEADERS - 1)),
    "as many bytes as may be": plain(b"a: " + b"b" * (MAX_HEAD - len(plain(b"a: ")))),
    "a body": plain(b"Content-Length: 5") + b"hello",
    "a body in chunks": plain(b"Transfer-Encoding: chunked") + b"3\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: t\r\n\r\n",
    "a body that looks like a bad head": plain(b"Content-Length: 8") + b"\0\n\n\r\n\r\n\xff",
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("split", [lambda data: [data], apart], ids=["whole", "byte by byte"])
async def test_ordinary_requests_are_answered(name: str, split: Callable[[bytes], Sequence[bytes]]) -> None:
    guarded = await Guarded().feed(*split(ANSWERED[name]))
    assert guarded.transport.statuses == [200]
    assert len(guarded.app.scopes) == 1
    if name.startswith("a body in"):
        assert b"hello" in guarded.transport.written


@pytest.mark.parametrize(
    "request_",
    [
        upgrade(),
        upgrade(b"Content-Length: 0"),
        upgrade(b"Connection: keep-alive, UPGRADE", b"Upgrade: WebSocket", without=b"Upgrade").replace(
            b"Connection: Upgrade\r\n", b""
        ),
    ],
)
async def test_an_upgrade_as_it_must_be_is_handed_on(request_: bytes) -> None:
    await Guarded().feed(*apart(request_))
    [upgraded] = Upgraded.made
    assert upgraded.received[0].startswith(b"GET /ws HTTP/1.1\r\nhost: x\r\n")


async def test_frames_that_come_with_an_upgrade_are_not_lost() -> None:
    guarded = await Guarded().feed(upgrade() + b"\x81\x80\0\0\0\0")
    assert Upgraded.made[0].received[1:] == [b"\x81\x80\0\0\0\0"]
    assert guarded.loop.pending() == []


async def test_pipelined_requests_are_answered_in_turn_and_checked_each() -> None:
    body = plain(b"Content-Length: 5") + b"hello"
    guarded = await Guarded().feed(GET + body + GET + plain(b"a: b\nc: d") + GET)
    assert guarded.transport.statuses == [200, 200, 200, 400]
    assert guarded.transport.ended == "eof"
    assert len(guarded.app.scopes) == 3


async def test_an_upgrade_behind_another_request_is_checked_as_well() -> None:
    guarded = await Guarded().feed(GET + upgrade(b"a: b\nc: d"))
    assert guarded.transport.statuses == [200, 400]
    assert not Upgraded.made
    await Guarded().feed(GET + upgrade())
    assert Upgraded.made


async def test_the_head_after_a_body_that_was_not_awaited_is_checked() -> None:
    guarded = await Guarded(App(answers_first=True)).feed(plain(b"Content-Length: 5"), b"hello" + plain(b"a: b\nc: d"))
    assert guarded.transport.statuses == [200, 400]


async def test_an_endless_head_is_not_kept() -> None:
    guarded = Guarded()
    await guarded.feed(b"GET / HTTP/1.1\r\na: ", *[b"x" * 1024] * 1000)
    assert guarded.outcome == 431
    assert len(guarded.protocol.conn.trailing_data[0]) <= MAX_HEAD + 1024


async def test_a_silent_connection_is_closed_at_the_deadline_without_a_word() -> None:
    guarded = Guarded()
    guarded.loop.fire(GuardedH11Protocol.handshake_timeout)
    assert (guarded.transport.written, guarded.transport.ended) == (b"", "closed")


async def test_the_deadline_is_the_whole_heads_and_answered_with_408() -> None:
    guarded = Guarded()
    for piece in apart(GET[:-1]):
        await guarded.feed(piece)
        assert guarded.loop.pending() == [10.0]
    assert len(guarded.loop.timers) == 1  # it was never set anew
    guarded.loop.fire(10.0)
    assert guarded.transport.statuses == [408]
    assert guarded.transport.ended == "eof"


async def test_a_complete_head_ends_the_deadline_and_the_next_ones_first_byte_sets_another() -> None:
    guarded = await Guarded().feed(plain(b"Content-Length: 5"), b"hel")
    assert guarded.loop.pending() == [BODY_PERIOD]
    await guarded.feed(b"lo")
    keep_alive = guarded.protocol.timeout_keep_alive
    assert guarded.loop.pending() == [keep_alive]
    await guarded.feed(GET[:1])
    assert guarded.loop.pending() == [10.0]
    await guarded.feed(GET[1:])
    assert guarded.transport.statuses == [200, 200]
    assert guarded.loop.pending() == [keep_alive]


async def test_a_lost_connection_leaves_no_timer() -> None:
    guarded = Guarded()
    guarded.protocol.connection_lost(None)
    assert guarded.loop.pending() == []
    refused = await Guarded().feed(b"\0")
    refused.protocol.connection_lost(None)
    assert refused.loop.pending() == []


BODY = plain(b"Content-Length: 1000000")


async def test_a_body_that_drips_is_refused_however_often_a_byte_comes() -> None:
    guarded = await Guarded().feed(BODY, *[b"x"] * 100)
    guarded.loop.fire(BODY_PERIOD)
    await guarded.feed()
    assert guarded.transport.statuses == [408]
    assert guarded.app.events[-1] == "http.disconnect"
    assert guarded.loop.pending() == [guarded.protocol.close_timeout]


async def test_a_body_that_comes_at_the_least_rate_may_take_its_time() -> None:
    guarded = await Guarded().feed(BODY)
    for _ in range(5):
        await guarded.feed(b"x" * LEAST_BYTES)
        guarded.loop.fire(BODY_PERIOD)
    await guarded.feed(b"x" * (LEAST_BYTES - 1))
    assert guarded.transport.statuses == []
    guarded.loop.fire(BODY_PERIOD)
    assert guarded.transport.statuses == [408]


async def test_a_body_that_the_application_does_not_take_is_not_the_clients_fault() -> None:
    guarded = await Guarded().feed(BODY)
    guarded.protocol.flow.pause_reading()
    guarded.loop.fire(BODY_PERIOD)
    assert (guarded.transport.statuses, guarded.loop.pending()) == ([], [BODY_PERIOD])


async def test_what_is_left_of_a_body_after_its_answer_cannot_hold_the_connection() -> None:
    guarded = await Guarded(Quick()).feed(BODY, b"x" * LEAST_BYTES)
    assert guarded.transport.statuses == [200]
    guarded.loop.fire(BODY_PERIOD)
    assert guarded.transport.ended == "closed"


async def test_beyond_the_limit_of_a_node_upgrades_get_503_and_requests_are_answered() -> None:
    state = GatedState(gate := Gate(1, spare=3))
    first = await Guarded(state=state).feed(upgrade())
    state.connections.add(first)  # type: ignore[arg-type]  # in the place of the upgraded protocol
    assert (gate.connections, gate.is_full) == (1, True)
    second = await Guarded(state=state).feed(upgrade())
    assert second.transport.statuses == [503]
    assert b"\r\nretry-after: 5\r\n" in second.transport.written
    assert gate.refused == 1
    probe = await Guarded(state=state).feed(plain())
    assert probe.transport.statuses == [200]
    state.connections.discard(first)
    Upgraded.made.clear()
    assert (await Guarded(state=state).feed(upgrade())).outcome == "upgraded"


async def test_who_asks_for_nothing_makes_room_the_oldest_first_and_who_is_answered_stays() -> None:
    state = GatedState(gate := Gate(1, spare=2))
    asks = await Guarded(state=state).feed(BODY)
    old, new = Guarded(state=state), Guarded(state=state)
    assert not gate.has_room(0)
    assert gate.drop_idle()
    assert [each.transport.ended for each in (asks, old, new)] == ["", "aborted", ""]
    old.protocol.connection_lost(None)
    assert (gate.dropped, gate.has_room(0), gate.has_room(1)) == (1, True, False)
    assert gate.drop_idle()
    assert new.transport.ended == "aborted"
    assert not gate.drop_idle()  # the one that is left is being answered
    assert gate.dropped == 2


async def test_over_tls_which_has_no_half_close_a_refused_connection_is_closed() -> None:
    guarded = await Guarded(has_eof=False).feed(b"\0")
    assert guarded.transport.statuses == [400]
    assert guarded.transport.ended == "closed"


async def test_a_broken_body_is_refused_and_the_application_hears_of_the_end() -> None:
    guarded = await Guarded().feed(plain(b"Transfer-Encoding: chunked"), b"what?\r\n")
    assert guarded.transport.statuses == [400]  # and not what the application answered afterwards
    assert guarded.app.events == ["http.disconnect"]


async def test_a_broken_body_after_the_answer_has_begun_just_ends_the_connection() -> None:
    guarded = await Guarded(App(answers_first=True)).feed(plain(b"Transfer-Encoding: chunked"))
    await guarded.feed(b"what?\r\n")
    assert guarded.transport.statuses == [200]
    assert guarded.transport.ended == "closed"


class Slowly(App):
    """Begins its answer, and goes on with it when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"ok"})


async def test_the_head_of_an_answer_goes_out_with_its_body_in_one_piece() -> None:
    app = Slowly()
    guarded = await Guarded(app).feed(GET)
    assert guarded.transport.pieces == []
    app.go_on.set()
    await guarded.feed()
    [piece] = guarded.transport.pieces
    assert piece.startswith(b"HTTP/1.1 200 ")
    assert piece.endswith(b"\r\n\r\nok")


async def test_an_answer_of_which_nothing_is_out_gives_way_to_a_refusal() -> None:
    guarded = await Guarded(Slowly()).feed(plain(b"Transfer-Encoding: chunked"))
    await guarded.feed(b"what?\r\n")
    assert guarded.transport.statuses == [400]


async def test_a_server_that_stops_closes_what_waits_and_what_was_refused() -> None:
    for data in (b"", b"GET", b"\0"):
        guarded = await Guarded().feed(data)
        guarded.protocol.shutdown()
        assert guarded.transport.ended == "closed"


HEADS = [data for data, _ in REFUSED.values() if len(data) < 500] + [
    data for data in ANSWERED.values() if len(data) < 500
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*HEADS, upgrade()]), st.lists(st.integers(0, 400), max_size=6), st.data())
def test_how_a_request_is_cut_into_pieces_makes_no_difference(
    data: bytes, cuts: list[int], drawn: st.DataObject
) -> None:
    if drawn.draw(st.booleans()):  # one byte changed
        at = drawn.draw(st.integers(0, len(data) - 1))
        data = data[:at] + drawn.draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges) if end > start]

    async def outcomes() -> tuple[int | str, int | str]:
        whole = (await Guarded().feed(data)).outcome
        return whole, (await Guarded().feed(*pieces)).outcome

    whole, cut = asyncio.run(outcomes())
    assert whole == cut


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.binary(min_size=1, max_size=40) | st.sampled_from([GET, b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n"]),
        max_size=8,
    )
)
def test_no_bytes_make_it_fail(pieces: list[bytes]) -> None:
    async def run() -> None:
        guarded = Guarded()
        await guarded.feed(*pieces)
        guarded.protocol.connection_lost(None)
        await guarded.feed()

    asyncio.run(run())
