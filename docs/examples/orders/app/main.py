from fastapi import FastAPI
from socketspec.adapters.fastapi import mount

from app import couriers, orders, support
from app.shared import Base, engine, socket

Base.metadata.create_all(engine)
app = FastAPI(title="Orders")
app.include_router(orders.routes)
for router in (orders.router, couriers.router, support.router):
    socket.include_router(router)
mount(socket, app, path="/ws")
