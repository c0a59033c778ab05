"""The fast and hardened WebSocket server, as protocol classes for uvicorn."""

from socketspec.adapters.uvicorn.protocol import DeflateWebSocketProtocol, WebSocketProtocol

__all__ = ("DeflateWebSocketProtocol", "WebSocketProtocol")
