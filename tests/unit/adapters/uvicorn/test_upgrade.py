"""The opening handshake: which requests are answered with 101, how others are refused, what the application sees.

Every test feeds bytes to the protocol class that uvicorn would make, and reads the bytes that come back.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest

from socketspec.adapters.uvicorn.protocol import DeflateWebSocketProtocol
from tests.played_client import KEY, PlayedClient, PlayedReceiver, frame, upgrade
from tests.virtual_time import in_virtual_time
from tests.watching import turns

Scope = MutableMapping[str, Any]


class Answering:
    """An application that does to its handshake what it was made to do, and keeps what it saw."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.scopes: list[Scope] = []
        self.heard: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self._events = events or ({"type": "websocket.accept"},)

    @property
    def scope(self) -> Scope:
        (scope,) = self.scopes
        return scope

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        assert await receive() == {"type": "websocket.connect"}
        try:
            for event in self._events:
                await send(event)
        except ValueError as error:
            self.error = error
            raise
        while (event := await receive())["type"] != "websocket.disconnect":
            self.heard.append(event)


def accepting(subprotocol: str | None = None, *headers: tuple[bytes, bytes]) -> Answering:
    return Answering({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})


def denying(status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> Answering:
    return Answering(
        {"type": "websocket.http.response.start", "status": status, "headers": headers},
        {"type": "websocket.http.response.body", "body": body},
    )


async def answered(app: Answering, request: bytes = upgrade(), **options: Any) -> PlayedClient:
    """A client whose upgrade request was answered."""
    client = PlayedClient(app, **options)
    client.sends(request)
    await turns(lambda: client.got)
    return client


async def refused(request: bytes, **options: Any) -> PlayedClient:
    """A client whose request was refused before any application saw it. Its connection has been ended."""
    app = Answering()
    client = await answered(app, request, **options)
    assert app.scopes == []
    assert client.wire.has_ended
    return client


# What is answered with 101


@in_virtual_time
async def test_an_upgrade_is_answered_with_101_and_the_proof_that_its_key_was_read() -> None:
    answer = (await answered(Answering())).answer
    assert (answer.status, answer.phrase) == (101, "Switching Protocols")
    assert answer.all("upgrade") == ["websocket"]
    assert answer.all("connection") == ["Upgrade"]
    assert answer.all("sec-websocket-accept") == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]  # of RFC 6455 section 1.3
    assert answer.rest == b""


@in_virtual_time
async def test_the_proof_is_made_from_each_clients_own_key() -> None:
    key = base64.b64encode(bytes(range(16)))
    proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324 # RFC
    client = await answered(Answering(), upgrade(b"Sec-WebSocket-Key: " + key, without=b"Sec-WebSocket-Key"))
    assert client.answer.all("sec-websocket-accept") == [proof.decode()]


@in_virtual_time
async def test_nothing_is_answered_before_the_application_has_decided() -> None:
    client = PlayedClient(Answering())
    client.sends(upgrade())
    assert client.got == b""
    await turns(lambda: client.got)


@pytest.mark.parametrize(
    ("without", "header"),
    [
        (b"Upgrade", b"UPGRADE: WebSocket"),
        (b"Connection", b"connection: keep-alive, upgrade"),
        (b"Connection", b"Connection: keep-alive\r\nConnection: UPGRADE"),
        (b"Host", b"host: [::1]:8000"),
        (b"Sec-WebSocket-Version", b"sec-websocket-version:13"),
        (b"Sec-WebSocket-Key", b"SEC-WEBSOCKET-KEY:   " + KEY + b"  "),
        (b"-", b"Content-Length: 0"),
        (b"-", b"Origin: https://example.test"),
    ],
)
@in_virtual_time
async def test_what_the_rfc_leaves_free_is_no_reason_to_refuse(without: bytes, header: bytes) -> None:
    assert (await answered(Answering(), upgrade(header, without=without))).answer.status == 101


@in_virtual_time
async def test_the_servers_own_headers_are_in_the_answer_and_its_date_is_there_once() -> None:
    client = await answered(Answering(), headers=[(b"date", b"today"), (b"server", b"mine")])
    assert client.answer.all("date") == ["today"]
    assert client.answer.all("server") == ["mine"]
    assert (await answered(Answering())).answer.all("date") == []


@in_virtual_time
async def test_headers_of_the_application_are_in_the_answer_behind_the_servers() -> None:
    app = accepting(None, (b"x-one", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=\xe9"))
    client = await answered(app, headers=[(b"server", b"mine")])
    assert client.answer.headers[-4:] == [
        ("server", "mine"),
        ("x-one", "1"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=\xe9"),
    ]


@in_virtual_time
async def test_a_subprotocol_is_named_only_where_the_application_chose_one() -> None:
    offer = upgrade(b"Sec-WebSocket-Protocol: chat, superchat")
    assert (await answered(accepting("superchat"), offer)).answer.all("sec-websocket-protocol") == ["superchat"]
    assert (await answered(accepting(None), offer)).answer.all("sec-websocket-protocol") == []
    assert (await answered(accepting(""), offer)).answer.all("sec-websocket-protocol") == []


@pytest.mark.parametrize(
    ("headers", "offered"),
    [
        ([], []),
        ([b"Sec-WebSocket-Protocol: chat"], ["chat"]),
        ([b"Sec-WebSocket-Protocol: chat,superchat ,  c"], ["chat", "superchat", "c"]),
        ([b"Sec-WebSocket-Protocol: a, b", b"X: y", b"sec-websocket-protocol: c"], ["a", "b", "c"]),
    ],
)
@in_virtual_time
async def test_the_application_sees_the_offered_subprotocols_in_their_order(
    headers: list[bytes], offered: list[str]
) -> None:
    app = Answering()
    await answered(app, upgrade(*headers))
    assert app.scope["subprotocols"] == offered


# Extensions

DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


@in_virtual_time
async def test_no_extension_is_agreed_on_unless_it_was_offered_and_is_wanted() -> None:
    for client in (
        await answered(Answering(), upgrade(DEFLATE)),
        await answered(Answering(), protocol=DeflateWebSocketProtocol),
        await answered(Answering(), upgrade(b"Sec-WebSocket-Extensions: x-other"), protocol=DeflateWebSocketProtocol),
        await answered(Answering(), upgrade(b"Sec-WebSocket-Extensions: =;"), protocol=DeflateWebSocketProtocol),
    ):
        assert client.answer.status == 101
        assert client.answer.all("sec-websocket-extensions") == []


@in_virtual_time
async def test_the_first_extension_that_can_be_agreed_on_is_named_with_what_was_agreed() -> None:
    offers = (b"Sec-WebSocket-Extensions: x-other, permessage-deflate; server_max_window_bits=99", DEFLATE)
    client = await answered(Answering(), upgrade(*offers), protocol=DeflateWebSocketProtocol)
    (agreed,) = client.answer.all("sec-websocket-extensions")
    name, *parameters = agreed.split("; ")
    assert name == "permessage-deflate"
    assert {"server_no_context_takeover", "server_max_window_bits=12", "client_max_window_bits=12"} == set(parameters)


@in_virtual_time
async def test_what_was_agreed_on_holds_for_the_frames_that_follow() -> None:
    sink = PlayedReceiver()
    client = PlayedClient(sink, protocol=DeflateWebSocketProtocol)
    client.sends(upgrade(DEFLATE))
    await turns(lambda: client.got)
    assert sink.line.deflate_bits == 12
    client.sends(frame(1, b"\xf2\x48\xcd\xc9\xc9\x07\x00", flags=0x40))  # "Hello" in RFC 7692 section 7.2.3.1
    assert sink.messages == ["Hello"]
    assert sink.line.encode(b"Hello", binary=False)[0] == 0xC1


# What is refused, and how


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade(without=b"Sec-WebSocket-Key"), 400),
        (upgrade(b"Sec-WebSocket-Key: " + KEY), 400),
        (upgrade(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", without=b"Sec-WebSocket-Key"), 400),
        (upgrade(b"Sec-WebSocket-Key: " + base64.b64encode(bytes(17)), without=b"Sec-WebSocket-Key"), 400),
        (upgrade(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ", without=b"Sec-WebSocket-Key"), 400),
        (upgrade(b"Sec-WebSocket-Key: \xe9\xe9\xe9", without=b"Sec-WebSocket-Key"), 400),
        (upgrade(b"Sec-WebSocket-Key:", without=b"Sec-WebSocket-Key"), 400),
        (upgrade(without=b"Sec-WebSocket-Version"), 400),
        (upgrade(b"Sec-WebSocket-Version: 13"), 400),
        (upgrade(b"Sec-WebSocket-Version: 8", without=b"Sec-WebSocket-Version"), 400),
        (upgrade(b"Origin: https://a.test", b"Origin: https://b.test"), 400),
        (upgrade(without=b"Upgrade"), 426),
        (upgrade(b"Upgrade: h2c", without=b"Upgrade"), 426),
        (upgrade(b"Upgrade: h2c"), 426),
        (upgrade(without=b"Connection"), 426),
        (upgrade(b"Connection: close", without=b"Connection"), 426),
        (upgrade(line=b"POST /ws HTTP/1.1"), 405),
        (upgrade(line=b"get /ws HTTP/1.1"), 405),
        (upgrade(line=b"GET /ws HTTP/1.0"), 505),
    ],
)
@in_virtual_time
async def test_a_request_that_breaks_the_rules_is_refused_with_its_status(request_: bytes, status: int) -> None:
    client = await refused(request_, headers=[(b"server", b"mine")])
    assert client.answer.status == status
    assert client.answer.phrase
    assert client.answer.all("connection") == ["close"]
    assert client.answer.all("content-length") == [str(len(client.answer.rest))]
    assert client.answer.rest.startswith(b"Failed to open a WebSocket connection: ")
    assert client.answer.all("sec-websocket-accept") == []


@in_virtual_time
async def test_a_refusal_says_what_would_have_helped() -> None:
    assert (await refused(upgrade(line=b"POST /ws HTTP/1.1"))).answer.all("allow") == ["GET"]
    assert (await refused(upgrade(without=b"Upgrade"))).answer.all("upgrade") == ["websocket"]


@pytest.mark.parametrize("asked", [[b"8"], [b"14"], [b"13, 8"], [b"13", b"8"], [b"thirteen"], []])
@in_virtual_time
async def test_a_client_of_another_version_is_told_which_one_is_spoken(asked: list[bytes]) -> None:
    """RFC 6455 section 4.4."""
    headers = [b"Sec-WebSocket-Version: " + version for version in asked]
    client = await refused(upgrade(*headers, without=b"Sec-WebSocket-Version"))
    assert client.answer.status == 400
    assert client.answer.all("sec-websocket-version") == ["13"]
    assert (await refused(upgrade(without=b"Upgrade"))).answer.all("sec-websocket-version") == []


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/2.0\r\n\r\n",
        b"GET /ws\xe9 HTTP/1.1\r\n\r\n",
        b"\x81\x85\x00\x00\x00\x00hello",
        upgrade(b"no colon"),
        upgrade(b"sp ace: 1"),
        upgrade(b"X: a\x00b"),
        upgrade(b"X: 1", b" folded"),
        upgrade(b"Content-Length: 5") + b"hello",
        upgrade(b"Transfer-Encoding: chunked"),
        upgrade(*(b"X-%d: 1" % number for number in range(200))),
        upgrade(b"X: " + b"x" * 9000),
        upgrade(line=b"GET /" + b"x" * 9000 + b" HTTP/1.1"),
        upgrade()[:-2],
        upgrade()[:20],
    ],
)
@in_virtual_time
async def test_what_is_no_request_is_refused_with_400(data: bytes) -> None:
    client = await refused(data)
    assert (client.answer.status, client.answer.phrase) == (400, "Bad Request")
    assert client.answer.rest == b"This is no request that can be answered.\n"
    assert client.answer.all("connection") == ["close"]


@in_virtual_time
async def test_a_refused_client_gets_to_read_why_and_then_the_connection_is_gone() -> None:
    client = await refused(upgrade(without=b"Upgrade"))
    client.sends(frame(1, b"but"), upgrade())
    await asyncio.sleep(4.9)
    assert not client.wire.is_gone
    await asyncio.sleep(0.2)
    assert client.wire.is_aborted
    assert client.answer.status == 426
    assert client.server.connections == set()


@in_virtual_time
async def test_a_refused_client_that_hangs_up_is_gone_at_once() -> None:
    client = await refused(upgrade(without=b"Upgrade"))
    client.wire.hang_up()
    await turns(lambda: client.server.connections == set())
    assert not client.wire.is_aborted


@in_virtual_time
async def test_a_refusal_over_tls_closes_at_once_for_it_cannot_be_half_closed() -> None:
    client = PlayedClient(Answering(), is_tls=True)
    client.sends(upgrade(without=b"Upgrade"))
    await turns(lambda: client.wire.is_gone)
    assert client.answer.status == 426


@in_virtual_time
async def test_no_header_of_a_request_gets_into_the_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = (b"Authorization: Bearer SECRET", b"Cookie: session=SECRET")
    await answered(Answering(), upgrade(*secrets))
    await refused(upgrade(*secrets, without=b"Upgrade"))
    await refused(upgrade(*secrets)[:-2])
    assert "SECRET" not in caplog.text


# What the application decides


@in_virtual_time
async def test_an_application_that_closes_instead_is_a_403_without_a_body() -> None:
    client = await answered(Answering({"type": "websocket.close", "code": 1008}))
    assert (client.answer.status, client.answer.phrase) == (403, "Forbidden")
    assert client.answer.headers == [("content-length", "0"), ("connection", "close")]
    assert client.answer.rest == b""
    assert client.wire.has_ended


@in_virtual_time
async def test_an_answer_of_the_application_is_sent_as_it_is_but_for_what_ends_the_connection() -> None:
    app = denying(
        401,
        (b"WWW-Authenticate", b"Bearer"),
        (b"Content-Length", b"999"),
        (b"connection", b"keep-alive"),
        (b"X-Name", b"\xe9"),
        body=b"who are you?",
    )
    client = await answered(app, headers=[(b"Server", b"mine")])
    assert (client.answer.status, client.answer.phrase) == (401, "Unauthorized")
    assert client.answer.headers == [
        ("server", "mine"),
        ("www-authenticate", "Bearer"),
        ("x-name", "\xe9"),
        ("content-length", "12"),
        ("connection", "close"),
    ]
    assert client.answer.rest == b"who are you?"
    assert client.got.count(b"Content-Length") == 0
    assert client.wire.has_ended


@in_virtual_time
async def test_a_status_without_a_name_is_sent_all_the_same() -> None:
    answer = (await answered(denying(499))).answer
    assert (answer.status, answer.phrase) == (499, "")


SPLITTERS = [b"a\rb", b"a\nb", b"a\r\nX-Evil: 1", b"a\0b"]


@pytest.mark.parametrize("evil", SPLITTERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda evil: accepting(None, (b"x-a", evil)),
        lambda evil: accepting(None, (evil, b"1")),
        lambda evil: accepting(None, (b"x-fine", b"1"), (b"x-a", evil)),
        lambda evil: accepting(evil.decode()),
    ],
)
@in_virtual_time
async def test_what_would_split_an_accept_is_an_error_of_the_application_and_a_500(
    make: Callable[[bytes], Answering], evil: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(evil)
    client = await answered(app)
    assert client.answer.status == 500
    assert client.answer.rest == b"Internal Server Error"
    assert b"Evil" not in client.got
    assert str(app.error) == "A header or subprotocol of the application has a line end in it."
    caplog.clear()  # the error of the application, as it should be


@pytest.mark.parametrize("evil", SPLITTERS)
@pytest.mark.parametrize("make", [lambda evil: (b"x-a", evil), lambda evil: (evil, b"1")])
@in_virtual_time
async def test_what_would_split_a_refusal_is_a_500_without_any_of_it(
    make: Callable[[bytes], tuple[bytes, bytes]], evil: bytes
) -> None:
    client = await answered(denying(401, (b"x-fine", b"1"), make(evil), body=b"secret"))
    assert (client.answer.status, client.answer.phrase) == (500, "Internal Server Error")
    assert client.answer.headers == [("content-length", "21"), ("connection", "close")]
    assert client.answer.rest == b"Internal Server Error"


# What the application sees


@in_virtual_time
async def test_the_scope_is_that_of_asgi() -> None:
    app = Answering()
    await answered(app, upgrade(b"X-Custom: 1"))
    scope = {**app.scope, "extensions": sorted(app.scope["extensions"])}
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("10.0.0.1", 8443),
        "client": ("192.0.2.7", 50_000),
        "root_path": "",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"",
        "headers": [
            (b"host", b"example.test"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", KEY),
            (b"sec-websocket-version", b"13"),
            (b"x-custom", b"1"),
        ],
        "subprotocols": [],
        "state": {},
        "extensions": ["socketspec.handover", "socketspec.when_closed", "websocket.http.response"],
    }


@in_virtual_time
async def test_over_tls_the_scheme_is_wss() -> None:
    app = Answering()
    await answered(app, is_tls=True)
    assert app.scope["scheme"] == "wss"


@pytest.mark.parametrize(
    ("target", "path", "raw", "query"),
    [
        (b"/a%20b/c", "/a b/c", b"/a%20b/c", b""),
        (b"/%C3%A9?q=%C3%A9", "/é", b"/%C3%A9", b"q=%C3%A9"),
        (b"/ws?token=a?b&c=d", "/ws", b"/ws", b"token=a?b&c=d"),
        (b"/ws?", "/ws", b"/ws", b""),
        (b"/a%3Fb?c", "/a?b", b"/a%3Fb", b"c"),
    ],
)
@in_virtual_time
async def test_path_and_query_are_told_apart_at_the_first_question_mark(
    target: bytes, path: str, raw: bytes, query: bytes
) -> None:
    app = Answering()
    await answered(app, upgrade(line=b"GET " + target + b" HTTP/1.1"))
    assert (app.scope["path"], app.scope["raw_path"], app.scope["query_string"]) == (path, raw, query)


@in_virtual_time
async def test_where_the_application_is_mounted_is_in_front_of_the_path() -> None:
    app = Answering()
    await answered(app, root_path="/api")
    assert app.scope["root_path"] == "/api"
    assert (app.scope["path"], app.scope["raw_path"]) == ("/api/ws", b"/api/ws")


@in_virtual_time
async def test_header_values_are_the_bytes_that_came_and_repeated_ones_stay_apart() -> None:
    app = Answering()
    await answered(app, upgrade(b"X-Name: \xe9\xff", b"Cookie: a=1", b"Cookie: b=2"))
    assert app.scope["headers"][-3:] == [(b"x-name", b"\xe9\xff"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]


@in_virtual_time
async def test_each_connection_has_the_servers_state_for_itself() -> None:
    state = {"pool": object()}
    app = Answering()
    await answered(app, state=state)
    assert app.scope["state"] == state
    app.scope["state"]["mine"] = 1
    assert list(state) == ["pool"]


# What comes early, and who goes early


@in_virtual_time
async def test_frames_sent_before_the_answer_are_delivered_after_it() -> None:
    app = Answering()
    client = PlayedClient(app)
    client.sends(upgrade())
    client.sends(frame(1, b"early"), frame(2, b"bird")[:3])
    client.sends(frame(2, b"bird")[3:])
    await turns(lambda: len(app.heard) == 2)
    assert [event.get("text") or event.get("bytes") for event in app.heard] == ["early", b"bird"]


@in_virtual_time
async def test_what_may_come_before_the_answer_is_bounded() -> None:
    app = Answering()
    client = PlayedClient(app)
    client.sends(upgrade())
    client.sends(bytes(65_536))
    assert not client.wire.is_aborted
    client.sends(bytes(1))
    assert client.wire.is_aborted
    await turns(lambda: client.server.connections == set())
    assert client.got == b""


@in_virtual_time
async def test_a_client_that_goes_before_the_answer_is_told_to_the_application_and_answered_no_more() -> None:
    gate = asyncio.Event()
    ended: list[Any] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await receive()
        await gate.wait()
        await send({"type": "websocket.accept"})
        ended.append(await receive())

    client = PlayedClient(app)
    client.sends(upgrade())
    client.wire.hang_up()
    await turns(lambda: client.server.connections == set())
    gate.set()
    await turns(lambda: client.server.tasks == set())
    assert ended == []  # `send` said so already
    assert client.got == b""


@in_virtual_time
async def test_a_refusal_to_a_client_that_has_just_hung_up_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    app = denying(401)
    client = PlayedClient(app)
    client.sends(upgrade())
    client.wire.hang_up()  # before the application answers, which does so before the connection is gone
    await turns(lambda: client.server.connections == set() and client.server.tasks == set())
    assert not client.wire.is_aborted
    assert caplog.text == ""


@in_virtual_time
async def test_a_connection_that_is_gone_before_its_request_is_forgotten() -> None:
    client = PlayedClient(Answering())
    client.wire.break_off(None)
    await turns(lambda: client.server.connections == set())


@in_virtual_time
async def test_a_connection_is_counted_from_its_first_byte_to_its_last() -> None:
    client = PlayedClient(Answering())
    assert len(client.server.connections) == 1
    client.sends(upgrade())
    assert len(client.server.tasks) == 1
    await turns(lambda: client.got)
    client.wire.break_off(ConnectionResetError())
    await turns(lambda: client.server.connections == set() and client.server.tasks == set())


@in_virtual_time
async def test_a_server_that_stops_refuses_those_whose_handshake_is_not_answered() -> None:
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await gate.wait()

    client = PlayedClient(app)
    client.sends(upgrade())
    await asyncio.sleep(0)
    client.protocol.shutdown()
    assert client.answer.status == 503
    assert client.wire.has_ended
    gate.set()


@in_virtual_time
async def test_a_server_that_stops_closes_connections_that_asked_for_nothing_yet() -> None:
    client = PlayedClient(Answering())
    client.protocol.shutdown()
    await turns(lambda: client.server.connections == set())
    assert client.got == b""
