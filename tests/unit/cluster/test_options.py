"""What a backend URL and its options say, and which of them are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from redis.credentials import CredentialProvider

from socketspec import SocketApp
from socketspec.cluster.backend import RedisBackend, from_url
from socketspec.cluster.options import Address, RedisOptions, Servers, tls_context
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.cluster.urls import parse_url
from socketspec.errors import ConfigurationError

PASSWORD = "s3cr:et/@?#%"


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("redis://h", Servers(mode="standalone", hosts=(Address("h", 6379),))),
        ("valkey://h:7000/3", Servers(mode="standalone", hosts=(Address("h", 7000),), db=3)),
        ("redis://h/", Servers(mode="standalone", hosts=(Address("h", 6379),))),
        ("rediss://[::1]:7000", Servers(mode="standalone", hosts=(Address("::1", 7000),), tls=True)),
        ("valkeys://h", Servers(mode="standalone", hosts=(Address("h", 6379),), tls=True)),
        (
            "redis+sentinel://a,b:7,c/main/2",
            Servers(
                mode="sentinel", hosts=(Address("a", 26379), Address("b", 7), Address("c", 26379)), name="main", db=2
            ),
        ),
        (
            "valkeys+sentinel://a/my%2Fmain",
            Servers(mode="sentinel", hosts=(Address("a", 26379),), name="my/main", tls=True),
        ),
        (
            "redis+cluster://a,b:7,a:6379",
            Servers(mode="cluster", hosts=(Address("a", 6379), Address("b", 7))),
        ),
        ("rediss+cluster://a/0", Servers(mode="cluster", hosts=(Address("a", 6379),), tls=True)),
    ],
)
def test_a_url_says_where_the_servers_are(url: str, servers: Servers) -> None:
    assert parse_url(url) == (servers, RedisOptions())


@given(st.text(min_size=1), st.text(min_size=1).filter(str.strip))
def test_any_user_and_password_can_be_percent_encoded(user: str, password: str) -> None:
    try:
        url = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h"
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    servers, _ = parse_url(url)
    assert (servers.username, servers.password) == (user, password)


def test_a_password_needs_no_user() -> None:
    servers, _ = parse_url("redis://:word@h")
    assert (servers.username, servers.password) == (None, "word")


def test_the_query_string_holds_options() -> None:
    _, options = parse_url(
        "redis://h?prefix=shop&lease=12&max_pending=50&check_hostname=no&client_name=&ca_certs=%2Fca.pem&password=p"
    )
    assert options == RedisOptions(
        prefix="shop", lease=12, max_pending=50, check_hostname=False, client_name="", ca_certs="/ca.pem", password="p"
    )


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://h", "scheme 'http' is unknown"),
        ("redis+sentinels://h/x", "scheme 'redis+sentinels' is unknown"),
        ("redis://", "host"),
        ("redis://h:port", "port"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://a,b", "redis+cluster://"),
        ("redis://[::1", "brackets"),
        ("redis://h/x", "database number"),
        ("redis://h/1/2", "database number"),
        ("redis://h/-1", "database number"),
        ("redis+sentinel://a", "redis+sentinel://"),
        ("redis+sentinel://a/name/x", "database number"),
        ("redis+cluster://a/1", "prefix"),
        ("redis+cluster://a,,b", "host"),
        ("redis://h?lease=long", "lease='long' must be a number"),
        ("redis://h?lease=nan", "number"),
        ("redis://h?lease=0", "from 1 to 3600"),
        ("redis://h?max_pending=1.5", "whole number"),
        ("redis://h?check_hostname=perhaps", "true or false"),
        ("redis://h?timeout=1", "'timeout' is unknown; the options are: ca_certs,"),
        ("redis://h#x", "%23"),
        ("rediss://h?ssl_cert_reqs=none", 'write RedisBackend("rediss://…", tls_verify=False)'),
        ("rediss://h?tls_verify=no", 'Publisher("rediss://…", tls_verify=False)'),
        ("rediss://h?ssl_ca_certs=f", "write ca_certs"),
        ("redis://h?credential_provider=x", "which no URL can hold"),
        ("unix://redis.sock", "unix://[user:password@]/run/redis/redis.sock"),
        ("unix://", "whole path"),
        ("unix:///run/", "whole path"),
        ("unix:///r.sock?db=x", "database number"),
        ("redis://my host", "holds a space"),
        ("redis+cluster://a ,b c", "holds a space"),
        (None, "must be a str such as redis://host:6379, not NoneType"),
        (5, "not int"),
        (b"redis://:s3cr@h", "not bytes"),
        ("", "scheme '' is unknown"),
    ],
)
@pytest.mark.parametrize("read", [parse_url, RedisBackend, from_url])
def test_a_url_that_cannot_work_is_refused_with_what_to_do(url: Any, hint: str, read: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(url)
    assert hint in str(refused.value)
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize("url", [" redis://h/1\n", "REDIS://h/1"])
def test_spaces_around_a_url_and_capitals_in_its_scheme_do_not_count(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_url(url) == parse_url("redis://h/1")
    assert SocketApp(backend=url).node
    assert repr(Publisher(url)) == repr(Publisher("redis://h/1"))
    monkeypatch.setenv("SOCKETSPEC_BACKEND", url)
    assert SocketApp().node


def test_a_unix_socket_is_a_server_with_its_path_percent_decoded() -> None:
    servers, options = parse_url("unix://u:p@/run/my%20redis.sock?db=3&prefix=shop")
    assert servers == Servers(
        mode="standalone", hosts=(Address("/run/my redis.sock", 0),), db=3, username="u", password="p"
    )
    assert (str(servers), options.prefix) == ("/run/my redis.sock", "shop")


def test_a_provider_beside_a_login_in_the_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="credential_provider and a user or password in its URL"):
        RedisBackend("redis://u:s3cr@h", credential_provider=CredentialProvider())


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="A RedisBackend has no option 'nope'; the options are: ca_certs,"):
        RedisBackend("redis://h", nope=1)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@h",
        f"redis://user:{quote(PASSWORD, safe='')}@h:port",
        f"redis://user:{quote(PASSWORD, safe='')}@a,b",
        f"redis://user:{quote(PASSWORD, safe='')}@h/x",
        f"nothing://user:{quote(PASSWORD, safe='')}@h",
        "redis://user:s3cr@h?password=s3cr&keyfile=x",
    ],
)
def test_no_error_quotes_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_url(url)
    assert "s3cr" not in str(refused.value)


def test_no_repr_shows_a_password() -> None:
    servers, options = parse_url("redis://user:s3cr@h?password=s3cr2&sentinel_password=s3cr3")
    assert (servers.password, options.password, options.sentinel_password) == ("s3cr", "s3cr2", "s3cr3")
    assert "s3cr" not in f"{servers!r} {servers} {options!r} {options}"


@pytest.mark.parametrize(
    "values",
    [
        {"prefix": ""},
        {"prefix": "a" * 65},
        {"prefix": "a{b}"},
        {"prefix": None},
        {"client_name": "a b"},
        {"client_name": None},
        {"probe_interval": 0},
        {"command_timeout": float("nan")},
        {"command_timeout": float("inf")},
        {"command_timeout": "5"},
        {"start_timeout": -1},
        {"linger": True},
        {"max_pending": 0},
        {"max_pending": True},
        {"max_pending_bytes": 0},
        {"check_hostname": "yes"},
        {"keyfile": "k"},
        {"username": b"s3cr"},
        {"password": 5},
        {"sentinel_username": 5},
        {"sentinel_password": b"s3cr"},
        {"tls_verify": 0},
        {"ca_certs": "f", "tls_verify": False},
        {"credential_provider": "s3cr"},
        {"credential_provider": CredentialProvider},
        {"credential_provider": CredentialProvider(), "password": "s3cr"},
        {"sentinel_credential_provider": CredentialProvider(), "sentinel_username": "u"},
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        replace(RedisOptions(), **values)
    assert next(iter(values)) in str(refused.value)
    assert "s3cr" not in str(refused.value)


def test_an_address_with_ipv6_is_shown_in_brackets() -> None:
    assert (str(Address("::1", 1)), str(Address("h", 2))) == ("[::1]:1", "h:2")


@pytest.mark.parametrize("kind", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("is_apart", [True, False], ids=["a file of its own", "beside the certificate"])
def test_an_encrypted_private_key_is_refused_by_that_name(tmp_path: Path, kind: PrivateFormat, is_apart: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    now = datetime.now(UTC)
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    certificate = unsigned.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    encrypted = key.private_bytes(Encoding.PEM, kind, BestAvailableEncryption(PASSWORD.encode()))
    (tmp_path / "client.crt").write_bytes(certificate if is_apart else certificate + encrypted)
    (tmp_path / "client.key").write_bytes(encrypted)
    keyfile = str(tmp_path / "client.key") if is_apart else None
    with pytest.raises(ConfigurationError, match="the private key is encrypted: decrypt it"):
        tls_context(RedisOptions(certfile=str(tmp_path / "client.crt"), keyfile=keyfile))
