"""A pub/sub link alone: what it makes of the bytes that come in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from socketspec.cluster.options import Address
from socketspec.cluster.pubsub.link import Answer, PubSubLink

MESSAGE = b"*3\r\n$8\r\nsmessage\r\n$4\r\nroom\r\n$5\r\nhello\r\n"


class Ear:
    """A link that is not connected, and what it handed on."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[bytes, bytes]]] = []
        self.answers: list[Answer] = []
        self.probed: list[bytes] = []
        self.link = PubSubLink(Address("127.0.0.1", 1), self._receive, self.answers.extend, _spawn)

    def _receive(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        self.batches.append(list(messages))


def _spawn(coroutine: Any, name: str) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine, name=name)


async def test_messages_of_one_read_are_handed_on_in_one_call_however_they_are_cut() -> None:
    ear = Ear()
    ear.link.data_received(MESSAGE * 3 + MESSAGE[:20])
    ear.link.data_received(MESSAGE[20:])
    assert ear.batches == [[(b"room", b"hello")] * 3, [(b"room", b"hello")]]


async def test_probes_are_told_apart_from_messages_and_only_those_of_the_newest_channel() -> None:
    ear = Ear()
    ear.link.hear_probes(b"room", ear.probed.append)
    ear.link.data_received(MESSAGE + MESSAGE.replace(b"room", b"hall"))
    assert (ear.probed, ear.batches) == ([b"hello"], [[(b"hall", b"hello")]])
    ear.link.hear_probes(b"hall", ear.probed.append)
    ear.link.data_received(MESSAGE)
    assert (ear.probed, ear.batches[1:]) == ([b"hello"], [[(b"room", b"hello")]])


async def test_an_endless_message_ends_the_link() -> None:
    link = Ear().link
    link.data_received(b"*3\r\n$8\r\nsmessage\r\n$4\r\nroom\r\n$500000000\r\n")
    sent = 0
    while not link.closed.done():
        link.data_received(bytes(2**20))
        sent += 1
        assert sent <= 65
    assert "64 MiB" in link.closed.result()
