"""Reads a client's frames in turns, within deadlines and rates.

One turn has a bound, so that a client which sends much at once does not keep the others waiting. A message has a
deadline, so that one which never ends holds no memory for long; ping and pong frames have a rate.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from socketspec.adapters.handover import Receiver
from socketspec.adapters.uvicorn.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader

__all__ = ("FrameListener", "FramePump")

FRAMES_A_TURN: Final = 64
"""Frames of one connection that are handled before the event loop gets its turn."""
BYTES_A_TURN: Final = 262_144
"""Bytes of messages after which it gets its turn as well: compressed messages may be large."""

_MESSAGES: Final = frozenset({TEXT, BINARY})


class FrameListener(Protocol):
    """The connection of a pump: it has the limits, and is told of every frame that is no message."""

    assembly_timeout: float
    """Seconds a message may take from its first byte to its last."""
    max_control_frames: int
    """Ping and pong frames that a client may send in one second."""

    def control_received(self, kind: int, payload: bytes) -> None:
        """A frame of kind `PING` or `PONG` came."""
        ...

    def close_received(self, code: int, reason: str) -> None:
        """A close frame came; 1005 stands for one without a code. Nothing comes after it."""
        ...

    def rules_broken(self, code: int, reason: str) -> None:
        """The client did what it may not: the close code to answer with, and why."""
        ...


class FramePump:
    """Takes one connection's frames from its `FrameReader`: messages go to `receiver`, all else to the listener."""

    __slots__ = (
        "_control_frames",
        "_control_since",
        "_deadline",
        "_is_running",
        "_is_stopped",
        "_is_yielding",
        "_listener",
        "_loop",
        "_reader",
        "_transport",
        "is_held",
        "is_reading",
        "receiver",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        reader: FrameReader,
        listener: FrameListener,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._reader = reader
        self._listener: FrameListener | None = listener
        """None: it is stopped. Its connection refers to it, and two that refer to each other would stay in memory."""
        self.receiver: Receiver | None = None
        """Who gets the messages. None: nobody, and they are dropped."""
        self.is_held: bool = False
        """Whether no message is delivered until `go_on`."""
        self.is_reading: bool = True
        """Whether frames are handled as they come. Else they wait in the reader, and the transport reads no more."""
        self._is_running = False
        self._is_yielding = False
        """Whether the next turn is scheduled."""
        self._is_stopped = False
        self._control_frames = 0
        self._control_since = 0.0
        self._deadline: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Take one turn: handle the frames that are complete, and schedule the next turn if there may be more."""
        reader = self._reader
        take = reader.next
        size = 0
        self._is_running = True
        try:
            for _ in range(FRAMES_A_TURN):
                event = take()
                if event is None:
                    if self._deadline is None and reader.is_partial:
                        self._start_deadline()
                    return
                kind, value = event
                if kind in _MESSAGES:
                    if self._deadline is not None:
                        self._cancel_deadline()
                    if self.receiver is not None:
                        self.receiver.received(value)
                        if self.is_held or self._is_yielding or self._transport.is_closing():
                            return
                        size += len(value)
                        if size > BYTES_A_TURN:
                            break
                else:
                    self._take_other(kind, value)
                    if self._is_stopped:
                        return
            self.run_soon()
        finally:
            self._is_running = False

    def _take_other(self, kind: int, value: Any) -> None:
        """Handle what is no message: a ping, a pong, a close frame or a failure."""
        if self._deadline is not None and not self._reader.in_message:
            self._cancel_deadline()  # it was this frame's own
        if self._listener is None:
            return
        if kind in (PING, PONG):
            self._take_control(self._listener, kind, value)
        elif kind == CLOSE:
            self._listener.close_received(*value)
        else:
            self._listener.rules_broken(*value)

    def _take_control(self, listener: FrameListener, kind: int, payload: bytes) -> None:
        now = self._loop.time()
        if now - self._control_since >= 1.0:
            self._control_since, self._control_frames = now, 0
        self._control_frames += 1
        if self._control_frames > listener.max_control_frames:
            listener.rules_broken(1008, "too many ping and pong frames")
        else:
            listener.control_received(kind, payload)

    def run_soon(self) -> None:
        """Take the next turn when the event loop has had its own, and read nothing more before."""
        self._is_yielding = True
        self._update_reading()
        self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._is_yielding = False
        if not self._is_stopped and not self.is_held:
            self.run()
            self._update_reading()

    def _update_reading(self) -> None:
        wanted = not self.is_held and not self._is_yielding
        if wanted is not self.is_reading:
            self.is_reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                if self.is_held:
                    self._cancel_deadline()  # it is us who are slow
                self._transport.pause_reading()

    def hold(self) -> None:
        """Deliver no more messages until `go_on`."""
        self.is_held = True
        self._update_reading()

    def go_on(self) -> None:
        """End a `hold`."""
        if self.is_held:
            self.is_held = False
            if self._is_running:  # called by the receiver, within `received`: the turn goes on when that returns
                self._update_reading()
            elif not self._is_yielding:
                self._continue()

    def go_on_soon(self) -> None:
        """End a `hold`, but deliver nothing within this call."""
        if self.is_held:
            self.is_held = False
            if not self._is_yielding:
                self.run_soon()

    def deliver_while_held(self, message: str | bytes, receiver: Receiver) -> bool:
        """Deliver a message that was read earlier. Returns False where `receiver` called `hold`.

        The pump stays held: what comes after this message is not its turn yet.
        """
        self.is_held = False
        receiver.received(message)
        takes_more = not self.is_held
        self.is_held = True
        return takes_more

    def stop(self) -> None:
        """Handle no more frames."""
        self._is_stopped = True
        self.receiver = self._listener = None
        self._reader.forget()
        self._cancel_deadline()

    def discard(self) -> None:
        """Handle no more frames. What still comes is read and forgotten, so that the client goes on reading, too."""
        self.stop()
        self.is_held = self._is_yielding = False
        self._update_reading()

    def _start_deadline(self) -> None:
        if self._listener is not None:
            self._deadline = self._loop.call_later(self._listener.assembly_timeout, self._too_late)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._listener is not None:
            self._listener.rules_broken(1008, "a message took too long to arrive")
