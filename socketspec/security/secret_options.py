"""Secrets that are options: an empty one is refused, as it would guard nothing."""

from __future__ import annotations

from socketspec.errors import ConfigurationError

__all__ = ("check_secret",)


def check_secret(option: str, secret: object, *, without: str) -> None:
    """Raise `ConfigurationError` unless `secret` is a text that guards something, or None for none.

    `option` is its name to the user, `without` what to write where none is meant. The secret is not part of the
    message: it would end up in a log.
    """
    if secret is None:
        return
    if not isinstance(secret, str):
        raise ConfigurationError(f"{option} must be a str, not {type(secret).__name__}.")
    if not secret.strip():
        raise ConfigurationError(
            f"{option} is empty, so it would guard nothing. Is an environment variable or a mounted secret missing? "
            f'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))". {without}'
        )
