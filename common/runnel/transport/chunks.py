"""Files as streams of chunks."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import ParamSpec, TypeVar

from runnel.common.blobs import Source, SpoolFile, in_thread
from runnel.common.errors import CorruptData

P = ParamSpec("P")
R = TypeVar("R")

CHUNK_BYTES = 512 << 10
"""Bytes of a full chunk: smaller ones cost more calls, larger ones more memory for each of many nodes at once."""

QUEUED_BYTES = 16 << 10
"""Bytes of the first chunk of a push of many: who receives holds it for each of those that wait for their turn."""

MAX_CHUNK_BYTES = 1 << 20
"""The most that is taken from others in one chunk."""

_SLOW_S = 0.05


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


async def read_chunks(
    source: Source, offset: int, size_bytes: int, *, first_bytes: int = CHUNK_BYTES
) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the bytes of ``source`` from ``offset`` up to ``size_bytes`` in chunks of at most 512 KiB.

    Args:
        source: what is read.
        offset: where to begin.
        size_bytes: where to end.
        first_bytes: the most of the first chunk.

    Raises:
        CorruptData: the file is shorter than ``size_bytes``.
    """
    most = first_bytes
    if isinstance(source, memoryview):
        while offset < size_bytes:
            yield source[offset : min(offset + most, size_bytes)]
            offset, most = offset + most, CHUNK_BYTES
        return
    hands = _Hands()
    handle = os.open(source, os.O_RDONLY)
    try:
        while offset < size_bytes:
            data = await hands.do(os.pread, handle, min(most, size_bytes - offset), offset)
            if not data:
                raise CorruptData(f"{source.name} ends at byte {offset:,} and should have {size_bytes:,}.")
            offset, most = offset + len(data), CHUNK_BYTES
            yield data
            del data  # not to hold it, for each of many that fetch, while the next one is read
    finally:
        os.close(handle)


async def receive_into(file: SpoolFile, chunks: AsyncGenerator[bytes | memoryview, None]) -> None:
    """Append what ``chunks`` yields, from ``file.held`` on. The file is closed in any case, and may be continued.

    Raises:
        CorruptData, StorageFull: as :meth:`SpoolFile.write`.
    """
    hands = _Hands()
    try:
        async with aclosing(chunks):
            if file.held:  # the first write reads again what is here, for its digest
                await _Hands(quick=False).do(file.write, file.held, await anext(chunks, b""))
            async for data in chunks:
                await hands.do(file.write, file.held, data)
                del data  # not to hold it, for each of many that push, until the next one comes
    finally:
        file.close()
