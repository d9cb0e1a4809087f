"""The digest of a file that still grows."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

_PIECE_BYTES = 1 << 20


class GrowingDigest:
    """Finds the SHA-256 of a file in a thread of its own while its end is written; ends with :meth:`close`.

    Args:
        descriptor: of the file; it stays open until :meth:`close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._until = 0
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []

    def advance(self, until: int) -> None:
        """Take in the bytes up to ``until`` soon: they are written, and do not change any more."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        start, self._until = self._until, until
        self._under_way.append(self._thread.submit(self._take, start, until))

    def finish(self, until: int) -> str:
        """Take in what is left up to ``until`` and return the digest in hex.

        Raises:
            EOFError: the file is shorter.
            OSError: it can't be read.
        """
        for taken in self._under_way:
            taken.result()
        self._take(self._until, until)
        self._until = until
        return self._digest.hexdigest()

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
            self._digest.update(buffer[:count])
            start += count
