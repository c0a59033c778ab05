"""The HTTP pages of an app: schema page, health, debug feed. No I/O: adapters hand in requests and send the answers."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from socketspec.errors import BackendError, ConfigurationError
from socketspec.protocol.handshake import Headers, QueryParams

if TYPE_CHECKING:
    from socketspec.app.app import SocketApp

__all__ = ("Pages", "Response")

# The pages load nothing from anywhere else and may not be framed. Scripts and styles are files of their own, so
# nothing inline is allowed and nothing that a schema or a client says can become markup that runs.
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


class Pages:
    """Answers GET requests for the app's own paths."""

    def __init__(
        self,
        app: SocketApp,
        *,
        docs_url: str | None,
        debug_url: str | None,
        health_url: str | None,
        token: str | None,
        drain_url: str | None = None,
        drain_token: str | None = None,
    ) -> None:
        if drain_url is not None and not drain_token:
            raise ConfigurationError(
                f"SocketApp(drain_url={drain_url!r}) needs drain_token=…: without one, anybody could stop this node."
            )
        self._app = app
        self._drain_url = drain_url
        self._drain_token = _digest(drain_token) if drain_token else None
        self.health_url: str | None = health_url
        self._token = _digest(token) if token is not None else None
        self._open: dict[str, Page] = {}
        self._guarded: dict[str, Page] = {}
        if health_url is not None:
            self._open[health_url] = self._health
        if docs_url is not None:
            self._guarded[docs_url] = _page("docs.html", docs_url)
            self._guarded[f"{docs_url}/schema"] = self._schema
            self._add_assets(docs_url, "docs.js", "pages.css")
        if debug_url is not None:
            self._guarded[debug_url] = _page("debug.html", debug_url)
            self._guarded[f"{debug_url}/feed"] = self._feed
            self._add_assets(debug_url, "debug.js", "pages.css")

    def _add_assets(self, url: str, script: str, style: str) -> None:
        # Program text without secrets: the browser asks for it without the token.
        self._open[f"{url}/{script}"] = _asset(script, "text/javascript; charset=utf-8")
        self._open[f"{url}/{style}"] = _asset(style, "text/css; charset=utf-8")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is answered."""
        return (*self._open, *self._guarded, *((self._drain_url,) if self._drain_url is not None else ()))

    async def respond(self, method: str, path: str, headers: Headers, query: QueryParams) -> Response | None:
        """The answer to a request; None where the path is not one of `paths`."""
        if path == self._drain_url:
            return await self._drain(method, headers)
        page = self._open.get(path)
        if page is None:
            page = self._guarded.get(path)
            if page is None:
                return None
            if not self._may_see(headers, query):
                return _json({"detail": "Send the access token as Authorization: Bearer or ?token=."}, 401)
        if method not in ("GET", "HEAD"):
            return Response(405, b'{"detail":"GET only."}', extra={"allow": "GET, HEAD"})
        if path == self.health_url:
            return await self._health(query, in_detail=self._token is not None and self._may_see(headers, query))
        return await page(query)

    def _may_see(self, headers: Headers, query: QueryParams) -> bool:
        if self._token is None:
            return True
        given = _bearer(headers)
        return hmac.compare_digest(_digest(query.get("token", "") if given is None else given), self._token)

    async def _drain(self, method: str, headers: Headers) -> Response:
        """Drain the app; the answer comes when it is done."""
        if self._drain_token is None or not hmac.compare_digest(_digest(_bearer(headers) or ""), self._drain_token):
            return _json({"detail": "Send the drain token as Authorization: Bearer."}, 401)
        if method not in ("GET", "POST"):  # Kubernetes' httpGet can only GET
            return Response(405, b'{"detail":"GET or POST."}', extra={"allow": "GET, POST"})
        return _json({"drained": await self._app.drain()})

    async def _schema(self, query: QueryParams) -> Response:
        return _json(self._app.schema())

    async def _health(self, query: QueryParams, *, in_detail: bool = False) -> Response:
        """Readiness, or with ``?check=live`` whether the event loop runs at all. Details name servers: they are for
        those who have the token.
        """
        check = query.get("check", "ready")
        if check not in ("ready", "live"):
            return _json({"detail": "check must be ready (the default) or live."}, 400)
        status, ready, detail = await self._state()
        engine = self._app.engine
        report = {
            "status": status,
            "live": True,
            "ready": ready,
            "node": self._app.node,
            "connections": 0 if engine is None else len(engine.connections),
            **({"detail": detail} if in_detail else {}),
        }
        return _json(report, 200 if ready or check == "live" else 503)

    async def _state(self) -> tuple[str, bool, str]:
        engine = self._app.engine
        if engine is None:
            return "not_started", False, "not started"
        if engine.stopping:
            return "stopping", False, "stopping"
        try:
            ready, detail = await engine.backend.health()
        except BackendError as error:
            ready, detail = False, str(error)
        return "ok" if ready else "out_of_touch", ready, detail

    async def _feed(self, query: QueryParams) -> Response:
        engine = self._app.engine
        since = query.get("since", "0")
        number = int(since) if since.isascii() and since.isdigit() and len(since) < 16 else 0
        return _json({"events": engine.feed.since(number) if engine is not None and engine.feed is not None else []})


def _bearer(headers: Headers) -> str | None:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    # Headers are bytes, handed on as Latin-1: a token beyond ASCII is sent in UTF-8.
    return bearer.strip().encode("latin-1", "replace").decode(errors="replace")


def _digest(secret: str) -> bytes:
    # Digests have one length, so comparing them says nothing about the secret's.
    return hashlib.sha256(secret.encode()).digest()


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(value, default=str).encode())


def _read(name: str) -> bytes:
    return files("socketspec.pages").joinpath("assets", name).read_bytes()


def _page(name: str, url: str) -> Page:
    # Links relative to the page itself hold under every prefix, mount and root_path.
    here = url.rpartition("/")[2]
    return _static(_read(name).replace(b"{{here}}", here.encode()), "text/html; charset=utf-8")


def _asset(name: str, content_type: str) -> Page:
    return _static(_read(name), content_type)


def _static(body: bytes, content_type: str) -> Page:
    async def page(query: QueryParams) -> Response:
        return Response(200, body, content_type)

    return page
