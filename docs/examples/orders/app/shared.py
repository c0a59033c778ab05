import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, HTTPException
from socketspec import Identity, SocketApp
from socketspec.adapters.fastapi import CurrentIdentity
from socketspec.security.auth import JWTAuth
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.events import ROOMS, noted, order_changed

socket = SocketApp(
    auth=JWTAuth(secret=os.environ["JWT_SECRET"], algorithm="HS256"),
    rooms=ROOMS,
    events=[order_changed, noted],
)
engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///orders.db"))


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str | None]
    courier: Mapped[str | None]
    item: Mapped[str]
    state: Mapped[str] = mapped_column(default="placed")


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


Database = Annotated[Session, Depends(get_session)]
Caller = Annotated[Identity, Depends(CurrentIdentity(socket))]


def find_order(id: int, caller: Caller, database: Database) -> Order:
    order = database.get(Order, id)
    if order is None or (caller.user_id not in (order.owner, order.courier) and caller.role != "support"):
        raise HTTPException(404, "There is no such order of yours.")
    return order
