"""One client, who does as chance tells it: connects, joins, leaves, speaks, goes in good order or breaks off."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from socketspec.protocol.publications import Position
from tests.cluster.torture.book import Book
from tests.cluster.torture.common import LOGS, ROOMS, SECRET, SESSION
from tests.cluster.torture.ground import Node
from tests.support import jwt

__all__ = ("Player", "dial")

ENDED = "ended"
"""What came of a request whose connection ended before its answer."""
UNDESERVED = (1002, 1003, 1007, 1009, 1011, 4001, 4003, 4006, 4007)
"""Codes that blame the client, or are about a defect of the server."""
MARGIN = 5.0
"""Seconds before its end at which a session may be called over."""
TRIES = 3
"""How often what was not acknowledged is said again, under the same key."""


def dial(node: Node, user: str, session: str = "") -> connect:
    """A connection to `node` that is to be opened; with `session`, one that goes on with it."""
    token = jwt(SECRET, sub=user, exp=int(time.time()) + 10 * 86_400)
    return connect(
        node.process.url(f"/ws?token={token}{session and f'&session={session}'}"),
        subprotocols=[Subprotocol("socketspec.v1.json")],
        proxy=None,
        open_timeout=6,
        ping_interval=None,
        close_timeout=2,
        compression=None,
    )


class Player:
    """A client with a connection at most. `choose` gives the node for the next one."""

    def __init__(self, name: str, user: str, seed: str, book: Book, choose: Callable[[Random], Node]) -> None:
        self.name = name
        self.user = user
        """Whom it connects as, the next time."""
        self.connected_as = user
        self.id = ""
        """Of the open connection; empty where there is none."""
        self.node: Node | None = None
        self.life = -1
        """Which process of the node it is connected to."""
        self.rooms: set[str] = set()
        """Where it is, as it was told."""
        self.unsure: set[str] = set()
        """Rooms of which it was told that the server does not know."""
        self.asking: dict[int, tuple[str, str]] = {}
        """Events and rooms of requests without an answer so far."""
        self.is_idle = True
        self.positions: dict[str, Position] = {}
        self.heard: dict[str, set[str]] = {room: set() for room in ROOMS}
        """What it heard in each room since it last joined it, or was told that something may be missing."""
        self._random = Random(seed)
        self._book = book
        self._choose = choose
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ws: ClientConnection | None = None
        self._session = "", 0.0
        """The session's token, and when it was new."""
        self._reading: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.connected_as}, {self.id or 'away'} on {self.node})"

    @property
    def is_open(self) -> bool:
        """Whether its connection is there, as far as it knows."""
        return bool(self.id)

    async def play(self, go: asyncio.Event) -> None:
        """Live, while `go` is set; stand still while it is not."""
        while True:
            self.is_idle = True
            await asyncio.sleep(self._random.uniform(0.1, 0.7))
            await go.wait()
            self.is_idle = False
            await self._act()

    async def _act(self) -> None:
        if not self.is_open:
            await self.come()
            return
        act = self._random.random()
        room = self._random.choice(ROOMS)
        if act < 0.38:
            await (self.leave(room) if room in self.rooms and self._random.random() < 0.5 else self.join(room))
        elif act < 0.88:
            await self.say(self._random.choice(sorted(self.rooms) or [room]))
        elif act < 0.94:
            await self.go()
        else:
            await self.break_off()

    # Coming and going

    async def come(self) -> None:
        """Connect, and go on in the rooms with history; nothing happens where the node does not answer."""
        if self._reading is not None:
            await self._reading
        node = self._choose(self._random)
        self.node, self.life, self.connected_as = node, node.life, self.user
        try:
            ws = await dial(node, self.user, self._session_to_go_on_with())
            hello = json.loads(await ws.recv())
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError):
            return
        if hello["event"] != "__connect__":
            self._judge("a newcomer", await _close_code(ws))
            return
        self._ws, self.id = ws, hello["payload"]["connection_id"]
        if hello["payload"]["session"] != self._session[0]:
            self._session = hello["payload"]["session"], time.monotonic()
        self.rooms, self.unsure = set(), set()
        self.heard = {room: self.heard[room] if room in self.positions else set() for room in ROOMS}
        self._reading = asyncio.create_task(self._read(ws), name=f"reading of {self.name}")
        if self.positions:
            await self._resume()

    def _session_to_go_on_with(self) -> str:
        token, began = self._session
        is_young = time.monotonic() - began < SESSION - 2 * MARGIN
        return token if is_young and self._random.random() < 0.7 else ""

    async def go(self) -> None:
        """Close in good order."""
        ws, self.id = self._ws, ""
        if ws is not None:
            await ws.close()

    async def break_off(self) -> None:
        """Reset the connection, without a word."""
        ws, self.id = self._ws, ""
        if ws is not None:
            ws.transport.abort()
            await ws.wait_closed()

    async def end(self) -> None:
        """Leave for good."""
        await self.break_off()
        if self._reading is not None:
            await self._reading

    async def _resume(self) -> None:
        rooms = {room: position._asdict() for room, position in self.positions.items()}
        answer = await self._ask("__resume__", {"rooms": rooms}, "log:*")
        if not isinstance(answer, dict) and answer != ENDED:
            self._book.wrong(f"{self} was refused to resume: {answer}")

    # Asking

    async def join(self, room: str) -> Any:
        """Join; what came of it."""
        answer = await self._ask("join", {"room": room}, room)
        if isinstance(answer, dict):
            self.rooms.add(room)
        return answer

    async def leave(self, room: str) -> None:
        answer = await self._ask("leave", {"room": room}, room)
        self.positions.pop(room, None)  # also where it failed: it may be out
        self.heard[room] = set()
        if isinstance(answer, dict):
            self.rooms.discard(room)

    async def say(self, room: str) -> None:
        """Say something new in `room`, again under the same key while it is not acknowledged."""
        what, lost_before = f"{self.name}-{next(self._numbers)}", self._book.lost_data_at
        for _ in range(TRIES if room in LOGS else 1):
            answer = await self._ask("say", {"room": room, "n": what}, room)
            if isinstance(answer, dict):
                if room in LOGS and lost_before == self._book.lost_data_at:
                    self._book.acknowledged[room].append(what)
                return
            if answer == ENDED:
                return

    async def _ask(self, event: str, payload: object, room: str) -> Any:
        """Send an event and wait for its answer: a payload, an error's code, or `ENDED`. There is always one."""
        ws, number = self._ws, next(self._numbers)
        if ws is None or not self.is_open:
            return ENDED
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self.asking[number] = event, room
        self.waits_since = time.monotonic()
        try:
            await ws.send(json.dumps({"event": event, "payload": payload, "id": number}))
            return await answer
        except ConnectionClosed:
            return ENDED
        finally:
            del self._answers[number], self.asking[number]

    # Hearing

    async def _read(self, ws: ClientConnection) -> None:
        id = self.id
        try:
            async for data in ws:
                self._take(json.loads(data))
        except ConnectionClosed:
            pass
        if self.id == id:
            self.id = ""
        self._judge(id, ws.close_code or 1006)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(ENDED)

    def _judge(self, id: str, code: int) -> None:
        if code != 1006:
            self._book.sent_away.add(id)
        age = time.monotonic() - self._session[1]
        if code == 4002 and age < SESSION - MARGIN:
            self._book.wrong(f"the session of {id} ended after {age:.0f} s instead of {SESSION:.0f}: {self}")
        elif code in UNDESERVED:
            self._book.wrong(f"{id} was closed with {code}, which nothing that it did deserves: {self}")

    def _take(self, message: dict[str, Any]) -> None:
        event, payload, answer = message["event"], message["payload"], self._answers.get(message.get("id", -1))
        if event == "said":
            self._hear(payload["room"], payload["n"], message)
            return
        if event == "__resume__":
            self._resumed(payload["rooms"], is_answer=answer is not None)
        if answer is not None and not answer.done():
            answer.set_result(payload["code"] if event == "__error__" else payload)

    def _resumed(self, rooms: dict[str, dict[str, Any]], *, is_answer: bool) -> None:
        for room, row in rooms.items():
            if not row["recovered"]:
                self.positions.pop(room, None)
                self.heard[room].clear()
            if is_answer and (row["recovered"] or row["reason"] in ("history_lost", "no_position", "already_joined")):
                self.rooms.add(room)
            elif is_answer and row["reason"] == "failed":
                self.unsure.add(room)

    def _hear(self, room: str, what: str, message: dict[str, Any]) -> None:
        if room in LOGS:
            self._follow(room, what, message)
        if what in self.heard[room]:
            self._book.wrong(f"{self} heard {what!r} twice in {room}")
        self.heard[room].add(what)

    def _follow(self, room: str, what: str, message: dict[str, Any]) -> None:
        position = Position(message["offset"], message["epoch"], message["tag"])
        self._book.heard(room, position.epoch, position.offset, position.tag, what)
        last = self.positions.get(room)
        if last is not None:
            self._book.steps.add((room, last, position))
            if position.epoch != last.epoch:
                self.heard[room] = set()  # that it is another history is said by this itself
            elif position.offset != last.offset + 1:
                self._book.wrong(f"{self} heard {position} in {room} after {last}, without a word about the gap")
        self.positions[room] = position


async def _close_code(ws: ClientConnection) -> int:
    try:
        async for _ in ws:
            pass
    except ConnectionClosed:
        pass
    return ws.close_code or 1006
