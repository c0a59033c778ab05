"""The opening handshake: an upgrade request read, answered, and told to an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

__all__ = ("Pairs", "ends_head", "read", "refusal", "scope_of")

# At debug level, websockets logs every header: tokens and cookies among them. This logger is in no hierarchy, so that
# no configuration can find it and enable it.
_silent: logging.Logger = logging.Logger("websockets, silent")
_silent.disabled = True

VERSION: Final = "13"
"""The version that is spoken; who asked for another one is told (RFC 6455 section 4.4)."""

Pairs = Iterable[tuple[bytes, bytes]]
"""HTTP headers."""


def read(data: bytes) -> tuple[Request | None, Response]:
    """Read an upgrade request. Returns it and the answer to it; without the request where that answer refuses it."""
    handshake = ServerProtocol(logger=_silent)
    handshake.receive_data(data)
    request = next((event for event in handshake.events_received() if isinstance(event, Request)), None)
    if request is None:
        return None, handshake.reject(HTTPStatus.BAD_REQUEST, "This is no request that can be answered.\n")
    response = handshake.accept(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        if request.headers.get_all("Sec-WebSocket-Version") != [VERSION]:
            response.headers["Sec-WebSocket-Version"] = VERSION  # so that a client may try again
        return None, response
    del response.headers["Date"]
    return request, response


def scope_of(
    request: Request,
    *,
    asgi_version: str,
    scheme: str,
    server: tuple[str, int | None] | None,
    client: tuple[str, int] | None,
    root_path: str,
    state: dict[str, Any],
) -> dict[str, Any]:
    """The ASGI scope of an upgrade request."""
    path, _, query = request.path.partition("?")
    offered = request.headers.get_all("Sec-WebSocket-Protocol")
    return {
        "type": "websocket",
        "asgi": {"version": asgi_version, "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "server": server,
        "client": client,
        "root_path": root_path,
        "path": root_path + unquote(path),
        "raw_path": (root_path + path).encode("ascii"),
        "query_string": query.encode("ascii"),
        # websockets 17 decodes values as ISO-8859-1, older ones as ASCII with surrogates: this undoes both.
        "headers": [
            (name.lower().encode("ascii"), value.encode("latin-1", "surrogateescape"))
            for name, value in request.headers.raw_items()
        ],
        "subprotocols": [token.strip() for value in offered for token in value.split(",")],
        "state": state,
        "extensions": {"websocket.http.response": {}},
    }


def ends_head(headers: Pairs) -> bool:
    """Whether a header of the application has a line end in it, and so could add lines to the answer (CWE-113)."""
    return any(b"\r" in part or b"\n" in part or b"\0" in part for pair in headers for part in pair)


def refusal(status: int, headers: Pairs, body: bytes) -> bytes:
    """An HTTP response after which the connection is closed."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}".encode()]
    given = [(name.lower(), value) for name, value in headers]
    if ends_head(given):
        return refusal(500, (), b"Internal Server Error")
    lines += [name + b": " + value for name, value in given if name not in (b"content-length", b"connection")]
    lines += [b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
