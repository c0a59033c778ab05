"""The application: puts its parts together, and knows nothing of what they do."""

from fastapi import FastAPI

from shop import orders, stock
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth

socket = SocketApp(docs=True, auth=JWTAuth(secret="change me, I am 32 characters long"))
socket.include_router(orders.router)
socket.include_router(stock.router)

app = FastAPI()
mount(socket, app)
