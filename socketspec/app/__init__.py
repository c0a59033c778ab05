"""What your code calls: `SocketApp`, and its rooms, users and sessions."""

from socketspec.app.app import SocketApp

__all__ = ("SocketApp",)
