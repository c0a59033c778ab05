"""How an ASGI server is told to refuse a handshake, whatever text, details and headers the refusal brings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from socketspec.adapters.asgi_transport import Send

__all__ = ("is_presentable", "refuse")


async def refuse(
    scope: MutableMapping[str, Any], send: Send, status: int, text: str, cause: Exception | None = None
) -> None:
    """Answer the handshake with an HTTP status; on servers that cannot do that, it is always 403."""
    # A close before the accept is a 403 on every server, and uvicorn's sans-I/O protocol logs no error for it.
    if status != 403 and "websocket.http.response" in (scope.get("extensions") or {}):
        body = text.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        headers += _headers(cause)
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": text})


def is_presentable(cause: Exception) -> bool:
    """Whether a framework can answer with this: an `HTTPException` whose detail is no JSON would fail in its handler.

    Source of what is written: Starlette's `JSONResponse.render` and `Response.init_headers`.
    """
    try:
        json.dumps(getattr(cause, "detail", None), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return len(list(_headers(cause))) == len(_given(cause))


def _headers(cause: Exception | None) -> Iterator[tuple[bytes, bytes]]:
    """The headers of an `HTTPException` that can be sent (RFC 9110 section 5.5)."""
    for name, value in _given(cause).items():
        if isinstance(name, str) and isinstance(value, str) and not any(letter in value for letter in "\r\n\0"):
            try:
                yield name.lower().encode("ascii"), value.encode("latin-1")
            except UnicodeEncodeError:
                continue


def _given(cause: Exception | None) -> Mapping[Any, Any]:
    headers = getattr(cause, "headers", None)
    return headers if isinstance(headers, Mapping) else {}
