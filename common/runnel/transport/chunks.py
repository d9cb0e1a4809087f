"""Files as streams of chunks."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from runnel.common.blobs import SpoolFile, in_thread
from runnel.common.errors import CorruptData

CHUNK_BYTES = 512 << 10
"""Bytes of a full chunk: larger ones are slower in Python, smaller ones cost more calls."""

MAX_CHUNK_BYTES = 1 << 20
"""The most that is taken from others in one chunk."""

_INLINE_BYTES = 64 << 10
"""Up to here, reading from or writing to the page cache is cheaper than the hop to a thread and back."""


async def read_chunks(path: Path, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of ``path`` from ``offset`` up to ``size_bytes`` in chunks of at most 512 KiB.

    Raises:
        CorruptData: the file is shorter than ``size_bytes``.
    """
    inline = size_bytes - offset <= _INLINE_BYTES
    handle = os.open(path, os.O_RDONLY)
    try:
        while offset < size_bytes:
            want = min(CHUNK_BYTES, size_bytes - offset)
            data = os.pread(handle, want, offset) if inline else await in_thread(os.pread, handle, want, offset)
            if not data:
                raise CorruptData(f"{path.name} ends at byte {offset:,} and should have {size_bytes:,}.")
            offset += len(data)
            yield data
    finally:
        os.close(handle)


async def write_chunk(file: SpoolFile, offset: int, data: bytes) -> None:
    """Append one chunk to ``file``, off the loop if it is large.

    Raises:
        CorruptData, StorageFull: as :meth:`SpoolFile.write`.
    """
    if len(data) <= _INLINE_BYTES and offset == 0:
        file.write(offset, data)
    else:
        await in_thread(file.write, offset, data)


async def receive_into(file: SpoolFile, chunks: AsyncIterator[bytes]) -> None:
    """Append what ``chunks`` yields, from ``file.held`` on. The file is closed in any case, and may be continued.

    Raises:
        CorruptData, StorageFull: as :meth:`SpoolFile.write`.
    """
    try:
        async for data in chunks:
            await write_chunk(file, file.held, data)
    finally:
        file.close()
