"""The digest of a file that still grows."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

from blake3 import blake3

from runnel.common.protocol import BlobRef

_PIECE_BYTES = 1 << 20


class GrowingDigest:
    """Finds SHA-256 and BLAKE3 of a file in a thread of its own while its end is written; ends with :meth:`close`.

    Args:
        descriptor: of the file; it stays open until :meth:`close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sha256, self._blake3 = hashlib.sha256(), blake3()
        self._until = 0
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []

    def advance(self, until: int) -> None:
        """Take in the bytes up to ``until`` soon: they are written, and do not change any more."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        start, self._until = self._until, until
        self._under_way.append(self._thread.submit(self._take, start, until))

    def finish(self, until: int) -> BlobRef:
        """Take in what is left up to ``until`` and return both digests.

        Raises:
            EOFError: the file is shorter.
            OSError: it can't be read.
        """
        for taken in self._under_way:
            taken.result()
        self._take(self._until, until)
        self._until = until
        return BlobRef(sha256=self._sha256.hexdigest(), blake3=self._blake3.hexdigest(), size_bytes=until)

    def close(self) -> None:
        """End the thread; idempotent."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _take(self, start: int, until: int) -> None:
        buffer = memoryview(bytearray(min(_PIECE_BYTES, until - start)))
        while start < until:
            count = os.preadv(self._descriptor, [buffer[: until - start]], start)
            if count == 0:
                raise EOFError(f"The file has no {until - start} bytes at {start}.")
            self._sha256.update(buffer[:count])
            self._blake3.update(buffer[:count])
            start += count
