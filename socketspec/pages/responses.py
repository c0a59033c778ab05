"""The answers that pages are made of: JSON, the pages' files, and the headers that keep them safe to show."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from socketspec.pages.json_values import finite
from socketspec.protocol.handshake import QueryParams

__all__ = ("Page", "Response", "asset", "json_response", "page")

# The pages load nothing from other hosts and may not be framed. Scripts and styles are files of their own, and inline
# ones are forbidden: whatever a schema or a client says, it cannot become markup that runs.
_SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = "application/json"
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """All its headers."""
        length = str(len(self.body))
        return {"content-type": self.content_type, "content-length": length, **_SECURITY_HEADERS, **self.extra}


Page = Callable[[QueryParams], Awaitable[Response]]
"""Answers the GET requests for one path."""


def json_response(value: Any, status: int = 200) -> Response:
    """`value` as JSON; what JSON cannot express is written as `str` shows it."""
    return Response(status, json.dumps(finite(value), default=str, allow_nan=False).encode())


def page(name: str, url: str) -> Page:
    """An HTML file of `pages/assets`, served at `url`."""
    # Links relative to the page itself are right under every prefix, mount and root_path.
    here = url.rpartition("/")[2]
    return _static(_read(name).replace(b"{{here}}", here.encode()), "text/html; charset=utf-8")


def asset(name: str, content_type: str) -> Page:
    """Another file of `pages/assets`, as it is."""
    return _static(_read(name), content_type)


def _read(name: str) -> bytes:
    return files("socketspec.pages").joinpath("assets", name).read_bytes()


def _static(body: bytes, content_type: str) -> Page:
    async def answer(query: QueryParams) -> Response:
        return Response(200, body, content_type)

    return answer
