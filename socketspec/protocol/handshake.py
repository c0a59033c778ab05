"""What a client brought to the opening handshake: headers, query, offered subprotocols, address."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

__all__ = ("BEARER_SUBPROTOCOL", "NO_VARIABLES", "Handshake", "Headers", "QueryParams", "parse_cookies", "token_of")

BEARER_SUBPROTOCOL = "socketspec.bearer."
"""An offered subprotocol with this prefix carries the token, for browsers, which cannot set headers."""


NO_VARIABLES: Final[Mapping[str, Any]] = MappingProxyType({})
"""The path variables of where there are none."""


def token_of(authorization: str) -> str | None:
    """The token in the value of an ``Authorization: Bearer`` header; None where it has another scheme, or none."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    # Headers are bytes, handed on as Latin-1: a token beyond ASCII is sent in UTF-8.
    return token.strip().encode("latin-1", "replace").decode(errors="replace")


class QueryParams(Mapping[str, str]):
    """Immutable string pairs in which a name may stand more than once. Looking a name up gives its first value."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = tuple((self._fold(name), value) for name, value in pairs)

    @staticmethod
    def _fold(name: str) -> str:
        return name

    def __getitem__(self, name: str) -> str:
        folded = self._fold(name)
        for key, value in self._pairs:
            if key == folded:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        # Values may be secrets (?token=…, Authorization): names only.
        return f"{type(self).__name__}({list(self)!r})"

    def multi_items(self) -> tuple[tuple[str, str], ...]:
        """Every pair, in the order received."""
        return self._pairs

    def getlist(self, name: str) -> list[str]:
        """Every value of `name`, in the order received."""
        folded = self._fold(name)
        return [value for key, value in self._pairs if key == folded]


class Headers(QueryParams):
    """Like `QueryParams`, but upper and lower case are the same in names (RFC 9110 section 5.1)."""

    __slots__ = ()

    @staticmethod
    def _fold(name: str) -> str:
        return name.lower()


def parse_cookies(headers: Headers) -> dict[str, str]:
    """The cookies in all ``Cookie`` headers, as browsers write them (RFC 6265 section 4.2) and Starlette reads them.

    Whatever stands between two semicolons is one cookie, also JSON and other text that RFC 6265 has no place for; one
    that is malformed does not concern its neighbours. Of several with one name, the last counts. A value in quotes
    loses these, and its escapes are undone.
    """
    cookies: dict[str, str] = {}
    for header in headers.getlist("cookie"):
        for part in header.split(";"):
            name, separator, value = part.partition("=")
            if not separator:
                name, value = "", name
            name, value = name.strip(), value.strip()
            if name or value:
                cookies[name] = _unquoted(value)
    return cookies


_ESCAPE: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)) if found[1] else found[2], value[1:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """An opening handshake. Adapters make one per connection; an `AuthBackend` reads it."""

    path: str = "/"
    headers: Headers = field(default_factory=Headers)
    query_params: QueryParams = field(default_factory=QueryParams)
    subprotocols: tuple[str, ...] = ()
    client: tuple[str, int] | None = None
    """The client's address as the server sees it; behind a proxy, that depends on which proxies the server trusts."""
    secure: bool = False
    """Whether it came over TLS."""
    token: str | None = None
    """A token that came by message (``__refresh_auth__``). When set, it is the only credential looked at."""
    path_params: Mapping[str, Any] = field(default_factory=lambda: NO_VARIABLES)
    """The variables of the path it is mounted at, such as ``/ws/{tenant}``, as the framework converted them."""
    scope: MutableMapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """The ASGI scope, kept only where something that the app declares asks for it."""

    @classmethod
    def parse_query(cls, query: bytes) -> QueryParams:
        """Parse a raw query string (RFC 3986), keeping blank values. Raises `ValueError` beyond 256 fields."""
        return QueryParams(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=256))

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies, by name; see `parse_cookies`. Read them only where `allowed_origins` names your pages: browsers
        send cookies along for any page.
        """
        return parse_cookies(self.headers)

    def as_scope(self) -> MutableMapping[str, Any]:
        """An ASGI scope that says the same: what the server's own said besides is not in it."""
        return {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "wss" if self.secure else "ws",
            "path": self.path,
            "raw_path": quote(self.path).encode(),
            "root_path": "",
            "query_string": urlencode(self.query_params.multi_items()).encode(),
            "headers": [
                (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
                for name, value in self.headers.multi_items()
            ],
            "client": self.client,
            "server": None,
            "subprotocols": list(self.subprotocols),
            "path_params": dict(self.path_params),
            "state": {},
        }

    def with_token(self, token: str) -> Handshake:
        """The same handshake, authenticated by `token` alone."""
        return replace(self, token=token)

    @property
    def bearer_token(self) -> str | None:
        """The token, from the first of: a message, ``Authorization: Bearer``, ``?token=``, the bearer subprotocol."""
        if self.token is not None:
            return self.token
        if token := token_of(self.headers.get("authorization", "")):
            return token
        if token := self.query_params.get("token"):
            return token
        return self.subprotocol_token

    @property
    def subprotocol_token(self) -> str | None:
        """The token carried by an offered ``socketspec.bearer.<token>`` subprotocol.

        What a subprotocol's name cannot hold (RFC 6455 section 4.1: the tokens of RFC 9110 section 5.6.2) comes
        percent-encoded, as JavaScript's ``encodeURIComponent`` does it.
        """
        for offered in self.subprotocols:
            if offered.startswith(BEARER_SUBPROTOCOL) and len(offered) > len(BEARER_SUBPROTOCOL):
                return unquote(offered[len(BEARER_SUBPROTOCOL) :], errors="replace")
        return None
