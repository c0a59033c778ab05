"""Closes a connection in such a way that the client gets to read what it was sent last."""

from __future__ import annotations

import asyncio

__all__ = ("half_close",)


def half_close(transport: asyncio.Transport) -> bool:
    """End our side only, where the transport can: to close at once, while bytes of the client are unread, would reset
    the connection and could lose what was written last.

    Returns whether the client's side is still open. Then what comes has to be read, and somebody has to abort in time.
    """
    if transport.is_closing() or not transport.can_write_eof():
        transport.close()
        return False
    try:
        transport.write_eof()
    except OSError:  # the client has reset the connection, and the event loop does not know yet
        transport.abort()
        return False
    return True
