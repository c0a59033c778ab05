"""Backend URLs: what they say about servers and options, and what they may not hold."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from socketspec.cluster.options import Address, Mode, RedisOptions, Servers
from socketspec.errors import ConfigurationError
from socketspec.security.secret_options import check_secret

__all__ = ("configured", "parse_url")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_SCHEME = re.compile(r"(redis|rediss|valkey|valkeys)(?:\+(sentinel|cluster))?|unix")
_TRUTH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_EXAMPLES: Final = {
    "standalone": "redis://[user:password@]host[:6379][/db]",
    "sentinel": "redis+sentinel://[user:password@]host1[:26379],host2,host3/name[/db]",
    "cluster": "redis+cluster://[user:password@]host1[:6379],host2",
}
_UNIX_EXAMPLE: Final = "unix://[user:password@]/run/redis/redis.sock[?db=0]"
_ARGUMENTS_ONLY: Final = ("credential_provider", "sentinel_credential_provider", "tls_verify")
"""Options that no URL holds: objects, and what must stand in the code for everybody to see."""
_OF_REDIS_PY: Final = {
    "ssl_ca_certs": "ca_certs",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "ssl_check_hostname": "check_hostname",
    "socket_timeout": "command_timeout",
    "socket_connect_timeout": "connect_timeout",
}
"""What options of redis-py's URLs are called here."""


def configured(owner: str, url: str, options: Mapping[str, Any]) -> tuple[Servers, RedisOptions]:
    """What a URL says, with `options` overriding it. Raises `ConfigurationError`, which names `owner`."""
    known = {one.name for one in fields(RedisOptions)}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"{owner} has no option {name!r}; the options are: {', '.join(sorted(known))}.")
    servers, defaults = parse_url(url)
    chosen = replace(defaults, **options)
    if chosen.credential_provider is not None and (servers.username or servers.password):
        raise ConfigurationError(f"{owner} has a credential_provider and a user or password in its URL: leave one out.")
    if servers.tls and not chosen.tls_verify:
        logger.warning(
            "%s for %s does not verify certificates (tls_verify=False): whoever is in between can read and change "
            "everything. Pass ca_certs= with the authority that signed the server's certificate instead.",
            owner,
            servers,
        )
    return servers, chosen


def parse_url(url: str) -> tuple[Servers, RedisOptions]:
    """Read a backend URL. Raises `ConfigurationError`, which never quotes the URL: it may hold a password.

    Schemes: ``redis``, ``rediss`` (TLS), ``valkey``, ``valkeys`` (TLS), each alone or with ``+sentinel`` or
    ``+cluster``; or ``unix`` with the path of a socket. User and password are percent-encoded; the query string holds
    fields of `RedisOptions`, and for ``unix`` also ``db``.
    """
    given: object = url  # untyped code passes anything
    if not isinstance(given, str):
        raise ConfigurationError(
            f"The backend URL must be a str such as redis://host:6379, not {type(given).__name__}."
        )
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ConfigurationError(
            "The backend URL cannot be read: check its brackets, and percent-encode the user and the password."
        ) from None
    scheme = _SCHEME.fullmatch(parts.scheme)
    if scheme is None:
        raise ConfigurationError(
            f"The backend URL's scheme {parts.scheme!r} is unknown: use redis, rediss (TLS), valkey or valkeys (TLS), "
            "alone or with +sentinel or +cluster, or unix."
        )
    if parts.fragment:
        raise ConfigurationError("The backend URL holds a '#': percent-encode it in the user and the password as %23.")
    if parts.scheme == "unix":
        return _unix(parts)
    mode: Mode = scheme[2] or "standalone"  # type: ignore[assignment] # the pattern allows these two names only
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, password = _login(userinfo)
    name, db = _path(parts, mode)
    servers = Servers(
        mode=mode,
        hosts=_hosts(hosts, mode),
        name=name,
        db=db,
        username=username,
        password=password,
        tls=scheme[1].endswith("s") and scheme[1] != "redis",
    )
    return servers, RedisOptions(**_query(parse_qsl(parts.query, keep_blank_values=True)))


def _unix(parts: SplitResult) -> tuple[Servers, RedisOptions]:
    userinfo, _, host = parts.netloc.rpartition("@")
    username, password = _login(userinfo)
    path = unquote(parts.path)
    if host or len(path) < 2 or path.endswith("/") or "\0" in path:
        raise ConfigurationError(f"The backend URL must hold the whole path of a Unix socket: {_UNIX_EXAMPLE}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    db = query.pop("db", "0")
    if not _is_database(db):
        raise ConfigurationError(f"The backend URL's db={db!r} must be a database number: {_UNIX_EXAMPLE}")
    servers = Servers(
        mode="standalone", hosts=(Address(path, 0),), db=int(db), username=username, password=password, tls=False
    )
    return servers, RedisOptions(**_query(query.items()))


def _is_database(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _login(userinfo: str) -> tuple[str | None, str | None]:
    username, colon, password = userinfo.partition(":")
    if colon:
        check_secret("The password in the backend URL", unquote(password), without="Without one, leave the ':' out.")
    return unquote(username) or None, unquote(password) or None


def _hosts(text: str, mode: Mode) -> tuple[Address, ...]:
    default = SENTINEL_PORT if mode == "sentinel" else REDIS_PORT
    hosts = tuple(dict.fromkeys(_address(part, default) for part in text.split(",")))
    if mode == "standalone" and len(hosts) > 1:
        raise ConfigurationError(
            "The backend URL names several hosts: use redis+sentinel:// for sentinels, redis+cluster:// for a cluster."
        )
    return hosts


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or any(map(str.isspace, host)):
        raise ConfigurationError(
            "A host in the backend URL is missing or holds a space, or its port is not a number from 1 to 65535: "
            "write host:port, and percent-encode '/', '@', ':', '?' and '#' in the user and the password."
        )
    return Address(host, default_port if port is None else port)


def _path(parts: SplitResult, mode: Mode) -> tuple[str, int]:
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    name = segments.pop(0) if mode == "sentinel" and segments else ""
    if mode == "sentinel" and not name:
        raise ConfigurationError(
            f"The backend URL lacks the name that the sentinels know the primary by: {_EXAMPLES[mode]}"
        )
    if mode == "cluster" and segments and segments != ["0"]:
        raise ConfigurationError(
            f"The backend URL selects a database, which Redis Cluster does not have: {_EXAMPLES[mode]}. "
            "To keep apps apart, give each a ?prefix= of its own."
        )
    db = segments.pop(0) if segments else "0"
    if segments or not _is_database(db):
        raise ConfigurationError(f"The backend URL's path must be a database number: {_EXAMPLES[mode]}")
    return name, int(db)


def _query(query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    known = {one.name: one.default for one in fields(RedisOptions) if one.name not in _ARGUMENTS_ONLY}
    values: dict[str, Any] = {}
    for name, text in query:
        if name in _ARGUMENTS_ONLY or name == "ssl_cert_reqs":
            raise ConfigurationError(_not_in_a_url(name))
        if name not in known:
            hint = f"write {_OF_REDIS_PY[name]}; " if name in _OF_REDIS_PY else ""
            raise ConfigurationError(
                f"The backend URL's option {name!r} is unknown; {hint}the options are: {', '.join(sorted(known))}."
            )
        values[name] = _value(name, text, known[name])
    return values


def _not_in_a_url(name: str) -> str:
    if name in ("ssl_cert_reqs", "tls_verify"):
        return (
            f"The backend URL holds {name}, but whether certificates are verified is not left to a URL: they are. Pass "
            'ca_certs= with the authority that signed yours, or write RedisBackend("rediss://…", tls_verify=False), '
            'for a publisher Publisher("rediss://…", tls_verify=False).'
        )
    return f'{name} is an object, which no URL can hold: write RedisBackend("redis://…", {name}=…).'


def _value(name: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in _TRUTH:
            raise ConfigurationError(f"The backend URL's option {name}={text!r} must be true or false.")
        return _TRUTH[text.lower()]
    if isinstance(default, int | float):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigurationError(f"The backend URL's option {name}={text!r} must be a number.")
        return int(number) if isinstance(default, int) and number.is_integer() else number
    return text
