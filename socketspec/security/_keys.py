"""Keys that verify tokens, and which algorithms each may be used with.

The key decides, never the token: every key comes with the algorithms that fit its type and curve (RFC 7518), and a
token whose header names another one is not looked at any further (RFC 8725 sections 3.1 and 3.2).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jwt

from socketspec.errors import ConfigurationError
from socketspec.extras import install

has_cryptography = find_spec("cryptography") is not None

if TYPE_CHECKING or has_cryptography:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import (
        load_der_public_key,
        load_pem_public_key,
        load_ssh_public_key,
    )

SECRET_ALGORITHMS: Mapping[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms that take a secret, with the shortest secret in bytes that RFC 7518 section 3.2 allows."""

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
_JWK_CURVE_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "secp256k1": "ES256K"}

PUBLIC_KEY_ALGORITHMS = (*_RSA_ALGORITHMS, *_CURVE_ALGORITHMS.values(), "EdDSA")
"""Algorithms that take a public key."""

_RSA_BITS = range(2048, 16384 + 1)
_PEM = re.compile(rb"-{4,5} ?BEGIN ([A-Z0-9 ]+?) ?-{4,5}")
_SSH = re.compile(rb"(?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+ +AAAA")
_JWK_MEMBER = re.compile(rb'"(?:kty|keys)"\s*:')


class VerificationKey(NamedTuple):
    """A key and the algorithms it verifies."""

    key: Any
    algorithms: tuple[str, ...]


def require_cryptography(option: str) -> None:
    """Raise `ConfigurationError` where `option` cannot work for want of the ``cryptography`` package."""
    if not has_cryptography:
        raise ConfigurationError(f"{option} needs the cryptography package: {install('crypto')}")


def load_secret(secret: str | bytes) -> bytes:
    """Check a shared secret. Raises `ConfigurationError` for an empty one and for what is no secret: a public key."""
    raw = secret.encode() if isinstance(secret, str) else bytes(secret)
    if not secret.strip():
        raise ConfigurationError("JWTAuth: the secret is empty. Pass the secret your tokens are signed with.")
    if kind := _key_format(raw):
        raise ConfigurationError(
            f"JWTAuth: the secret is a key in {kind} form. Whoever knows a public key could sign tokens with it: "
            "pass it as public_key=, with the algorithm your issuer signs with, for example RS256."
        )
    try:
        jwt.PyJWS().get_algorithm_by_name("HS256").prepare_key(hmac_key(raw))
    except jwt.PyJWTError as error:  # it would refuse every token, without saying so to anybody
        raise ConfigurationError(
            "JWTAuth: PyJWT takes the secret for a public key. If it is one, pass it as public_key=; if not, change it."
        ) from error
    return raw


def hmac_key(secret: bytes) -> bytes:
    """The secret, lengthened to what PyJWT accepts without a warning for each token.

    HMAC itself fills keys up to its block (64 bytes or more) with zeros (RFC 2104 section 2), so nothing changes.
    """
    return secret.ljust(64, b"\0")


def _key_format(raw: bytes) -> str | None:
    text = raw.strip()
    if _PEM.search(text):
        return "PEM"
    if _SSH.match(text):
        return "OpenSSH"
    if text[:1] in b"{[" and _JWK_MEMBER.search(text):
        return "JWK"
    if _is_der(raw) or _from_base64(text) is not None:
        return "DER"
    return None


def _is_der(raw: bytes) -> bool:
    """Whether it is one ASN.1 SEQUENCE that begins like a SubjectPublicKeyInfo, a certificate or a PKCS #1 key."""
    if len(raw) < 32 or raw[0] != 0x30:
        return False
    size, start = raw[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(raw[2:start], "big")
    return start + size == len(raw) and raw[start] in (0x30, 0x02)


def _from_base64(text: bytes) -> bytes | None:
    """The DER inside a PEM body without its armour, as some identity providers print public keys."""
    try:
        raw = base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return None
    return raw if _is_der(raw) else None


def load_public_key(source: str | bytes | Mapping[str, Any]) -> VerificationKey:
    """Read a public key in PEM, DER, OpenSSH, JWK or certificate form. Raises `ConfigurationError`."""
    require_cryptography("JWTAuth: public_key")
    try:
        if isinstance(source, Mapping):
            return load_jwk(source)
        raw = source.encode() if isinstance(source, str) else bytes(source)
        if raw.lstrip()[:1] == b"{":
            return load_jwk(json.loads(raw))
        return _fitting(_parse(raw))
    except ConfigurationError:
        raise
    except Exception as error:  # the parsers raise ValueError, TypeError, UnsupportedAlgorithm, PyJWTError and more
        raise ConfigurationError(
            "JWTAuth: public_key cannot be read as a public key. Pass it in PEM form (-----BEGIN PUBLIC KEY-----), "
            f"or as DER bytes, an OpenSSH line, a JWK or a certificate. ({type(error).__name__}: {error})"
        ) from error


def _parse(raw: bytes) -> object:
    text = raw.strip()
    if pem := _PEM.search(text):
        if b"PRIVATE" in pem[1]:
            raise ConfigurationError(
                "JWTAuth: public_key is a private key. Verifying needs only the public one; keep the private one "
                "away from here: openssl pkey -in private.pem -pubout"
            )
        if b"CERTIFICATE" in pem[1]:
            return x509.load_pem_x509_certificate(text).public_key()
        return load_pem_public_key(text)
    if _SSH.match(text):
        return load_ssh_public_key(text)
    return load_der_public_key(_from_base64(text) or raw)


def load_jwk(jwk: Mapping[str, Any]) -> VerificationKey:
    """Read one public JSON Web Key (RFC 7517). Raises `ValueError`, or what PyJWT and cryptography raise."""
    if "d" in jwk:
        raise ValueError("a private key")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ("verify",)):
        raise ValueError("not a key for signatures")
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            family = "RS256"
        case "EC", str(curve) if curve in _JWK_CURVE_ALGORITHMS:
            family = _JWK_CURVE_ALGORITHMS[curve]
        case "OKP", "Ed25519" | "Ed448":
            family = "EdDSA"
        case _:
            raise ValueError("an unknown kty or crv")
    found = _fitting(cast("object", jwt.PyJWK(dict(jwk), algorithm=family).key))
    if "alg" not in jwk:
        return found
    if jwk["alg"] not in found.algorithms:
        raise ValueError("its alg does not go with its kty and crv, or is not for signatures")
    return VerificationKey(found.key, (jwk["alg"],))


def _fitting(key: object) -> VerificationKey:
    """`key` with the algorithms that go with its type. Raises `ValueError` for keys too weak or of another type."""
    if isinstance(key, RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise ValueError(f"an RSA key of {key.key_size} bits; 2048 to 16384 are allowed")
        return VerificationKey(key, _RSA_ALGORITHMS)
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVE_ALGORITHMS:
        return VerificationKey(key, (_CURVE_ALGORITHMS[key.curve.name],))
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return VerificationKey(key, ("EdDSA",))
    raise ValueError("neither an RSA, an EC (P-256, P-384, P-521, secp256k1) nor an Ed25519 or Ed448 key")
