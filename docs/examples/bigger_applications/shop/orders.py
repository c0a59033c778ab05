"""Orders: anybody's, but nobody needs more than two in a second."""

from typing import Any

from pydantic import BaseModel

from shop.stock import Item, changed, left
from socketspec import Connection, EventRouter, Room
from socketspec.errors import EventError


class Order(BaseModel):
    item: str


class SoldOut(EventError):
    """There is none left."""

    code = "SOLD_OUT"


router = EventRouter(
    prefix="orders.",
    tags=["orders"],
    rate_limit="2/s",
    timeout=5,
    errors=[SoldOut],
    rooms=[Room("stock", client_join=True)],
)
placed: list[str] = []


@router.on("place")
async def place(conn: Connection, order: Order) -> Item:
    if not left.get(order.item):
        raise SoldOut
    left[order.item] -= 1
    item = Item(name=order.item, left=left[order.item])
    await changed.broadcast(item)
    return item


@router.middleware
async def note(conn: Connection, event: str, payload: Any, next_handler: Any) -> Any:
    result = await next_handler(conn, event, payload)
    placed.append(payload.item)
    return result
