"""What a node asks of Redis to publish, and the receipt that it makes of the reply."""

from __future__ import annotations

from typing import Any, cast

import pytest

from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import History, Position, Publication, Receipt, Topic

KEYS = Keys("p")
ROOM = Topic("/", "room", "lobby")
SAID = Publication("said", b"{}")


class Redis:
    """Answers every command with `reply`."""

    def __init__(self, reply: object) -> None:
        self.reply = reply
        self.commands: list[Command] = []

    async def run(self, command: Command) -> object:
        self.commands.append(command)
        return self.reply

    def broker(self) -> RedisBroker:
        nothing = cast("Any", None)
        return RedisBroker(cast("Any", self), KEYS, nothing, Tasks(), linger=0)


async def test_what_is_not_kept_is_sent_to_the_topics_channel() -> None:
    redis = Redis(3)
    assert await redis.broker().publish(ROOM, SAID) == Receipt(3)
    (command,) = redis.commands
    assert (command.name, command.keys) == ("SPUBLISH", (KEYS.channel(ROOM),))


async def test_what_is_kept_has_names_of_its_own_each_time() -> None:
    redis = Redis([2, 7, b"life", b"tag", 1])
    broker = redis.broker()
    for _ in range(2):
        receipt = await broker.publish(ROOM, SAID, history=History(size=9, ttl=60), idempotency_key="once")
        assert receipt == Receipt(2, Position(7, "life", "tag"))
    first, second = redis.commands
    assert first.keys == (KEYS.meta(ROOM), KEYS.stream(ROOM), KEYS.idempotency(ROOM, "once"))
    assert first.args[:2] == (9, 60_000)
    names = {argument for command in redis.commands for argument in command.args[2:4]}
    assert len(names) == 4, "two lives and two tags"
    assert all(isinstance(name, str) and name.isalnum() for name in names)
    assert first.args[4:] == second.args[4:]


async def test_what_is_kept_without_a_key_may_be_published_again() -> None:
    redis = Redis([2, 7, b"life", b"tag", 1])
    await redis.broker().publish(ROOM, SAID, history=History())
    assert len(redis.commands[0].keys) == 2


async def test_a_reply_that_is_none_is_no_receipt() -> None:
    with pytest.raises(BackendError, match="is a proxy in between"):
        await Redis(b"+OK").broker().publish(ROOM, SAID)
