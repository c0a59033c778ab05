"""`Servers` and `RedisOptions`: where the Redis or Valkey servers are, and how this node talks to them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from redis.credentials import CredentialProvider

from socketspec.errors import ConfigurationError
from socketspec.security.secret_options import check_secret

__all__ = (
    "Address",
    "Mode",
    "RedisOptions",
    "Servers",
    "check_prefix",
    "check_seconds",
    "tls_context",
)

Mode = Literal["standalone", "sentinel", "cluster"]

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CLIENT_NAME = re.compile(r"[!-~]{0,64}")
IS_REPLICA: Final = (
    "is a replica now, which takes no writes: give the primary's address, or let Sentinels find it "
    "(redis+sentinel://hosts/name)"
)
"""What is wrong with a server that should be the primary."""
TLS_HINT: Final = {True: "If it does not speak TLS, use redis://.", False: "If it speaks TLS, use rediss://."}
"""What to suggest when a server closes a new connection without a word, by whether we use TLS."""


class Address(NamedTuple):
    """Where one server listens: a host and a port, or the path of a Unix socket and 0."""

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.host.startswith("/")

    def __str__(self) -> str:
        if self.is_unix:
            return self.host
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
    """How a node uses its servers. Times are in seconds. Raises `ConfigurationError` for a value that cannot work.

    Every field but `tls_verify` and the credential providers may stand in the query string of the URL.
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
    credential_provider: CredentialProvider | None = field(default=None, repr=False)
    """Asked for user and password at each new connection, in their place: an object with redis-py's `get_credentials`,
    `get_credentials_async` or both, such as a provider of IAM or Entra tokens. Within `connect_timeout`."""
    sentinel_credential_provider: CredentialProvider | None = field(default=None, repr=False)
    """The same for the sentinels themselves."""
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
    tls_verify: bool = True
    """Whether the server's certificate is looked at. False: anybody in between can read and change everything, and the
    log says so with a warning (TLS only)."""

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
        _check_tls(values)
        for whose in ("", "sentinel_"):
            _check_provider(whose, values)


def _check_tls(values: Mapping[str, Any]) -> None:
    for name in ("check_hostname", "tls_verify"):
        if not isinstance(values[name], bool):
            raise ConfigurationError(f"{name}={values[name]!r} must be True or False.")
    if not values["tls_verify"] and values["ca_certs"] is not None:
        raise ConfigurationError("ca_certs is given with tls_verify=False, which trusts everybody: leave one out.")
    if values["keyfile"] is not None and values["certfile"] is None:
        raise ConfigurationError("keyfile is given without certfile: pass the client's certificate as well.")


def _check_provider(whose: str, values: Mapping[str, Any]) -> None:
    name = f"{whose}credential_provider"
    provider = values[name]
    if provider is None:
        return
    if isinstance(provider, type) or not (
        callable(getattr(provider, "get_credentials", None))
        or callable(getattr(provider, "get_credentials_async", None))
    ):
        raise ConfigurationError(
            f"{name} must be an object with get_credentials(), which returns (password,) or (username, password), "
            f"not {provider.__name__ + ' itself' if isinstance(provider, type) else type(provider).__name__}."
        )
    for other in (f"{whose}username", f"{whose}password"):
        if values[other] is not None:
            raise ConfigurationError(f"{name} and {other} are given: leave one out.")


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


def _no_passphrase() -> str:
    """OpenSSL would ask for it at the terminal, and wait."""
    raise ValueError("the private key is encrypted: decrypt it (openssl pkey), and let nobody else read the file")


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The TLS settings that `options` ask for. Raises `ConfigurationError` for files that cannot be used."""
    for name in ("ca_certs", "certfile", "keyfile"):
        path = getattr(options, name)
        if isinstance(path, str | Path):  # OpenSSL's errors name no file
            try:
                Path(path).stat()
            except OSError as error:
                raise ConfigurationError(f"{name}={path!r} cannot be read: {error.strerror}.") from error
    try:
        context = ssl.create_default_context(cafile=options.ca_certs)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile, password=_no_passphrase)
    except (OSError, TypeError, ValueError) as error:
        if options.certfile is not None and options.keyfile is None and isinstance(error, ssl.SSLError):
            raise ConfigurationError(
                f"certfile={options.certfile!r} has no private key in it: pass keyfile= with the file that has it, or "
                f"put both into one ({error})."
            ) from error
        raise ConfigurationError(f"ca_certs, certfile or keyfile cannot be used: {error}") from error
    context.check_hostname = options.check_hostname and options.tls_verify
    if not options.tls_verify:
        context.verify_mode = ssl.CERT_NONE
    return context
