"""The settings of a node, from environment variables called ``SOCKETSPEC_…``.

What is not set, or set to nothing, has its default. What makes no sense is refused, all of it at once, each with a
sentence that says what to write.
"""

from __future__ import annotations

import difflib
import json
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from socketspec.errors import ConfigurationError
from socketspec.logs import JsonFormatter

__all__ = ("PREFIX", "Settings", "SettingsError", "announce", "read", "read_or_exit", "table")

PREFIX: Final = "SOCKETSPEC_"
HIDDEN: Final = "***"
LONGEST_SHOWN: Final = 80
_TRUTH: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_LEVELS: Final = ("critical", "error", "warning", "info", "debug")
_SERVICE_LINK: Final = re.compile(r"SOCKETSPEC_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP))")
"""What Kubernetes adds to every container beside a Service called socketspec or socketspec-something."""

T = TypeVar("T")
APIKeys = tuple[tuple[str, str | None], ...]
"""Keys, each with the user it belongs to."""


class SettingsError(ConfigurationError):
    """The environment makes no sense. `problems` has a sentence for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = tuple(problems)


def _text(value: str) -> str:
    return value


def _name(*, starts_with: str = "", contains: str = "", example: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not value.startswith(starts_with) or contains not in value or any(map(str.isspace, value)):
            raise ValueError(f"write {example}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 16 and low <= int(value) <= high):
            raise ValueError(f"write a whole number from {low} to {high}")
        return int(value)

    return parse


def _number(below: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < below:
            raise ValueError(f"write a number, 0 or more and less than {below:g}")
        return number

    return parse


def _truth(value: str) -> bool:
    if value.lower() not in _TRUTH:
        raise ValueError("write true or false")
    return _TRUTH[value.lower()]


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"write one of {', '.join(choices)}")
        return value.lower()

    return parse


def _pem(value: str) -> str:
    return value.replace("\\n", "\n")  # how many tools hand on text of several lines


def _list(value: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, value.split(",")) if part)


def _keys(value: str) -> APIKeys:
    keys: list[tuple[str, str | None]] = []
    for entry in _list(value):
        key, equals, user = entry.rpartition("=")  # the last one: keys may end with some
        if equals and not (key and user):
            raise ValueError("write key=user after key=user, with commas between; a key that ends with = needs a user")
        keys.append((key, user) if equals else (entry, None))
    if len({key for key, _ in keys}) < len(keys):
        raise ValueError("a key stands there twice: give each once")
    return tuple(keys)


def _variable(
    default: T, text: str, parse: Callable[[str], T], *, shown: str = "", secret: bool = False, server: bool = False
) -> T:
    """A field of `Settings`. `shown`: what the documentation calls the default, where it is not the value.
    `server`: it is about the server around the node."""
    metadata = {"text": text, "parse": parse, "shown": shown, "secret": secret, "server": server}
    found: T = field(default=default, metadata=metadata, repr=not secret)
    return found


_second = _number(86_400)
_path = _name(starts_with="/", example="a path that begins with /, such as /ws")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node does. Every field is the variable of its name, in capitals after ``SOCKETSPEC_``."""

    app: str = _variable(
        "node:app",
        "What is served: `module:attribute` of an ASGI application",
        _name(contains=":", example="module:attribute, such as main:app"),
        server=True,
    )
    host: str = _variable("0.0.0.0", "Address to listen on; `::` is IPv6 and IPv4", _text, server=True)  # noqa: S104 - a container
    port: int = _variable(8000, "Port to listen on", _whole(1, 65_535), server=True)
    workers: int = _variable(
        1, "Processes that share the port; several need `BACKEND`, and `METRICS=false`", _whole(1, 1024), server=True
    )
    backend: str = _variable(
        "", "URL of the Redis or Valkey that the nodes share", _text, shown="the memory of the process", secret=True
    )
    namespace: str = _variable("/", "SocketSpec's namespace: others hear nothing of it", _path)
    path: str = _variable("/ws", "Where clients connect", _path)
    drain_window: float = _variable(10.0, "Seconds over which connections leave when the node stops", _second)
    drain_grace: float = _variable(10.0, "Seconds that handlers have after that", _second)
    allowed_origins: tuple[str, ...] = _variable(
        (),
        "Origins of the web pages that may connect, such as `https://shop.example`, with commas between; `*`: all",
        _list,
        shown="none: clients that are no web pages",
    )
    jwt_secret: str = _variable("", "Secret that tokens are signed with", _text, shown="none", secret=True)
    jwt_public_key: str = _variable("", "Public key that tokens are verified with, in PEM", _pem, shown="none")
    jwks_url: str = _variable("", "Where the issuer of tokens publishes its keys", _text, shown="none")
    jwt_algorithm: str = _variable(
        "",
        "Algorithm of the tokens",
        _text,
        shown="HS256 with a secret, RS256 with keys from a URL, else the key's own",
    )
    jwt_audience: str = _variable("", "Audience that tokens must name", _text, shown="none may be named")
    jwt_issuer: str = _variable("", "Issuer that tokens must name", _text, shown="any")
    api_keys: tuple[tuple[str, str | None], ...] = _variable(
        (), "API keys that let in: `key=user` or `key`, with commas between", _keys, shown="none", secret=True
    )
    anonymous: bool = _variable(False, "Let everybody in, and serve the demo's page at `/`", _truth)
    rate: float = _variable(10.0, "Messages a second that one may send; 0: no limit", _number(1e6))
    burst: int = _variable(0, "Messages that one may send at once", _whole(1, 10**6), shown="three times `RATE`")
    max_payload_size: int = _variable(65_536, "Bytes that a message may have", _whole(1, 2**30))
    max_node_buffer: int = _variable(
        0,
        "Bytes that may wait for all clients of one process together; beyond it, the slowest are closed",
        _whole(1 << 20, 2**50),
        shown="256 MiB",
    )
    max_connections_per_user: int = _variable(
        0, "Connections that a user may have, on all nodes together", _whole(1, 10**9), shown="no limit"
    )
    max_connections: int = _variable(
        0,
        "Connections of one process; further ones get 503",
        _whole(1, 10**7),
        shown="as many as open files allow",
        server=True,
    )
    max_connections_per_address: int = _variable(
        0,
        "Connections that one address (IPv6: one /64) may have with one process",
        _whole(1, 10**7),
        shown="no limit",
        server=True,
    )
    accepts_per_second: int = _variable(
        0, "Connections that one process accepts in a second", _whole(1, 10**6), shown="no limit", server=True
    )
    docs_token: str = _variable(
        "", "Serves the schema page at `/socket-docs` to those who have it", _text, shown="not served", secret=True
    )
    metrics: bool = _variable(True, "Serve Prometheus metrics at `/metrics`", _truth)
    metrics_token: str = _variable(
        "", "What `/metrics` wants as `Authorization: Bearer`", _text, shown="nothing", secret=True
    )
    log_level: str = _variable("info", f"What is logged: {', '.join(_LEVELS)}", _one_of(*_LEVELS), server=True)
    log_format: str = _variable("text", "`text`, or `json`: an object a line", _one_of("text", "json"), server=True)
    forwarded_allow_ips: str = _variable(
        "",
        "Addresses or networks of the proxies whose `X-Forwarded-*` headers are believed; `*`: all",
        _text,
        shown="`127.0.0.1,::1`",
        server=True,
    )
    root_path: str = _variable("", "Path under which a proxy serves the node", _path, shown="none", server=True)

    def shown(self, *, server: bool = True) -> dict[str, str]:
        """The variables and their values, for people: nothing secret is among them. `server`: with the server's."""
        return {
            _name_of(one): _shown(one, getattr(self, one.name))
            for one in fields(self)
            if server or not one.metadata["server"]
        }


def _name_of(one: Field[Any]) -> str:
    return PREFIX + one.name.upper()


def _shown(one: Field[Any], value: object) -> str:
    if not value and one.metadata["shown"]:
        return ""
    if one.name == "backend":
        return _without_credentials(str(value))
    if one.metadata["secret"]:
        return HIDDEN
    text = _plain(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text)} characters)"


def _plain(value: object) -> str:
    """A value as it is written in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).replace("\n", "\\n")


def _without_credentials(url: str) -> str:
    """A backend's URL that can be shown. Whatever may be part of a password is left out, even if it is not one."""
    url = re.sub(r"(?i)(password=)[^&]*", rf"\1{HIDDEN}", url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return HIDDEN if "@" in url else url
    before, at, after = rest.rpartition("@")
    return f"{scheme}://{HIDDEN if before else ''}{at}{after}"


def read(environment: Mapping[str, str]) -> Settings:
    """The settings that `environment` asks for. Raises `SettingsError`."""
    known = {_name_of(one): one for one in fields(Settings)}
    problems = [_unknown(name, known) for name in sorted(environment) if name.startswith(PREFIX) and name not in known]
    values: dict[str, Any] = {}
    for name, one in known.items():
        text = environment.get(name, "").strip()
        if not text:
            if (
                one.name == "metrics_token" and name in environment
            ):  # of the secrets, the one without which more is open
                problems.append(f"{name} is empty, so it would guard nothing: set it to a secret, or do not set it.")
            continue
        try:
            values[one.name] = one.metadata["parse"](text)
        except ValueError as error:
            given = f"{HIDDEN} (it is secret)" if one.metadata["secret"] else repr(text)
            link = _LINKED if text.startswith("tcp://") else ""
            problems.append(f"{name}={given} cannot be used: {error}.{link}")
    settings = Settings(**values)
    problems += _contradictions(settings)
    if problems:
        raise SettingsError(problems)
    return settings


_LINKED: Final = (
    " Kubernetes sets it beside a Service called socketspec: set enableServiceLinks: false in the pod's specification."
)


def _unknown(name: str, known: Mapping[str, object]) -> str:
    if _SERVICE_LINK.match(name):
        return f"{name} is no variable of a node.{_LINKED}"
    ours = [one.removeprefix(PREFIX) for one in known]
    close = difflib.get_close_matches(name.removeprefix(PREFIX), ours, n=1)
    hint = f"Did you mean {PREFIX}{close[0]}?" if close else f"There are {', '.join(known)}."
    return f"{name} is no variable of a node. {hint}"


def _contradictions(settings: Settings) -> Iterator[str]:
    sources = {
        "SOCKETSPEC_JWT_SECRET": settings.jwt_secret,
        "SOCKETSPEC_JWT_PUBLIC_KEY": settings.jwt_public_key,
        "SOCKETSPEC_JWKS_URL": settings.jwks_url,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        yield f"{' and '.join(given)} exclude each other: keep the one that your tokens are verified with."
    for name in ("jwt_algorithm", "jwt_audience", "jwt_issuer"):
        if getattr(settings, name) and not given:
            yield f"{PREFIX}{name.upper()} is about tokens, but nothing verifies them: set one of {', '.join(sources)}."
    given += ["SOCKETSPEC_API_KEYS"] if settings.api_keys else []
    if settings.anonymous and given:
        yield (
            f"SOCKETSPEC_ANONYMOUS=true lets everybody in, so that {' and '.join(given)} would keep nobody out: "
            "leave out one or the other."
        )
    if settings.burst and not settings.rate:
        yield "SOCKETSPEC_BURST needs a limit to exceed: set SOCKETSPEC_RATE above 0, or leave it out."


def read_or_exit(environment: Mapping[str, str] = os.environ) -> Settings:
    """As `read`; where that fails, say why on stderr and end the process with status 2."""
    try:
        return read(environment)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"socketspec: {problem}\n")
        sys.exit(2)


_announced: list[Settings] = []


def announce(settings: Settings, *, server: bool = True) -> None:
    """Print the settings on stderr without their secrets: once, in the process that was started.

    Without `server`, those of the server are left out: somebody else has decided them.
    """
    if _announced or multiprocessing.parent_process() is not None:
        return
    _announced.append(settings)
    shown = settings.shown(server=server)
    handlers = logging.getLogger().handlers  # a server that was started in another way has its format from elsewhere
    if settings.log_format == "json" or any(isinstance(each.formatter, JsonFormatter) for each in handlers):
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        said = {"time": now, "level": "info", "logger": "socketspec.node", "message": "Settings", "settings": shown}
        lines = [json.dumps(said)]
    else:
        lines = [f"{name}={value}" for name, value in shown.items()]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def table() -> str:
    """The variables as a Markdown table: what the documentation shows."""
    rows = [("variable", "default", "what it is"), ("---", "---", "---")]
    for one in fields(Settings):
        default = one.metadata["shown"] or f"`{_plain(one.default)}`"
        secret = " (secret)" if one.metadata["secret"] else ""
        rows.append((f"`{_name_of(one)}`", default, one.metadata["text"] + secret))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
