"""What is wrong with a server that does not take us, in a sentence that says what to do.

Nodes and both kinds of publishers say the same: each of them gives the error it met, redis-py's or the system's.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from socketspec.cluster.options import TLS_HINT, Address

__all__ = ("MAX_CLIENTS", "is_full", "missing_command", "tls_alert", "tls_problem")

MAX_CLIENTS: Final = (
    "has reached its max number of clients (maxclients in its configuration): raise that, or have fewer connections"
)

_NOT_TRUSTED: Final = {
    62: "it does not name the host that we connect to: connect by a name that it holds, or pass check_hostname=False",
    64: "it does not name the address that we connect to: connect by a name that it holds, or pass "
    "check_hostname=False",
    10: "it has expired: renew it",
    18: "it is signed by itself: pass ca_certs= with that certificate",
}
"""By OpenSSL's number of what it found: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/."""
_ASKS_FOR_OURS: Final = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE")
"""TLS 1.2 knows no alert of its own for a certificate that is missing: it says HANDSHAKE_FAILURE."""
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


def is_full(text: str) -> bool:
    """Whether a server refuses us, with these words, because it has too many clients."""
    return "max number of clients" in text


def tls_alert(address: Address, context: ssl.SSLContext, seconds: float) -> ssl.SSLError | None:
    """What a server says against our TLS once the handshake is through; blocks for `seconds` at most.

    In TLS 1.3 a client is through before the server has looked at its certificate. What is written until then has the
    server's alert lost in a reset connection, so this one only reads.
    """
    try:
        with (
            socket.create_connection((address.host, address.port), seconds) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


def tls_problem(error: ssl.SSLError, *, has_certificate: bool) -> str:
    """What to say of it after the server's name: a whole sentence. `has_certificate`: we showed one of our own."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _NOT_TRUSTED.get(
            error.verify_code, "pass ca_certs= with the authority that signed it, or connect by a name that it holds"
        )
        return f"shows a certificate that is not trusted ({error.verify_message}): {advice}."
    reason = error.reason or str(error)
    if any(name in reason for name in _ASKS_FOR_OURS):
        if has_certificate:
            return (
                f"does not accept our certificate ({reason}): certfile= must be signed by an authority that the server "
                "trusts (tls-ca-cert-file)."
            )
        return (
            f"asks for a certificate of ours ({reason}): pass certfile= and keyfile=, or set tls-auth-clients no there."
        )
    if "UNKNOWN_CA" in reason:
        return (
            f"does not trust the authority of our certificate ({reason}): certfile= must be signed by one that the "
            "server trusts (tls-ca-cert-file)."
        )
    if any(name in reason for name in _NO_TLS):
        return f"does not speak TLS at this port ({reason}). {TLS_HINT[True]}"
    return f"ended the TLS handshake ({reason}). {TLS_HINT[True]}"


def missing_command(text: str) -> str:
    """What to say where the server does not know a command, with these words; empty for other words.

    A server that is old enough not to know one is refused before it gets any.
    """
    if "unknown command" not in text.lower():
        return ""
    named = text.partition("ommand")[2].strip(" '`").partition(",")[0].strip(" '`").upper() or "the command"
    return (
        f"it does not know {named}, which is switched off there, or renamed: take rename-command out of its "
        "configuration, or ask its provider for the command"
    )
