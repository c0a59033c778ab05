"""Keys from a URL: which are used, how long they are kept, how often they are asked for, and where from."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from socketspec.errors import AuthError, ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security._jwks import KeySet, KeysUnavailable, parse_key_set
from socketspec.security.auth import JWTAuth

RSA = rsa.generate_private_key(65537, 2048)
RSA2 = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - made to be left out
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
EVERY = ["RS256", "RS384", "PS256", "ES256", "ES384", "EdDSA"]


def jwk(key: Any, kid: Any = None, **members: Any) -> dict[str, Any]:
    kind: Any = jwt.algorithms.OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        kind = jwt.algorithms.RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        kind = jwt.algorithms.ECAlgorithm
    made: dict[str, Any] = kind.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return made | ({} if kid is None else {"kid": kid}) | members


def document(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Provider:
    """A key endpoint without a network: counts requests, fails or waits when told to."""

    def __init__(self, *keys: Any) -> None:
        self.answer: bytes | Exception = document(*keys)
        self.requests = 0
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> bytes:
        self.requests += 1
        self.asked.set()
        assert self.open.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def key_set(provider: Provider, clock: Clock, algorithms: list[str] = EVERY, **options: Any) -> KeySet:
    return KeySet("https://issuer.example/k", algorithms=algorithms, fetch=provider, clock=clock, **options)


def numbers(key: Any) -> Any:
    return key.public_key().public_numbers() if isinstance(key, rsa.RSAPrivateKey) else key.public_numbers()


# Which keys


def test_keys_are_found_by_id_and_algorithm_together() -> None:
    keys = parse_key_set(document(jwk(RSA, "a", alg="RS256"), jwk(P256, "b"), jwk(ED25519, "c")), EVERY)
    assert set(keys) == {
        ("a", "RS256"), ("b", "ES256"), ("c", "EdDSA"), (None, "RS256"), (None, "ES256"), (None, "EdDSA")
    }  # fmt: skip
    assert numbers(keys["a", "RS256"]) == numbers(RSA)


def test_a_key_that_names_no_algorithm_serves_the_configured_ones_of_its_kind() -> None:
    keys = parse_key_set(document(jwk(RSA, "a")), EVERY)
    assert {algorithm for kid, algorithm in keys if kid} == {"RS256", "RS384", "PS256"}


def test_without_an_id_a_key_is_found_only_if_it_is_the_only_one() -> None:
    assert set(parse_key_set(document(jwk(RSA)), ["RS256"])) == {(None, "RS256")}
    assert (None, "RS256") not in parse_key_set(document(jwk(RSA, "a"), jwk(RSA2, "b")), ["RS256"])


def test_an_id_that_occurs_twice_for_an_algorithm_is_not_used() -> None:
    keys = parse_key_set(document(jwk(RSA, "a"), jwk(RSA2, "a"), jwk(P256, "a")), ["RS256", "ES256"])
    assert set(keys) == {("a", "ES256"), (None, "ES256")}


@pytest.mark.parametrize(
    "unusable",
    [
        jwk(RSA2, "x", use="enc"), jwk(RSA2, "x", key_ops=["encrypt"]), jwk(RSA2, "x", alg="RSA-OAEP"), jwk(WEAK, "x"),
        jwk(RSA2, "x", alg="ES256"), jwk(RSA2, "x", alg="HS256"), jwk(RSA2, "x", alg="none"), jwk(RSA2, "x", alg=None),
        jwk(RSA2, "x", alg=["RS256"]), jwk(RSA2, "x", d="AQAB"), jwk(RSA2, "x", kty="rsa"), jwk(RSA2, "x", n="!"),
        jwk(RSA2, "x", n=1), jwk(RSA2, "x", key_ops=1), jwk(RSA2, 7), jwk(P256, "x", crv="P-384"),
        jwk(P256, "x", y="AAAA"), jwk(ED25519, "x", crv="X25519"), {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"}, {"kid": "x"}, {}, None, 1, "x", [],
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_used_does_not_take_the_others_with_it(unusable: Any) -> None:
    keys = parse_key_set(document(unusable, jwk(RSA, "good")), ["RS256", "ES256", "ES384", "EdDSA", "HS256"])
    assert set(keys) == {("good", "RS256"), (None, "RS256")}


@pytest.mark.parametrize("wrong", [b"", b"null", b"[]", b"{}", b'{"keys": {}}', b'{"keys": null}', b"\xff", b"<html>"])
def test_what_is_no_key_set_is_an_error(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_key_set(wrong, EVERY)


def test_a_key_set_of_which_no_key_fits_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_key_set(document(jwk(P256, "a")), ["RS256"]) == {}
    assert "RS256" in caplog.text
    assert "algorithms=" in caplog.text


# How long, how often


async def test_keys_are_kept_for_their_time_and_then_asked_for_again() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock, ttl=300)
    for _ in range(50):
        assert await keys.find("a", "RS256") is not None
    clock.now += 299
    await keys.find("a", "RS256")
    assert provider.requests == 1
    clock.now += 1
    provider.answer = document(jwk(RSA2, "a"))
    assert numbers(await keys.find("a", "RS256")) == numbers(RSA2)
    assert provider.requests == 2


async def test_a_removed_key_is_gone_when_the_keys_were_asked_for_again() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"), jwk(RSA2, "b"))
    keys = key_set(provider, clock)
    assert await keys.find("b", "RS256") is not None
    provider.answer = document(jwk(RSA, "a"))
    clock.now += 300
    assert await keys.find("b", "RS256") is None


async def test_a_new_key_id_is_found_by_asking_again() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock)
    await keys.find("a", "RS256")
    provider.answer = document(jwk(RSA, "a"), jwk(RSA2, "b"))
    clock.now += 30
    assert await keys.find("b", "RS256") is not None
    assert provider.requests == 2


async def test_a_storm_of_unknown_ids_asks_at_most_every_thirty_seconds() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock, ttl=10_000)
    for second in range(300):
        found = await asyncio.gather(*(keys.find(f"unknown-{second}-{i}", "RS256") for i in range(5)))
        assert found == [None] * 5
        assert await keys.find("a", "RS256") is not None
        clock.now += 1
    assert provider.requests == 10


async def test_a_storm_of_unknown_ids_while_the_endpoint_is_down_is_no_faster() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock, ttl=10, grace=10_000)
    await keys.find("a", "RS256")
    provider.answer = OSError("down")
    for _ in range(300):
        clock.now += 1
        assert await keys.find("unknown", "RS256") is None
    assert provider.requests == 1 + 10


async def test_tokens_that_arrive_together_share_one_request() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    provider.open.clear()
    keys = key_set(provider, clock)
    waiting = [asyncio.create_task(keys.find("a", "RS256")) for _ in range(50)]
    await asyncio.sleep(0)
    provider.open.set()
    assert all(key is not None for key in await asyncio.gather(*waiting))
    assert provider.requests == 1


async def test_a_client_that_goes_away_does_not_cancel_the_request_for_the_others() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    provider.open.clear()
    keys = key_set(provider, clock)
    leaving, staying = (asyncio.create_task(keys.find("a", "RS256")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    provider.open.set()
    assert await staying is not None
    assert provider.requests == 1


async def test_stale_keys_serve_while_the_endpoint_is_down_until_the_grace_period_ends() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock, ttl=300, grace=3600)
    await keys.find("a", "RS256")
    provider.answer = OSError("down")
    clock.now += 3899
    assert await keys.find("a", "RS256") is not None
    clock.now += 1
    with pytest.raises(KeysUnavailable):
        await keys.find("a", "RS256")
    clock.now += 5
    provider.answer = document(jwk(RSA, "a"))
    assert await keys.find("a", "RS256") is not None


async def test_a_broken_document_counts_as_down() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock)
    await keys.find("a", "RS256")
    clock.now += 300
    for broken in (b"<html>", b'{"keys": 1}', b"[" * 100_000):
        provider.answer = broken
        clock.now += 30
        assert await keys.find("a", "RS256") is not None


async def test_without_any_keys_the_endpoint_is_asked_every_five_seconds() -> None:
    clock, provider = Clock(), Provider()
    provider.answer = OSError("down")
    keys = key_set(provider, clock)
    for _ in range(20):
        with pytest.raises(KeysUnavailable):
            await keys.find("a", "RS256")
        clock.now += 1
    assert provider.requests == 4


async def test_a_request_that_hangs_is_waited_for_once_and_not_repeated() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock)
    await keys.find("a", "RS256")
    provider.open.clear()
    provider.asked.clear()
    clock.now += 300
    try:
        waiting = asyncio.create_task(keys.find("a", "RS256"))
        assert await asyncio.to_thread(provider.asked.wait, 10)
        clock.now += 5  # from here on, the request has had its time
        assert await asyncio.wait_for(keys.find("a", "RS256"), 2) is not None
        clock.now += 300
        assert await asyncio.wait_for(keys.find("a", "RS256"), 2) is not None
        assert provider.requests == 2
    finally:
        provider.open.set()
    assert await waiting is not None


def test_the_keys_survive_the_event_loop_that_fetched_them() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock)
    for _ in range(3):
        assert asyncio.run(keys.find("a", "RS256")) is not None
        clock.now += 300
    assert provider.requests == 3


def test_a_request_of_a_loop_that_is_gone_does_not_block_the_next_loop() -> None:
    clock, provider = Clock(), Provider(jwk(RSA, "a"))
    keys = key_set(provider, clock)
    provider.open.clear()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.wait({loop.create_task(keys.find("a", "RS256"))}, timeout=0.01))
    clock.now += 5
    provider.open.set()
    assert asyncio.run(keys.find("a", "RS256")) is not None
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


# Over HTTP, with tokens


class Endpoint(ThreadingHTTPServer):
    daemon_threads = True
    body: bytes = b""
    status: int = 200
    location: str | None = None
    pause: float | None = None
    """Seconds between single bytes of the body."""
    paths: list[str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.paths = []
        self.left = threading.Event()
        """Set when a client went away before the end."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/keys"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast("Endpoint", self.server)
        server.paths.append(self.path)
        self.send_response(server.status)
        if server.location:
            self.send_header("Location", server.location)
        self.end_headers()
        step = 1 if server.pause else len(server.body) or 1
        try:
            for start in range(0, len(server.body), step):
                self.wfile.write(server.body[start : start + step])
                time.sleep(server.pause or 0)
        except ConnectionError:
            server.left.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def token(key: Any, algorithm: str, kid: str | None = None, **headers: Any) -> Handshake:
    claims = {"sub": "ada", "exp": time.time() + 600}
    if kid is not None:
        headers["kid"] = kid
    return Handshake(token=jwt.encode(claims, key, algorithm=algorithm, headers=headers))


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (P256, "ES256"), (ED25519, "EdDSA")])
async def test_tokens_are_verified_with_keys_from_the_endpoint(endpoint: Endpoint, key: Any, algorithm: str) -> None:
    endpoint.body = document(jwk(RSA, "rsa"), jwk(P256, "ec"), jwk(ED25519, "ed"), jwk(RSA2, "other"))
    auth = JWTAuth(jwks_url=endpoint.url, algorithms=[algorithm])
    kid = {"RS": "rsa", "PS": "rsa", "ES": "ec", "Ed": "ed"}[algorithm[:2]]
    found = await auth.authenticate(token(key, algorithm, kid))
    assert found is not None
    assert found.user_id == "ada"
    for bad in (
        token(RSA2, "RS256", "rsa"),
        token(key, algorithm, "unknown"),
        token("x" * 40, "HS256", "rsa"),
        token(key, algorithm, "other" if algorithm[1] == "S" else "rsa"),
    ):
        with pytest.raises(AuthError, match="not valid"):
            await auth.authenticate(bad)
    assert endpoint.paths == ["/keys"]


async def test_the_algorithm_of_the_key_and_of_the_token_must_agree(endpoint: Endpoint) -> None:
    endpoint.body = document(jwk(RSA, "a", alg="PS256"), jwk(RSA2, "b", alg="RS256"))
    auth = JWTAuth(jwks_url=endpoint.url, algorithms=["RS256", "PS256"])
    assert await auth.authenticate(token(RSA, "PS256", "a")) is not None
    with pytest.raises(AuthError):
        await auth.authenticate(token(RSA, "RS256", "a"))


async def test_an_algorithm_that_is_not_configured_is_refused_though_the_key_would_do(endpoint: Endpoint) -> None:
    endpoint.body = document(jwk(RSA, "a"), jwk(P256, "b"))
    auth = JWTAuth(jwks_url=endpoint.url)
    assert auth.algorithms == ("RS256",)
    for other in (token(RSA, "RS512", "a"), token(RSA, "PS256", "a"), token(P256, "ES256", "b")):
        with pytest.raises(AuthError):
            await auth.authenticate(other)
    assert endpoint.paths == []  # nobody is asked for the sake of such a token


async def test_urls_and_keys_in_a_token_are_not_followed(endpoint: Endpoint) -> None:
    evil = f"http://127.0.0.1:{endpoint.server_address[1]}/evil"
    endpoint.body = document(jwk(RSA, "a"))
    auth = JWTAuth(jwks_url=endpoint.url)
    for hints in ({"jku": evil}, {"x5u": evil}, {"jwk": jwk(RSA2, "a")}):
        with pytest.raises(AuthError):
            await auth.authenticate(token(RSA2, "RS256", "a", **hints))
        assert await auth.authenticate(token(RSA, "RS256", "a", **hints)) is not None
    with pytest.raises(AuthError):
        await auth.authenticate(token(RSA2, "RS256", evil))
    assert set(endpoint.paths) == {"/keys"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(endpoint: Endpoint, status: int, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.status, endpoint.location = status, "/evil"
    endpoint.body = document(jwk(RSA, "a"))
    with pytest.raises(AuthError, match="not available right now"):
        await JWTAuth(jwks_url=endpoint.url).authenticate(token(RSA, "RS256", "a"))
    assert endpoint.paths == ["/keys"]
    assert f"HTTP {status}" in caplog.text


@pytest.mark.parametrize("status", [204, 206, 400, 404, 500, 503])
async def test_only_a_plain_success_counts(endpoint: Endpoint, status: int) -> None:
    endpoint.status = status
    endpoint.body = document(jwk(RSA, "a"))
    with pytest.raises(AuthError, match="not available right now"):
        await JWTAuth(jwks_url=endpoint.url).authenticate(token(RSA, "RS256", "a"))


@pytest.mark.parametrize(("padding", "good"), [((1 << 20) - 4096, True), (1 << 20, False), (8 << 20, False)])
async def test_a_document_may_have_a_mebibyte(endpoint: Endpoint, padding: int, good: bool) -> None:
    endpoint.body = document(jwk(RSA, "a")) + b" " * padding
    auth = JWTAuth(jwks_url=endpoint.url)
    if good:
        assert await auth.authenticate(token(RSA, "RS256", "a")) is not None
    else:
        with pytest.raises(AuthError, match="not available right now"):
            await auth.authenticate(token(RSA, "RS256", "a"))


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_jwks", "_jwks_fetch"):
        monkeypatch.setattr(f"socketspec.security.{module}.TIMEOUT", 0.1)


@pytest.mark.parametrize(
    ("scheme", "begin", "drop"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nX-Endless: ", b"a"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        ("https", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03", b"a"),
    ],
)
async def test_no_part_of_an_answer_can_be_drawn_out_and_the_next_request_is_made(
    scheme: str, begin: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    clock, left = Clock(), threading.Semaphore(0)

    def drip() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            try:
                connection.sendall(begin)
                while True:
                    connection.sendall(drop)
                    time.sleep(0.02)
            except OSError:
                left.release()
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=drip, daemon=True)
        server.start()
        keys = KeySet(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/keys", algorithms=["RS256"], clock=clock)
        for _ in range(2):
            with pytest.raises(KeysUnavailable):
                await keys.find("a", "RS256")
            assert await asyncio.to_thread(left.acquire, timeout=10)
            clock.now += 60
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "socketspec-jwks"))
        server.join()


async def test_a_document_that_drips_in_is_given_up(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    endpoint.body, endpoint.pause = document(jwk(RSA, "a")), 0.02
    keys = KeySet(endpoint.url, algorithms=["RS256"])
    with pytest.raises(KeysUnavailable):
        await keys.find("a", "RS256")
    assert await asyncio.to_thread(endpoint.left.wait, 10)


async def test_nobody_listening_fails_closed_and_tells_the_log_but_not_the_client(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    url = endpoint.url
    endpoint.server_close()
    handshake = token(RSA, "RS256", "a")
    with pytest.raises(AuthError) as caught:
        await JWTAuth(jwks_url=url).authenticate(handshake)
    assert caught.value.message == "Authentication is not available right now."
    assert url in caplog.text
    assert str(handshake.token) not in caplog.text


async def test_a_proxy_setting_does_not_take_loopback_requests_off_the_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    endpoint.body = document(jwk(RSA, "a"))
    assert await JWTAuth(jwks_url=endpoint.url).authenticate(token(RSA, "RS256", "a")) is not None


@pytest.mark.parametrize(
    "url",
    [
        "", "issuer.example/k", "//issuer.example/k", "ftp://issuer.example/k", "file:///etc/passwd", "data:,{}",
        "https://", "https:///k", "https://user:pass@issuer.example/k", "https://issuer.example/k#x", "https://[::1",
        "https://issuer.example:99999/k", "https://issuer.example/a b", "https://issuer.example/\n", "https://é.example/",
        "javascript:alert(1)", "https://issuer.example:0/",
    ],
)  # fmt: skip
def test_urls_keys_must_not_come_from_are_refused_at_construction(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        JWTAuth(jwks_url=url, allow_http_jwks=True)


@pytest.mark.parametrize(
    "host", ["issuer.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "127.1"]
)
def test_plain_http_is_refused_unless_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError, match="allow_http_jwks"):
        JWTAuth(jwks_url=f"http://{host}/k")
    JWTAuth(jwks_url=f"http://{host}/k", allow_http_jwks=True)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8080/k", "http://127.0.0.1/k", "http://127.8.8.8/k", "http://[::1]:80/k", "HTTPS://i.example"],
)
def test_https_and_plain_http_to_this_machine_are_fine(url: str) -> None:
    JWTAuth(jwks_url=url)


@pytest.mark.parametrize("options", [{"jwks_ttl": 0}, {"jwks_ttl": -1}, {"jwks_grace": -1}, {"jwks_ttl": float("nan")}])
def test_impossible_times_are_refused_at_construction(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="jwks_ttl"):
        JWTAuth(jwks_url="https://issuer.example/k", **cast("Any", options))
