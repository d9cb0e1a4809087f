"""A TCP proxy that can be told to misbehave, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
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
    TRICKLE = "trickle"  # a few bytes at a time


class Way(Enum):
    """A direction of the bytes."""

    UP = "up"  # from who connected
    DOWN = "down"


class FaultyProxy:
    """Forwards ``address`` to ``target``; a context manager.

    Args:
        target: HOST:PORT; may be set later and may change.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.fault = Fault.NONE
        self.address = ""
        self.moved = dict.fromkeys(Way, 0)  # bytes so far
        self.cuts = 0  # how many cuts that were asked for have happened
        self._cut_at: dict[Way, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faulty proxy", daemon=True)
        self._ready = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._writers: set[asyncio.StreamWriter] = set()

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
        """Misbehave so from now on; :attr:`Fault.RESET` also hits the connections that are open."""
        self.fault = fault
        if fault is Fault.RESET:
            self._loop.call_soon_threadsafe(self._reset_all)

    def cut_after(self, way: Way, size: int) -> None:
        """Reset all connections once when so many more bytes have gone this way; new ones are good again."""
        self._cut_at[way] = self.moved[way] + size

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
        self._writers |= {writer, up_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, up_writer, Way.UP))
                group.create_task(self._pipe(up_reader, writer, Way.DOWN))
        except* (OSError, EOFError):
            pass  # one side is gone; so is the other, below
        finally:
            self._writers -= {writer, up_writer}
            for each in (writer, up_writer):
                with contextlib.suppress(RuntimeError, OSError):
                    each.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        while data := await reader.read(65536):
            self.moved[way] += len(data)
            if self.moved[way] >= self._cut_at.get(way, sys.maxsize):
                del self._cut_at[way]
                self.cuts += 1
                self._reset_all()
            while self.fault is Fault.HOLE:  # noqa: ASYNC110 - a fault ends when the test says so
                await asyncio.sleep(0.05)
            if self.fault is Fault.SLOW:
                await asyncio.sleep(0.25)
            size = 64 if self.fault is Fault.TRICKLE else len(data)
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await writer.drain()
                if self.fault is Fault.TRICKLE:
                    await asyncio.sleep(0.01)
        raise EOFError

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset."""
    with contextlib.suppress(OSError, RuntimeError):
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
