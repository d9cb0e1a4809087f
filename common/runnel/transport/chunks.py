"""Files as streams of chunks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from runnel.common.blobs import SpoolFile, to_its_end
from runnel.common.errors import CorruptData

CHUNK_BYTES = 256 << 10
"""Bytes of a full chunk: smaller ones cost more calls, larger ones more memory for each of many nodes at once."""

MAX_CHUNK_BYTES = 1 << 20
"""The most that is taken from others in one chunk."""

_INLINE_BYTES = 64 << 10
"""Up to here, reading from or writing to the page cache is cheaper than the hop to a thread and back."""


async def read_chunks(path: Path, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of ``path`` from ``offset`` up to ``size_bytes`` in chunks of at most 256 KiB.

    The next chunk is read while the one before it is used.

    Raises:
        CorruptData: the file is shorter than ``size_bytes``.
    """
    inline = size_bytes - offset <= _INLINE_BYTES
    ahead: asyncio.Task[bytes] | None = None
    handle = os.open(path, os.O_RDONLY)
    try:
        while offset < size_bytes:
            if inline:
                data = os.pread(handle, size_bytes - offset, offset)
            else:
                ahead = ahead or _reading(handle, offset, size_bytes)
                await asyncio.wait((ahead,))
                data = ahead.result()
            if not data:
                raise CorruptData(f"{path.name} ends at byte {offset:,} and should have {size_bytes:,}.")
            offset += len(data)
            ahead = None if inline or offset == size_bytes else _reading(handle, offset, size_bytes)
            yield data
    finally:
        try:
            await _ended(ahead)
        finally:
            os.close(handle)


async def receive_into(file: SpoolFile, chunks: AsyncGenerator[bytes, None]) -> None:
    """Append what ``chunks`` yields, from ``file.held`` on. The file is closed in any case, and may be continued.

    The next chunk comes while the one before it is written and digested.

    Raises:
        CorruptData, StorageFull: as :meth:`SpoolFile.write`.
    """
    writing: asyncio.Task[None] | None = None
    try:
        async with aclosing(chunks):
            async for data in chunks:
                if writing is not None:
                    await asyncio.wait((writing,))
                    writing.result()
                if len(data) <= _INLINE_BYTES and file.held == 0:
                    file.write(0, data)
                else:
                    writing = asyncio.create_task(asyncio.to_thread(file.write, file.held, data))
                del data  # not to hold it, for each of many that push, until the next one comes
    finally:
        try:
            await _ended(writing)
        finally:
            file.close()
    if writing is not None:
        writing.result()


def _reading(handle: int, offset: int, size_bytes: int) -> asyncio.Task[bytes]:
    return asyncio.create_task(asyncio.to_thread(os.pread, handle, min(CHUNK_BYTES, size_bytes - offset), offset))


async def _ended(task: asyncio.Task[Any] | None) -> None:
    """Wait until a task that uses a file has ended, well or not: a thread can't be cancelled."""
    if task is not None:
        await to_its_end(asyncio.wait((task,)))
        if not task.cancelled():
            task.exception()  # seen: whoever waits for the task raises it
