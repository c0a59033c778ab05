"""What a server says of itself before it gets the first command: what it runs, which role it has, what it forgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from socketspec.cluster.options import Address

__all__ = ("Hello", "as_dict", "parse_info", "read_hello", "read_info", "warn_if_evicting")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

KEEPS_ALL: Final = "noeviction"


class Hello(NamedTuple):
    """Who a server is."""

    server: str
    version: str
    mode: str
    """``standalone``, ``sentinel`` or ``cluster``."""
    role: str
    """``master`` or ``replica``."""


def read_hello(reply: Sequence[Any]) -> Hello:
    """From the reply to ``HELLO``."""
    fields = as_dict(reply)
    return Hello(*(fields.get(name, "") for name in Hello._fields))


def read_info(reply: Any) -> Hello:
    """From the reply to ``INFO``."""
    said = parse_info(reply)
    server = said.get("server_name", "redis")
    return Hello(
        server,
        said.get(f"{server}_version", ""),
        said.get("redis_mode") or said.get("server_mode") or "standalone",
        "replica" if said.get("role") == "slave" else "master",
    )


def warn_if_evicting(address: Address, info: Any, config: Any = None) -> None:
    """Log a warning where the server drops keys when its memory is full.

    See https://redis.io/docs/latest/develop/reference/eviction/. `info` is its reply to ``INFO``; where that was
    refused, `config` is the one to ``CONFIG GET maxmemory*``.
    """
    said = parse_info(info)
    settings = as_dict(config) if isinstance(config, Sequence) else {}
    policy = said.get("maxmemory_policy") or settings.get("maxmemory-policy") or KEEPS_ALL
    if policy == KEEPS_ALL:
        return
    limit = said.get("maxmemory") or settings.get("maxmemory") or "0"
    when = "as soon as it has a maxmemory" if limit == "0" else f"when its memory is full (maxmemory {limit})"
    logger.warning(
        "%s drops keys %s: its maxmemory-policy is %s. That loses revocations (who was revoked comes back in), "
        "sessions, the leases of nodes with their members, and histories. Set there: maxmemory-policy %s",
        address,
        when,
        policy,
        KEEPS_ALL,
    )


def parse_info(reply: Any) -> dict[str, str]:
    """The fields of a reply to ``INFO``; none where it is an error."""
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def as_dict(flat: Sequence[Any]) -> dict[str, str]:
    """A reply of alternating names and values as a dict of text; values that are no text are left out."""
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in flat]
    return {name: value for name, value in zip(texts[::2], texts[1::2], strict=True) if isinstance(value, str)}
