"""What a key, an origin or a key set's request has to look like to get through browsers and firewalls."""

from __future__ import annotations

import asyncio
import http.server
import string
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from socketspec.errors import AuthError, ConfigurationError
from socketspec.protocol.handshake import Handshake, Headers
from socketspec.security.auth import APIKeyAuth, JWTAuth
from socketspec.security.origins import OriginPolicy

KEYS = ["c2VjcmV0/+==", "a,b;c", "100%", "%41", '{"k":[1]}', "p(a)r", string.ascii_letters + string.punctuation]
TOKEN_CHARACTERS = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
"""RFC 9110 section 5.6.2; what RFC 6455 section 4.1 lets a subprotocol have."""


@pytest.mark.parametrize("key", KEYS)
async def test_every_key_can_come_by_a_subprotocol(key: str) -> None:
    encoded = quote(key, safe="")
    assert set(encoded) <= TOKEN_CHARACTERS
    handshake = Handshake(subprotocols=("socketspec.v1.json", f"socketspec.bearer.{encoded}"))
    found = await APIKeyAuth(valid_keys={key}).authenticate(handshake)
    assert found is not None
    with pytest.raises(AuthError):
        await APIKeyAuth(valid_keys={key + "x"}).authenticate(handshake)


@pytest.mark.parametrize("broken", ["%", "%zz", "%ff%fe", "%00"])
async def test_what_is_encoded_badly_is_an_unknown_key(broken: str) -> None:
    with pytest.raises(AuthError):
        await APIKeyAuth(valid_keys={"k"}).authenticate(Handshake(subprotocols=(f"socketspec.bearer.{broken}",)))


@pytest.mark.parametrize(
    "origin",
    [
        "file://", "app://.", "app://-", "app://my_app", "app://", "content://", "content://com.example.files",
        "capacitor://localhost", "ionic://localhost", "tauri://localhost", "chrome-extension://abcdefgh", "null",
    ],
)  # fmt: skip
def test_an_apps_origin_can_be_listed_and_lets_nobody_else_in(origin: str) -> None:
    policy = OriginPolicy([origin])
    assert policy.allows(Headers([("Origin", origin)]))
    for other in ("https://evil.example", "file://x", "app://other", "capacitor://evil", "NULL", "://"):
        assert not policy.allows(Headers([("Origin", other)]))


@pytest.mark.parametrize("entry", ["file:///", "file:///etc", "app://a/b", "https://", "wss://", "http://.", "file:"])
def test_what_no_app_sends_is_refused(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an origin"):
        OriginPolicy([entry])


class Provider(http.server.BaseHTTPRequestHandler):
    seen: dict[str, str]

    def do_GET(self) -> None:
        type(self).seen = {name.lower(): value for name, value in self.headers.items()}
        body = b'{"keys": []}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, {"accept": "application/json"}),
        ({"X-Client": "chat"}, {"x-client": "chat", "accept": "application/json"}),
        ({"user-agent": "mine/1", "ACCEPT": "*/*"}, {"user-agent": "mine/1", "accept": "*/*"}),
    ],
)
async def test_a_request_for_keys_says_who_asks(
    url: str, headers: dict[str, str] | None, expected: dict[str, str]
) -> None:
    auth = JWTAuth(jwks_url=url, headers=headers)
    token = "eyJhbGciOiJSUzI1NiJ9.e30.AA"
    with pytest.raises(AuthError):
        await asyncio.wait_for(auth.authenticate(Handshake(token=token)), 10)
    seen = Provider.seen
    assert expected.items() <= seen.items()
    if "user-agent" not in expected:
        assert seen["user-agent"].startswith("socketspec/")


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"": "c"}, {"X-A": "b\r\nX-B: c"}, {"X-A": "é"}])
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="headers has"):
        JWTAuth(jwks_url="https://issuer.example/keys", headers=headers)


def test_headers_without_a_url_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="jwks_url"):
        JWTAuth(secret="x" * 32, headers={"X-A": "b"})
