"""Who may do what: dependencies that the parts of the application share."""

from socketspec import Identity
from socketspec.errors import PermissionDenied


async def staff(identity: Identity) -> None:
    """Let nobody pass but the staff."""
    if identity.role != "staff":
        raise PermissionDenied("For the staff.")
