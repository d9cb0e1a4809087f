"""Bringing a file to the disk while it still grows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

STEP_BYTES = 32 << 20


class EarlySync:
    """Brings what is appended to a file to the disk in a thread, so that little is left for the sync at its end.

    Not for two writers at once. A thread lives as long as one flush, and at most one does; nothing has to be closed.

    Args:
        path: of the file.
        step_bytes: how much has to be appended from one flush to the next.
        flush: of a descriptor; it blocks until the bytes are on the disk.
    """

    def __init__(
        self, path: Path, *, step_bytes: int = STEP_BYTES, flush: Callable[[int], None] = os.fdatasync
    ) -> None:
        self._path = path
        self._step_bytes = step_bytes
        self._flush = flush
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def appended(self, descriptor: int, nbytes: int) -> None:
        """Count what was appended, and begin to flush if it is enough and no flush is under way; it does not wait.

        Args:
            descriptor: of the file; it may be closed at any time.
            nbytes: how much was appended since the last call.
        """
        self._waiting_bytes += nbytes
        if self._waiting_bytes < self._step_bytes or (self._thread is not None and self._thread.is_alive()):
            return
        self._waiting_bytes = 0
        self._thread = threading.Thread(target=self._run, args=(os.dup(descriptor),), name="sync")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the flush under way, if there is one.

        Raises:
            OSError: a flush failed. The file is removed then: the system tells a failure once, so that a later sync of
                the same file would succeed, whatever is on the disk.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, descriptor: int) -> None:
        try:
            self._flush(descriptor)
        except OSError as error:
            self._error = error
            self._path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
