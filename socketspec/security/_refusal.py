"""How credentials are refused: the client gets a short sentence, the log gets the reason, neither the credentials."""

from __future__ import annotations

from socketspec.errors import AuthError
from socketspec.text import get_logger

logger = get_logger("socketspec.auth")

UNAVAILABLE = "Authentication is not available right now."


def refused(message: str, reason: str, *args: object) -> AuthError:
    """An `AuthError` that tells the client `message`, after logging `reason` (a %-format for `args`) at INFO."""
    logger.info("refused: " + reason, *args)
    return AuthError(message)


def unavailable(what: str, error: BaseException) -> AuthError:
    """An `AuthError` for a failure that is not the client's, after logging where `error` happened.

    Frames and types are logged, exception texts are not: a ``KeyError`` from a look-up of the credentials *is* the
    credentials.
    """
    hidden = TextNotLogged("it may hold the credentials").with_traceback(error.__traceback__)
    logger.error("%s failed, so nobody gets in: %s", what, _types(error), exc_info=hidden)
    return AuthError(UNAVAILABLE)


class TextNotLogged(Exception):
    """Stands for an exception whose text is not logged, with its frames."""


def _types(error: BaseException) -> str:
    names: list[str] = []
    link: BaseException | None = error
    while link is not None and len(names) < 8:
        names.append(type(link).__qualname__)
        link = link.__cause__ or link.__context__
    return " from ".join(names)
