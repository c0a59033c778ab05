"""What connections log in with: a password that was given once, or what a credential provider says for each of them."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from typing import Any, NamedTuple

from redis.credentials import CredentialProvider

from socketspec.concurrency.shared_call import SharedCall
from socketspec.errors import BackendError

__all__ = ("AskedLogin", "Login")


class Login(NamedTuple):
    """A user and a password; None: the default user, no password."""

    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"<login of {self.username or 'the default user'}>"


class AskedLogin:
    """Asks a provider of redis-py for the login of a new connection. `option` is what errors call it.

    A provider that has only `get_credentials` may block: it is called in a thread of its own, one call at a time.
    """

    def __init__(self, provider: CredentialProvider, option: str = "credential_provider") -> None:
        self._provider: Any = provider
        self.name: str = f"{option} {type(provider).__name__}"
        own = getattr(type(provider), "get_credentials_async", None)
        # The inherited one blocks the event loop with `get_credentials`, and logs a warning each time.
        self._awaits = own is not None and own is not CredentialProvider.get_credentials_async
        self._call: SharedCall[Any] = SharedCall(getattr(provider, "get_credentials", _missing), f"ask {self.name}")

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def ask(self, deadline: float) -> Login:
        """What it says, for code without an event loop, by `deadline` of `time.monotonic`. Raises `BackendError`."""
        given = self._call.begin()
        try:
            said = given.result(max(deadline - time.monotonic(), 0))
        except Exception as error:
            if isinstance(error, StillRunning) and not given.done():
                raise self._silent() from None
            raise self._failed(error) from error
        return self._checked(said)

    async def ask_in_loop(self, seconds: float) -> Login:
        """What it says within `seconds`, without blocking the event loop. Raises `BackendError`."""
        limit = asyncio.timeout(seconds)
        given: Future[Any] | None = None
        try:
            async with limit:
                if self._awaits:
                    said = await self._provider.get_credentials_async()
                else:
                    given = self._call.begin()
                    said = await asyncio.wrap_future(given)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._silent() from None
            raise self._failed(error) from error
        return self._checked(said)

    def _silent(self) -> BackendError:
        return BackendError(f"The {self.name} gave no login in time.")

    def _failed(self, error: Exception) -> BackendError:
        if isinstance(error, NotImplementedError):
            return BackendError(f"The {self.name} does not define get_credentials, which code without async calls.")
        return BackendError(f"The {self.name} failed with {type(error).__name__}: {error}")

    def _checked(self, said: Any) -> Login:
        """A tuple of a password, or of a user and a password, as text."""
        if isinstance(said, tuple | list) and 1 <= len(said) <= 2 and all(isinstance(word, str) for word in said):
            *user, password = said
            if password:
                return Login(user[0] or None if user else None, password)
        # What it was is not told: it may hold a secret.
        raise BackendError(
            f"The {self.name} must return (password,) or (username, password), texts that are not empty."
        )


def _missing() -> None:
    raise NotImplementedError
