"""What has to be true when all is quiet. Each check gives what is wrong, in words; nothing, when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from random import Random
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from socketspec.protocol.publications import Position
from tests.cluster.torture.book import Book
from tests.cluster.torture.common import LOGS, ROOMS, SMALL, SMALLS
from tests.cluster.torture.crowd import Crowd
from tests.cluster.torture.ground import Ground, Node
from tests.cluster.torture.player import Player, dial

__all__ = ("Checks",)

Picture = Mapping[str, Any]


class Checks:
    """Compares what nodes and Redis say with what clients and the book know."""

    def __init__(self, ground: Ground, book: Book, crowd: Crowd) -> None:
        self._ground = ground
        self._book = book
        self._crowd = crowd
        self._markers = 0

    async def nodes_are_ready(self) -> list[str]:
        """Every node says that it hears Redis."""
        ready = await asyncio.gather(*(node.is_ready() for node in self._ground.nodes))
        return [
            f"{node} is not ready" for node, is_ready in zip(self._ground.nodes, ready, strict=True) if not is_ready
        ]

    async def orders_are_carried_out(self) -> list[str]:
        """Who was to be closed is closed, on both ends."""
        open_here = {player.id for player in self._crowd.players if player.is_open}
        found = [
            f"{id} of {order.user} is still open: the user was {order.what}"
            for order in self._book.orders
            for id in sorted(order.connections & open_here)
        ]
        revoked = set(self._book.revoked)
        return found + [
            f"{player} is open, though the user is revoked"
            for player in self._crowd.players
            if player.is_open and player.connected_as in revoked
        ]

    async def every_key_has_an_end(self) -> list[str]:
        """What Redis holds when all clients are gone ends by itself."""
        if self._ground.mode != "single":
            return []
        server = self._ground.single
        keys = await asyncio.to_thread(server.ask, "KEYS", "*")
        return [f"the key {key} has no end" for key in keys if await asyncio.to_thread(server.ask, "PTTL", key) == -1]

    async def nobody_comes_back(self) -> list[str]:
        """Who was revoked is refused, on every node."""
        tries = [(node, user) for user in self._book.revoked[-2:] for node in self._ground.nodes]
        codes = await asyncio.gather(*(_refusal(node, user) for node, user in tries))
        return [
            f"{user}, who was revoked, came to {node} and was answered {code} instead of 4005"
            for (node, user), code in zip(tries, codes, strict=True)
            if code != 4005
        ]

    async def all_agree(self) -> list[str]:
        """Connections, members, counts, limits and hooks are what clients and nodes know of themselves."""
        users = self._crowd.users()
        try:
            pictures = await asyncio.gather(
                *(node.ask("GET", f"/picture?users={','.join(users)}") for node in self._ground.nodes)
            )
        except httpx.HTTPError as error:
            return [f"a node does not say who is there: {error!r}"]
        here: dict[str, set[str]] = {}
        for node, picture in zip(self._ground.nodes, pictures, strict=True):
            self._book.read(str(node), node.new_lines())
            here |= {id: set(rooms) for id, rooms in picture["connections"].items()}
        found = self._clients_differ(pictures, here)
        found += self._places(here)
        for node, picture in zip(self._ground.nodes, pictures, strict=True):
            found += _rooms_differ(node, picture, here)
            found += self._users_differ(node, picture, users)
        return found + self._book.hooks_are_wrong({(id, room) for id, rooms in here.items() for room in rooms})

    def _clients_differ(self, pictures: list[Picture], here: dict[str, set[str]]) -> list[str]:
        found = []
        for node, picture in zip(self._ground.nodes, pictures, strict=True):
            clients, known = {one.id for one in self._crowd.on(node)}, set(picture["connections"])
            if clients != known:
                found.append(f"{node} lacks the connections {clients - known} and has {known - clients} too many")
        for player in self._crowd.players:
            rooms = here.get(player.id, player.rooms)
            if player.is_open and rooms - player.unsure != player.rooms - player.unsure:
                found.append(f"{player} was told that it is in {player.rooms}; its node says {rooms}")
        return found

    def _places(self, here: dict[str, set[str]]) -> list[str]:
        found = []
        for room in SMALLS:
            count = sum(room in rooms for rooms in here.values())
            if count <= SMALL:
                self._book.may_be_overfull.discard(room)
            elif room not in self._book.may_be_overfull:
                found.append(f"{room} has {count} members, and places for {SMALL}")
        return found

    def _users_differ(self, node: Node, picture: Picture, users: list[str]) -> list[str]:
        found = []
        for user in users:
            wanted = sum(one.is_open and one.connected_as == user for one in self._crowd.players)
            if picture["users"][user] != wanted:
                found.append(f"{node} says that {user} has {picture['users'][user]} connections instead of {wanted}")
        return found

    async def places_can_be_had(self) -> list[str]:
        """A small room with a free place can be joined, and no full one: no place is lost, none is there twice."""
        picture = await self._ground.nodes[0].ask("GET", "/picture?users=-")
        found = []
        for number, room in enumerate(SMALLS):
            node = self._ground.nodes[(self._markers + number) % len(self._ground.nodes)]
            visitor = Player("visitor", "visitor", "visitor", self._book, partial(_always, node))
            await visitor.come()
            answer = await visitor.join(room)
            await visitor.go()
            await visitor.end()
            is_full = picture["rooms"][room]["count"] >= SMALL
            wanted = "PERMISSION_ERROR" if is_full else {}
            if answer != wanted:
                found.append(
                    f"{room} has {picture['rooms'][room]['count']} of {SMALL} members; joining it gave {answer}"
                )
        return found

    async def begin_to_speak(self) -> dict[str, str]:
        """Say something new in every room, each time by another node; what."""
        self._markers += 1
        said = dict.fromkeys(ROOMS, f"marker-{self._markers}")
        node = self._ground.nodes[self._markers % len(self._ground.nodes)]
        for room, what in said.items():
            await node.ask("POST", f"/say/{room}/{what}")
        return said

    async def all_hear(self, said: dict[str, str]) -> list[str]:
        """Every member of a room has heard what was said there last."""
        return [
            f"{player} did not hear {what!r} in {room}"
            for player in self._crowd.players
            for room, what in said.items()
            if player.is_open and room in player.rooms and what not in player.heard[room]
        ]

    async def all_is_kept(self) -> list[str]:
        """What was acknowledged in a room with history stands there, once."""
        found = []
        for room in LOGS:
            messages = await self._ground.nodes[0].ask("GET", f"/history/{room}?limit=1000")
            kept = [message[0] for message in messages]
            found += self._book.forked(room, [Position(*position) for _, *position in messages])
            if len(set(kept)) < len(kept):
                found.append(f"{room} keeps something twice: {sorted(one for one in set(kept) if kept.count(one) > 1)}")
            if self._ground.mode == "single" and (lost := set(self._book.acknowledged[room]) - set(kept)):
                found.append(f"{room} lacks what was acknowledged: {sorted(lost)}")
            self._book.acknowledged[room].clear()
        return found


def _rooms_differ(node: Node, picture: Picture, here: dict[str, set[str]]) -> list[str]:
    found = []
    for room, told in picture["rooms"].items():
        wanted, members = {id for id, rooms in here.items() if room in rooms}, set(told["members"])
        if members != wanted:
            found.append(f"{node} lacks the members {wanted - members} of {room} and has {members - wanted} too many")
        if told["count"] != len(wanted):
            found.append(f"{node} counts {told['count']} members of {room} instead of {len(wanted)}")
    return found


async def _refusal(node: Node, user: str) -> int:
    """The code with which `user` is refused; 0 where that does not happen."""
    try:
        async with dial(node, user) as ws:
            async for data in ws:
                if '"__connect__"' in str(data):
                    return 0
    except InvalidHandshake:
        return 0
    except ConnectionClosed:
        pass
    return ws.close_code or 1006


def _always(node: Node, _: Random) -> Node:
    return node
