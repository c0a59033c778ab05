"""The fast and hardened WebSocket server, as protocol classes for uvicorn."""

from socketspec.extras import install

try:
    import uvicorn
    import websockets
except ImportError as _error:
    raise ImportError(f"SocketSpec's server needs {_error.name}: {install('fastapi')}") from _error

from socketspec.adapters.uvicorn.protocol import DeflateWebSocketProtocol, WebSocketProtocol

__all__ = ("DeflateWebSocketProtocol", "WebSocketProtocol")

del uvicorn, websockets  # only asked whether they are there
