"""Files as streams of chunks."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing, nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar

from runnel.common.blobs import Relay, RelayedBlob, Source, SpoolFile, in_thread
from runnel.common.errors import CorruptData

P = ParamSpec("P")
R = TypeVar("R")

CHUNK_BYTES = 512 << 10
"""Bytes of a full chunk: smaller ones cost more calls, larger ones more memory for each of many nodes at once."""

MAX_CHUNK_BYTES = 1 << 20
"""The most of a chunk, where they go so fast that few nodes can be at it: each byte costs about a sixth less."""

QUEUED_BYTES = 16 << 10
"""Bytes of the first chunk of a push of many: who receives holds it for each of those that wait for their turn."""

_FAST_BYTES_PER_S = 100e6
_SLOW_S = 0.05


class _Sizes:
    """How many bytes the next chunk has: twice as many while chunks go fast, half as many when one did not.

    Args:
        first_bytes: of the first one.
        clock: seconds.
    """

    def __init__(self, first_bytes: int, clock: Callable[[], float]) -> None:
        self.most = first_bytes
        self._clock = clock
        self._full = CHUNK_BYTES
        self._began = 0.0

    def begin(self) -> None:
        """A chunk is given away."""
        self._began = self._clock()

    def end(self, size: int) -> None:
        """It has gone."""
        if size >= CHUNK_BYTES:
            fast = size >= _FAST_BYTES_PER_S * (self._clock() - self._began)
            self._full = min(2 * self._full, MAX_CHUNK_BYTES) if fast else max(self._full // 2, CHUNK_BYTES)
        self.most = self._full


class _Hands:
    """Reads and writes a file a chunk at a time, here or in a thread.

    The page cache takes or gives a chunk in a fifth of a millisecond; a hop to a thread and back costs more than that,
    and several times as much when both contend for the interpreter. So the event loop does it itself until a chunk
    took long, which means that a disk is waited for: what comes then goes to threads.
    """

    def __init__(self, *, quick: bool = True) -> None:
        self._quick = quick

    async def do(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._quick:
            return await in_thread(function, *args, **kwargs)
        began = time.perf_counter()
        result = function(*args, **kwargs)
        self._quick = time.perf_counter() - began < _SLOW_S
        return result


class _WholeFile:
    """What is read of a file, as of a blob that is still fetched."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.handle = os.open(path, os.O_RDONLY)
        self._size_bytes = size_bytes

    async def reached(self, _: int) -> int:
        return self._size_bytes

    def close(self) -> None:
        os.close(self.handle)


async def read_chunks(
    source: Source | RelayedBlob,
    offset: int,
    size_bytes: int,
    *,
    first_bytes: int = CHUNK_BYTES,
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the bytes of ``source`` from ``offset`` up to ``size_bytes`` in chunks: 512 KiB, or 1 MiB if they go fast.

    Args:
        source: what is read; of a blob that is still fetched what is here, and then what comes.
        offset: where to begin.
        size_bytes: where to end.
        first_bytes: the most of the first chunk.
        clock: seconds.

    Raises:
        CorruptData: the file is shorter than ``size_bytes``.
        RunnelError: as :meth:`RelayedBlob.reached`.
    """
    sizes = _Sizes(first_bytes, clock)
    if isinstance(source, memoryview):
        while offset < size_bytes:
            size = min(sizes.most, size_bytes - offset)
            sizes.begin()
            yield source[offset : offset + size]
            sizes.end(size)
            offset += size
        return
    hands = _Hands()
    with nullcontext(source) if isinstance(source, RelayedBlob) else closing(_WholeFile(source, size_bytes)) as file:
        while offset < size_bytes:
            end = await file.reached(offset)
            data = await hands.do(os.pread, file.handle, min(sizes.most, end - offset), offset)
            if not data:
                raise CorruptData(f"The file of a blob ends at byte {offset:,} and should have {size_bytes:,}.")
            size = len(data)
            sizes.begin()
            yield data
            del data  # not to hold it, for each of many that fetch, while the next one is read
            sizes.end(size)
            offset += size


async def receive_into(
    file: SpoolFile, chunks: AsyncGenerator[bytes | memoryview, None], relay: Relay | None = None
) -> None:
    """Append what ``chunks`` yields, from ``file.held`` on. The file is closed in any case, and may be continued.

    Args:
        file: where to.
        chunks: what comes.
        relay: to those who read it meanwhile.

    Raises:
        CorruptData, StorageFull, IllegalState: as :meth:`SpoolFile.write`.
    """
    hands = _Hands()
    try:
        async with aclosing(chunks):
            if file.held:  # the first write reads again what is here, for its digest
                await _Hands(quick=False).do(file.write, file.held, await anext(chunks, b""))
            async for data in chunks:
                await hands.do(file.write, file.held, data)
                if relay is not None:
                    relay.grow(file.partial, file.held)
                del data  # not to hold it, for each of many that push, until the next one comes
    finally:
        file.close()
