"""JSON Web Tokens: what is accepted, and a long list of what is not."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, reject
from hypothesis import strategies as st

from socketspec.errors import AuthError, ConfigurationError
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.security.auth import JWTAuth

NOW = 1_800_000_000
SECRET = "a secret of more than thirty-two bytes, made up"
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW + 60}

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 - made to be refused
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())
K256 = ec.generate_private_key(ec.SECP256K1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()


def pem(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def b64(data: bytes | str | Mapping[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(
    header: Mapping[str, Any] | str | bytes,
    claims: Mapping[str, Any] | str | bytes = CLAIMS,
    key: bytes | str = SECRET,
    digest: str = "sha256",
) -> str:
    """A token with any header and claims and a right HMAC under `key`."""
    signed = f"{b64(header)}.{b64(claims)}"
    raw = key.encode() if isinstance(key, str) else key
    return f"{signed}.{b64(hmac.digest(raw, signed.encode(), digest))}"


def sign(claims: Mapping[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers=headers)


def backend(**options: Any) -> JWTAuth:
    if not {"secret", "public_key", "jwks_url"} & options.keys():
        options["secret"] = SECRET
    return JWTAuth(clock=lambda: NOW, **options)


def bring(token: str) -> Handshake:
    return Handshake(headers=Headers([("Authorization", f"Bearer {token}")]))


def attempt(auth: JWTAuth, token: str) -> Identity:
    found = asyncio.run(auth.authenticate(Handshake(token=token)))
    assert found is not None
    return found


def refusal(auth: JWTAuth, token: str) -> str:
    """The message of the refusal; fails where the token is accepted or anything but an AuthError comes out."""
    with pytest.raises(AuthError) as caught:
        asyncio.run(auth.authenticate(Handshake(token=token)))
    assert len(token) < 8 or token not in caught.value.message
    assert caught.value.__cause__ is None
    return caught.value.message


# The contract


def test_the_documented_constructor_works_verbatim_and_names_the_short_secret_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "socketspec.auth"):
        auth = JWTAuth(secret="your-jwt-secret", algorithm="HS256")
        token = forge({"alg": "HS256", "typ": "JWT"}, {"sub": "ada", "exp": 4_000_000_000}, "your-jwt-secret")
        for _ in range(3):
            assert attempt(auth, token).user_id == "ada"
    (record,) = caplog.records
    assert "15 bytes" in record.message
    assert "token_urlsafe(32)" in record.message
    assert "your-jwt-secret" not in record.message


def test_a_long_secret_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    JWTAuth(SECRET, "HS256")
    assert caplog.records == []


@given(st.binary(min_size=1, max_size=200).filter(lambda raw: raw.strip()), st.sampled_from(["256", "384", "512"]))
def test_any_secret_verifies_what_it_signed_whatever_its_length(secret: bytes, size: str) -> None:
    try:
        auth = backend(secret=secret, algorithm=f"HS{size}")
    except ConfigurationError:
        reject()  # it looks like a public key
    token = forge({"alg": f"HS{size}"}, CLAIMS, secret, f"sha{size}")
    assert attempt(auth, token).user_id == "ada"
    refusal(auth, forge({"alg": f"HS{size}"}, CLAIMS, secret + b"x", f"sha{size}"))


@pytest.mark.parametrize(
    "handshake",
    [
        bring(sign(CLAIMS)),
        Handshake(headers=Headers([("authorization", "bearer " + sign(CLAIMS))])),
        Handshake(query_params=QueryParams([("token", sign(CLAIMS))])),
        Handshake(subprotocols=("chat", "socketspec.bearer." + sign(CLAIMS))),
        Handshake(token=sign(CLAIMS)),
    ],
    ids=["header", "lower-case header", "query", "subprotocol", "message"],
)
async def test_the_token_is_found_wherever_it_may_be(handshake: Handshake) -> None:
    found = await backend().authenticate(handshake)
    assert found is not None
    assert found.user_id == "ada"


@pytest.mark.parametrize(
    "handshake",
    [
        Handshake(),
        Handshake(headers=Headers([("authorization", "Basic YTpi")])),
        Handshake(query_params=QueryParams([("token", "")])),
        Handshake(subprotocols=("socketspec.bearer.", "socketspec.v1.json")),
    ],
    ids=["nothing", "basic", "empty query", "empty subprotocol"],
)
async def test_without_a_token_the_backend_has_nothing_to_say(handshake: Handshake) -> None:
    assert await backend().authenticate(handshake) is None


async def test_a_token_that_came_by_message_is_the_only_one_looked_at() -> None:
    with pytest.raises(AuthError):
        await backend().authenticate(bring(sign(CLAIMS)).with_token(""))


# The identity


def test_claims_become_an_identity() -> None:
    claims = {**CLAIMS, "role": "admin", "scope": "read write", "sid": "s1", "jti": "t1"}
    found = attempt(backend(), sign(claims))
    assert found == Identity(
        user_id="ada", role="admin", scopes=frozenset({"read", "write"}), claims=claims, token_expires_at=NOW + 60
    )
    with pytest.raises(TypeError):
        found.claims["sub"] = "eve"  # type: ignore[index] # that it is read-only is what is tested


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, set()),
        ({"scope": ""}, set()),
        ({"scope": " a  b "}, {"a", "b"}),
        ({"scopes": ["a b", "c"]}, {"a b", "c"}),
        ({"scope": "a", "scopes": ["b"]}, {"a"}),
        ({"scope": None, "scopes": ["b"]}, {"b"}),
    ],
)
def test_scopes_are_text_with_spaces_or_a_list(claims: dict[str, Any], scopes: set[str]) -> None:
    assert attempt(backend(), sign({**CLAIMS, **claims})).scopes == scopes


def test_claim_names_can_be_chosen() -> None:
    auth = backend(user_claim="uid", role_claim=None, scopes_claim="scp")
    found = attempt(auth, forge({"alg": "HS256"}, {"uid": 7, "role": [], "scp": ["a"], "scope": 1, "exp": NOW + 1}))
    assert (found.user_id, found.role, found.scopes) == ("7", None, frozenset({"a"}))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_identity_callable_gets_what_it_leaves_out_from_the_token(asynchronous: bool) -> None:
    async def later(claims: Mapping[str, Any]) -> Identity:
        return now(claims)

    def now(claims: Mapping[str, Any]) -> Identity:
        return Identity(user_id=claims["sub"].upper(), extra={"plan": "gold"})

    found = attempt(backend(identity=later if asynchronous else now), sign({**CLAIMS, "jti": "t"}))
    assert (found.user_id, found.token_expires_at, found.claims["jti"]) == ("ADA", NOW + 60, "t")
    assert found.extra == {"plan": "gold"}


def test_what_an_identity_callable_sets_is_kept() -> None:
    made = Identity(user_id="x", token_expires_at=1.0, claims={"a": 1})
    assert attempt(backend(identity=lambda _: made), sign(CLAIMS)) is made


def test_an_identity_callable_can_refuse() -> None:
    def no(_: Mapping[str, Any]) -> Identity:
        raise AuthError("Your account is closed.")

    assert refusal(backend(identity=no), sign(CLAIMS)) == "Your account is closed."
    assert refusal(backend(identity=lambda _: None), sign(CLAIMS)) == "The token is not valid."


@pytest.mark.parametrize("failing", [lambda claims: claims["nope"], lambda _: True, lambda _: {"user_id": "ada"}])
def test_an_identity_callable_that_fails_lets_nobody_in(failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert refusal(backend(identity=failing), sign(CLAIMS)) == "Authentication is not available right now."
    assert "Error" in caplog.text
    assert "nope'" not in caplog.text.replace('claims["nope"]', "")


# Forged and malformed tokens

GOOD = sign(CLAIMS)
HEAD, BODY, SIGNATURE = GOOD.split(".")
HS = {"alg": "HS256", "typ": "JWT"}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
DEEP = '{"alg":"HS256","x":' + "[" * 10_000
"""Too deep for older versions of Python; where it is not, it still lacks its end."""

MALFORMED = [
    *(GOOD[:-1] + ALPHABET[ALPHABET.index(GOOD[-1]) + unused_bits] for unused_bits in (1, 2, 3)),
    "", ".", "..", "...", "a.b.c", " ", "null", "Bearer", GOOD + " ", " " + GOOD, GOOD + "\n", GOOD + "\0", GOOD + "=",
    GOOD + "==", GOOD + ".", "." + GOOD, GOOD[:-1], GOOD[1:], GOOD + "A", GOOD.upper(), GOOD[::-1], GOOD * 2,
    f"{HEAD}.{BODY}", f"{HEAD}.{BODY}.", f"{HEAD}..{SIGNATURE}", f".{BODY}.{SIGNATURE}", f"{BODY}.{HEAD}.{SIGNATURE}",
    f"{HEAD}.{BODY}.{SIGNATURE}.{SIGNATURE}.{SIGNATURE}", f"{HEAD}=.{BODY}.{SIGNATURE}", f"{HEAD}.{BODY}=.{SIGNATURE}",
    f"{HEAD}.{BODY}.!!!!", f"{HEAD}.{BODY}.{SIGNATURE[:-2]}+/", "\ud800", "é.é.é", "\ud800" + GOOD, "\U0001f511" * 3,
    "A" * 20000, "A." * 9000, "A" * 8000 + "." + "A" * 8000 + ".A", GOOD + "A" * 16384, "%00", "' OR 1=1 --",
    f"{HEAD}.{b64(dict(CLAIMS, sub='eve'))}.{SIGNATURE}",
    f"{b64({'alg': 'HS256'})}.{BODY}.{SIGNATURE}",
]  # fmt: skip

BAD_HEADERS: list[Mapping[str, Any] | str | bytes] = [
    "", "{}", "[]", "null", "1", '"HS256"', "{", "{\"alg\":\"HS256\"", b"\xff\xfe", b"\x80", DEEP, "{'alg':'HS256'}",
    "1" * 5000, '{"alg":"HS256"}{"alg":"HS256"}',
    *({"alg": name} for name in (
        "none", "None", "NONE", "NoNe", "nOnE", "none ", " none", "", "hs256", "Hs256", "HS256 ", "HS255", "HS384",
        "HS512", "RS256", "ES256", "PS256", "EdDSA", "HMAC", "dir", "RSA-OAEP", None, 0, True, [], ["HS256"],
        {"HS256": 1}, 256, "HS256\0", "\ud800",
    )),
    {**HS, "crit": []}, {**HS, "crit": ["exp"], "exp": 1}, {**HS, "crit": ["b64"], "b64": True}, {**HS, "crit": None},
    {**HS, "crit": ["b64"], "b64": False}, {**HS, "b64": False}, {**HS, "b64": True}, {**HS, "crit": "b64"},
    {**HS, "crit": ["x"]}, {**HS, "crit": {}}, {**HS, "b64": None},
    {**HS, "kid": 1}, {**HS, "kid": None}, {**HS, "kid": []}, {**HS, "kid": {"$ne": 1}}, {**HS, "kid": True},
    {**HS, "typ": "logout+jwt"},
    {**HS, "typ": "chat+jwt"}, {**HS, "typ": "DPoP+JWT"}, {**HS, "typ": 1}, {**HS, "typ": None}, {**HS, "typ": []},
]  # fmt: skip

BAD_TIMES: list[Any] = [
    None, True, False, "", "soon", str(NOW + 60), [], [NOW + 60], {}, -1, -1e9, 1e300, 10**40, 253402300801,
    (NOW + 60) * 1000,
]  # fmt: skip
BAD_USERS: list[Any] = [None, "", [], ["ada"], {}, True, 1.5, "\ud800", "a\udfff"]
BAD_SCOPES: list[Any] = [1, True, {}, {"a": 1}, ["a", 1], [None], [["a"]]]
BAD_AUDIENCES: list[Any] = ["", "x", [], ["x"], None, 0, {}]
BAD_JSON_TIMES = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "0x7fffffff", "1_800_000_060"]

BAD_CLAIMS: list[Mapping[str, Any] | str | bytes] = [
    "", "null", "[]", "1", '"ada"', "{", "[" * 5000, b"\xff", json.dumps(CLAIMS).encode("utf-16"),
    json.dumps(CLAIMS).encode("utf-8-sig"), b"\x80" + json.dumps(CLAIMS).encode(),
    {}, {"sub": "ada"}, {"exp": NOW + 60}, {"sub": "ada", "exp": NOW}, {"sub": "ada", "exp": NOW - 1},
    {"sub": "ada", "exp": 0}, {"sub": "ada", "exp": NOW - 0.001},
    {**CLAIMS, "nbf": NOW + 1}, {**CLAIMS, "iat": NOW + 11}, {**CLAIMS, "nbf": NOW + 0.5},
    *({**CLAIMS, name: value} for name in ("exp", "nbf", "iat") for value in BAD_TIMES),
    *(f'{{"sub":"ada","exp":{NOW + 60},"{name}":{text}}}' for name in ("exp", "nbf", "iat") for text in BAD_JSON_TIMES),
    *({**CLAIMS, "sub": value} for value in BAD_USERS),
    *({**CLAIMS, "role": value} for value in ("", [], ["admin"], {"admin": 1}, True, 1.5)),
    *({**CLAIMS, "scope": value} for value in BAD_SCOPES),
    *({**CLAIMS, "aud": value} for value in BAD_AUDIENCES),
    {**CLAIMS, "x": "a" * 16384},
    *(f'{{"sub":"ada","exp":{NOW + 60},"x":{text}}}' for text in ("NaN", "Infinity", "[-Infinity]", "9" * 5000)),
]  # fmt: skip

FORGED = [
    *(("malformed", token) for token in MALFORMED),
    *(("header", forge(header)) for header in BAD_HEADERS),
    *(("unsigned", f"{b64({'alg': name})}.{BODY}.") for name in ("none", "None", "NONE", "nOnE", "", "HS256")),
    *(("none with signature", f"{b64({'alg': name})}.{BODY}.{SIGNATURE}") for name in ("none", "NoNe")),
    *(("claims", forge(HS, claims)) for claims in BAD_CLAIMS),
    *(("key", forge(HS, CLAIMS, key)) for key in ("", "\0", SECRET[:-1], SECRET.upper(), SECRET + "\0" * 64, "secret")),
    *(
        ("digest", forge({"alg": alg}, CLAIMS, SECRET, digest))
        for alg, digest in (("HS256", "sha512"), ("HS512", "sha512"), ("HS256", "sha1"), ("HS256", "md5"))
    ),
    ("signature cut", f"{HEAD}.{BODY}.{b64(base64.urlsafe_b64decode(SIGNATURE + '==')[:16])}"),
]


def test_the_list_of_forgeries_is_long() -> None:
    assert len({token for _, token in FORGED}) >= 100


@pytest.mark.parametrize(
    "token", [token for _, token in FORGED], ids=[f"{i}-{why}" for i, (why, _) in enumerate(FORGED)]
)
def test_no_forged_or_malformed_token_is_accepted(token: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "socketspec.auth"):
        message = refusal(backend(), token)
    assert message.startswith("The token ")
    assert len(message) < 60
    (record,) = caplog.records
    assert len(record.message) < 200
    assert "Traceback" not in caplog.text
    assert len(token) < 8 or token not in record.message


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}"))
def test_arbitrary_text_is_refused_and_nothing_else_happens(token: str) -> None:
    refusal(backend(), token)


@given(st.data())
def test_a_good_token_with_one_character_changed_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD) - 1))
    letter = data.draw(st.sampled_from("ABCxyz019-_.").filter(lambda letter: letter != GOOD[place]))
    refusal(backend(), GOOD[:place] + letter + GOOD[place + 1 :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5u"]), JSON))
def test_no_header_makes_a_wrongly_signed_token_good(header: dict[str, Any]) -> None:
    refusal(backend(), forge(header, CLAIMS, "another secret"))
    refusal(backend(), forge({**header, "alg": "HS256"}, CLAIMS, "another secret"))


@given(st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "iss", "aud", "role", "scope", "scopes"]), JSON))
def test_signed_claims_of_any_shape_give_a_sound_identity_or_a_refusal(claims: dict[str, Any]) -> None:
    try:
        found = attempt(backend(), forge(HS, claims))
    except AuthError:
        return
    assert isinstance(found.user_id, str)
    assert found.user_id.encode()
    assert found.token_expires_at is not None
    assert NOW < found.token_expires_at < 1e12
    assert all(isinstance(scope, str) for scope in found.scopes)
    assert "aud" not in claims


@pytest.mark.parametrize(
    "header",
    [
        {**HS, "kid": name}
        for name in ("../../../../dev/null", "' UNION SELECT 'x", "/dev/null", "", "x" * 5000, "http://127.0.0.1:9/k")
    ]
    + [
        {**HS, "jku": "http://127.0.0.1:9/jwks"},
        {**HS, "x5u": "http://127.0.0.1:9/cert"},
        {**HS, "jwk": {"kty": "oct", "k": b64("evil")}},
        {**HS, "x5c": [b64("evil")]},
    ],
)
def test_key_hints_in_the_header_change_nothing(header: dict[str, Any]) -> None:
    assert attempt(backend(), forge(header)).user_id == "ada"
    refusal(backend(), forge(header, CLAIMS, "evil"))
    refusal(backend(), forge(header, CLAIMS, b""))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+JWT", "Bearer"])
def test_usual_types_of_access_tokens_are_accepted(typ: str) -> None:
    assert attempt(backend(), forge({"alg": "HS256", "typ": typ})).user_id == "ada"


# Claims


def test_messages_say_what_a_client_can_do_something_about() -> None:
    assert refusal(backend(), sign({"sub": "ada"})) == "The token has no expiry time (exp)."
    assert refusal(backend(), sign({**CLAIMS, "exp": NOW})) == "The token has expired."
    assert refusal(backend(), sign({**CLAIMS, "nbf": NOW + 1})) == "The token is not valid yet."
    assert refusal(backend(), sign(CLAIMS, "wrong" * 10)) == "The token is not valid."


def test_an_expired_token_with_a_wrong_signature_does_not_say_that_it_expired() -> None:
    assert refusal(backend(), sign({**CLAIMS, "exp": 1}, "wrong" * 10)) == "The token is not valid."


def test_exp_may_be_left_out_where_that_was_asked_for() -> None:
    found = attempt(backend(require_exp=False), sign({"sub": "ada"}))
    assert found.token_expires_at is None
    refusal(backend(require_exp=False), sign({"sub": "ada", "exp": NOW}))


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"exp": NOW - 29}, True),
        ({"exp": NOW - 30}, False),
        ({"nbf": NOW + 30}, True),
        ({"nbf": NOW + 31}, False),
        ({"iat": NOW + 30}, True),
        ({"iat": NOW + 31}, False),
        ({"exp": NOW + 0.5, "iat": NOW - 0.5, "nbf": float(NOW)}, True),
    ],
)
def test_leeway_is_honoured_to_the_second(claims: dict[str, Any], good: bool) -> None:
    auth, token = backend(leeway=30), sign({**CLAIMS, **claims})
    if good:
        attempt(auth, token)
    else:
        refusal(auth, token)


@pytest.mark.parametrize("leeway", [0.0, 3.0])
@pytest.mark.parametrize("ahead", [0.5, 2, 10])
def test_the_issuers_clock_may_be_a_little_ahead(ahead: float, leeway: float) -> None:
    assert attempt(backend(leeway=leeway), sign({**CLAIMS, "iat": NOW + ahead})).user_id == CLAIMS["sub"]


ISSUER = "https://issuer.example"


@pytest.mark.parametrize(
    "issuer",
    [None, "", "https", "https://issuer.exampl", ISSUER + "/", ISSUER.upper(), [ISSUER], {ISSUER: 1}, True, 0],
)
def test_only_the_exact_issuer_is_accepted(issuer: Any) -> None:
    auth = backend(issuer=ISSUER)
    attempt(auth, sign({**CLAIMS, "iss": ISSUER}))
    refusal(auth, sign(CLAIMS))
    refusal(auth, forge(HS, {**CLAIMS, "iss": issuer}))


@pytest.mark.parametrize(
    "audience", [None, "", "ap", "api2", "API", [], [""], ["x"], ["api", 1], [["api"]], {"api": 1}]
)
def test_only_the_exact_audience_is_accepted(audience: Any) -> None:
    for auth in (backend(audience="api"), backend(audience=["api", "chat"])):
        attempt(auth, sign({**CLAIMS, "aud": "api"}))
        attempt(auth, sign({**CLAIMS, "aud": ["other", "api"]}))
        refusal(auth, sign(CLAIMS))
        refusal(auth, forge(HS, {**CLAIMS, "aud": audience}))


# Algorithms and keys

SIGNERS: list[tuple[Any, str]] = [
    *((RSA, name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    (P256, "ES256"), (P384, "ES384"), (P521, "ES512"), (K256, "ES256K"), (ED25519, "EdDSA"), (ED448, "EdDSA"),
]  # fmt: skip
IDS = [f"{type(key).__name__}-{name}" for key, name in SIGNERS]


@pytest.mark.parametrize(("key", "algorithm"), SIGNERS, ids=IDS)
def test_every_asymmetric_algorithm_verifies_its_own_signatures_only(key: Any, algorithm: str) -> None:
    auth = backend(public_key=pem(key), algorithm=algorithm)
    assert attempt(auth, sign(CLAIMS, key, algorithm)).user_id == "ada"
    token = sign(CLAIMS, key, algorithm)
    refusal(auth, token.rpartition(".")[0] + "." + b64(b"\0" * 64))
    for other_key, other in SIGNERS:
        if other != algorithm:
            refusal(auth, sign(CLAIMS, other_key, other))


def test_another_key_of_the_same_kind_does_not_do() -> None:
    refusal(backend(public_key=pem(RSA)), sign(CLAIMS, OTHER_RSA, "RS256"))


@pytest.mark.parametrize(
    ("key", "default"),
    [(RSA, "RS256"), (P256, "ES256"), (P384, "ES384"), (P521, "ES512"), (ED25519, "EdDSA"), (ED448, "EdDSA")],
)
def test_a_public_key_has_a_default_algorithm(key: Any, default: str) -> None:
    assert backend(public_key=pem(key)).algorithms == (default,)


def test_several_algorithms_can_be_allowed() -> None:
    auth = backend(algorithms=["HS256", "HS512"])
    attempt(auth, forge({"alg": "HS512"}, CLAIMS, SECRET, "sha512"))
    attempt(auth, forge({"alg": "HS256"}))
    refusal(auth, forge({"alg": "HS384"}, CLAIMS, SECRET, "sha384"))


def jwk(key: Any) -> dict[str, Any]:
    public = key.public_key()
    kinds: dict[type[Any], Any] = {
        rsa.RSAPublicKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePublicKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PublicKey: jwt.algorithms.OKPAlgorithm,
        ed448.Ed448PublicKey: jwt.algorithms.OKPAlgorithm,
    }
    kind = next(found for base, found in kinds.items() if isinstance(public, base))
    made: dict[str, Any] = kind.to_jwk(public, as_dict=True)
    return made


def spellings(key: Any) -> dict[str, str | bytes]:
    """A public key in every form somebody may paste."""
    public = key.public_key()
    der: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found: dict[str, str | bytes] = {
        "pem": pem(key),
        "pem text": pem(key).decode(),
        "pem with space around": b"\n\n  " + pem(key) + b"\n",
        "der": der,
        "base64 der": base64.b64encode(der).decode(),
        "jwk": json.dumps(jwk(key)),
        "jwk bytes": json.dumps(jwk(key), indent=2).encode(),
    }
    if not isinstance(key, ed448.Ed448PrivateKey):
        found["openssh"] = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " ada@example"
    if isinstance(key, rsa.RSAPrivateKey):
        found["pkcs1 pem"] = public.public_bytes(Encoding.PEM, PublicFormat.PKCS1)
        found["pkcs1 der"] = public.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return found


FORMS = [
    pytest.param(key, form, spelling, id=f"{type(key).__name__}-{form}")
    for key in (RSA, P256, P384, P521, ED25519, ED448)
    for form, spelling in spellings(key).items()
]


@pytest.mark.parametrize(("key", "form", "spelling"), FORMS)
def test_a_public_key_is_refused_as_a_secret_in_every_form(key: Any, form: str, spelling: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="public_key="):
        JWTAuth(secret=spelling)
    with pytest.raises(ConfigurationError, match="public_key="):
        JWTAuth(spelling, algorithm="HS512")


@pytest.mark.parametrize(("key", "form", "spelling"), FORMS)
def test_a_token_signed_with_the_public_key_as_if_it_were_a_secret_is_refused(
    key: Any, form: str, spelling: str | bytes
) -> None:
    auth = backend(public_key=pem(key))
    for digest in ("sha256", "sha384", "sha512"):
        for claimed in (f"HS{digest[3:]}", *auth.algorithms):
            refusal(auth, forge({"alg": claimed}, CLAIMS, spelling, digest))


@pytest.mark.parametrize(("key", "form", "spelling"), FORMS)
def test_a_public_key_can_be_passed_in_every_form(key: Any, form: str, spelling: str | bytes) -> None:
    auth = backend(public_key=spelling)
    assert attempt(auth, sign(CLAIMS, key, auth.algorithms[0])).user_id == "ada"
    assert attempt(backend(public_key=jwk(key)), sign(CLAIMS, key, auth.algorithms[0])).user_id == "ada"


@pytest.mark.parametrize(
    "secret",
    [
        RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        '---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----',
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        json.dumps({"keys": [jwk(RSA)]}),
        json.dumps([jwk(P256)]),
        "ecdsa-sha2-nistp256",
    ],
)  # fmt: skip
def test_other_keys_are_no_secrets_either(secret: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="public_key="):
        JWTAuth(secret=secret)


@pytest.mark.parametrize("secret", ["{not json", '{"my": "secret"}', "[1]", "ssh-secret", "0" * 64, b"0" * 40, "MIIB"])
def test_odd_secrets_that_are_no_keys_work(secret: str | bytes) -> None:
    assert attempt(backend(secret=secret), forge(HS, CLAIMS, secret)).user_id == "ada"


def test_a_certificate_is_a_public_key_too() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer.example")])
    today = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder(name, name, P256.public_key(), 1, today, today + datetime.timedelta(days=1))
        .sign(P256, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    assert attempt(backend(public_key=certificate), sign(CLAIMS, P256, "ES256")).user_id == "ada"
    with pytest.raises(ConfigurationError, match="public_key="):
        JWTAuth(secret=certificate)


def test_a_jwk_keeps_the_algorithm_it_names() -> None:
    auth = backend(public_key={**jwk(RSA), "alg": "PS384"})
    assert auth.algorithms == ("PS384",)
    refusal(auth, sign(CLAIMS, RSA, "RS256"))
    with pytest.raises(ConfigurationError, match="PS384"):
        backend(public_key={**jwk(RSA), "alg": "PS384"}, algorithm="RS256")


@pytest.mark.parametrize(
    "key",
    [
        "", "hello", b"\x30\x03\x02\x01\x01", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "ssh-rsa AAAA", "{", "{}", {}, {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-192"}, {"kty": "RSA"},
        {**jwk(P256), "x": "!"}, {**jwk(RSA), "use": "enc"}, {**jwk(RSA), "key_ops": ["sign"]},
        {**jwk(RSA), "alg": "RSA-OAEP"},
        {**jwk(P256), "alg": "ES384"}, {**jwk(RSA), "alg": "HS256"}, {**jwk(RSA), "alg": "none"},
        {**jwk(RSA), "d": "AQ"}, pem(WEAK_RSA), jwk(WEAK_RSA),
        RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)  # fmt: skip
def test_what_is_no_good_public_key_is_refused_at_construction(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="public_key"):
        JWTAuth(public_key=key)


def test_a_private_key_is_called_one() -> None:
    with pytest.raises(ConfigurationError, match="is a private key"):
        JWTAuth(public_key=RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


NAMES_OF_NOTHING = ["none", "None", "NONE", "NoNe", " none", "none ", ""]


@pytest.mark.parametrize("name", NAMES_OF_NOTHING)
@pytest.mark.parametrize("source", [{"secret": SECRET}, {"public_key": pem(RSA)}, {"jwks_url": "https://i.example/k"}])
def test_none_is_never_an_algorithm(name: str, source: dict[str, Any]) -> None:
    for options in ({"algorithm": name}, {"algorithms": [name]}):
        with pytest.raises(ConfigurationError, match="anybody"):
            JWTAuth(**source, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one"),
        ({"secret": SECRET, "public_key": pem(RSA)}, "exactly one"),
        ({"secret": SECRET, "jwks_url": "https://i.example/k"}, "exactly one"),
        ({"secret": ""}, "empty"),
        ({"secret": "  "}, "empty"),
        ({"secret": b""}, "empty"),
        ({"secret": SECRET, "algorithm": "RS256"}, "HS256"),
        ({"secret": SECRET, "algorithm": "hs256"}, "HS256"),
        ({"secret": SECRET, "algorithms": ["HS256", "RS256"]}, "RS256"),
        ({"secret": SECRET, "algorithms": "HS256"}, r"\['HS256'\]"),
        ({"secret": SECRET, "algorithms": []}, "empty"),
        ({"secret": SECRET, "algorithm": "HS256", "algorithms": ["HS256"]}, "not both"),
        ({"public_key": pem(RSA), "algorithm": "HS256"}, "HS256"),
        ({"public_key": pem(RSA), "algorithm": "ES256"}, "ES256"),
        ({"public_key": pem(P256), "algorithm": "ES384"}, "ES256"),
        ({"public_key": pem(RSA), "algorithms": ["RS256", "HS256"]}, "HS256"),
        ({"jwks_url": "https://i.example/k", "algorithm": "HS256"}, "HS256"),
        ({"secret": SECRET, "leeway": 61}, "60"),
        ({"secret": SECRET, "leeway": -1}, "leeway"),
        ({"secret": SECRET, "leeway": float("nan")}, "leeway"),
        ({"secret": SECRET, "audience": ""}, "audience"),
        ({"secret": SECRET, "audience": []}, "audience"),
        ({"secret": SECRET, "audience": ["api", ""]}, "audience"),
        ({"secret": SECRET, "issuer": ""}, "issuer"),
        ({"secret": SECRET, "issuer": ["https://i.example"]}, "issuer"),
    ],
)
def test_options_that_cannot_work_are_refused_at_construction(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        JWTAuth(**options)
    assert SECRET not in str(caught.value)


def test_nothing_secret_is_shown() -> None:
    assert repr(backend()) == "JWTAuth(algorithms=['HS256'])"
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in repr(vars(backend()))


def test_first_message_is_off_unless_asked_for() -> None:
    assert backend().first_message is False
    assert backend(first_message=True).first_message is True


WITHOUT_CRYPTOGRAPHY = """
import sys
sys.modules["cryptography"] = None
import asyncio
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import JWTAuth
for options in ({"public_key": sys.argv[2]}, {"jwks_url": "https://issuer.example/k"}):
    try:
        JWTAuth(**options)
    except ConfigurationError as error:
        assert "pip install 'PyJWT[crypto]" in str(error), error
    else:
        raise SystemExit("made without cryptography")
for key in sys.argv[2:]:
    try:
        JWTAuth(secret=key)
    except ConfigurationError as error:
        assert "public_key=" in str(error), error
    else:
        raise SystemExit("a public key went through as a secret: " + key)
found = asyncio.run(JWTAuth(secret="super-secret", algorithm="HS256").authenticate(Handshake(token=sys.argv[1])))
print(found.user_id)
"""


def test_without_cryptography_secrets_work_and_the_rest_names_the_extra() -> None:
    token = forge(HS, {"sub": "ada", "exp": 4_000_000_000}, "super-secret")
    keys = [form for form in spellings(RSA).values() if isinstance(form, str)]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_CRYPTOGRAPHY, token, *keys],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == ("ada\n", 0), ran.stderr
