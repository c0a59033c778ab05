"""When sessions began, and what is revoked, in Redis and by the clock of Redis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.protocols import Sessions
from socketspec.cluster.commands.command import Command, CommandRunner, Script, milliseconds
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.errors import BackendError

__all__ = ("RedisSessions", "revoke_command")

_BEGIN: Final = Script("begin")
_REVOKE: Final = Script("revoke")
_SECONDS: Final = re.compile(rb"[0-9]{1,22}(\.[0-9]{1,22})?")


class RedisSessions(Sessions):
    """Sessions and revocations in Redis. Every method raises `BackendError` where Redis cannot be asked."""

    def __init__(self, runner: CommandRunner, keys: Keys, unreadable: Unreadable | None = None) -> None:
        self._runner = runner
        self._keys = keys
        self._unreadable = unreadable or Unreadable()

    async def begin(self, session: str, *, ttl: float) -> float:
        """The time `session` was first seen, remembered for `ttl` seconds from then.

        What is none of ours in its place is overwritten: the session begins now.
        """
        found = await self._first_seen(session, milliseconds(ttl))
        if found is None:
            raise BackendError("Redis remembered no beginning of a session; is a proxy in between?")
        return found

    async def began(self, session: str) -> float | None:
        """The time `session` was first seen; None where it is not remembered."""
        return await self._first_seen(session, 0)

    async def _first_seen(self, session: str, ttl_ms: int) -> FirstSeen | None:
        key = self._keys.session(session)
        reply = await self._runner.run(_BEGIN.command((key,), ttl_ms))
        if reply is None:
            return None
        began, now, *strange = reply
        if strange:
            self._unreadable.value("session", key)
            if not began:
                return None
        seconds, present = _seconds(began), _seconds(now)
        if seconds is None or present is None:
            raise BackendError(f"Redis answered a session's begin with {reply!r:.200}; is a proxy in between?")
        return FirstSeen(seconds, present - seconds)

    async def revoke(self, subject: str, *, ttl: float) -> None:
        """Refuse `subject` for `ttl` seconds; a revocation that lasts longer is not shortened."""
        await self._runner.run(revoke_command(self._keys, subject, ttl=ttl))

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        """Whether any of `subjects` is revoked."""
        if not subjects:
            return False
        commands = [Command("EXISTS", None, (self._keys.revoked(subject),)) for subject in subjects]
        return any(await self._runner.run_all(commands))


def _seconds(text: Any) -> float | None:
    """Seconds since the epoch, as ``begin.lua`` writes them; None for anything else."""
    return float(text) if isinstance(text, bytes) and _SECONDS.fullmatch(text) is not None else None


def revoke_command(keys: Keys, subject: str, *, ttl: float) -> Command:
    """Refuse `subject` for `ttl` seconds; a revocation that lasts longer is not shortened."""
    return _REVOKE.command((keys.revoked(subject),), milliseconds(ttl))
