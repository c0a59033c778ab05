"""Who clients of tests say they are."""

from __future__ import annotations

from socketspec import Identity
from socketspec.protocol.handshake import Handshake

__all__ = ("ByName",)


class ByName:
    """Takes the client's word for it: ``?user=ada``, or the same as its first message.

    What follows a slash makes it another token of the same user; an empty name is nobody's in particular. With
    ``?guest=…`` the name is not to be relied on.
    """

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        token = handshake.token or handshake.query_params.get("user")
        if token is None:
            return None
        name = token.partition("/")[0]
        known = "guest" not in handshake.query_params
        return Identity(user_id=name or None, claims={"jti": token}, is_authenticated=known)
