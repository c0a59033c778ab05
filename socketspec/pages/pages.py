"""The HTTP pages of an app: schema, health, debug feed and drain. No I/O: adapters hand in requests, send answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from socketspec.errors import ConfigurationError
from socketspec.pages.responses import Page, Response, asset, json_response, page
from socketspec.protocol.handshake import Headers, QueryParams, token_of
from socketspec.security.bearer import BearerSecret

__all__ = ("HealthReport", "Pages")


class HealthReport(NamedTuple):
    """How an app is, as its health page says it."""

    status: str
    ready: bool
    """Whether new connections should be sent to this node."""
    detail: str
    node: str
    connections: int


class Pages:
    """Answers GET requests for the app's own paths. What it shows, and the drain, come from the four functions given:

    `schema` makes the app's schema, `health` says how the app is, `drain` lets all connections go and returns how many
    there were, `events_since` returns the debug feed's events numbered above the given number.
    """

    def __init__(
        self,
        *,
        schema: Callable[[], Mapping[str, Any]],
        health: Callable[[], Awaitable[HealthReport]],
        drain: Callable[[], Awaitable[int]],
        events_since: Callable[[int], Sequence[Mapping[str, Any]]],
        docs_url: str | None,
        debug_url: str | None,
        health_url: str | None,
        token: str | None,
        drain_url: str | None = None,
        drain_token: str | None = None,
    ) -> None:
        if drain_url is None and drain_token is not None:
            raise ConfigurationError(
                "SocketApp(drain_token=…) opens nothing without drain_url=…: write the path, such as "
                'drain_url="/socket-drain", or leave the token out.'
            )
        if drain_url is not None and not drain_token:
            raise ConfigurationError(
                f"SocketApp(drain_url={drain_url!r}) needs drain_token=…: without one, anybody could stop this node."
            )
        self._schema = schema
        self._health = health
        self._drain = drain
        self._events_since = events_since
        self._drain_url = drain_url
        self._drain_secret = BearerSecret(drain_token or "")
        self.health_url: str | None = health_url
        self.docs_url: str | None = docs_url
        self.debug_url: str | None = debug_url
        self._secret = BearerSecret(token) if token is not None else None
        self._open: dict[str, Page] = {}
        self._guarded: dict[str, Page] = {}
        if health_url is not None:
            self._open[health_url] = self._show_health
        if docs_url is not None:
            self._guarded[docs_url] = page("docs.html", docs_url)
            self._guarded[f"{docs_url}/schema"] = self._show_schema
            self._add_assets(docs_url, "docs.js", "pages.css")
        if debug_url is not None:
            self._guarded[debug_url] = page("debug.html", debug_url)
            self._guarded[f"{debug_url}/feed"] = self._show_feed
            self._add_assets(debug_url, "debug.js", "pages.css")

    def _add_assets(self, url: str, script: str, style: str) -> None:
        # These hold no secrets, and the browser asks for them without the token.
        self._open[f"{url}/{script}"] = asset(script, "text/javascript; charset=utf-8")
        self._open[f"{url}/{style}"] = asset(style, "text/css; charset=utf-8")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is answered."""
        return (*self._open, *self._guarded, *((self._drain_url,) if self._drain_url is not None else ()))

    async def respond(self, method: str, path: str, headers: Headers, query: QueryParams) -> Response | None:
        """The answer to a request; None where the path is not one of `paths`."""
        if path == self._drain_url:
            return await self._answer_drain(method, headers)
        found = self._open.get(path)
        if found is None:
            found = self._guarded.get(path)
            if found is None:
                return None
            if not self._may_see(headers, query):
                return json_response({"detail": "Send the access token as Authorization: Bearer or ?token=."}, 401)
        if method not in ("GET", "HEAD"):
            return Response(405, b'{"detail":"GET only."}', extra={"allow": "GET, HEAD"})
        if path == self.health_url:
            in_detail = self._secret is not None and self._may_see(headers, query)
            return await self._show_health(query, in_detail=in_detail)
        return await found(query)

    def _may_see(self, headers: Headers, query: QueryParams) -> bool:
        if self._secret is None:
            return True
        token = token_of(headers.get("authorization", ""))
        return self._secret.matches(query.get("token") if token is None else token)

    async def _answer_drain(self, method: str, headers: Headers) -> Response:
        """Drain the app; the answer comes when it is done."""
        if not self._drain_secret.matches(token_of(headers.get("authorization", ""))):
            return json_response({"detail": "Send the drain token as Authorization: Bearer."}, 401)
        if method not in ("GET", "POST"):  # Kubernetes' httpGet can only GET
            return Response(405, b'{"detail":"GET or POST."}', extra={"allow": "GET, POST"})
        return json_response({"drained": await self._drain()})

    async def _show_schema(self, query: QueryParams) -> Response:
        return json_response(self._schema())

    async def _show_health(self, query: QueryParams, *, in_detail: bool = False) -> Response:
        """Whether the app is ready, or with ``?check=live`` whether the event loop runs at all.

        Details name servers: they are for those who have the token.
        """
        check = query.get("check", "ready")
        if check not in ("ready", "live"):
            return json_response({"detail": "check must be ready (the default) or live."}, 400)
        health = await self._health()
        report = {
            "status": health.status,
            "live": True,
            "ready": health.ready,
            "node": health.node,
            "connections": health.connections,
            **({"detail": health.detail} if in_detail else {}),
        }
        return json_response(report, 200 if health.ready or check == "live" else 503)

    async def _show_feed(self, query: QueryParams) -> Response:
        since = query.get("since", "0")
        number = int(since) if since.isascii() and since.isdigit() and len(since) < 16 else 0
        return json_response({"events": self._events_since(number)})
