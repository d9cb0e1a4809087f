"""A TCP proxy that can be told to misbehave, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType


class Fault(Enum):
    """What happens to the bytes."""

    NONE = "none"
    HOLE = "hole"  # nothing gets through and nothing is closed: a cable is out
    RESET = "reset"  # connections are reset, new ones too
    SLOW = "slow"  # each piece is late by a quarter of a second
    LOSS = "loss"  # of each two pieces one is lost: it comes when it was sent again, and what is behind it waits
    TRICKLE = "trickle"  # a few bytes at a time
    BYTE = "byte"  # one byte per second
    NO_SERVER = "no-server"  # half-open: the server has lost its end of each connection, who connected is not told
    NO_CALLER = "no-caller"  # half-open: who connected is gone, the server is not told
    HOLE_UP = "hole-up"  # nothing of who connected gets through, all of the server does
    HOLE_DOWN = "hole-down"  # nothing of the server gets through


ONE_WAY = [Fault.HOLE_UP, Fault.HOLE_DOWN]
FAULTS = [fault for fault in Fault if fault not in {Fault.NONE, *ONE_WAY}]


class Way(Enum):
    """A direction of the bytes."""

    UP = "up"  # from who connected
    DOWN = "down"


# Half-open connections: the bytes from which end come no more. New connections are good.
LOST = {Fault.NO_SERVER: Way.DOWN, Fault.NO_CALLER: Way.UP}
HOLES = {Way.UP: {Fault.HOLE, Fault.HOLE_UP}, Way.DOWN: {Fault.HOLE, Fault.HOLE_DOWN}}
PIECE_BYTES = {Fault.TRICKLE: 64, Fault.BYTE: 1}
PAUSE_S = {Fault.TRICKLE: 0.01, Fault.BYTE: 1.0}
RETRANSMISSION_S = 0.2
# What has been counted and is lost when a connection is reset: of a receiver that is slow, else up to 4 MB wait here.
SEND_BYTES = 128 << 10


class Connection:
    """Two ends by the way of the bytes that come from them; ``lost``: one of them, which the other is not told."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.ends = {Way.UP: near, Way.DOWN: far}
        self.lost: Way | None = None

    def lose(self, end: Way) -> None:
        self.lost = end
        _reset(self.ends[end])


class FaultyProxy:
    """Forwards ``address`` to ``target``; a context manager.

    Args:
        target: HOST:PORT; may be set later and may change.
        on_moved: called, in the thread of the proxy, when bytes have gone this way.
    """

    def __init__(self, target: str = "", *, on_moved: Callable[[Way], object] = lambda _: None) -> None:
        self.target = target
        self.fault = Fault.NONE
        self.address = ""
        self.moved = dict.fromkeys(Way, 0)  # bytes so far
        self.cuts = 0  # how many cuts that were asked for have happened
        self._cut_at: dict[Way, tuple[int, Way | None]] = {}
        self._on_moved = on_moved
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faulty proxy", daemon=True)
        self._ready = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._connections: set[Connection] = set()
        self._random = random.Random(0)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def inflict(self, fault: Fault) -> None:
        """Misbehave so from now on; a reset also hits the connections that are open, half-open only these."""
        self.fault = fault
        if fault is Fault.RESET:
            self.reset()
        elif fault in LOST:
            self._loop.call_soon_threadsafe(self._lose_all, LOST[fault])

    def reset(self) -> None:
        """Reset the connections that are open."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def cut_after(self, way: Way, size: int, lost: Way | None = None) -> None:
        """Reset all connections once when so many more bytes have gone this way; new ones are good again.

        ``lost``: only this end of each, and the other one is not told.
        """
        self._cut_at[way] = self.moved[way] + size, lost

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        self._stop = stopped.set
        tasks: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        self._ready.set()
        await stopped.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is Fault.RESET:
            _reset(writer)
            return
        host, _, port = self.target.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        for each in (writer, up_writer):
            each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        connection = Connection(writer, up_writer)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, up_writer, Way.UP, connection))
                group.create_task(self._pipe(up_reader, writer, Way.DOWN, connection))
        except* (OSError, EOFError):
            pass  # one side is gone; so is the other, below
        finally:
            self._connections.discard(connection)
            for each in (writer, up_writer):
                with contextlib.suppress(RuntimeError, OSError):
                    each.close()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, connection: Connection
    ) -> None:
        with contextlib.suppress(OSError):  # of an end that is gone, as below
            while data := await reader.read(65536):
                if connection.lost is None:
                    self.moved[way] += len(data)
                self._on_moved(way)
                if self.moved[way] >= self._cut_at.get(way, (sys.maxsize, None))[0]:
                    self._cut(self._cut_at.pop(way)[1])
                try:
                    await self._forward(data, writer, way, connection)
                except OSError:
                    if connection.lost is None:
                        raise
        if connection.lost is way:
            await asyncio.Event().wait()  # until the other end gives up by itself
        raise EOFError

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, way: Way, connection: Connection) -> None:
        """Write as the fault of the moment lets it through."""
        if self.fault is Fault.SLOW:
            await asyncio.sleep(0.25)
        wait_s = RETRANSMISSION_S
        while self.fault is Fault.LOSS and self._random.random() < 0.5:
            await asyncio.sleep(wait_s)
            wait_s *= 2
        while data and connection.lost is None:
            while self.fault in HOLES[way]:  # noqa: ASYNC110 - a fault ends when the test says so
                await asyncio.sleep(0.05)
            fault = self.fault
            size = PIECE_BYTES.get(fault, len(data))
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]
            await asyncio.sleep(PAUSE_S.get(fault, 0))

    def _cut(self, lost: Way | None) -> None:
        self.cuts += 1
        if lost is None:
            self._reset_all()
        else:
            self._lose_all(lost)

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            for each in connection.ends.values():
                _reset(each)

    def _lose_all(self, end: Way) -> None:
        for connection in list(self._connections):
            connection.lose(end)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset."""
    with contextlib.suppress(OSError, RuntimeError):
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
