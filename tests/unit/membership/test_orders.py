"""Orders between nodes: whom they find, how many are closed at once, and what is remembered of them."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import cast

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.membership.directory import Directory
from socketspec.protocol.handshake import Handshake, QueryParams
from socketspec.protocol.orders import revoke_order
from socketspec.testing import ConnectionClosed, TestClient
from tests.carriers import Carrier, opened
from tests.engines import running
from tests.identities import ByName


async def test_a_users_connections_come_and_go_and_an_order_finds_those_that_are_left() -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        for left in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2], []):
            conns = [await client.connect(query_params={"user": "ada"}) for _ in range(3)]
            other = await client.connect(query_params={"user": "bob"})
            for index in left:
                await conns[index].close()
            assert await app.users.disconnect("ada", reason="out", code=4444) == 3 - len(left)
            for index, conn in enumerate(conns):
                if index not in left:
                    with pytest.raises(ConnectionClosed) as closed:
                        await conn.receive()
                    assert (closed.value.code, closed.value.reason) == (4444, "out")
                    await conn.close()
            assert other.connection.is_open
            await other.close()


async def test_an_order_to_close_very_many_lets_the_loop_turn_between_a_few_hundred() -> None:
    app = SocketApp(auth=ByName())
    async with app.lifespan():
        carriers = [Carrier() for _ in range(600)]
        for carrier in carriers:
            await opened(app, carrier, Handshake(query_params=QueryParams([("user", "ada")])))
        await app.users.disconnect("ada")
        closed = [sum(carrier.closed is not None for carrier in carriers)]
        for _ in range(20):
            await asyncio.sleep(0)
            closed.append(sum(carrier.closed == (4000, "disconnected") for carrier in carriers))
        assert closed[0] <= 256
        assert max(after - before for before, after in pairwise(closed)) <= 256
        assert closed[-1] == 600


async def test_a_revocation_closes_each_kind_with_its_reason() -> None:
    class WithClaims:
        async def authenticate(self, handshake: Handshake) -> Identity:
            return Identity(user_id="ada", claims={"jti": "token-1", "sid": "s" * 16})

    app = SocketApp(auth=WithClaims())
    async with TestClient(app) as client:
        for what in ({"user": "ada"}, {"token_id": "token-1"}, {"token_id": "s" * 16}, {"session": "s" * 16}):
            conn = await client.connect()
            await app.sessions.revoke(**what, ttl=0.000001, reason="stolen")
            with pytest.raises(ConnectionClosed) as closed:
                await conn.receive()
            assert (closed.value.code, closed.value.reason) == (4005, "stolen")
            await conn.close()


class Listed:
    """What a directory lists."""


def test_a_directory_lists_each_under_its_subjects_and_nothing_for_who_has_gone() -> None:
    directory, listed = Directory(), [cast("Connection", Listed()) for _ in range(3)]
    for conn in listed:
        directory.set_subjects(conn, ("all", str(listed.index(conn))))
    assert (directory.find("all"), directory.find("1"), directory.find("9")) == (listed, [listed[1]], [])
    directory.set_subjects(listed[0], ("other",))
    assert (directory.find("all"), directory.find("0"), directory.find("other")) == (listed[1:], [], [listed[0]])
    for conn in listed:
        directory.drop_subjects(conn)
        directory.drop_subjects(conn)
    assert [directory.find(subject) for subject in ("all", "0", "1", "2", "other")] == [[]] * 5


async def test_a_subject_that_is_revoked_again_is_remembered_as_the_newest() -> None:
    app = SocketApp()
    async with TestClient(app):
        orders = (await running(app)).orders
        orders.receive([revoke_order(["a"], "x")])
        orders.receive([revoke_order([str(number) for number in range(9_999)], "x")])
        orders.receive([revoke_order(["a"], "x"), revoke_order(["one more"], "x")])
        assert orders.has_revoked(["a"], since=0.0)
        assert not orders.has_revoked(["0"], since=0.0), "the oldest is forgotten"
        assert orders.has_revoked(["1"], since=0.0)
