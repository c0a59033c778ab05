"""How long a session lasts, and who may not come back."""

from socketspec.session.config import Session, SessionConfig

__all__ = ("Session", "SessionConfig")
