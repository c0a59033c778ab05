"""What a connection of a test is opened with; a reconnect opens another one with the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from socketspec.identity import Identity
from socketspec.protocol.names import check_user_id

__all__ = ("FormatName", "Pairs", "Recipe", "recipe")

FormatName = Literal["plain", "json", "msgpack"]
"""How a client speaks: without a subprotocol, or by ``socketspec.v1.json`` or ``socketspec.v1.msgpack``."""

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]

_SUBPROTOCOLS: Final = {"plain": (), "json": ("socketspec.v1.json",), "msgpack": ("socketspec.v1.msgpack",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A handshake to make, and how the client behaves."""

    path: str | None
    headers: tuple[tuple[str, str], ...]
    query: tuple[tuple[str, str], ...]
    subprotocols: tuple[str, ...]
    client: tuple[str, int]
    path_params: Mapping[str, Any] = field(default_factory=dict)
    identity: Identity | None
    answers_pings: bool | None


def recipe(
    path: str | None,
    *,
    token: str | None,
    headers: Pairs,
    cookies: Mapping[str, str] | None,
    query_params: Pairs,
    subprotocols: Iterable[str],
    format: FormatName,
    path_params: Mapping[str, Any] | None,
    client: tuple[str, int],
    identity: Identity | None,
    answer_pings: bool | None,
) -> Recipe:
    """A recipe of what was passed to `connect`. Raises `TypeError` and `ValueError` for what no client could bring."""
    if format not in _SUBPROTOCOLS:
        raise ValueError(f"connect(format={format!r}): write 'plain', 'json' or 'msgpack'.")
    _check_pairs(headers=headers, cookies=cookies, query_params=query_params)
    _check_identity(identity, token)
    given = list(_pairs(headers))
    if token is not None:
        given.append(("Authorization", f"Bearer {token}"))
    if cookies:
        given.append(("Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())))
    query = list(_pairs(query_params))
    if path is not None and "?" in path:
        url = urlsplit(path)
        path, query = unquote(url.path), [*parse_qsl(url.query, keep_blank_values=True), *query]
    return Recipe(
        path=path,
        headers=tuple(given),
        query=tuple(query),
        subprotocols=(*_SUBPROTOCOLS[format], *subprotocols),
        client=client,
        path_params=dict(path_params or {}),
        identity=identity,
        answers_pings=answer_pings,
    )


def _check_pairs(**given: object) -> None:
    for name, pairs in given.items():
        if isinstance(pairs, str | bytes):
            raise TypeError(f"connect({name}=…) takes a dict, such as {{'name': 'value'}}, not a text.")


def _check_identity(identity: object, token: str | None) -> None:
    if identity is None:
        return
    if token is not None:
        raise ValueError(
            "connect(identity=…, token=…): no auth backend is asked with an identity. Pass one of the two."
        )
    if not isinstance(identity, Identity):
        raise TypeError(f"connect(identity=…) takes an Identity, not {type(identity).__name__}.")
    if identity.user_id is not None:
        check_user_id(identity.user_id)


def _pairs(source: Pairs) -> Iterable[tuple[str, str]]:
    pairs: Any = source.items() if isinstance(source, Mapping) else source
    return [(name, value) for name, value in pairs]
