from fastapi import APIRouter
from pydantic import BaseModel, Field
from socketspec import Connection, EventRouter
from socketspec.errors import EventError

from app.events import OrderStatus, Which, order_changed
from app.shared import Caller, Database, Order, find_order, socket

router = EventRouter(prefix="orders.", tags=["orders"])
routes = APIRouter(prefix="/orders", tags=["orders"])


class NewOrder(BaseModel):
    item: str = Field(min_length=1, max_length=80)


class WrongState(EventError):
    code = "WRONG_STATE"
    message = "The order is too far for that, or not far enough."
    details: OrderStatus


@router.room_guard("orders:{id}")
def may_follow(conn: Connection, id: int, caller: Caller, database: Database) -> bool:
    return bool(find_order(id, caller, database))


@router.on("place", rate_limit="2/s")
def place(conn: Connection, new: NewOrder, caller: Caller, database: Database) -> OrderStatus:
    """Place an order, and follow it from now on."""
    order = Order(owner=caller.user_id, item=new.item)
    database.add(order)
    database.commit()
    socket.sync.rooms.join(conn, f"orders:{order.id}")
    return OrderStatus.model_validate(order)


@router.on("follow")
async def follow(conn: Connection, which: Which) -> None:
    """Hear of an order's changes."""
    await socket.rooms.join(conn, f"orders:{which.id}")


@router.on("cancel", errors=[WrongState], broadcasts=[order_changed])
def cancel(conn: Connection, which: Which, caller: Caller, database: Database) -> None:
    """Cancel an order that nobody has begun with."""
    order = find_order(which.id, caller, database)
    if order.state != "placed":
        raise WrongState(details=order)
    order.state = "cancelled"
    database.commit()
    socket.sync.event(order_changed).broadcast(OrderStatus.model_validate(order), id=order.id)


@routes.get("/{id}")
def read(id: int, caller: Caller, database: Database) -> OrderStatus:
    return OrderStatus.model_validate(find_order(id, caller, database))
