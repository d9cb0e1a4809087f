"""Frames over a connection of its own for one large blob.

gRPC takes bytes through buffers, flow control and threads of its own, which costs several times the processor time of a
plain connection, and lets half a megabyte travel at a time. So large blobs go over connections beside it, to another
port of the same node: one for each call of ``Fetch`` or ``Push``, with the messages that gRPC would carry. A frame is a
byte that says what it is, its length as an unsigned integer of four bytes, most significant first, and its content.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from copy import copy
from enum import IntEnum
from typing import cast

from runnel.common.errors import CorruptData, RunnelError, Unreachable

MAGIC = b"runnel-blob/1\n"
"""What a caller sends before its first frame."""

PING_S = 5.0
"""Who has sent nothing for so long says that it is there."""

SILENT_S = 20.0
"""Who was not heard for so long is gone, and so is who takes so long to give or to take one frame."""

SMALL_BYTES = 32 << 10
"""Frames of at most this size are kept until they are taken; a larger one holds up those behind it."""

_MOST_KEPT = 4
_HEADER = struct.Struct("!BI")


class Frame(IntEnum):
    """What a frame is."""

    CALL = 1  # from the caller, first: method and credential, as JSON
    MESSAGE = 2  # a message of the method, serialized
    END = 3  # from the caller: no more messages
    TURN = 4  # to the caller: the rest may come
    STATUS = 5  # to the caller, last: an error as JSON, or nothing
    PING = 6


_KINDS = {int(kind): kind for kind in Frame}


class BlobConnection(asyncio.BufferedProtocol):
    """One end of a connection.

    Args:
        peer: who is at the other end, for messages.
        most_bytes: of a frame; may be set again before the frame after ``CALL`` is read.
        greeted: whether the other end begins with :data:`MAGIC`.
        on_made: called with this object when the connection is there.
        on_lost: called with it when it is over.
        ping_s: as :data:`PING_S`.
        silent_s: as :data:`SILENT_S`.
    """

    def __init__(
        self,
        peer: str,
        *,
        most_bytes: int,
        greeted: bool = False,
        on_made: Callable[[BlobConnection], None] | None = None,
        on_lost: Callable[[BlobConnection], None] | None = None,
        ping_s: float = PING_S,
        silent_s: float = SILENT_S,
    ) -> None:
        self.peer = peer
        self.turn = asyncio.Event()
        self.most_bytes = most_bytes
        self._greeted = greeted
        self._on_made = on_made
        self._on_lost = on_lost
        self._ping_s = ping_s
        self._silent_s = silent_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._error: RunnelError | None = None
        self._head = bytearray(len(MAGIC) if greeted else _HEADER.size)
        self._into = memoryview(self._head)  # where the rest of the header or of the content goes
        self._kind: Frame | None = None  # whose content comes
        self._content = memoryview(b"")
        self._buffer = bytearray()
        self._ready: deque[tuple[Frame, bytes | memoryview]] = deque()
        self._lent = False  # the buffer is ready, or taken and not given back
        self._paused = False
        self._held_up = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._heard_at = self._sent_at = self._begun_at = self._held_up_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether a frame has come and was not taken."""
        return bool(self._ready)

    async def read(self) -> tuple[Frame, bytes | memoryview]:
        """Return the next frame. A ``memoryview`` is good until this is called again.

        Raises:
            Unreachable: the connection is lost, or the other end is silent.
            CorruptData: what came is none.
        """
        while not self._ready:
            self._lent = False
            if self._error is not None:
                raise copy(self._error)  # raised itself it would keep what those it went through hold
            self._resume()
            self._reader = self._loop.create_future()
            await self._reader
        return self._ready.popleft()

    async def write(self, kind: Frame, *parts: bytes | memoryview) -> None:
        """Send a frame with ``parts`` as its content; returns when the system has taken all of it.

        Raises:
            Unreachable, CorruptData: as :meth:`read`.
        """
        await self._writable()
        assert self._transport is not None
        self._sent_at = self._loop.time()
        self._transport.write(b"".join((_HEADER.pack(kind, sum(map(len, parts))), *parts[:-1])))
        if parts and parts[-1]:
            self._transport.write(parts[-1])
        # Who writes on without ever waiting keeps the event loop from everybody else, also from the news that the
        # connection is lost: what is written then goes nowhere.
        await (self._writable() if self._held_up else asyncio.sleep(0))

    async def _writable(self) -> None:
        while self._error is None and self._held_up:
            self._writer = self._loop.create_future()
            await self._writer
        if self._error is not None:
            raise copy(self._error)

    def greet(self) -> None:
        """Begin as a caller does."""
        assert self._transport is not None
        self._transport.write(MAGIC)

    def abort(self) -> None:
        """End the connection; what is under way is lost."""
        self._fail(Unreachable(f"The connection to {self.peer} for a blob was closed.", peer=self.peer))

    # ---- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - asyncio's
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=1)  # asyncio's TLS never lets one write again after 0
        # asyncio does so itself only where the listening socket names the protocol. Without it what follows a header
        # waits until the other end acknowledges that, which may take it 40 ms.
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = self._loop.call_later(self._ping_s, self._look)
        if self._on_made is not None:
            self._on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._timer is not None:
            self._timer.cancel()
        why = f": {exc}" if exc is not None else ""
        self._fail(Unreachable(f"The connection to {self.peer} for a blob was lost{why}.", peer=self.peer))
        if self._on_lost is not None:
            self._on_lost(self)

    def pause_writing(self) -> None:  # noqa: D102
        self._held_up = True
        self._held_up_at = self._loop.time()

    def resume_writing(self) -> None:  # noqa: D102
        self._held_up = False
        _wake(self._writer)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: D102
        return self._into

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        self._heard_at = self._loop.time()
        self._into = self._into[nbytes:]
        try:
            while not self._into:
                if self._greeted:
                    self._take_greeting()
                elif self._kind is None:
                    self._take_header()
                else:
                    self._take_content(self._kind)
        except CorruptData as error:
            self._fail(error)
            self._into = memoryview(self._head)

    # ----

    def _take_greeting(self) -> None:
        if bytes(self._head) != MAGIC:
            raise CorruptData(f"{self.peer} sent something else than calls for blobs.", peer=self.peer)
        self._greeted, self._head = False, bytearray(_HEADER.size)
        self._into = memoryview(self._head)

    def _take_header(self) -> None:
        number, length = _HEADER.unpack(self._head)
        self._kind = _KINDS.get(number)
        if self._kind is None or length > self.most_bytes:
            raise CorruptData(
                f"{self.peer} sent a frame of kind {number} and {length:,} bytes; those of at most "
                f"{self.most_bytes:,} and the kinds 1 to {len(Frame)} are understood.",
                peer=self.peer,
            )
        if length <= SMALL_BYTES:
            self._content = memoryview(bytearray(length))
        else:
            if len(self._buffer) < length:
                self._buffer = bytearray(length)
            self._content = memoryview(self._buffer)[:length]
        self._into = self._content
        self._begun_at = self._heard_at

    def _take_content(self, kind: Frame) -> None:
        content, self._content = self._content, memoryview(b"")
        self._kind, self._into = None, memoryview(self._head)
        if kind is Frame.PING:
            return
        self.turn.set()  # also by an answer: it tells what the turn would
        if kind is Frame.TURN:
            return
        if len(content) <= SMALL_BYTES:
            self._ready.append((kind, bytes(content)))
        else:
            self._lent = True
            self._ready.append((kind, content))
        if self._lent or kind is Frame.CALL or len(self._ready) >= _MOST_KEPT:
            self._pause()
        _wake(self._reader)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard_at = self._loop.time()
            self._transport.resume_reading()

    def _look(self) -> None:
        """See now and then whether the other end is there, and let it see the same."""
        now = self._loop.time()
        if what := self._too_long(now - self._silent_s):
            self._fail(Unreachable(f"{what} for {self._silent_s:.0f} s while a blob was moved.", peer=self.peer))
            return
        if not self._held_up and self._transport is not None and now - self._sent_at >= self._ping_s:
            self._sent_at = now
            self._transport.write(_HEADER.pack(Frame.PING, 0))
        self._timer = self._loop.call_later(self._ping_s, self._look)

    def _too_long(self, since: float) -> str:
        """Return what has gone on since then, if that is the end."""
        if not self._paused and self._heard_at < since:
            return f"{self.peer} was silent"
        if self._kind is not None and self._begun_at < since:
            return f"One frame of {self.peer} was under way"
        if self._held_up and self._held_up_at < since:
            return f"One frame for {self.peer} was under way"
        return ""

    def _fail(self, error: RunnelError) -> None:
        if self._error is None:
            self._error = error
            if self._transport is not None:
                self._transport.abort()
        self.turn.set()
        _wake(self._reader)
        _wake(self._writer)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
