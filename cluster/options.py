"""Backend URLs and `RedisOptions`: where the Redis or Valkey servers are, and how this node talks to them."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from socketspec.errors import ConfigurationError
from socketspec.security.secret_options import check_secret

__all__ = (
    "Address",
    "Mode",
    "RedisOptions",
    "Servers",
    "check_prefix",
    "check_seconds",
    "configured",
    "parse_url",
    "tls_context",
)

Mode = Literal["standalone", "sentinel", "cluster"]

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_SCHEME = re.compile(r"(redis|rediss|valkey|valkeys)(?:\+(sentinel|cluster))?")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CLIENT_NAME = re.compile(r"[!-~]{0,64}")
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

IS_REPLICA: Final = (
    "is a replica now, which takes no writes: give the primary's address, or let Sentinels find it "
    "(redis+sentinel://hosts/name)"
)
"""What is wrong with a server that should be the primary."""
TLS_HINT: Final = {True: "If it does not speak TLS, use redis://.", False: "If it speaks TLS, use rediss://."}
"""What to suggest when a server closes a new connection without a word, by whether we use TLS."""


class Address(NamedTuple):
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """What a backend URL says about the servers. The password is in no `repr`."""

    mode: Mode
    hosts: tuple[Address, ...]
    """The server, the sentinels, or some nodes of the cluster: the others are discovered."""
    name: str = ""
    """The name the sentinels know the primary by; empty in the other modes."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False

    def __str__(self) -> str:
        return ", ".join(map(str, self.hosts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """How a node uses its servers. Every field may stand in the query string of the URL. Times are in seconds.

    Raises `ConfigurationError` for a value that cannot work.
    """

    prefix: str = "socketspec"
    """What every key and channel begins with: apps that share a server and must not meet have different ones."""

    lease: float = 8.0
    """How long a node that died is still counted as present. At least 1."""
    linger: float = 1.0
    """How long a node still listens to a room after its last member there left. 0: not at all."""

    probe_interval: float = 1.5
    """How often each subscription connection is tested with a message of our own."""
    probe_timeout: float = 3.0
    """How long such a message may take before the connection is given up and replaced."""

    connect_timeout: float = 3.0
    """How long one attempt to connect may take, TLS and login included."""
    command_timeout: float = 5.0
    """How long any command, publish or subscribe may take, retries included, before it raises `BackendError`."""
    start_timeout: float = 30.0
    """How long a start goes on trying while the servers cannot be reached or are still loading. 0: one try."""
    max_pending: int = 10_000
    """How many commands may wait to be sent; one more raises `BackendError` at once."""
    max_pending_bytes: int = 64 * 1024 * 1024
    """How many bytes of commands may wait to be sent, likewise. One command may be larger if no other waits."""

    username: str | None = None
    """Overrides the URL's."""
    password: str | None = field(default=None, repr=False)
    """Overrides the URL's, so that the URL can be shown."""
    sentinel_username: str | None = None
    """For the sentinels themselves, which have users of their own."""
    sentinel_password: str | None = field(default=None, repr=False)
    client_name: str = "socketspec"
    """What ``CLIENT LIST`` shows for this node's connections: printable ASCII without spaces. Empty: nothing."""

    ca_certs: str | None = None
    """A file of PEM certificates to trust (TLS only). None: those the system trusts."""
    certfile: str | None = None
    """A PEM file with this client's certificate (TLS only)."""
    keyfile: str | None = field(default=None, repr=False)
    """A PEM file with its private key; None where `certfile` holds it."""
    check_hostname: bool = True
    """Whether the server's certificate must name the host we connect to (TLS only)."""

    def __post_init__(self) -> None:
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}  # of whatever type
        check_prefix(self.prefix)
        if not isinstance(values["client_name"], str) or not _CLIENT_NAME.fullmatch(self.client_name):
            raise ConfigurationError(
                f"client_name={self.client_name!r} must be at most 64 printable ASCII characters without spaces."
            )
        for name in ("username", "password", "sentinel_username", "sentinel_password"):
            if not isinstance(values[name], str | None):
                raise ConfigurationError(f"{name} must be a str or None, not {type(values[name]).__name__}.")
        for name in ("password", "sentinel_password"):
            check_secret(name, values[name], without="None logs in without a password.")
        for name in _RANGES:
            check_seconds(name, values[name])
        for name, most in (("max_pending", 1_000_000), ("max_pending_bytes", 1 << 40)):
            pending = values[name]
            if isinstance(pending, bool) or not isinstance(pending, int) or not 1 <= pending <= most:
                raise ConfigurationError(f"{name}={pending!r} must be a whole number from 1 to {most:,}.")
        if not isinstance(values["check_hostname"], bool):
            raise ConfigurationError(f"check_hostname={self.check_hostname!r} must be True or False.")
        if self.keyfile is not None and self.certfile is None:
            raise ConfigurationError("keyfile is given without certfile: pass the client's certificate as well.")


_RANGES: Final = {
    "lease": (1.0, 3600.0),
    "linger": (0.0, 3600.0),
    "probe_interval": (0.05, 60.0),
    "probe_timeout": (0.05, 60.0),
    "connect_timeout": (0.05, 60.0),
    "command_timeout": (0.05, 60.0),
    "start_timeout": (0.0, 3600.0),
}


def check_prefix(prefix: str) -> str:
    """Return `prefix` if names of keys can begin with it. Raises `ConfigurationError`."""
    given: object = prefix  # untyped code passes anything
    if not isinstance(given, str) or not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"prefix={prefix!r} must be 1 to 64 ASCII letters, digits or any of _ . : -, for example 'socketspec' or "
            "'shop:live'."
        )
    return prefix


def check_seconds(field_name: str, value: object, shown: str = "") -> None:
    """Raise `ConfigurationError` unless `value` may be that field of `RedisOptions`; errors call it `shown`."""
    least, most = _RANGES[field_name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigurationError(
            f"{shown or field_name}={value!r} must be a number of seconds from {least:g} to {most:g}."
        )


def configured(owner: str, url: str, options: Mapping[str, Any]) -> tuple[Servers, RedisOptions]:
    """What a URL says, with `options` overriding it. Raises `ConfigurationError`, which names `owner`."""
    known = {one.name for one in fields(RedisOptions)}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"{owner} has no option {name!r}; the options are: {', '.join(sorted(known))}.")
    servers, defaults = parse_url(url)
    return servers, replace(defaults, **options)


def parse_url(url: str) -> tuple[Servers, RedisOptions]:
    """Read a backend URL. Raises `ConfigurationError`, which never quotes the URL: it may hold a password.

    Schemes: ``redis``, ``rediss`` (TLS), ``valkey``, ``valkeys`` (TLS), each alone or with ``+sentinel`` or
    ``+cluster``. User and password are percent-encoded; the query string holds fields of `RedisOptions`.
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
            "alone or with +sentinel or +cluster."
        )
    if parts.fragment:
        raise ConfigurationError("The backend URL holds a '#': percent-encode it in the user and the password as %23.")
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
    return servers, RedisOptions(**_query(parts.query))


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
    if segments or not (db.isascii() and db.isdecimal() and len(db) <= 9):
        raise ConfigurationError(f"The backend URL's path must be a database number: {_EXAMPLES[mode]}")
    return name, int(db)


def _query(query: str) -> dict[str, Any]:
    known = {one.name: one.default for one in fields(RedisOptions)}
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ConfigurationError(
                f"The backend URL's option {name!r} is unknown; the options are: {', '.join(sorted(known))}."
            )
        values[name] = _value(name, text, known[name])
    return values


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


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The TLS settings that `options` ask for. Raises `ConfigurationError` for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=options.ca_certs)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(f"ca_certs, certfile or keyfile cannot be used: {error}") from error
    context.check_hostname = options.check_hostname
    return context
