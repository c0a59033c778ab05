"""The kitchen, in a process of its own: says that an order is ready. Run it with `python worker.py 42`."""

import sys
from collections.abc import Callable

from socketspec.cluster import Publisher
from sqlalchemy.orm import Session

from app.events import ROOMS, OrderStatus, order_changed
from app.shared import Order, engine


def cook(id: int, tell: Callable[..., object]) -> None:
    """Cook an order. `tell` broadcasts an `order_changed`."""
    with Session(engine) as database:
        order = database.get_one(Order, id)
        order.state = "ready"
        database.commit()
        tell(OrderStatus.model_validate(order), id=id)


if __name__ == "__main__":
    with Publisher(rooms=ROOMS) as publisher:  # to the Redis of SOCKETSPEC_BACKEND, as the app
        cook(int(sys.argv[1]), publisher.event(order_changed).broadcast)
