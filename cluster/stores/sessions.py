"""When sessions began, and what is revoked, in Redis and by the clock of Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.protocols import Sessions
from socketspec.cluster.commands.command import Command, CommandRunner, Script, milliseconds
from socketspec.cluster.commands.keys import Keys

__all__ = ("RedisSessions", "revoke_command")

_BEGIN: Final = Script("begin")
_REVOKE: Final = Script("revoke")


class RedisSessions(Sessions):
    """Sessions and revocations in Redis. Every method raises `BackendError` where Redis cannot be asked."""

    def __init__(self, runner: CommandRunner, keys: Keys) -> None:
        self._runner = runner
        self._keys = keys

    async def begin(self, session: str, *, ttl: float) -> float:
        """The time `session` was first seen, remembered for `ttl` seconds from then."""
        return _first_seen(await self._runner.run(_BEGIN.command((self._keys.session(session),), milliseconds(ttl))))

    async def began(self, session: str) -> float | None:
        """The time `session` was first seen; None where it is not remembered."""
        found = await self._runner.run(_BEGIN.command((self._keys.session(session),), 0))
        return None if found is None else _first_seen(found)

    async def revoke(self, subject: str, *, ttl: float) -> None:
        """Refuse `subject` for `ttl` seconds; a revocation that lasts longer is not shortened."""
        await self._runner.run(revoke_command(self._keys, subject, ttl=ttl))

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        """Whether any of `subjects` is revoked."""
        if not subjects:
            return False
        commands = [Command("EXISTS", None, (self._keys.revoked(subject),)) for subject in subjects]
        return any(await self._runner.run_all(commands))


def _first_seen(reply: Sequence[bytes]) -> FirstSeen:
    began, now = map(float, reply)
    return FirstSeen(began, now - began)


def revoke_command(keys: Keys, subject: str, *, ttl: float) -> Command:
    """Refuse `subject` for `ttl` seconds; a revocation that lasts longer is not shortened."""
    return _REVOKE.command((keys.revoked(subject),), milliseconds(ttl))
