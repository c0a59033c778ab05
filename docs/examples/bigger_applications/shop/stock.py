"""What there is: only for the staff to say."""

from pydantic import BaseModel

from shop.access import staff
from socketspec import Connection, Depends, EventRouter


class Item(BaseModel):
    name: str
    left: int


router = EventRouter(prefix="stock.", tags=["stock"], dependencies=[Depends(staff)])
changed = router.event("stock_changed", Item, room="stock")
left: dict[str, int] = {"tea": 1}


@router.on("set")
async def set_stock(conn: Connection, item: Item) -> None:
    left[item.name] = item.left
    await changed.broadcast(item)
