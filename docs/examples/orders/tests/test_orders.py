"""What customers, couriers and support see of an order."""

import pytest
from socketspec.testing import EventFailed, SyncTestClient

from app.events import Note, OrderStatus, order_changed
from app.shared import socket
from tests.conftest import token
from worker import cook


def cooked(order: OrderStatus) -> None:
    """What the worker does, in this process."""
    cook(order.id, socket.sync.event(order_changed).broadcast)


def test_who_places_an_order_follows_it(client: SyncTestClient) -> None:
    with client.connect(token=token("ada")) as ada:
        placed = ada.request("orders.place", {"item": "soup"}, OrderStatus)
        assert (placed.item, placed.state) == ("soup", "placed")
        cooked(placed)
        assert ada.expect("order_changed", OrderStatus).state == "ready"


def test_others_neither_see_it_nor_follow_it(client: SyncTestClient) -> None:
    with client.connect(token=token("ada")) as ada, client.connect(token=token("eve")) as eve:
        order = {"id": ada.request("orders.place", {"item": "soup"}, OrderStatus).id}
        for event, code in (
            ("orders.follow", "NOT_FOUND"),
            ("orders.cancel", "NOT_FOUND"),
            ("couriers.take", "PERMISSION_ERROR"),
        ):
            with pytest.raises(EventFailed) as refused:
                eve.request(event, order)
            assert refused.value.code == code
        ada.request("orders.cancel", order)
        assert ada.expect("order_changed", OrderStatus).state == "cancelled"
        eve.assert_nothing()


def test_a_courier_takes_what_is_ready_and_all_hear_of_it(client: SyncTestClient) -> None:
    with (
        client.connect(token=token("ada")) as ada,
        client.connect(token=token("bob", "courier")) as bob,
        client.connect(token=token("sue", "support")) as sue,
    ):
        placed = ada.request("orders.place", {"item": "soup"}, OrderStatus)
        with pytest.raises(EventFailed) as refused:
            bob.request("couriers.take", {"id": placed.id})
        assert (refused.value.code, refused.value.details["state"]) == ("WRONG_STATE", "placed")
        cooked(placed)
        bob.request("couriers.take", {"id": placed.id})
        sue.request("support.say", {"id": placed.id, "text": "On its way!", "author": "ada"})
        assert [ada.expect("order_changed", OrderStatus).state for _ in range(2)] == ["ready", "on_its_way"]
        assert ada.expect("noted", Note).author == "sue"


def test_what_was_missed_comes_after_a_reconnect(client: SyncTestClient) -> None:
    with client.connect(token=token("ada"), format="json") as ada:
        placed = ada.request("orders.place", {"item": "soup"}, OrderStatus)
        ada.request("support.say", {"id": placed.id, "text": "No salt, please."})
        ada.expect("noted")
        ada.drop()
        cooked(placed)
        ada.reconnect()
        assert ada.expect("order_changed", OrderStatus).state == "ready"


def test_a_route_shows_the_same_order_to_the_same_people(client: SyncTestClient) -> None:
    with client.connect(token=token("ada")) as ada:
        placed = ada.request("orders.place", {"item": "soup"}, OrderStatus)
    for headers, status in (
        ({"authorization": f"Bearer {token('ada')}"}, 200),
        ({"authorization": f"Bearer {token('eve')}"}, 404),
        ({}, 401),
    ):
        assert client.http.get(f"/orders/{placed.id}", headers=headers).status_code == status
