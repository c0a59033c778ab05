from fastapi import Depends, HTTPException
from socketspec import Connection, EventRouter

from app.events import OrderStatus, Which, order_changed
from app.orders import WrongState
from app.shared import Caller, Database, Order, socket


def couriers_only(caller: Caller) -> None:
    if caller.role != "courier":
        raise HTTPException(403, "For couriers only.")


router = EventRouter(prefix="couriers.", tags=["couriers"], dependencies=[Depends(couriers_only)])


@router.on("take", timeout=5, errors=[WrongState], broadcasts=[order_changed])
def take(conn: Connection, which: Which, caller: Caller, database: Database) -> None:
    """Take an order that is ready, and follow it."""
    order = database.get_one(Order, which.id, with_for_update=True)
    if order.state != "ready":
        raise WrongState(details=order)
    order.state, order.courier = "on_its_way", caller.user_id
    database.commit()
    socket.sync.rooms.join(conn, f"orders:{order.id}")
    socket.sync.event(order_changed).broadcast(OrderStatus.model_validate(order), id=order.id)
